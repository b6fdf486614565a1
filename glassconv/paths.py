"""Which irreps a convolution couples, and where each block begins in its flat tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from numbers import Integral
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from glassconv.reference.spherical_harmonics import L_MAX

if TYPE_CHECKING:
    from e3nn.o3 import Irrep, Irreps


class PathEntry(NamedTuple):
    """One path: its degrees, its number of channels, and where its blocks begin in each flat axis."""

    l_in: int
    l_sh: int
    l_out: int
    mul: int
    in_offset: int
    sh_offset: int
    weight_offset: int
    out_offset: int


class Paths:
    """The paths (input block, harmonic degree, output irrep) of a convolution, and the layout of its tensors.

    ```python
    paths = Paths("8x0e+8x1o", "0e+1o", "0e+1o+2e")  # or Paths("8x0e+8x1o", 1, "0e+1o+2e"), 1 being l_max
    paths.irreps_out                                 # 8x0e+8x0e+8x1o+8x1o+8x2e: one block per path
    ```

    A path couples the C channels of one input block, channel by channel (e3nn's "uvu"), with one harmonic
    block to one output irrep, and owns one output block `C x l_out`. Output blocks stand in e3nn's order of
    irreps (0o < 0e < 1o < 1e < ...), those of equal irrep in the order of input block, then harmonic block.
    Weights are flattened as (path, channel), the paths in the order of the output blocks unless
    `instructions` are given.

    Args:
        irreps_in: irreps of the node features, l <= 4, any multiplicities, e.g. `"8x0e+8x1o"`.
        irreps_sh: irreps of the harmonics, each of multiplicity 1, any parities, or an int l_max, which
        stands for
            `0e+1o+2e+...` up to that degree.
        irreps_out: filter: the output irreps that are kept; multiplicities and order are ignored. None
        keeps all. instructions: the paths themselves, in the order in which their weights are flattened.
        Either triples
            `(i_in, i_sh, irrep_out)`, with `irreps_out` left out: the output blocks are then sorted as
            above, ties in the order given. Or e3nn's form `(i_in, i_sh, i_out[, "uvu"[, True[, 1.0]]])`
            with `irreps_out` the list of output blocks, in any order, each owned by exactly one path.

    Raises:
        ValueError: a degree above 4, a harmonic with multiplicity other than 1, no path, or an impossible
            instruction.

    Immutable and hashable; two are equal when all their tensors have the same layout.

    Source: conventions of e3nn 0.6 (`o3.TensorProduct`, `Irreps.sort`).

    """

    __slots__ = (
        "dim_in",
        "dim_out",
        "dim_sh",
        "entries",
        "instructions",
        "irreps_in",
        "irreps_out",
        "irreps_sh",
        "l_sh_max",
        "spec",
        "weight_numel",
    )

    irreps_in: Irreps
    irreps_sh: Irreps
    irreps_out: Irreps  # one block per path
    entries: tuple[PathEntry, ...]  # in the order of the weights
    instructions: tuple[tuple[int, int, int, str, bool], ...]  # the same, as o3.TensorProduct takes them
    spec: tuple[int, ...]  # for the operator: dim_in, dim_sh, dim_out, weight_numel, then each entry
    dim_in: int
    dim_sh: int
    dim_out: int
    weight_numel: int
    l_sh_max: int

    def __init__(
        self,
        irreps_in: str | Irreps,
        irreps_sh: str | Irreps | int,
        irreps_out: str | Irreps | None = None,
        *,
        instructions: Iterable[Sequence[Any]] | None = None,
    ) -> None:
        blocks_in = _irreps("irreps_in", irreps_in)
        blocks_sh = _harmonics(irreps_sh)
        if instructions is not None:
            paths, blocks_out = _given(
                blocks_in, blocks_sh, irreps_out, _instructions(blocks_in, blocks_sh, instructions)
            )
        else:
            paths, blocks_out = _canonical(blocks_in, blocks_sh, irreps_out)
        if not paths:
            allowed = "any output" if irreps_out is None else f"one of {irreps_out}"
            raise ValueError(
                f"irreps_out: expected a path from {blocks_in} x {blocks_sh} to {allowed}, got none"
            )
        entries, weight_numel = _entries(blocks_in, blocks_sh, blocks_out, paths)
        dims = (blocks_in.dim, blocks_sh.dim, blocks_out.dim)
        values = {
            "irreps_in": blocks_in,
            "irreps_sh": blocks_sh,
            "irreps_out": blocks_out,
            "entries": entries,
            "instructions": tuple((i_in, i_sh, i_out, "uvu", True) for i_in, i_sh, i_out in paths),
            "spec": (*dims, weight_numel, *(number for entry in entries for number in entry)),
            "dim_in": dims[0],
            "dim_sh": dims[1],
            "dim_out": dims[2],
            "weight_numel": weight_numel,
            "l_sh_max": max(irrep.l for _, irrep in blocks_sh),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _layout(self) -> tuple[Any, ...]:
        return (self.irreps_in, self.irreps_sh, self.irreps_out, self.instructions)

    def __eq__(self, other: object) -> bool:
        return self._layout() == other._layout() if isinstance(other, Paths) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._layout())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Paths is immutable, cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Paths is immutable, cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        irreps = (str(self.irreps_in), str(self.irreps_sh), str(self.irreps_out))
        return _rebuild, (*irreps, self.instructions)

    def __repr__(self) -> str:
        irreps = f"{self.irreps_in} x {self.irreps_sh} -> {self.irreps_out}"
        return f"Paths({irreps}, weight_numel={self.weight_numel})"


def _rebuild(
    irreps_in: str, irreps_sh: str, irreps_out: str, instructions: tuple[Sequence[Any], ...]
) -> Paths:
    return Paths(irreps_in, irreps_sh, irreps_out, instructions=instructions)


def _irreps(name: str, value: str | Irreps) -> Irreps:
    from e3nn import o3

    try:
        if value is None:
            raise TypeError("None, which e3nn takes for no irreps")
        irreps = o3.Irreps(value)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected irreps such as '8x0e+8x1o', got {value!r}") from error
    for _, irrep in irreps:
        if irrep.l > L_MAX:
            raise ValueError(f"{name}: expected degrees l <= {L_MAX}, got {irrep} in {irreps}")
    return irreps


def _harmonics(value: str | Irreps | int) -> Irreps:
    from e3nn import o3

    if isinstance(value, Integral):  # an int or one of NumPy's
        if not 0 <= index(value) <= L_MAX:
            raise ValueError(f"irreps_sh: expected l_max of 0 to {L_MAX}, got {value}")
        return o3.Irreps.spherical_harmonics(index(value))
    irreps = _irreps("irreps_sh", value)
    if len(irreps) == 0 or any(mul != 1 for mul, _ in irreps):
        raise ValueError(f"irreps_sh: expected blocks of multiplicity 1, got {value}")
    return irreps


def _canonical(
    irreps_in: Irreps, irreps_sh: Irreps, irreps_out: str | Irreps | None
) -> tuple[list[tuple[int, int, int]], Irreps]:
    """Every path to the wanted outputs, in the order of the sorted output blocks."""
    wanted = None if irreps_out is None else {irrep for _, irrep in _irreps("irreps_out", irreps_out)}
    paths = [
        (i_in, i_sh, irrep)
        for i_in, (mul, irrep_in) in enumerate(irreps_in)
        for i_sh, (_, irrep_sh) in enumerate(irreps_sh)
        for irrep in irrep_in * irrep_sh
        if mul > 0 and (wanted is None or irrep in wanted)
    ]
    paths.sort(key=lambda path: path[2])  # stable, as e3nn's
    blocks = _blocks([(irreps_in[i_in].mul, irrep) for i_in, _, irrep in paths])
    return [(i_in, i_sh, i_out) for i_out, (i_in, i_sh, _) in enumerate(paths)], blocks


_Instruction = tuple[int, int, "int | Irrep"]


def _instructions(irreps_in: Irreps, irreps_sh: Irreps, instructions: Any) -> list[_Instruction]:
    """Input block, harmonic block and output (its irrep, or the index of its block) of each instruction."""
    from e3nn import o3

    form = "(i_in, i_sh, irrep_out) or (i_in, i_sh, i_out, 'uvu', True, 1.0)"
    if not isinstance(instructions, Iterable):
        raise ValueError(f"instructions: expected a sequence of {form}, got {instructions!r}")
    parsed: list[_Instruction] = []
    for instruction in instructions:
        path = tuple(instruction) if isinstance(instruction, Iterable) else ()
        if len(path) < 3 or path[3:] != ("uvu", True, 1.0)[: len(path) - 3]:
            raise ValueError(f"instructions: expected {form}, got {instruction!r}")
        i_in, i_sh, out = path[:3]
        if not (isinstance(i_in, Integral) and isinstance(i_sh, Integral)):
            raise ValueError(f"instructions: expected integers i_in and i_sh, got {i_in!r} and {i_sh!r}")
        if not (0 <= index(i_in) < len(irreps_in) and 0 <= index(i_sh) < len(irreps_sh)):
            raise ValueError(
                f"instructions: expected blocks of {irreps_in} and of {irreps_sh}, got ({i_in}, {i_sh})"
            )
        if isinstance(out, Integral):
            parsed.append((index(i_in), index(i_sh), index(out)))
            continue
        try:
            parsed.append((index(i_in), index(i_sh), o3.Irrep(out)))
        except (AssertionError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"instructions: expected an output irrep such as '1o' or an index, got {out!r}"
            ) from error
    return parsed


def _given(
    irreps_in: Irreps, irreps_sh: Irreps, irreps_out: str | Irreps | None, instructions: list[_Instruction]
) -> tuple[list[tuple[int, int, int]], Irreps]:
    """The caller's paths in the caller's order, with the output blocks they refer to."""
    from e3nn import o3

    if all(isinstance(i_out, int) for _, _, i_out in instructions) and irreps_out is not None:
        paths = [(i_in, i_sh, i_out) for i_in, i_sh, i_out in instructions if isinstance(i_out, int)]
        blocks = _irreps("irreps_out", irreps_out)
        if sorted(path[2] for path in paths) != list(range(len(blocks))):
            raise ValueError(
                f"instructions: expected each of the {len(blocks)} blocks of irreps_out exactly once, "
                f"got {[path[2] for path in paths]}"
            )
    elif irreps_out is not None:
        raise ValueError(
            "instructions: expected i_out (an index) together with irreps_out, "
            f"got output irreps and irreps_out={irreps_out}"
        )
    elif any(isinstance(path[2], int) for path in instructions):
        raise ValueError(
            "irreps_out: expected the output blocks that i_out in instructions refers to, got None"
        )
    else:
        irreps = [path[2] for path in instructions if isinstance(path[2], o3.Irrep)]
        order = sorted(range(len(irreps)), key=irreps.__getitem__)
        i_out = {path: position for position, path in enumerate(order)}
        paths = [(path[0], path[1], i_out[p]) for p, path in enumerate(instructions)]
        blocks = _blocks([(irreps_in[instructions[p][0]].mul, irreps[p]) for p in order])
    for i_in, i_sh, i_out_ in paths:
        (mul, irrep), (mul_in, irrep_in), irrep_sh = blocks[i_out_], irreps_in[i_in], irreps_sh[i_sh].ir
        if irrep not in irrep_in * irrep_sh:
            raise ValueError(f"instructions: expected an irrep in {irrep_in} x {irrep_sh}, got {irrep}")
        if mul != mul_in:
            raise ValueError(
                f"irreps_out: expected the input block's multiplicity, {mul_in}x{irrep}, got {mul}x{irrep}"
            )
    return paths, blocks


def _blocks(blocks: list[tuple[int, Irrep]]) -> Irreps:
    from e3nn import o3

    return _irreps("irreps_out", o3.Irreps(blocks))


def _entries(
    irreps_in: Irreps, irreps_sh: Irreps, irreps_out: Irreps, paths: list[tuple[int, int, int]]
) -> tuple[tuple[PathEntry, ...], int]:
    """Offsets of every path into the flat axes, and the total number of weights."""
    weight_offsets = [0, *accumulate(irreps_in[i_in].mul for i_in, _, _ in paths)]
    starts_in, starts_sh, starts_out = (
        [0, *accumulate(block.dim for block in irreps)] for irreps in (irreps_in, irreps_sh, irreps_out)
    )
    entries = tuple(
        PathEntry(
            l_in=irreps_in[i_in].ir.l,
            l_sh=irreps_sh[i_sh].ir.l,
            l_out=irreps_out[i_out].ir.l,
            mul=irreps_in[i_in].mul,
            in_offset=starts_in[i_in],
            sh_offset=starts_sh[i_sh],
            weight_offset=weight_offset,
            out_offset=starts_out[i_out],
        )
        for (i_in, i_sh, i_out), weight_offset in zip(paths, weight_offsets[:-1], strict=True)
    )
    return entries, weight_offsets[-1]
