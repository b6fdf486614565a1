"""The fastest that a piece of work can be on one NVIDIA H200, and the targets of the project.

A kernel takes at least its bytes over the memory bandwidth, and at least its instructions over the rate at
which they are issued: 4.3 TB/s (a device-to-device copy, bytes read plus bytes written) and 1.05e12 warp
instructions per second (132 multiprocessors x 4 schedulers x 1.98 GHz).

`TABLE` is the floors of the design of the convolution, in microseconds, at N = 4096, E = 164,000, float32,
on all SO(3) paths. The functions recompute them for any size, and tests hold the two together. Instructions
per edge and channel are those that the table's issue floors amount to (lanes packed), which a compiled
l_max 3 kernel confirms (1240 to 1317 forward); bytes are each input read once and each output written once.
"""

from __future__ import annotations

from dataclasses import dataclass

from glassconv import Paths

BANDWIDTH = 4.3e12  # bytes per second
ISSUE_RATE = 1.05e12  # warp instructions per second
WARP = 32
# (l_max, channels) -> microseconds of bytes with explicit weights (forward, backward, double backward), of
# bytes with low-rank weights (radial features not counted), and of issue (forward, backward)
TABLE_N, TABLE_E = 4096, 164_000
TABLE: dict[tuple[int, int], tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    (1, 8): ((7.5, 14, 22), (1.1, 1.6, 2.7), (6, 14)),
    (2, 8): ((22, 42, 64), (2.4, 3.2, 5.7), (17, 49)),
    (2, 32): ((82, 158, 241), (7.9, 9.5, 18), (67, 195)),
    (3, 8): ((49, 94, 144), (5.9, 6.8, 13), (49, 148)),
    (3, 32): ((190, 360, 551), (22, 24, 47), (195, 594)),
}
# nonzero Clebsch-Gordan coefficients; instructions per edge and channel of all SO(3) paths, forward, backward
NONZEROS = {"so3": {1: 16, 2: 137, 3: 611}, "natural": {1: 10, 2: 83, 3: 353}}
INSTRUCTIONS = {1: (154, 359), 2: (435, 1255), 3: (1255, 3790)}
DIRECTIONS = ("forward", "backward", "double_backward")


@dataclass(frozen=True)
class ConvCase:
    """One convolution to measure: C channels of every irrep up to l_max, to the same irreps."""

    l_max: int
    channels: int
    parity: str  # "so3": all paths between even irreps; "natural": 0e+1o+2e+3o
    weights: str  # "explicit" or "lowrank"
    dtype: str = "float32"
    n_radial: int = 16

    @property
    def irreps(self) -> str:
        """The irreps, each once, of harmonics and outputs."""
        letters = ("e", "e", "e", "e") if self.parity == "so3" else ("e", "o", "e", "o")
        return "+".join(f"{degree}{letters[degree]}" for degree in range(self.l_max + 1))

    @property
    def paths(self) -> Paths:
        """The paths of the convolution."""
        blocks = "+".join(f"{self.channels}x{irrep}" for irrep in self.irreps.split("+"))
        return Paths(blocks, self.irreps, self.irreps)

    @property
    def name(self) -> str:
        """Short and unique."""
        return f"{self.parity} l{self.l_max} C{self.channels} {self.weights} {self.dtype}"


@dataclass(frozen=True)
class Floor:
    """The larger of two times, in seconds, and what it is made of."""

    bytes: float
    instructions: float

    @property
    def seconds(self) -> float:
        """The floor."""
        return max(self.bytes / BANDWIDTH, self.instructions / ISSUE_RATE)

    @property
    def limit(self) -> str:
        """Which of the two it is."""
        return "bytes" if self.bytes / BANDWIDTH >= self.instructions / ISSUE_RATE else "issue"


def conv_floor(case: ConvCase, direction: str, n_nodes: int, n_edges: int) -> Floor:
    """The floor of one direction of a convolution.

    Forward reads x, vectors, weights and sources and writes the output. Backward reads these and the
    gradient of the output, and writes the gradients of x, vectors and weights. Double backward reads the
    cotangents of those too, and writes a gradient for each of its inputs. Its instructions are not
    tabulated: those of the backward are a lower bound.
    """
    paths = case.paths
    word = 8 if case.dtype == "float64" else 4
    inputs = n_nodes * paths.irreps_in.dim + 3 * n_edges
    inputs += n_edges * (paths.weight_numel if case.weights == "explicit" else case.n_radial)
    outputs = n_nodes * paths.irreps_out.dim
    words = {
        "forward": inputs + outputs,
        "backward": 2 * inputs + outputs,
        "double_backward": 3 * inputs + 2 * outputs,
    }[direction]
    share = NONZEROS[case.parity][case.l_max] / NONZEROS["so3"][case.l_max]
    per_channel = share * INSTRUCTIONS[case.l_max][direction != "forward"]
    per_edge = per_channel * case.channels
    if case.weights == "lowrank":  # weights; backward also d radial and d mix: as many multiply-adds each
        products = 1 if direction == "forward" else 3
        per_edge += products * case.n_radial * paths.weight_numel
    slots = 2 if case.dtype == "float64" else 1  # half as many units
    return Floor(word * words + 8 * n_edges, slots * n_edges * per_edge / WARP)


def conv_flops(case: ConvCase, direction: str, n_edges: int) -> float:
    """Floating-point operations of the formula: multiply-adds count two; harmonics are not counted."""
    paths = case.paths
    n_components = sum(block.ir.dim for block in paths.irreps_out)
    contractions, sums = {"forward": (1, 1), "backward": (3, 2), "double_backward": (6, 4)}[direction]
    per_channel = 2 * (contractions * NONZEROS[case.parity][case.l_max] + sums * n_components)
    flops = float(per_channel * case.channels)
    if case.weights == "lowrank":
        flops += 2 * (1 if direction == "forward" else 3) * case.n_radial * paths.weight_numel
    return flops * n_edges


def neighbor_floor(n_nodes: int, n_edges: int) -> Floor:
    """The public form: positions in, 36 bytes per edge and 8 per node out; 4.4 warp instructions per edge."""
    # issue floors of the design: 1, 5.5, 44, 167 us at 40.4 edges per particle
    return Floor(24.0 * n_nodes + 36.0 * n_edges + 8.0 * (n_nodes + 1), 4.4 * n_edges)


def training_floor(n_nodes: int, n_edges: int, n_layers: int = 8) -> Floor:
    """Forward and backward of the convolutions of the default network, C = 8, l_max 3, natural parity."""
    case = ConvCase(3, 8, "natural", "lowrank")
    both = [conv_floor(case, direction, n_nodes, n_edges) for direction in DIRECTIONS[:2]]
    return Floor(n_layers * sum(f.bytes for f in both), n_layers * sum(f.instructions for f in both))


def conv_target(case: ConvCase, direction: str, measured_backward: float | None = None) -> float | None:
    """What the project asks of a convolution at N = 4096, in seconds, or None where it asks nothing.

    Of the double backward it asks three times the backward of the same case, as measured.
    """
    if case.parity != "so3" or case.weights != "lowrank" or case.dtype != "float32":
        return None
    asked = {
        (3, 8, "forward"): 100e-6,
        (3, 8, "backward"): 250e-6,
        (3, 32, "forward"): 400e-6,
        (3, 32, "backward"): 1.2e-3,
        (2, 8, "forward"): 40e-6,
    }
    if (case.l_max, case.channels, direction) == (3, 8, "double_backward"):
        return None if measured_backward is None else 3 * measured_backward
    return asked.get((case.l_max, case.channels, direction))


NEIGHBOR_TARGETS = {4096: 20e-6, 32_768: 25e-6, 262_144: 200e-6, 1_000_000: 0.8e-3}
TRAINING_TARGET = 8e-3


def conv_cases() -> list[ConvCase]:
    """The cases that are measured, the ones with targets first: a time-out must not cost them."""
    first = [(3, 8), (3, 32), (2, 8)]
    sizes = [*first, (1, 8), (2, 32), (1, 32), (3, 16), (3, 64)]
    cases = [ConvCase(l_max, c, "so3", weights) for l_max, c in sizes for weights in ("lowrank", "explicit")]
    cases += [ConvCase(3, 8, "natural", weights) for weights in ("lowrank", "explicit")]
    return [*cases, *(ConvCase(3, 8, "so3", weights, "float64") for weights in ("lowrank", "explicit"))]
