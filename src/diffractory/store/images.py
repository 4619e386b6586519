"""The image store: images of one detector and their reference, in a sharded Zarr v3 group."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from diffractory.store.files import atomic_folder

IMAGES_PER_FILE = 256
"""Images are read one by one and stored in files of so many: 70,000 are 274 files."""


def write_images(
    path: Path,
    count: int,
    blocks: Iterable[NDArray[np.floating]],
    reference: NDArray[np.floating],
    attributes: Mapping[str, Any],
    dtype: type[np.floating],
) -> None:
    """Write P images, of which no more than a file is in memory at a time.

    Parameters
    ----------
    count
        P.
    blocks
        Consecutive images, shape (any, rows, columns) each, P in all.
    reference
        The image that others are compared with, shape (rows, columns).
    attributes
        ``pixel_size`` and ``beam_stop`` (radius), both in 1/angstrom.
    dtype
        Of the images in the store.
    """
    with atomic_folder(path) as partial:
        group = zarr.open_group(partial, mode="w", zarr_format=3)
        group.attrs.update(dict(attributes))
        group.create_array("reference", data=np.asarray(reference, dtype=np.float32))
        shape = reference.shape
        array: Any = group.create_array(
            "images",
            shape=(count, *shape),
            dtype=dtype,
            chunks=(1, *shape),
            shards=(max(1, min(IMAGES_PER_FILE, count)), *shape),
            compressors=None,  # of noise there is nothing to gain, and it takes longer than to make
        )
        written = 0
        for whole in _files(blocks):
            array[written : written + len(whole)] = whole.astype(dtype)
            written += len(whole)


def _files(blocks: Iterable[NDArray[np.floating]]) -> Iterator[NDArray[np.floating]]:
    """Yield the images of all blocks, a file of the store at a time."""
    pending: list[NDArray[np.floating]] = []
    for image in chain.from_iterable(blocks):
        pending.append(image)
        if len(pending) == IMAGES_PER_FILE:
            yield np.stack(pending)
            pending = []
    if pending:
        yield np.stack(pending)


class ImageReader:
    """Reads images of a store that it opens once.

    Attributes
    ----------
    shape
        Number of images, rows and columns.
    reference
        The image that others are compared with, shape (rows, columns), float32.
    pixel_size, beam_stop
        Size of a pixel and radius of the beam stop, 1/angstrom.
    """

    def __init__(self, path: Path) -> None:
        group: Any = zarr.open_group(path, mode="r")
        self._images = group["images"]
        self.shape: tuple[int, int, int] = self._images.shape
        self.reference: NDArray[np.float32] = group["reference"][:]
        self.pixel_size = float(group.attrs["pixel_size"])
        self.beam_stop = float(group.attrs["beam_stop"])

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the images with these indices, in this order, shape (N, rows, columns)."""
        return self._images.oindex[np.asarray(indices)].astype(np.float32)
