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
from typing import TYPE_CHECKING, Any

import torch

from glassconv._environment import environment
from glassconv._files import write_json
from glassconv.data import Configuration
from glassconv.nn import SE3GNN
from glassconv.training.checks import check_data
from glassconv.training.options import TrainingOptions

if TYPE_CHECKING:
    from glassconv.training.data_module import ConfigurationDataModule

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
    """Train a network on the device it is on: the CPU, or a GPU after ``model.to("cuda")``.

    Files in ``out``: ``training.json`` (options of network and training, names and digest of the data),
    ``environment.json``, ``log.csv`` (one row per epoch), ``checkpoints/last.ckpt`` and, with a validation
    set, ``checkpoints/best.ckpt``, and at the end ``model.safetensors``.

    The statistics of inputs and targets are set from the training configurations. With a validation set the
    network of the epoch with the highest ``validation_pearson`` is kept, otherwise that of the last epoch. An
    interrupted run continues from the last finished epoch, with the same numbers as if it had not been
    interrupted.

    Args:
        model: the network, freshly initialized (for a resumed run: of the same options; any device);
            trained in place.
        training: configurations with propensities at the same number of times.
        validation: configurations kept out of training, to choose the epoch, or none.
        out: folder, created if need be.
        options: default `TrainingOptions()`.
        resume: continue what ``out`` holds; with no checkpoint in it, start.
        progress: show a progress bar on stderr (lines, where that is not a terminal).

    Returns:
        `FitResult`.

    Raises:
        ValueError: a network that is neither on the CPU nor on a GPU; unsuitable configurations (see
            `glassconv.training.checks.check_data`); a run in ``out`` of other options or data, or with
            damaged files; early stopping without validation configurations.
        FloatingPointError: losses, predictions or weights that became NaN or infinite; the checkpoint of the
            last good epoch stays.
        FileExistsError: ``out`` holds a run and ``resume`` is False.
        KeyboardInterrupt: on Ctrl-C, with everything in place to resume.
    """
    options = options or TrainingOptions()
    device = _trainable(model.device)
    folder = Path(out)
    last = folder / "checkpoints" / "last.ckpt"
    if not resume and last.exists():
        raise FileExistsError(
            f"out: expected a folder without a training run, got {folder} (resume continues it)"
        )
    parts = {"training": training, "validation": validation}
    # the data module below prepares them, also before anything is written
    check_data(model, parts, options, prepare=False)
    record = _record(model, options, training, validation)
    if last.exists():
        _check_same(record, folder / "training.json")
        _load_checkpoint(last)
    with _quiet():
        from glassconv.training.callbacks import read_log
        from glassconv.training.data_module import ConfigurationDataModule

        if last.exists():
            read_log(folder / "log.csv")
        data = ConfigurationDataModule(
            model, training, validation, batch_size=options.batch_size, seed=options.seed
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "training.json", record)
        write_json(folder / "environment.json", environment())
        n_epochs = _run(model, data, folder, options=options, progress=progress)
    model.to(device)  # Lightning leaves it on the CPU
    epoch = _load_kept(model, folder, best=bool(validation))
    model.save(folder / "model.safetensors")
    return FitResult(model.eval(), epoch, n_epochs, read_log(folder / "log.csv"))


def _run(
    model: SE3GNN,
    data: ConfigurationDataModule,
    folder: Path,
    *,
    options: TrainingOptions,
    progress: bool,
) -> int:
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from glassconv.training import callbacks
    from glassconv.training.module import PropensityModule

    device = model.device
    bar = callbacks.Progress(options.epochs)
    hooks: list[Any] = [callbacks.FiniteEpoch(), callbacks.EpochLog(folder / "log.csv")]
    if progress:
        hooks.append(bar)
    if options.ema is not None:
        hooks.append(callbacks.AveragedWeights(options.ema))
    if options.early_stopping is not None:
        hooks.append(callbacks.ResumableEarlyStopping(options.early_stopping))
    hooks.append(callbacks.Checkpoints(folder / "checkpoints"))
    trainer = pl.Trainer(
        accelerator=device.type,
        devices=1 if device.type == "cpu" else [device.index],
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


def _trainable(device: torch.device) -> torch.device:
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"model: expected a network on the CPU or on a GPU (cuda), got one on {device}")
    return device


def _load_kept(model: SE3GNN, folder: Path, *, best: bool) -> int:
    """Put the weights that are kept into the network; returns the epoch they are from."""
    path = folder / "checkpoints" / ("best.ckpt" if best else "last.ckpt")
    checkpoint = _load_checkpoint(path)
    prefix = "model."
    state = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()}
    averaged = checkpoint["callbacks"].get("AveragedWeights")
    if averaged is not None:
        state |= averaged["average"]
    model.load_state_dict(state)
    return int(checkpoint["epoch"])


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


def _load_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways: EOFError, UnpicklingError, RuntimeError ...
        raise ValueError(
            f"{path}: expected a checkpoint of a training run, got a file that cannot be read "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "callbacks", "epoch"} <= checkpoint.keys():
        raise ValueError(f"{path}: expected a checkpoint of a training run, got something else")
    return checkpoint


def _check_same(new: dict[str, Any], file: Path) -> None:
    """A resumed run must be the same run; only its length may change, where the schedule does not depend on
    it.
    """
    try:
        old = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected the record of the run to resume, got {error}") from error
    if not isinstance(old, dict) or not new.keys() <= old.keys():
        raise ValueError(f"{file}: expected the record of the run to resume, got something else")
    if not all(isinstance(old[part], dict) for part in ("network", "options")):
        raise ValueError(f"{file}: expected the options of the run to resume, got something else")
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
