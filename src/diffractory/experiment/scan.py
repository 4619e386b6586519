"""A scan: frames of a detector at the positions of a probe, read a block at a time."""

import math
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from diffractory.errors import InputError
from diffractory.experiment.scan_axes import (
    AXES,
    AXES_HELP,
    LEAST_SIDE,
    by,
    given_order,
    size_of_pixel,
    step_of_scan,
    told_order,
)
from diffractory.experiment.scan_contents import Contents, damaged
from diffractory.experiment.scan_files import read_contents
from diffractory.store import atomic_folder

BLOCK_BYTES = 64 * 2**20
"""Frames (float32) that are in memory at a time."""

CHUNK_BYTES = 2**20
"""Frames that `write_scan` compresses together."""


@dataclass(frozen=True)
class Scan:
    """Frames of a detector at the positions of a probe.

    Attributes
    ----------
    path
        The file or Zarr folder.
    shape
        Scan rows, scan columns, detector rows, detector columns. Detector rows count downward, and
        are along q_y; columns are along q_x.
    pixel_size
        In 1/angstrom; None where neither the file nor the user tells it.
    energy
        Of the electrons, eV, or None.
    step
        Between neighbouring positions, angstrom, or None.
    array
        What slices are read of.
    order
        Names of its axes, of `AXES`; ``n`` is a stack over all positions.
    """

    path: Path
    shape: tuple[int, int, int, int]
    pixel_size: float | None
    energy: float | None
    step: float | None
    array: Any = field(repr=False)
    order: tuple[str, ...]

    def blocks(self, every: int = 1) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield positions with their frames, at most `BLOCK_BYTES` of them at a time.

        Blocks are rectangles of whole chunks of the file, as far as these fit.

        Parameters
        ----------
        every
            Read only every so manieth row and column of the scan.

        Yields
        ------
        positions
            Row times the number of columns plus column, ascending, shape (n,).
        frames
            As they are in the file, shape (n, detector rows, detector columns).

        Raises
        ------
        InputError
            If the file is damaged.
        """
        rows, columns = self.shape[:2]
        height, width = self._block(every)
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                y = np.arange(_next(top, every), min(top + height, rows), every, dtype=np.int64)
                x = np.arange(_next(left, every), min(left + width, columns), every, dtype=np.int64)
                if y.size and x.size:
                    positions = np.add.outer(y * columns, x).ravel()
                    if every == 1:
                        frames = self._rectangle(_between(y), _between(x))
                        yield positions, frames.reshape(-1, *self.shape[2:])
                    else:
                        yield positions, self.read(positions)

    def read(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the frames of these positions in this order, shape (n, rows, columns).

        It is for few positions: those that share a chunk of the file are read together.

        Raises
        ------
        InputError
            If the file is damaged.
        """
        y, x = np.divmod(np.asarray(positions, dtype=np.int64), self.shape[1])
        height, width = np.minimum(self._chunks(), self._block(1))
        cells = (y // height) * self.shape[1] + x // width
        frames = np.empty((len(y), *self.shape[2:]), dtype=np.float32)
        for cell in np.unique(cells):
            here = np.flatnonzero(cells == cell)
            rows, columns = _between(y[here]), _between(x[here])
            block = self._rectangle(rows, columns)
            frames[here] = block[y[here] - rows.start, x[here] - columns.start]
        return frames

    def _chunks(self) -> tuple[int, int]:
        """Return the rows and columns of the scan that a chunk of the file holds."""
        chunks = getattr(self.array, "chunks", None)
        if not chunks or not isinstance(chunks[0], int):  # dask's are over a memory map
            return 1, 1
        lengths = dict(zip(self.order, chunks, strict=True))
        if "n" in lengths:
            columns = self.shape[1]
            return max(lengths["n"] // columns, 1), min(lengths["n"], columns)
        return lengths.get("ry", 1), lengths.get("rx", 1)

    def _block(self, every: int) -> tuple[int, int]:
        """Return the rows and columns of the scan that are read together."""
        rows, columns, *detector = self.shape
        most = max(BLOCK_BYTES // (4 * math.prod(detector)), 1)
        high, wide = self._chunks()
        width = _fitting(columns, wide, most // math.ceil(high / every), every)
        return _fitting(rows, high, most // math.ceil(width / every), every), width

    def _rectangle(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return the frames of some rows and columns, shape (rows, columns, *detector)."""
        try:
            if "n" not in self.order:
                return self._slice({"ry": rows, "rx": columns})
            starts = range(rows.start * self.shape[1], rows.stop * self.shape[1], self.shape[1])
            lines = [slice(start + columns.start, start + columns.stop) for start in starts]
            return np.concatenate([self._slice({"n": line}) for line in lines])
        except Exception as error:  # what a damaged chunk raises is up to its compression
            raise damaged(self.path, error) from error

    def _slice(self, where: dict[str, slice]) -> NDArray[np.float32]:
        """Return part of the array as (scan rows, scan columns, detector rows and columns)."""
        values = self.array[tuple(where.get(name, slice(None)) for name in self.order)]
        if hasattr(values, "compute"):  # dask: one thread, since files are read one at a time
            values = values.compute(scheduler="synchronous")
        names = ["rx" if name == "n" else name for name in self.order]
        values = np.transpose(values, [names.index(name) for name in AXES if name in names])
        missing = tuple(i for i, name in enumerate(AXES) if name not in names)
        frames = np.array(np.expand_dims(values, missing), dtype=np.float32, order="C")
        _let_go(self.array)
        return frames


def open_scan(
    path: Path,
    pixel_size: float | None = None,
    energy: float | None = None,
    axes: str | None = None,
    dataset: str | None = None,
) -> Scan:
    """Open the scan in a file of a microscope, of HyperSpy, py4DSTEM, NumPy or Zarr.

    Chunks that a Zarr array lacks are read as its fill value, as Zarr means it, unless `write_scan`
    wrote it: that writes them all.

    Parameters
    ----------
    path
        One of `scan_files.READERS`.
    pixel_size, energy
        In 1/angstrom and eV, in place of what the file says.
    axes
        Order of the axes in the file, in place of what it says: see `AXES_HELP`. Else an array of
        four axes is (scan rows, scan columns, detector rows, detector columns), one of three a line
        of frames, and one of two a single frame.
    dataset
        Which array, where a file has several.

    Raises
    ------
    InputError
        If it cannot be read, is no scan, or its axes are plainly in another order.
    """
    for name, value in (("pixel size", pixel_size), ("energy of the electrons", energy)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"the {name} must be a number above 0, not {value}")
    contents = read_contents(path, dataset)
    _check_chunks(path, contents)
    array = contents.array
    if array.dtype.kind not in "uifb":
        raise InputError(
            f"{path} holds values of type {array.dtype}, not counts: give the frames as whole or "
            "real numbers"
        )
    if not 2 <= array.ndim <= 4 or 0 in array.shape:
        raise InputError(
            f"{path} is no scan but an array of {by(array.shape)}: give one of scan rows x scan "
            "columns x detector rows x detector columns"
        )
    if axes is None:
        order, lengths = told_order(contents.axes, array.shape)
    else:
        order, lengths = given_order(path, array.shape, axes)
    rows, columns, *detector = (lengths.get(name, 1) for name in AXES)
    if axes is None and min(detector) < min(LEAST_SIDE, max(rows, columns)):
        raise InputError(
            f"{path} would have frames of {by(detector)} pixels at {by([rows, columns])} "
            f"positions: if its axes are in another order give {AXES_HELP}"
        )
    energy = contents.energy if energy is None else energy
    scales = dict(zip(order, contents.axes, strict=False))
    scan = Scan(
        path,
        (rows, columns, detector[0], detector[1]),
        size_of_pixel(path, scales, energy) if pixel_size is None else pixel_size,
        energy,
        step_of_scan(scales),
        array,
        order,
    )
    scan.read(np.array([rows * columns - 1]))  # so that a cut file is refused at once
    return scan


def _check_chunks(path: Path, contents: Contents) -> None:
    """Refuse a Zarr array of which files are lost: it would read as frames of zeros."""
    if contents.complete and contents.array.nchunks_initialized < contents.array.nchunks:
        lost = contents.array.nchunks - contents.array.nchunks_initialized
        raise InputError(
            f"{path} is damaged, {lost} of {contents.array.nchunks} chunks are missing: copy it "
            "again"
        )


def _let_go(array: Any) -> None:
    """Drop what was read of a memory map, else its pages stay until memory is short."""
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, mmap.mmap):
        array.madvise(mmap.MADV_DONTNEED)


def _between(indices: NDArray[np.int64]) -> slice:
    return slice(int(indices.min()), int(indices.max()) + 1)


def _next(start: int, every: int) -> int:
    """Return the first multiple of a number from another on."""
    return -(-start // every) * every


def _fitting(length: int, chunk: int, most: int, every: int) -> int:
    """Return how many of an axis' positions to read together.

    All, or else as many whole chunks of the file as hold ``most`` of those looked at, or else so
    many.
    """
    reach = max(most, 1) * every
    return length if length <= reach else reach // chunk * chunk or reach


def write_scan(
    path: Path,
    shape: tuple[int, int, int, int],
    blocks: Iterable[NDArray[Any]],
    pixel_size: float,
    energy: float,
    step: float,
    dtype: type[np.generic] = np.uint16,
) -> None:
    """Write a scan as one Zarr v3 array with attributes, a file for each row of the scan.

    Parameters
    ----------
    shape
        As of a `Scan`.
    blocks
        Frames of consecutive positions, shape (any, rows, columns) each.
    pixel_size
        In 1/angstrom.
    energy
        Of the electrons, eV.
    step
        Between neighbouring positions, angstrom.
    dtype
        In the file. Values are rounded to whole numbers and clipped where it is of such.

    Raises
    ------
    ValueError
        If there are more or fewer frames than positions.
    """
    rows, columns, *detector = shape
    frame = math.prod(detector) * np.dtype(dtype).itemsize
    together = min(max(CHUNK_BYTES // frame, 1), columns)
    while columns % together:
        together -= 1
    with atomic_folder(path) as partial:
        array: Any = zarr.create_array(
            partial,
            shape=shape,
            dtype=dtype,
            chunks=(1, together, *detector),
            shards=(1, columns, *detector),
            dimension_names=AXES,
            attributes={"pixel_size": pixel_size, "energy": energy, "step": step},
            config={"write_empty_chunks": True},  # so that a missing one is known to be lost
        )
        done, count = 0, rows * columns
        for row in _rows(blocks, columns):
            if len(row) and done < count:
                array[done // columns, : len(row)] = _as_type(row, dtype)
            done += len(row)
        if done != count:
            raise ValueError(f"{done} frames for a scan of {by(shape)}, which has {count}")


def _rows(blocks: Iterable[NDArray[Any]], columns: int) -> Iterator[NDArray[Any]]:
    """Yield the frames of all blocks a row of the scan at a time; the last one may be shorter."""
    pending: list[NDArray[Any]] = []
    for block in blocks:
        frames = np.concatenate([*pending, block])
        whole = len(frames) // columns * columns
        yield from np.split(frames[:whole], range(columns, whole, columns)) if whole else ()
        pending = [frames[whole:]]
    yield from pending


def _as_type(values: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    if np.issubdtype(dtype, np.integer) and values.dtype != dtype:
        limits = np.iinfo(dtype)  # type: ignore[type-var]
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)
