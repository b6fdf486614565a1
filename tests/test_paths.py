"""`Paths`: e3nn's selection and order of blocks, any given order of weights, an immutable value, errors."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from e3nn import o3
from oracles import PEER_CASES, SMALL_CASES, Case

import glassconv
from glassconv import Paths

ALL_CASES = SMALL_CASES | PEER_CASES


def e3nn_instructions(case: Case) -> tuple[o3.Irreps, list[tuple[int, int, int, str, bool]]]:
    """Output blocks and sorted instructions as MACE and SevenNet build them for `o3.TensorProduct`."""
    irreps_in, irreps_sh, wanted = (o3.Irreps(irreps) for irreps in case)
    blocks, instructions = [], []
    for i, (mul, irrep_in) in enumerate(irreps_in):
        for j, (_, irrep_sh) in enumerate(irreps_sh):
            for irrep in irrep_in * irrep_sh:
                if irrep in wanted and mul > 0:
                    instructions.append((i, j, len(blocks), "uvu", True))
                    blocks.append((mul, irrep))
    irreps_out, permutation, _ = o3.Irreps(blocks).sort()
    instructions = [(i, j, permutation[k], mode, train) for i, j, k, mode, train in instructions]
    return irreps_out, sorted(instructions, key=lambda instruction: instruction[2])


@pytest.mark.parametrize("name", ALL_CASES)
def test_blocks_and_order_are_those_of_e3nn(name: str) -> None:
    case = ALL_CASES[name]
    irreps_out, instructions = e3nn_instructions(case)
    paths = case.paths
    assert paths.irreps_in == o3.Irreps(case.irreps_in)
    assert paths.irreps_sh == o3.Irreps(case.irreps_sh)
    assert paths.irreps_out == irreps_out
    assert paths.instructions == tuple(instructions)
    assert paths.weight_numel == sum(mul for mul, _ in irreps_out)


@pytest.mark.parametrize(("l_max", "n_paths"), [(0, 1), (1, 4), (2, 11), (3, 23)])
def test_number_of_natural_parity_paths(l_max: int, n_paths: int) -> None:
    harmonics = o3.Irreps.spherical_harmonics(l_max)
    assert len(Paths(harmonics, l_max, harmonics).instructions) == n_paths


@pytest.mark.parametrize(("l_max", "n_paths"), [(1, 5), (2, 15), (3, 34), (4, 65)])
def test_number_of_paths_without_parity(l_max: int, n_paths: int) -> None:
    irreps = o3.Irreps("+".join(f"{degree}e" for degree in range(l_max + 1)))
    assert len(Paths(irreps, irreps, irreps).instructions) == n_paths


def test_small_example_by_hand() -> None:
    paths = Paths("2x0e+3x1o", 1, "0e+1o+1e")
    assert str(paths.irreps_sh) == "1x0e+1x1o"
    assert str(paths.irreps_out) == "2x0e+3x0e+2x1o+3x1o+3x1e"
    assert [instruction[:3] for instruction in paths.instructions] == [
        (0, 0, 0), (1, 1, 1), (0, 1, 2), (1, 0, 3), (1, 1, 4)
    ]  # fmt: skip
    assert paths.weight_numel == 13
    assert paths.spec[:4] == (11, 4, 29, 13)
    entries = [paths.spec[k : k + 8] for k in range(4, len(paths.spec), 8)]
    assert entries == list(paths.entries)
    assert paths.entries == (
        # l_in, l_sh, l_out, mul, offsets: in, sh, weight, out
        (0, 0, 0, 2, 0, 0, 0, 0),
        (1, 1, 0, 3, 2, 1, 2, 2),
        (0, 1, 1, 2, 0, 1, 5, 5),
        (1, 0, 1, 3, 2, 0, 7, 11),
        (1, 1, 1, 3, 2, 1, 10, 20),
    )


def test_filter_ignores_multiplicities_and_order_and_may_be_absent() -> None:
    assert Paths("4x0e+4x1o", 1, "7x1o+0e+2x0e") == Paths("4x0e+4x1o", 1, "0e+1o")
    assert str(Paths("4x1o", 1).irreps_out) == "4x0e+4x1o+4x1e+4x2e"


def test_irreps_that_are_not_reached_are_no_error() -> None:
    assert str(Paths("2x0e", 1, "0e+1o+2e").irreps_out) == "2x0e+2x1o"


def test_instructions_with_irreps_keep_their_order() -> None:
    paths = Paths(
        "2x0e+3x1o", 1, instructions=[(1, 1, "1e"), (0, 1, "1o"), (1, 1, o3.Irrep("0e")), (0, 0, "0e")]
    )
    assert str(paths.irreps_out) == "3x0e+2x0e+2x1o+3x1e"  # sorted, ties in the order given
    assert [instruction[2] for instruction in paths.instructions] == [3, 2, 0, 1]
    assert [entry.weight_offset for entry in paths.entries] == [0, 3, 5, 8]
    assert [entry.out_offset for entry in paths.entries] == [11, 5, 0, 3]


def test_instructions_in_the_form_of_e3nn() -> None:
    # input-major, as NequIP keeps them; the output blocks in an order of their own
    instructions = [(0, 0, 2, "uvu", True), (0, 1, 0, "uvu", True, 1.0), (1, 1, 1)]
    paths = Paths("2x0e+3x1o", 1, "2x1o+3x0e+2x0e", instructions=instructions)
    assert str(paths.irreps_out) == "2x1o+3x0e+2x0e"
    assert [entry.out_offset for entry in paths.entries] == [9, 0, 6]
    o3.TensorProduct(paths.irreps_in, paths.irreps_sh, paths.irreps_out, list(paths.instructions))


def test_numpy_integers() -> None:
    assert Paths("2x0e+3x1o", np.int64(1), "0e") == Paths("2x0e+3x1o", 1, "0e")
    rows = [(0, 0, 1), (1, 1, 0)]
    expected = Paths("2x0e+3x1o", 1, "3x0e+2x0e", instructions=rows)
    found = Paths("2x0e+3x1o", 1, "3x0e+2x0e", instructions=np.array(rows))  # type: ignore[arg-type]
    assert found == expected
    assert all(type(number) is int for number in (*found.spec, *found.instructions[0][:3]))
    mixed = Paths("2x0e+3x1o", 1, instructions=[(np.int32(1), np.int64(1), "1e")])
    assert mixed == Paths("2x0e+3x1o", 1, instructions=[(1, 1, "1e")])


def test_is_a_value() -> None:
    paths = Paths("8x0e+8x1o", 2, "0e+1o")
    same = Paths("8x0e + 8x1o", "0e + 1o + 2e", "1o + 0e")
    assert paths == same
    assert hash(paths) == hash(same)
    assert paths != Paths("8x0e+8x1o", 2, "0e")
    assert paths != "8x0e+8x1o"
    for twin in (copy.copy(paths), copy.deepcopy(paths), pickle.loads(pickle.dumps(paths))):
        assert twin == paths
        assert twin.spec == paths.spec
    assert repr(paths) == "Paths(8x0e+8x1o x 1x0e+1x1o+1x2e -> 8x0e+8x0e+8x1o+8x1o+8x1o, weight_numel=40)"


def test_is_immutable() -> None:
    paths = Paths("8x0e", 1)
    with pytest.raises(AttributeError, match="Paths is immutable, cannot set 'spec'"):
        paths.spec = ()  # type: ignore[misc]
    with pytest.raises(AttributeError, match="Paths is immutable, cannot delete 'spec'"):
        del paths.spec


@pytest.mark.parametrize(
    ("arguments", "instructions", "message"),
    [
        (("8x0x", 1), None, "irreps_in: expected irreps such as '8x0e\\+8x1o', got '8x0x'"),
        ((None, 2), None, "irreps_in: expected irreps such as '8x0e\\+8x1o', got None"),
        (("8x0e", None), None, "irreps_sh: expected irreps such as '8x0e\\+8x1o', got None"),
        (("8x0e", 2), [(0, 1, "foo")], "instructions: expected an output irrep such as '1o' .*, got 'foo'"),
        (("8x0e", 2), [(0, 1, None)], "instructions: expected an output irrep such as '1o' .*, got None"),
        (("8x0e", 2), [("a", 1, "0e")], "instructions: expected integers i_in and i_sh, got 'a' and 1"),
        (("8x0e", 2), [(0.0, 1, "0e")], "instructions: expected integers i_in and i_sh, got 0.0 and 1"),
        (("8x0e", 2), [5], "instructions: expected \\(i_in, i_sh, irrep_out\\) or .*, got 5"),
        (("8x0e", 2), 5, "instructions: expected a sequence of .*, got 5"),
        (("8x5o", 1), None, "irreps_in: expected degrees l <= 4, got 5o"),
        (("8x0e", 5), None, "irreps_sh: expected l_max of 0 to 4, got 5"),
        (("8x0e", -1), None, "irreps_sh: expected l_max of 0 to 4, got -1"),
        (("8x0e", "0e+5o"), None, "irreps_sh: expected degrees l <= 4, got 5o"),
        (("8x0e", "2x0e"), None, "irreps_sh: expected blocks of multiplicity 1, got 2x0e"),
        (("8x0e", ""), None, "irreps_sh: expected blocks of multiplicity 1, got "),
        (("8x3o", 3), None, "irreps_out: expected degrees l <= 4, got 5"),
        (("8x0e", 1, "0e+6e"), None, "irreps_out: expected degrees l <= 4, got 6e"),
        (("8x0e", 1, "2e"), None, "irreps_out: expected a path from 8x0e x .* to one of 2e, got none"),
        (("0x0e", 1), None, "irreps_out: expected a path .* to any output, got none"),
        (("8x0e", 1), [], "irreps_out: expected a path"),
        (("8x0e", 1), [(0, 0)], "instructions: expected \\(i_in, i_sh, irrep_out\\) or .*, got \\(0, 0\\)"),
        (("8x0e", 1, "8x0e"), [(0, 0, 0, "uvw")], "instructions: expected .*'uvu'.*, got .*'uvw'\\)"),
        (("8x0e", 1, "8x0e"), [(0, 0, 0, "uvu", True, 2.0)], "instructions: expected .*1.0\\), got .*2.0\\)"),
        (("8x0e", 1), [(1, 0, "0e")], "instructions: expected blocks of 8x0e and of .*, got \\(1, 0\\)"),
        (("8x0e", 1), [(0, 2, "0e")], "instructions: expected blocks of 8x0e and of .*, got \\(0, 2\\)"),
        (("8x0e", 1), [(0, 1, "1e")], "instructions: expected an irrep in 0e x 1o, got 1e"),
        (("8x0e", 1), [(0, 1, 0)], "irreps_out: expected the output blocks .* refers to, got None"),
        (("8x0e", 1, "0e"), [(0, 0, "0e")], "instructions: expected i_out \\(an index\\) .* irreps_out=0e"),
        (("8x0e", 1, "8x0e+8x1o"), [(0, 0, 0)], "instructions: expected each of the 2 .*, got \\[0\\]"),
        (("8x0e", 1, "8x0e+8x0e"), [(0, 0, 0), (0, 0, 0)], "instructions: expected each of the 2 blocks"),
        (("8x0e", 1, "4x0e"), [(0, 0, 0)], "irreps_out: expected .* multiplicity, 8x0e, got 4x0e"),
    ],
)  # fmt: skip
def test_errors(
    arguments: tuple[object, ...], instructions: list[tuple[object, ...]] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Paths(*arguments, instructions=instructions)  # type: ignore[arg-type]


def test_is_public() -> None:
    assert glassconv.Paths is Paths
