"""How much work a convolution is: multiply-adds and bytes of each direction, counted from its paths.

A path couples d1 input, d2 harmonic and d3 output components through n nonzero Wigner 3j coefficients, which
have p13 pairs (m1, m3) and p12 pairs (m1, m2). Each edge needs of it, with C channels, the cheaper of two
orders of contraction:

| | through the edge matrix A[m1,m3] = SUM cg Y, of all channels | one channel after the other |
|---|---|---|
| forward | n + C (p13 + min(d1, d3)) | C (p12 + n + min(d1, d3)) |
| backward | 2n + C min(2 p13 + 2 d1 + min(d1, d3), 3 p13 + 2 d3) | C (2 p12 + n + 3 d1) |
| double backward | 4n + C (6 p13 + 7 d1) | C (6 p12 + 2n + 7 d1) |

Where one of the degrees is 0 the matrix is the harmonics themselves: n is left out. For l_sh = 0 it is the
identity: C d1, 2 C d1 and 4 C d1. Low-rank weights add the products radial @ mix (E H W), with both of their
gradients (3 E H W), and those of the second order (7 E H W, and C d1 for each path). A multiplication or an
addition alone counts as a multiply-add; harmonics and the factors constant on an edge are not counted, nor is
what several paths could share. "both" is forward and backward; their sum.

Bytes are what has to move at least: each input read once, each output written once, and the sources of the
edges and the beginnings of the rows (8 bytes each) read once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from e3nn import o3

from glassconv import Paths

DIRECTIONS = ("forward", "backward", "both", "double")


class Coupling(NamedTuple):
    """Numbers of nonzero coefficients of one coupling, of pairs (m1, m3) and of pairs (m1, m2) among them."""

    nonzeros: int
    in_out: int
    in_sh: int


@cache
def coupling(l_in: int, l_sh: int, l_out: int) -> Coupling:
    """Counted in the Wigner 3j symbol."""
    is_there = o3.wigner_3j(l_in, l_sh, l_out, dtype=torch.float64, device="cpu").abs() > 1e-9
    return Coupling(int(is_there.sum()), int(is_there.any(1).sum()), int(is_there.any(2).sum()))


def path_multiply_adds(degrees: tuple[int, int, int], channels: int, direction: str, *, lowrank: bool) -> int:
    """Of one path on one edge, without the products of low-rank weights.

    Args:
        degrees: l_in, l_sh, l_out.
        channels: the multiplicity.
        direction: one of `DIRECTIONS`.
        lowrank: whether the weights are low-rank.
    """
    if direction == "both":
        return sum(
            path_multiply_adds(degrees, channels, each, lowrank=lowrank) for each in ("forward", "backward")
        )
    d1, _, d3 = (2 * degree + 1 for degree in degrees)
    n, p13, p12 = coupling(*degrees)
    more = d1 * channels if lowrank and direction == "double" else 0
    if degrees[1] == 0:
        return {"forward": 1, "backward": 2, "double": 4}[direction] * d1 * channels + more
    matrix = 0 if 0 in degrees else n
    through_matrix, each_channel = {
        "forward": (matrix + channels * (p13 + min(d1, d3)), p12 + n + min(d1, d3)),
        "backward": (
            2 * matrix + channels * min(2 * p13 + 2 * d1 + min(d1, d3), 3 * p13 + 2 * d3),
            2 * p12 + n + 3 * d1,
        ),
        "double": (4 * matrix + channels * (6 * p13 + 7 * d1), 6 * p12 + 2 * n + 7 * d1),
    }[direction]
    return min(through_matrix, channels * each_channel) + more


def multiply_adds(paths: Paths, direction: str, n_edges: int, n_radial: int | None = None) -> int:
    """Of one direction of a convolution.

    Args:
        paths: its paths.
        direction: "forward"; "backward", the gradients of x, vectors and weights; "both"; "double", the
            gradients of these gradients, contracted with cotangents, in all they depend on.
        n_edges: E.
        n_radial: H of low-rank weights; None for explicit ones.
    """
    each = sum(
        path_multiply_adds(
            (p.l_in, p.l_sh, p.l_out), p.mul, direction, lowrank=n_radial is not None
        )
        for p in paths.entries
    )  # fmt: skip
    if n_radial is not None:
        each += (
            {"forward": 1, "backward": 3, "both": 4, "double": 7}[direction] * n_radial * paths.weight_numel
        )
    return n_edges * each


def minimal_bytes(
    paths: Paths, direction: str, n_nodes: int, n_edges: int, n_radial: int | None = None, *, word: int = 4
) -> int:
    """Read and written at least; `word` bytes for a number."""
    inputs = n_nodes * paths.dim_in + 3 * n_edges
    inputs += n_edges * paths.weight_numel if n_radial is None else n_radial * (n_edges + paths.weight_numel)
    outputs = n_nodes * paths.dim_out
    words = {
        "forward": inputs + outputs,
        "backward": 2 * inputs + outputs,  # the gradient of the output is read, those of the inputs written
        "both": 2 * inputs + 2 * outputs,
        "double": 3 * inputs + 2 * outputs,  # cotangents and inputs are read, gradients of inputs written
    }[direction]
    return word * words + 8 * (n_edges + n_nodes + 1)


@dataclass(frozen=True)
class Floor:
    """The least time that work takes on a machine.

    Attributes:
        multiply_adds: their number.
        bytes: moved at least.
        multiply_adds_per_s: the peak, or None where it is not known.
        bytes_per_s: of memory, or None.
    """

    multiply_adds: int
    bytes: int
    multiply_adds_per_s: float | None
    bytes_per_s: float | None

    @property
    def seconds(self) -> float | None:
        """The larger of the times of arithmetic and of memory, each on its own; None if either is unknown."""
        if self.multiply_adds_per_s is None or self.bytes_per_s is None:
            return None
        return max(self.multiply_adds / self.multiply_adds_per_s, self.bytes / self.bytes_per_s)

    @property
    def limit(self) -> str | None:
        """Which of the two it is."""
        if self.multiply_adds_per_s is None or self.bytes_per_s is None:
            return None
        is_memory = self.bytes / self.bytes_per_s > self.multiply_adds / self.multiply_adds_per_s
        return "memory" if is_memory else "arithmetic"
