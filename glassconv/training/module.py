"""The training step: standardized mean squared error, Adam, learning-rate schedule, validation
correlation.
"""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from glassconv.nn import SE3GNN, Batch
from glassconv.training.metrics import pearson
from glassconv.training.options import TrainingOptions

__all__ = ["PropensityModule"]


class PropensityModule(pl.LightningModule):
    """A network in training.

    Metrics under the names that ``log.csv`` uses: ``train_loss``, and with a validation set
    ``validation_loss`` and ``validation_pearson`` (mean over the types in the loss, times and configurations;
    where undefined, for a network that still predicts a constant, counted as 0).

    Args:
        model: the network, its statistics set.
        options: see `TrainingOptions`.
    """

    def __init__(self, model: SE3GNN, options: TrainingOptions) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self._losses: list[Tensor] = []
        self._validation: list[tuple[Tensor, Tensor]] = []
        self._loss_types: Tensor
        # a buffer goes to the device with the network, so that no step waits for a copy from the CPU
        self.register_buffer("_loss_types", torch.tensor(options.loss_types or ()), persistent=False)

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Mean squared error of one minibatch, in standardized units."""
        loss = self._loss(self.model(batch), batch)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_start(self) -> None:
        """Forget the losses of the epoch before."""
        self._losses = []
        self._validation = []

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Loss and correlations of one configuration."""
        prediction, targets = self.model(batch), self._targets(batch)
        if not bool(torch.isfinite(prediction).all()):
            # its correlation is undefined too, but not a 0 to go on with
            raise FloatingPointError(self._diverged("validation predictions", "finite numbers", "others"))
        correlations = []
        for particle_type in self._types(batch):
            chosen = batch.types == particle_type
            correlations.append(pearson(prediction[chosen].T, targets[chosen].T))
        mean = torch.stack(correlations).nan_to_num(0.0).mean()
        self._validation.append((self._loss(prediction, batch), mean))

    def epoch_metrics(self) -> dict[str, float]:
        """The metrics of the epoch that has just been trained and validated, and its learning rate."""
        metrics = {"train_loss": float(torch.stack(self._losses).mean())}
        if self._validation:
            losses, correlations = zip(*self._validation, strict=True)
            metrics["validation_loss"] = float(torch.stack(losses).mean())
            metrics["validation_pearson"] = float(torch.stack(correlations).mean())
        optimizer: Any = self.optimizers()
        metrics["learning_rate"] = float(optimizer.param_groups[0]["lr"])
        return metrics

    def check_finite(self) -> None:
        """Refuse to go on from an epoch that has ended in numbers that are not finite.

        Raises:
            FloatingPointError: losses, or the weights that the last step of the epoch has left.
        """
        metrics = self.epoch_metrics()
        for name, label in (("train_loss", "training loss"), ("validation_loss", "validation loss")):
            if name in metrics and not math.isfinite(metrics[name]):
                raise FloatingPointError(self._diverged(label, "a finite number", str(metrics[name])))
        state = {name: v for name, v in self.model.state_dict().items() if v.is_floating_point()}
        # one answer for all: each is a wait for the device
        finite = torch.stack([torch.isfinite(value).all() for value in state.values()]).tolist()
        if not all(finite):
            name = list(state)[finite.index(False)]
            raise FloatingPointError(self._diverged("weights", "finite numbers", f"others in {name}"))

    def _diverged(self, what: str, expected: str, got: str) -> str:
        return (
            f"{what}: expected {expected}, got {got} in epoch {self.current_epoch}; "
            "a smaller learning rate may help"
        )

    def on_train_epoch_end(self) -> None:
        """Step the schedule here, before the checkpoint is written, so that a resumed run continues
        exactly.
        """
        metrics = self.epoch_metrics()
        for name, value in metrics.items():
            self.log(name, value, on_step=False, on_epoch=True, batch_size=1)
        scheduler: Any = self.lr_schedulers()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            # both to be maximized: a smaller training loss is a larger negative one
            scheduler.step(metrics.get("validation_pearson", -metrics["train_loss"]))
        elif scheduler is not None:
            scheduler.step()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's own step, which for plateaus comes after the checkpoint: replaced by the one above."""

    def configure_optimizers(self) -> Any:
        """Adam and the schedule of the options."""
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.options.learning_rate)
        if self.options.schedule == "constant":
            return optimizer
        scheduler: Any
        if self.options.schedule == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.options.epochs)
        else:
            # an absolute threshold: a relative one has the wrong sign for a loss that was turned negative
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, "max", 0.5, self.options.schedule_patience, threshold=1e-4, threshold_mode="abs"
            )
        # Lightning asks for a monitor with plateaus; the value is given by hand in on_train_epoch_end
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss"}}

    def _targets(self, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return self.model.standardize(batch.targets, batch.types)

    def _types(self, batch: Batch) -> list[int]:
        present = [int(t) for t in batch.types.unique()]
        wanted = self.options.loss_types
        return present if wanted is None else [t for t in present if t in wanted]

    def _loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        squared = (prediction - self._targets(batch)).square()
        if self.options.loss_types is None:
            return squared.mean()
        # a masked mean: to choose rows, the CPU would have to know how many they are
        wanted = (batch.types[:, None] == self._loss_types).any(dim=1)
        return torch.where(wanted[:, None], squared, 0.0).sum() / (wanted.sum() * squared.shape[1])
