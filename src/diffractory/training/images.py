"""Batches of diffraction images for networks, from an image store on disk or in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from diffractory.store import InputError, generator
from diffractory.store.images import IMAGES_PER_FILE, ImageReader
from diffractory.training.batches import Batches


class ImageBatch(NamedTuple):
    """B images.

    Processes that train together each have some of the W images of a whole batch; else B is W.

    Attributes
    ----------
    images
        Shape (B, rows, columns), float32, in the unit of the store's reference.
    kind
        Index among the classes, -1 for none of them, shape (B,), int64.
    pattern
        Indices in the store, of the whole batch, shape (W,), int64.
    """

    images: Tensor
    kind: Tensor
    pattern: Tensor


class ImageBatches(Batches[ImageBatch]):
    """Batches of images.

    Parameters
    ----------
    store
        Image store.
    samples
        Columns ``kind`` and ``pattern``, the index in the store.
    classes
        Kinds in the order of the network's classes.
    batch_size
        Most images in a batch; the images of a pass are divided evenly, to one more or less.
    seed
        Global seed.
    shuffle
        Whether to shuffle; if not, images are in the order of the samples.
    in_memory
        Whether images are read once and kept (2 bytes a pixel). Every worker would read and keep
        them: meant for a ``DataLoader`` without workers.
    """

    unit = "images"
    remedy = "lower ued.hardware.devices or nodes, or raise batch_size or the number of images"
    held: Tensor | None

    def __init__(
        self,
        store: Path,
        samples: pd.DataFrame,
        classes: Sequence[str],
        batch_size: int,
        seed: int,
        shuffle: bool,
        in_memory: bool,
    ) -> None:
        super().__init__(len(samples), batch_size)
        self.reader = ImageReader(store)
        self.pattern = samples["pattern"].to_numpy(np.int64)
        self.kind = pd.Index(classes).get_indexer(pd.Index(samples["kind"])).astype(np.int64)
        self.seed, self.shuffle, self.in_memory = seed, shuffle, in_memory

    def __getitem__(self, k: int) -> ImageBatch:
        pass_, batch = divmod(k, len(self))
        rows = np.arange(len(self.pattern))
        if self.shuffle:
            rows = generator(self.seed, "image_batches", pass_).permutation(rows)
        whole = rows[self.bounds[batch] : self.bounds[batch + 1]]
        mine = whole[self.rank :: self.world]
        kind, pattern = torch.from_numpy(self.kind[mine]), torch.from_numpy(self.pattern[whole])
        return ImageBatch(self._images(mine).float(), kind, pattern)

    def _images(self, rows: np.ndarray[Any, Any]) -> Tensor:
        """Return the images in some rows of the samples, in 16 bits as in the store."""
        if not self.in_memory:
            return self._read(self.pattern[rows])
        if self.held is None:
            cuts = range(IMAGES_PER_FILE, len(self.pattern), IMAGES_PER_FILE)
            parts = np.split(self.pattern, cuts)  # what is read has 4 bytes a pixel
            self.held = torch.cat([self._read(part) for part in parts])
        return self.held[torch.from_numpy(rows)]

    def _read(self, patterns: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(self.reader.read(patterns)).half()


def read_samples(images: Path, samples: Path, splits: Sequence[str]) -> pd.DataFrame:
    """Return the samples of some splits, with their index in the store as ``pattern``.

    Raises
    ------
    InputError
        If there are none, or the samples are not those of the store.
    """
    table = pd.read_parquet(samples)
    count = ImageReader(images).shape[0]
    if len(table) != count:
        raise InputError(
            f"{samples} has {len(table)} samples but {images} has {count} images: delete both and "
            "run again"
        )
    table = table.assign(pattern=np.arange(count))
    table = table[table["split"].isin(splits)].reset_index(drop=True)
    if table.empty:
        raise InputError(
            f"{samples} has no image of the split {' or '.join(splits)}: ask for more images"
        )
    return table


def half_turned(images: Tensor) -> Tensor:
    """Return images (B, rows, columns), of which about half are turned by 180 degrees."""
    turned = torch.rand(len(images), 1, 1, device=images.device) < 0.5
    return torch.where(turned, images.flip((1, 2)), images)
