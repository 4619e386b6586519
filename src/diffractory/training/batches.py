"""What batches of spot lists and of images have in common, and how they are handed out."""

from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from diffractory.store import InputError, keep_socket_paths_short

Item = TypeVar("Item", covariant=True)


class Batches(Dataset[Item]):
    """Batches of a split: item k is batch k of an endless training.

    The length is one pass. Items go on past it: each pass has everything once, in an order of its
    own. An item depends on the seed and k alone, so that the batches k to n are
    ``DataLoader(batches, batch_size=None, sampler=range(k, n))``, whatever the number of workers.

    Parameters
    ----------
    size
        How much there is in a pass.
    batch_size
        Most in a batch; a pass is divided evenly, to one more or less.

    Attributes
    ----------
    held
        Data in memory, if they are read once and kept. Workers do not get them.
    unit
        What there is in a batch, in the plural.
    remedy
        What to do if there are too few in a batch.
    """

    unit: ClassVar[str]
    remedy: ClassVar[str]

    def __init__(self, size: int, batch_size: int) -> None:
        n_batches = -(-size // batch_size)
        self.bounds: NDArray[np.int64] = np.arange(n_batches + 1) * size // n_batches
        self.rank, self.world = 0, 1
        self.held: Any = None

    def shared(self, rank: int, world: int) -> Self:
        """Return the same batches, of which one of ``world`` processes has every world-th item.

        Raises
        ------
        InputError
            If a batch has fewer items than there are processes.
        """
        fewest = np.diff(self.bounds).min()
        if fewest < world:
            raise InputError(
                f"{world} processes cannot share a batch of {fewest} {self.unit}: {self.remedy}"
            )
        batches = copy(self)
        batches.rank, batches.world, batches.held = rank, world, self.held
        return batches

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getstate__(self) -> dict[str, Any]:
        """Leave the data behind: each worker reads for itself."""
        return self.__dict__ | {"held": None}


def loader(batches: Dataset[Any], sampler: Any, workers: int) -> DataLoader[Any]:
    """Return a loader of whole batches, the same for any number of worker processes."""
    keep_socket_paths_short()
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )


def check_device(hardware: Mapping[str, Any], study: str) -> None:
    """Raise InputError if there is no such device as the hardware of a study asks for."""
    if hardware["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{study}.hardware.device is cuda, but no CUDA device is visible: set cpu")
