"""The spots of a whole scan, block by block, in a file and not in memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from diffractory.experiment.bragg_spots import Detection, find_spots
from diffractory.experiment.bragg_vectors import read_bragg_vectors
from diffractory.experiment.preparing import Preparation, SpotLists, to_spot_lists
from diffractory.experiment.scan import Scan
from diffractory.experiment.symmetry_model import select
from diffractory.store import track
from diffractory.store.scan_maps import CLASSIFIED, NOT_LOOKED_AT, UNUSABLE
from diffractory.training.conventions import NEAR_DIRECT

DIRECT_BEAM = 1.5
"""What is farther from the direct beam than so many radii of the probe is outside of it."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Measured:
    """What the frames of a scan of N positions show, row by row.

    Attributes
    ----------
    read
        Returns the spots of some positions.
    n_spots
        Diffracted spots, shape (N,).
    dark_field
        Counts outside of the direct beam, fraction of all of the frame; NaN without a frame, (N,).
    state
        `CLASSIFIED` for all frames that can be used, `UNUSABLE` or `NOT_LOOKED_AT`, shape (N,).
    """

    read: Callable[[NDArray[np.int64]], SpotLists]
    n_spots: NDArray[np.int32]
    dark_field: NDArray[np.float32]
    state: NDArray[np.int8]


class SpotFile:
    """Spots in a file, which are read by position.

    Parameters
    ----------
    path
        To write; the caller removes it.
    n
        Positions.
    """

    def __init__(self, path: Path, n: int) -> None:
        self.path = path
        self.start, self.count = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int32)
        self.size = 0
        path.touch()

    def add(self, positions: NDArray[np.int64], spots: SpotLists) -> None:
        """Append the spots of some positions."""
        self.start[positions] = self.size + spots.offsets[:-1]
        self.count[positions] = np.diff(spots.offsets)
        self.size += int(spots.offsets[-1])
        with self.path.open("ab") as file:
            np.stack(spots[1:], axis=1).tofile(file)

    def read(self, positions: NDArray[np.int64]) -> SpotLists:
        """Return the spots of some positions, in this order."""
        offsets = np.concatenate([[0], np.cumsum(self.count[positions], dtype=np.int64)])
        rows = np.repeat(self.start[positions] - offsets[:-1], self.count[positions])
        rows += np.arange(offsets[-1])
        if not len(rows):
            return SpotLists(offsets, *np.empty((3, 0), dtype=np.float32))
        values = np.memmap(self.path, dtype=np.float32, mode="r", shape=(self.size, 3))[rows]
        return SpotLists(offsets, *np.ascontiguousarray(values.T))


@dataclass(frozen=True)
class Frames:
    """A scan of frames, in which spots are yet to be found.

    Attributes
    ----------
    scan
        With a pixel size.
    preparation
        Of this scan.
    detection
        What counts as a spot.
    device
        Where spots are found.
    """

    scan: Scan
    preparation: Preparation
    detection: Detection
    device: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the scan."""
        return self.scan.shape[:2]

    @property
    def words(self) -> str:
        """The scan in words."""
        rows, columns, *detector = self.scan.shape
        energy = "unknown voltage" if self.energy is None else f"{self.energy / 1000:g} kV"
        return (
            f"{rows} x {columns} positions, {detector[0]} x {detector[1]} pixels of "
            f"{self.preparation.pixel_size:.4g} 1/angstrom, {energy}, spots of "
            f"{self.preparation.probe.radius:.1f} pixels radius"
        )

    @property
    def energy(self) -> float | None:
        """Of the electrons, eV."""
        return self.scan.energy

    @property
    def step(self) -> float | None:
        """Distance of neighbouring positions, angstrom."""
        return self.scan.step

    @property
    def q_max(self) -> float:
        """Radius about the direct beam that the detector covers, 1/angstrom."""
        middle = self.scan.shape[0] // 2 * self.scan.shape[1] + self.scan.shape[1] // 2
        centre = self.preparation.centre(np.array([middle]))[0]
        edge = np.minimum(centre, np.array(self.scan.shape[2:]) - 1 - centre).min()
        return float(edge * self.preparation.pixel_size)

    @property
    def direct_beam(self) -> bool:
        """Whether the direct beam is seen."""
        return not self.preparation.beam_stop

    def measure(self, every: int, path: Path) -> Measured:
        """Find the spots of every so manieth row and column.

        Parameters
        ----------
        path
            File for the spots, to write; the caller removes it when all is read.
        """
        rows, columns = self.shape
        n, preparation = rows * columns, self.preparation
        spots = SpotFile(path, n)
        n_spots, state = np.zeros(n, dtype=np.int32), np.full(n, NOT_LOOKED_AT, dtype=np.int8)
        dark_field = np.full(n, np.nan, dtype=np.float32)
        total = -(-rows // every) * -(-columns // every)
        blocks = ahead(self.scan.blocks(every))
        for positions, frames in track(blocks, "Finding spots", total, "frames", _count):
            frames -= np.float32(preparation.dark)
            centre, radius = preparation.centre(positions), DIRECT_BEAM * preparation.probe.radius
            counts, direct = light(frames, preparation.mask, centre, radius)
            found = find_spots(
                frames, preparation.probe, self.detection, preparation.mask, self.device
            )
            dark = preparation.dark * preparation.mask.sum()
            lists = to_spot_lists(found, counts + dark, positions, preparation)
            spots.add(positions, lists)
            lit = counts > 0
            state[positions] = np.where(lit, CLASSIFIED, UNUSABLE)
            n_spots[positions] = diffracted(lists)
            dark_field[positions[lit]] = 1 - direct[lit] / counts[lit]
        return Measured(spots.read, n_spots, dark_field, state)


class Vectors:
    """The Bragg vectors that py4DSTEM found in a scan.

    Parameters
    ----------
    path, pixel_size, energy
        As `read_bragg_vectors` takes them.
    """

    step = None
    direct_beam = True

    def __init__(self, path: Path, pixel_size: float | None, energy: float | None) -> None:
        self.energy = energy
        self.shape, self.spots = read_bragg_vectors(path, pixel_size, energy)
        self.words = f"Bragg vectors of {self.shape[0]} x {self.shape[1]} positions"
        self.q_max = float(np.hypot(self.spots.qx, self.spots.qy).max(initial=0))

    def measure(self, every: int, path: Path) -> Measured:
        """Return what is there; nothing is written to the path."""
        rows, columns = self.shape
        n_spots, n = diffracted(self.spots).astype(np.int32), rows * columns
        state = np.full((rows, columns), NOT_LOOKED_AT, dtype=np.int8)
        state[::every, ::every] = CLASSIFIED
        far = np.hypot(self.spots.qx, self.spots.qy) >= NEAR_DIRECT
        pattern = np.repeat(np.arange(n), np.diff(self.spots.offsets))
        dark_field = np.bincount(pattern[far], self.spots.intensity[far], n).astype(np.float32)
        dark_field[state.ravel() != CLASSIFIED] = np.nan
        return Measured(partial(select, self.spots), n_spots, dark_field, state.ravel())


def diffracted(spots: SpotLists) -> NDArray[np.int64]:
    """Return the number of spots of each pattern that are not the direct beam, shape (n,)."""
    far = np.hypot(spots.qx, spots.qy) >= NEAR_DIRECT
    return np.diff(np.concatenate([[0], np.cumsum(far)])[spots.offsets])


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items, of which the next one is made by a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


@numba.njit(cache=True)  # one thread: those of Numba slow PyTorch's down where they share cores
def light(
    frames: NDArray[np.float32],
    mask: NDArray[np.bool_],
    centre: NDArray[np.float64],
    radius: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the counts of each frame, and those in a disk about the direct beam, shape (n,) each.

    Parameters
    ----------
    frames
        Shape (n, R, C); pixels that are not finite do not count.
    mask
        True where a pixel counts, shape (R, C).
    centre
        Row and column of the direct beam, shape (n, 2).
    radius
        Of the disk, pixels.
    """
    n, rows, columns = frames.shape
    total, direct = np.zeros(n), np.zeros(n)
    for i in range(n):
        for row in range(rows):
            for column in range(columns):
                value = frames[i, row, column]
                if not (mask[row, column] and np.isfinite(value)):
                    continue
                total[i] += value
                square = (row - centre[i, 0]) ** 2 + (column - centre[i, 1]) ** 2
                direct[i] += value * (square <= radius**2)
    return total, direct


def _count(block: tuple[NDArray[np.int64], NDArray[np.float32]]) -> int:
    return len(block[0])
