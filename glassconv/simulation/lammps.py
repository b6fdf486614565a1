"""Making isoconfigurational data of the Kob-Andersen liquid with LAMMPS: `simulate`."""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

import glassconv
from glassconv._files import write_json
from glassconv.simulation import kob_andersen
from glassconv.simulation.engine import SimulationError, lammps_version
from glassconv.simulation.isoconfigurational import (
    EQUILIBRATED_FILE,
    PROTOCOL_FILE,
    chain_folder,
    configuration_file,
)
from glassconv.simulation.protocol import SimulationProtocol

__all__ = ["SimulationError", "SimulationProtocol", "simulate"]

Progress = Callable[[int, int], None]
PIPE_CAPACITY = 65536
PROVENANCE_FILE = "provenance.json"
WORKER = "glassconv.simulation.isoconfigurational"


def simulate(
    protocol: SimulationProtocol,
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    resume: bool = True,
    workers: int | None = None,
) -> Path:
    """Simulate a Kob-Andersen liquid and write configurations with their propensities.

    Each chain runs LAMMPS in a process of its own. Finished steps are kept in the folder ``<out>.parts``
    until the file is complete, so a simulation that was stopped continues with the same call and ends with
    the same bits as one that was not.

    Args:
        protocol: what to simulate.
        out: HDF5 file to write, for `glassconv.data.read`. Each configuration's ``metadata`` holds the
            protocol with its seed, the potential, the versions of LAMMPS and glassconv, the machine, the
            date, the chain and the index in it; ``positions`` lie in the box and ``inherent`` is continuous
            with them (it may lie slightly outside), so that their difference is the true displacement.
        progress: called with (integrator steps done, integrator steps in all), at first with what was found
            done.
        resume: continue from ``<out>.parts``, and leave a finished ``out`` of the same protocol alone. False
            starts from nothing and replaces both.
        workers: chains to run at the same time, default as many as there are chains and processors. Does not
            change the result.

    Returns:
        ``out`` as a path.

    Raises:
        SimulationError: LAMMPS is missing or failed, or what is there to resume from was made otherwise.
        ValueError: ``workers`` below one.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    out = Path(out)
    provenance = _provenance()
    report = progress if progress is not None else _silent
    if resume and out.exists():
        _check_finished(out, protocol)
        report(protocol.total_steps, protocol.total_steps)
        return out
    parts = _open_parts(out, protocol, provenance, resume)
    done = _steps_done(parts, protocol)
    report(done, protocol.total_steps)

    def advance(n_steps: int) -> None:
        nonlocal done
        done += n_steps
        report(done, protocol.total_steps)

    unfinished = [chain for chain in range(protocol.n_chains) if not _chain_done(parts, protocol, chain)]
    at_once = workers if workers is not None else max(1, min(len(unfinished), _n_processors()))
    _run_chains(parts, unfinished, at_once, advance)
    _assemble(parts, protocol, out)
    shutil.rmtree(parts)
    return out


def _silent(done: int, total: int) -> None:
    pass


def _n_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def potential() -> dict[str, Any]:
    """The potential as simulated, as a JSON-able dict."""
    return {
        "name": "Kob-Andersen",
        "form": "Lennard-Jones 12-6, plainly cut, energy shifted to 0 at the cutoff, force not smoothed",
        "epsilon": [list(row) for row in kob_andersen.EPSILON],
        "sigma": [list(row) for row in kob_andersen.SIGMA],
        "cutoff_in_sigma": kob_andersen.CUTOFF,
    }


def _provenance() -> dict[str, Any]:
    from glassconv._environment import environment  # imports torch's device list: not for import time

    kept = environment()
    return {
        "source": "glassconv simulate",
        "lammps": lammps_version(),
        **{key: kept[key] for key in ("glassconv", "commit", "platform", "cpu")},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "potential": potential(),
    }


def _check_finished(out: Path, protocol: SimulationProtocol) -> None:
    from glassconv.data import read

    try:
        found = [configuration.metadata.get("protocol") for configuration in read(out)]
    except (OSError, ValueError) as error:
        raise SimulationError(
            f"out: expected no file or one made by simulate, got {out} ({error})"
        ) from error
    if found != [protocol.to_dict()] * protocol.n_configurations:
        raise SimulationError(
            f"out: expected no file or one made with this protocol, got {out} made otherwise; "
            "choose another name, or resume=False to replace it"
        )


def _open_parts(out: Path, protocol: SimulationProtocol, provenance: dict[str, Any], resume: bool) -> Path:
    parts = out.with_name(out.name + ".parts")
    if not resume and parts.exists():
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    stored = parts / PROTOCOL_FILE
    if not stored.exists():
        write_json(parts / PROVENANCE_FILE, provenance)
        write_json(stored, protocol.to_dict())  # last: its presence says that the folder is complete
        return parts
    versions = [json.loads((parts / PROVENANCE_FILE).read_text())["lammps"], provenance["lammps"]]
    if json.loads(stored.read_text()) != protocol.to_dict() or versions[0] != versions[1]:
        raise SimulationError(
            f"resume: expected the protocol and LAMMPS {versions[1]} of this run, got others in {parts}; "
            "choose another name, or resume=False to start again"
        )
    return parts


def _chain_done(parts: Path, protocol: SimulationProtocol, chain: int) -> bool:
    return configuration_file(parts, chain, protocol.chain_lengths[chain] - 1).exists()


def _steps_done(parts: Path, protocol: SimulationProtocol) -> int:
    done = 0
    for chain, length in enumerate(protocol.chain_lengths):
        done += protocol.preparation_steps * (chain_folder(parts, chain) / EQUILIBRATED_FILE).exists()
        done += protocol.configuration_steps * sum(
            configuration_file(parts, chain, index).exists() for index in range(length)
        )
    return done


def _start(parts: Path, chain: int) -> subprocess.Popen[bytes]:
    root = str(Path(glassconv.__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Inside a job of mpiexec or srun, MPI would take these for its own and wait for ranks that do not exist.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PMI_", "PMIX_"))}
    folder = chain_folder(parts, chain)
    folder.mkdir(exist_ok=True)
    with (folder / "stderr.txt").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(parts), str(chain)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env={**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )


def _run_chains(parts: Path, chains: list[int], at_once: int, advance: Callable[[int], None]) -> None:
    waiting = list(chains)
    running: dict[int, subprocess.Popen[bytes]] = {}
    selector = selectors.DefaultSelector()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                chain = waiting.pop(0)
                running[chain] = _start(parts, chain)
                selector.register(_pipe(running[chain]), selectors.EVENT_READ, chain)
            for key, _ in selector.select():
                chain = key.data
                pipe = _pipe(running[chain])
                # Unbuffered, or lines read ahead would not wake select(). A read as long as a pipe never
                # splits a line: short writes are atomic.
                lines = os.read(pipe.fileno(), PIPE_CAPACITY).split()
                if lines:
                    advance(sum(map(int, lines)))
                    continue
                selector.unregister(pipe)
                pipe.close()
                _check_ended(parts, chain, running.pop(chain).wait())
    finally:
        for process in running.values():
            process.kill()
            process.wait()
        selector.close()


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None, "the process was started with a pipe"
    return process.stdout


def _check_ended(parts: Path, chain: int, code: int) -> None:
    if code == 0:
        return
    log = chain_folder(parts, chain) / "stderr.txt"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if "ERROR" in line] or lines or ["no message"]  # LAMMPS says more after it
    reason = told[-1]
    raise SimulationError(
        f"chain {chain}: LAMMPS process ended with exit code {code}: {reason} (all of it in {log})"
    )


def _assemble(parts: Path, protocol: SimulationProtocol, out: Path) -> None:
    from glassconv.data import Configuration, write_hdf5

    provenance = json.loads((parts / PROVENANCE_FILE).read_text())
    configurations = []
    for chain, length in enumerate(protocol.chain_lengths):
        for index in range(length):
            with np.load(configuration_file(parts, chain, index)) as arrays:
                part = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
            configurations.append(
                Configuration(
                    positions=part["positions"],
                    types=part["types"],
                    cell=torch.eye(3, dtype=torch.float64) * protocol.box_length,
                    inherent=part["inherent"],
                    energy=part["energy"],
                    propensity=part["halves"].mean(dim=0),
                    propensity_halves=part["halves"],
                    times=torch.from_numpy(protocol.times),
                    temperature=protocol.temperature,
                    name=f"KA T={protocol.temperature:g} chain {chain} configuration {index}",
                    metadata={
                        **provenance,
                        "protocol": protocol.to_dict(),
                        "chain": chain,
                        "index_in_chain": index,
                        "thermal_energy_mean": float(part["thermal_energy"].mean()),
                        "seconds": round(float(part["seconds"]), 1),
                    },
                )
            )
    write_hdf5(out, configurations)
