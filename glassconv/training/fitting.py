"""Training a network: one call from configurations to a folder with everything that came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glassconv._environment import environment
from glassconv._files import write_json
from glassconv.data import Configuration
from glassconv.nn import SE3GNN
from glassconv.training.options import TrainingOptions

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What `fit` leaves.

    Attributes:
        model: the trained network, in evaluation mode; the same as in ``model.safetensors``.
        epoch: the epoch (from 0) whose weights it has: the best one on the validation set, else the last.
        n_epochs: epochs trained in all, less than asked for after early stopping.
        log: one mapping per epoch, the rows of ``log.csv``.
    """

    model: SE3GNN
    epoch: int
    n_epochs: int
    log: list[dict[str, str]]


def fit(
    model: SE3GNN,
    training: Sequence[Configuration],
    validation: Sequence[Configuration] = (),
    *,
    out: str | os.PathLike[str],
    options: TrainingOptions | None = None,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train a network on the CPU.

    Files in ``out``: ``training.json`` (options of network and training, names and digest of the data),
    ``environment.json``, ``log.csv`` (one row per epoch), ``checkpoints/last.ckpt`` and, with a validation
    set, ``checkpoints/best.ckpt``, and at the end ``model.safetensors``.

    The statistics of inputs and targets are set from the training configurations. With a validation set the
    network of the epoch with the highest ``validation_pearson`` is kept, otherwise that of the last epoch. An
    interrupted run continues from the last finished epoch, with the same numbers as if it had not been
    interrupted.

    Args:
        model: the network, freshly initialized (for a resumed run: of the same options); trained in place.
        training: configurations with propensities at the same number of times.
        validation: configurations kept out of training, to choose the epoch, or none.
        out: folder, created if need be.
        options: default `TrainingOptions()`.
        resume: continue what ``out`` holds; with no checkpoint in it, start.
        progress: show a progress bar on stderr (lines, where that is not a terminal).

    Returns:
        `FitResult`.

    Raises:
        ValueError: unsuitable configurations; a run in ``out`` of other options or data; early stopping
            without validation configurations; a loss that became NaN.
        FileExistsError: ``out`` holds a run and ``resume`` is False.
        KeyboardInterrupt: on Ctrl-C, with everything in place to resume.
    """
    options = options or TrainingOptions()
    folder = Path(out)
    last = folder / "checkpoints" / "last.ckpt"
    if options.early_stopping is not None and not validation:
        raise ValueError("early_stopping: expected validation configurations to stop on, got none")
    if not resume and last.exists():
        raise FileExistsError(
            f"out: expected a folder without a training run, got {folder} (resume continues it)"
        )
    model.set_statistics(training)
    _check_data(model, [*training, *validation], options)
    record = _record(model, options, training, validation)
    if last.exists():
        _check_same(record, json.loads((folder / "training.json").read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "training.json", record)
    write_json(folder / "environment.json", environment())
    with _quiet():
        n_epochs = _run(model, training, validation, folder, options=options, progress=progress)
    epoch = _load_kept(model, folder, best=bool(validation))
    model.save(folder / "model.safetensors")
    from glassconv.training.callbacks import read_log

    return FitResult(model.eval(), epoch, n_epochs, read_log(folder / "log.csv"))


def _run(
    model: SE3GNN,
    training: Sequence[Configuration],
    validation: Sequence[Configuration],
    folder: Path,
    *,
    options: TrainingOptions,
    progress: bool,
) -> int:
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from glassconv.training import callbacks
    from glassconv.training.data_module import ConfigurationDataModule
    from glassconv.training.module import PropensityModule

    data = ConfigurationDataModule(
        model, training, validation, batch_size=options.batch_size, seed=options.seed
    )
    bar = callbacks.Progress(options.epochs)
    hooks: list[Any] = [callbacks.EpochLog(folder / "log.csv")]
    if progress:
        hooks.append(bar)
    if options.ema is not None:
        hooks.append(callbacks.AveragedWeights(options.ema))
    if options.early_stopping is not None:
        hooks.append(callbacks.ResumableEarlyStopping(options.early_stopping))
    hooks.append(callbacks.Checkpoints(folder / "checkpoints"))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        plugins=[LightningEnvironment()],  # one process, also inside a batch system
        max_epochs=options.epochs,
        callbacks=hooks,
        gradient_clip_val=options.gradient_clip,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    last = folder / "checkpoints" / "last.ckpt"
    module = PropensityModule(model, options)
    try:
        with _interruptible(trainer):
            trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    finally:
        bar.close()
    return int(trainer.current_epoch)


def _load_kept(model: SE3GNN, folder: Path, *, best: bool) -> int:
    """Put the weights that are kept into the network; returns the epoch they are from."""
    path = folder / "checkpoints" / ("best.ckpt" if best else "last.ckpt")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    prefix = "model."
    state = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()}
    averaged = checkpoint["callbacks"].get("AveragedWeights")
    if averaged is not None:
        state |= averaged["average"]
    model.load_state_dict(state)
    return int(checkpoint["epoch"])


def _check_data(model: SE3GNN, configurations: Sequence[Configuration], options: TrainingOptions) -> None:
    for configuration in configurations:
        name = configuration.name or "a configuration"
        if configuration.propensity is None or configuration.n_times != model.n_outputs:
            found = 0 if configuration.propensity is None else configuration.n_times
            raise ValueError(
                f"configurations: expected propensities at {model.n_outputs} times, as the network has "
                f"outputs, got {found} in {name}"
            )
        present = set(configuration.types.tolist())
        if options.loss_types is not None and present.isdisjoint(options.loss_types):
            raise ValueError(
                f"loss_types: expected some of {sorted(present)}, the types in {name}, got "
                f"{options.loss_types}"
            )


def _record(
    model: SE3GNN,
    options: TrainingOptions,
    training: Sequence[Configuration],
    validation: Sequence[Configuration],
) -> dict[str, Any]:
    record = {
        "network": model.options,
        "options": dataclasses.asdict(options),
        "dtype": str(model.dtype).removeprefix("torch."),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "training": [c.name for c in training],
        "validation": [c.name for c in validation],
        "data_sha256": _digest([*training, *validation]),
    }
    result: dict[str, Any] = json.loads(json.dumps(record))  # tuples as lists, as the file gives them back
    return result


def _digest(configurations: Sequence[Configuration]) -> str:
    """Digest of what was given; inherent structures may be found anew, and then differ by rounding."""
    digest = hashlib.sha256()
    for configuration in configurations:
        for name in ("positions", "types", "cell", "times", "propensity"):
            value = getattr(configuration, name)
            if value is not None:
                digest.update(f"{name}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_same(new: dict[str, Any], old: dict[str, Any]) -> None:
    """A resumed run must be the same run; only its length may change, where the schedule does not depend on
    it.
    """
    for part in ("network", "options"):
        for name, value in new[part].items():
            free = name == "epochs" and new["options"]["schedule"] != "cosine"
            if not free and old[part].get(name) != value:
                raise ValueError(
                    f"{name}: expected {old[part].get(name)} as in the run to resume, got {value}"
                )
    for name in ("dtype", "training", "validation", "data_sha256"):
        if old[name] != new[name]:
            what = "data" if name == "data_sha256" else name
            raise ValueError(f"{what}: expected the same as in the run to resume, got another {name}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's tips and advertisements from the user, errors excepted."""
    names = ("lightning.pytorch", "lightning.fabric")
    import lightning.pytorch  # noqa: F401 - its import sets the levels

    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", module=r"torch\.utils\._pytree")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _interruptible(trainer: Any) -> Iterator[None]:
    """Turn Lightning's exit on Ctrl-C back into KeyboardInterrupt, and its ignored SIGINT back into what it
    was.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as exit_:
        if trainer.interrupted:
            raise KeyboardInterrupt from exit_
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
