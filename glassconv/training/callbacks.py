"""What happens around the training steps: log, progress bar, early stopping, averaged weights."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from glassconv._files import write_text
from glassconv.training.module import PropensityModule
from glassconv.training.progress import ProgressBar

__all__ = [
    "AveragedWeights",
    "Checkpoints",
    "EpochLog",
    "FiniteEpoch",
    "Progress",
    "ResumableEarlyStopping",
    "read_log",
]

COLUMNS = ("epoch", "train_loss", "validation_loss", "validation_pearson", "learning_rate", "seconds")


def read_log(path: Path) -> list[dict[str, str]]:
    """Rows of a ``log.csv``, values as text; an empty list when there is no such file.

    Raises:
        ValueError: not such a log.
    """
    if not path.exists():
        return []
    rows = list(csv.DictReader(io.StringIO(path.read_text(errors="replace"))))
    if not all((row.get("epoch") or "").isdecimal() for row in rows):
        raise ValueError(f"{path}: expected the log of a training run, got a file without epochs")
    return rows


class FiniteEpoch(Callback):
    """Stop with an error where an epoch ends in NaN or infinity, before it enters log and checkpoints."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """See `PropensityModule.check_finite`."""
        assert isinstance(pl_module, PropensityModule)
        pl_module.check_finite()


class EpochLog(Callback):
    """One row per finished epoch in ``log.csv``, rewritten atomically each time.

    A resumed run keeps the rows of the epochs before the checkpoint and replaces later ones: a run that was
    stopped between log and checkpoint does that epoch again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Read what an earlier part of the run has left."""
        self._rows = [row for row in read_log(self._path) if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock of the epoch."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Append the row of the finished epoch."""
        assert isinstance(pl_module, PropensityModule)
        row = {"epoch": str(trainer.current_epoch), "seconds": f"{time.perf_counter() - self._start:.3f}"}
        row |= {name: repr(value) for name, value in pl_module.epoch_metrics().items()}
        self._rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())


class Progress(Callback):
    """One progress bar over the whole training, with the metrics of the last finished epoch."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._bar: ProgressBar | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Open the bar where a resumed run stands."""
        n_steps = int(trainer.num_training_batches)
        done = trainer.current_epoch * n_steps
        self._bar = ProgressBar("training", self._epochs * n_steps, done=done)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:  # noqa: ARG002
        """Advance by a step; the last one of an epoch waits for its metrics."""
        if self._bar is not None and not trainer.is_last_batch:
            self._bar.update(trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the metrics of the finished epoch."""
        assert isinstance(pl_module, PropensityModule)
        metrics = pl_module.epoch_metrics()
        names = {"train_loss": "loss", "validation_loss": "val loss", "validation_pearson": "val r"}
        shown = ", ".join(f"{names[name]} {metrics[name]:.3f}" for name in names if name in metrics)
        if self._bar is not None:
            self._bar.update(trainer.global_step, f"epoch {trainer.current_epoch + 1}, {shown}")

    def close(self) -> None:
        """Leave the terminal in order, however training ended."""
        if self._bar is not None:
            self._bar.close()


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping on ``validation_pearson`` that a resumed run remembers: what had stopped stays
    stopped.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(monitor="validation_pearson", mode="max", patience=patience)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop at once where the patience was used up before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Checkpoints(Checkpoint):
    """After every epoch ``last.ckpt``, from which a run resumes; ``best.ckpt`` where ``validation_pearson``
    rose.

    Lightning calls it after all other callbacks of the epoch, so that their state is in the file.

    Args:
        folder: where; the files may be moved between stop and resume.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._best = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them."""
        assert isinstance(pl_module, PropensityModule)
        correlation = pl_module.epoch_metrics().get("validation_pearson")
        if correlation is not None and correlation > self._best:
            self._best = correlation
            trainer.save_checkpoint(self._folder / "best.ckpt")
        trainer.save_checkpoint(self._folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._best = state_dict["best"]


class AveragedWeights(Callback):
    """Exponential moving average of parameters and normalization statistics, validated and kept in their
    place.

    The average starts as a plain mean, with decay min(decay, (1 + n) / (10 + n)) after n steps, so that the
    initial weights are soon forgotten. Buffers that are not floating-point numbers are left alone.

    Args:
        decay: weight of the past in each step.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._n_steps = 0
        self._average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start from the initial weights, unless a checkpoint has brought an average (from any device)."""
        weights = _floating(pl_module)
        average = self._average or weights
        self._average = {name: average[name].to(value.device, copy=True) for name, value in weights.items()}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,
        *_: Any,
    ) -> None:
        """Move the average towards the weights."""
        self._n_steps += 1
        decay = min(self._decay, (1 + self._n_steps) / (10 + self._n_steps))
        weights = _floating(pl_module)
        # all at once: a GPU takes as long to be told of each as to average it
        get_ema_multi_avg_fn(decay)([self._average[name] for name in weights], list(weights.values()), None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Validate the average."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Back to the weights in training."""
        self._swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: ``average`` has the names of the network's own state."""
        return {"average": self._average, "n_steps": self._n_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self._average, self._n_steps = dict(state_dict["average"]), state_dict["n_steps"]

    def _swap(self, module: pl.LightningModule) -> None:
        for name, value in _floating(module).items():
            kept = value.clone()
            value.copy_(self._average[name])
            self._average[name] = kept


def _floating(module: pl.LightningModule) -> dict[str, Tensor]:
    assert isinstance(module, PropensityModule)
    state: dict[str, Tensor] = module.model.state_dict()  # detached, sharing memory with the network
    return {name: value for name, value in state.items() if torch.is_floating_point(value)}
