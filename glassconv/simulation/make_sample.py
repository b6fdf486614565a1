"""Making the sample of `glassconv.data.sample`: ``python -m glassconv.simulation.make_sample OUT``.

About 20 minutes of one core. What is interrupted continues with the same command. Each part is what
``glassconv simulate`` makes with the same numbers; here both are joined and stored in single precision.
"""

from __future__ import annotations

import sys
from pathlib import Path

from glassconv.simulation.lammps import simulate
from glassconv.simulation.protocol import SimulationProtocol

PROTOCOLS = tuple(
    SimulationProtocol(
        temperature=temperature,
        n_particles=1000,
        n_configurations=8,
        n_trajectories=24,
        n_times=8,
        n_chains=2,
        seed=seed,
    )
    for temperature, seed in ((0.64, 64), (0.56, 56))
)
"""The simulations in the sample, one per temperature."""


def make_sample(out: Path, protocols: tuple[SimulationProtocol, ...] = PROTOCOLS) -> None:
    """Simulate every protocol into a file beside ``out``, then join them into ``out``.

    Args:
        out: HDF5 file to write, single precision.
        protocols: what to simulate, in the order of the file.
    """
    from glassconv.data import read, write_hdf5

    parts = [out.with_name(f"{out.stem}_T{protocol.temperature:g}.h5") for protocol in protocols]
    for part, protocol in zip(parts, protocols, strict=True):

        def report(done: int, total: int, name: str = part.name) -> None:
            sys.stderr.write(f"\r{name}: {done / total:6.1%} of {total} steps")

        simulate(protocol, part, progress=report)
        sys.stderr.write("\n")
    write_hdf5(out, [configuration for part in parts for configuration in read(part)], single_precision=True)


if __name__ == "__main__":
    make_sample(Path(sys.argv[1]))
