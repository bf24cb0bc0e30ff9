"""The batches of a run: their order, their share of each process, and workers that load them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastseg.train.processes import rank, world_size

Key = tuple[int, int]
"""A picture's index, and the sample's number in the epoch."""


def epoch_order(images: int, samples: int, seed: int, epoch: int) -> list[Key]:
    """Returns the samples of an epoch, which depend on seed and epoch alone.

    Args:
        images: number of pictures.
        samples: number of samples; where it is more than the pictures, these come again, each time
            in another order and with other random changes.
        seed: the run's seed.
        epoch: the epoch's number.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = []
    while len(order) < samples:
        order += torch.randperm(images, generator=generator).tolist()
    return [(index, number) for number, index in enumerate(order[:samples])]


class Batches:
    """The batches of an epoch's rest, as index lists; a sampler of batches for DataLoader.

    Args:
        order: the samples that are left.
        batch_size: samples of a batch in all processes; each takes its part of every batch.
    """

    def __init__(self, order: list[Key], batch_size: int) -> None:
        self.batches = [
            order[k : k + batch_size] for k in range(0, len(order) - batch_size + 1, batch_size)
        ]
        own = batch_size // world_size()
        self.part = slice(rank() * own, (rank() + 1) * own)

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yields this process's part of each batch."""
        return iter([batch[self.part] for batch in self.batches])


def loader(
    dataset: Dataset[tuple[Tensor, Tensor]], batches: Batches, workers: int, pinned: bool
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Returns a loader of an epoch's batches.

    The loader draws a number for its workers from a generator of its own, so that the caller's
    stays as it is. Samples have their own generators, see ``PictureFolder``.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pinned,
        generator=torch.Generator(),
        worker_init_fn=_begin_work if workers else None,
    )


def _begin_work(worker: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that trains.

    A worker ends with that one. torch's own workers ask every few seconds whether their parent is
    still the same, and stay forever if it was killed before they asked for the first time.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
