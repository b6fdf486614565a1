"""Configurations as Lightning wants them: prepared once, cached, and concatenated into minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Sampler

from glassconv.data import Configuration
from glassconv.nn import SE3GNN, Batch

__all__ = ["ConfigurationDataModule", "epoch_order"]


class ConfigurationDataModule(pl.LightningDataModule):
    """Training and validation configurations for one network.

    Neighbor graphs and radial bases are computed at construction, once, on the device of the network, and
    kept there: a configuration of 4096 particles and 167k edges takes some 16 MB in float32. Those that would
    fill more than half of a GPU's memory are kept in the CPU's, and copied for every step.

    Args:
        model: the network that prepares the batches (`SE3GNN.prepare`).
        training: configurations with propensities.
        validation: the same, or none. Validated one configuration at a time.
        batch_size: configurations per step.
        seed: of the order of the configurations in each epoch.

    Raises:
        ValueError: no training configuration, one without propensities, or anything the network refuses.
    """

    def __init__(
        self,
        model: SE3GNN,
        training: Sequence[Configuration],
        validation: Sequence[Configuration] = (),
        *,
        batch_size: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not training:
            raise ValueError("training: expected at least one configuration, got none")
        self._device = model.device
        self._training = [_prepare(model, configuration) for configuration in training]
        self._validation = [_prepare(model, configuration) for configuration in validation]
        self._batch_size = batch_size
        self._seed = seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """Minibatches in an order drawn from the seed and the number of the epoch alone."""
        order = _EpochSampler(len(self._training), self._seed)
        return self._loader(self._training, self._batch_size, order)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        """The validation configurations one by one; no loader at all when there are none."""
        return [self._loader(self._validation, 1, None)] if self._validation else []

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        """Lightning's hook: a batch moves itself, and stays where it is when it is there."""
        return batch if batch.vectors.device == device else batch.to(device)

    def _loader(
        self, batches: list[Batch], batch_size: int, sampler: Sampler[int] | None
    ) -> DataLoader[Batch]:
        dataset: Any = batches  # a list has what the loader needs, but not its base class
        return DataLoader(dataset, batch_size=batch_size, sampler=sampler, collate_fn=self._collate)

    def _collate(self, batches: Sequence[Batch]) -> Batch:
        return Batch.concatenate([self.transfer_batch_to_device(batch, self._device, 0) for batch in batches])


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """Order of ``n`` configurations in an epoch: a resumed run meets the order it would have met."""
    generator = torch.Generator().manual_seed((seed << 24) + epoch)
    return [int(i) for i in torch.randperm(n, generator=generator)]


class _EpochSampler(Sampler[int]):
    """Random order anew in each epoch; Lightning calls ``set_epoch``, also after a resume."""

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed, self._epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[int]:
        yield from epoch_order(self._n, self._seed, self._epoch)


def _prepare(model: SE3GNN, configuration: Configuration) -> Batch:
    if configuration.propensity is None:
        raise ValueError(f"configurations: expected propensities to train on, got none in {configuration!r}")
    batch = model.prepare(configuration)
    return batch if _has_room(model.device) else batch.to("cpu")


def _has_room(device: torch.device) -> bool:
    """Whether half of the device's memory is left for the training itself."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    # what the allocator holds and has not given out is free too
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free >= total // 2
