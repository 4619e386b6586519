"""The pattern store: ragged spot lists as flat arrays plus offsets, in a sharded Zarr v3 group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from diffractory.store.files import atomic_folder

PER_SPOT = ("qx", "qy", "intensity", "hkl")
CHUNK = 2**18
"""Rows per chunk, the unit of reading."""
BLOCK = 50_000
"""Patterns in memory at once where a whole store is gone through."""
CHUNKS_PER_SHARD = 64
"""Chunks per file: 100 million spots are then six files per array."""


@dataclass(frozen=True)
class Patterns:
    """Spot lists of P patterns with S spots in all; spots of pattern p are offsets[p]:offsets[p+1].

    Attributes
    ----------
    offsets
        Shape (P + 1,), int64.
    qx, qy
        Spot positions in 1/angstrom, shape (S,), float32.
    intensity
        Fraction of the incident beam, shape (S,), float32.
    hkl
        Miller indices in the basis of the stored structure, shape (S, 3), int16.
    material_id
        Shape (P,), str.
    zone_axis
        Lattice direction [uvw] along the beam, shape (P, 3), int16; zero where the orientation is
        not a zone axis.
    orientation
        Rotation from crystal Cartesian to laboratory axes, shape (P, 3, 3), float64.
    thickness
        In angstrom, shape (P,), float32.
    energy
        In eV, shape (P,), float32.
    """

    offsets: NDArray[np.int64]
    qx: NDArray[np.float32]
    qy: NDArray[np.float32]
    intensity: NDArray[np.float32]
    hkl: NDArray[np.int16]
    material_id: NDArray[np.object_]
    zone_axis: NDArray[np.int16]
    orientation: NDArray[np.float64]
    thickness: NDArray[np.float32]
    energy: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def pattern_of_spot(self) -> NDArray[np.int64]:
        """Index of the pattern that each spot belongs to, shape (S,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def select(self, patterns: NDArray[np.int64]) -> "Patterns":
        """Return the patterns with these indices, in this order."""
        counts = np.diff(self.offsets)[patterns]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        spots = np.arange(offsets[-1]) + np.repeat(self.offsets[patterns] - offsets[:-1], counts)
        values = {
            f.name: getattr(self, f.name)[spots if f.name in PER_SPOT else patterns]
            for f in fields(self)
            if f.name != "offsets"
        }
        return Patterns(offsets=offsets, **values)

    @staticmethod
    def empty() -> "Patterns":
        """Return no patterns."""
        return Patterns(
            offsets=np.zeros(1, dtype=np.int64),
            qx=np.empty(0, dtype=np.float32),
            qy=np.empty(0, dtype=np.float32),
            intensity=np.empty(0, dtype=np.float32),
            hkl=np.empty((0, 3), dtype=np.int16),
            material_id=np.empty(0, dtype=object),
            zone_axis=np.empty((0, 3), dtype=np.int16),
            orientation=np.empty((0, 3, 3), dtype=np.float64),
            thickness=np.empty(0, dtype=np.float32),
            energy=np.empty(0, dtype=np.float32),
        )

    @staticmethod
    def concatenate(parts: Sequence["Patterns"]) -> "Patterns":
        """Return the patterns of all parts, in order."""
        starts = np.cumsum([0] + [part.offsets[-1] for part in parts])
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        values = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(Patterns)
            if f.name != "offsets"
        }
        return Patterns(offsets=np.concatenate([*offsets, starts[-1:]]), **values)


class _Column:
    """One array of the store, written in whole files: to change part of one means to redo it."""

    def __init__(
        self, group: zarr.Group, name: str, length: int, dtype: Any, item: tuple[int, ...]
    ) -> None:
        chunk = max(1, min(CHUNK, length))
        self.shard = chunk * max(1, min(CHUNKS_PER_SHARD, -(-length // chunk)))
        self.array: Any = group.create_array(
            name,
            shape=(length, *item),
            dtype=dtype,
            chunks=(chunk, *item),
            shards=(self.shard, *item),
        )
        self.pending: list[NDArray[Any]] = []
        self.written = 0

    def append(self, values: NDArray[Any]) -> None:
        self.pending.append(values)
        held = sum(map(len, self.pending))
        if held >= self.shard:
            self.write(held // self.shard * self.shard)

    def write(self, count: int) -> None:
        """Write the first rows of what is pending."""
        values = np.concatenate(self.pending)
        if count:
            self.array[self.written : self.written + count] = values[:count]
        self.written += count
        self.pending = [values[count:].copy()]  # a view would keep all of it in memory

    def close(self) -> None:
        self.write(sum(map(len, self.pending)))


def write_patterns(path: Path, parts: Sequence[Path | Patterns]) -> tuple[int, int]:
    """Write patterns, given in memory or as stores, as one store; return (patterns, spots).

    The result is the same however the patterns are divided into parts, and no more than one part
    and one file of each array are in memory at a time.
    """
    parts = parts or [Patterns.empty()]
    sizes = [_size(part) for part in parts]
    n_patterns, n_spots = (sum(column) for column in zip(*sizes, strict=True))
    with atomic_folder(path) as partial:
        group = zarr.open_group(partial, mode="w", zarr_format=3)
        columns: dict[str, _Column] = {}
        spots_before = 0
        for part in parts:
            data = read_patterns(part) if isinstance(part, Path) else part
            for field in fields(Patterns):
                name, values = field.name, getattr(data, field.name)
                if name == "offsets":
                    # The end of each part is the start of the next.
                    values = values[int(name in columns) :] + spots_before
                if name not in columns:
                    length = n_spots if name in PER_SPOT else n_patterns + (name == "offsets")
                    dtype = str if name == "material_id" else values.dtype
                    columns[name] = _Column(group, name, length, dtype, values.shape[1:])
                columns[name].append(values)
            spots_before += int(data.offsets[-1])
        for column in columns.values():
            column.close()
    return n_patterns, n_spots


def _size(part: Path | Patterns) -> tuple[int, int]:
    if isinstance(part, Patterns):
        return len(part), int(part.offsets[-1])
    group = zarr.open_group(part, mode="r")
    return int(group["zone_axis"].shape[0]), int(group["qx"].shape[0])  # type: ignore[union-attr]


def read_patterns(path: Path, start: int = 0, stop: int | None = None) -> Patterns:
    """Read the patterns start:stop of a store into memory."""
    group: Any = zarr.open_group(path, mode="r")
    length = group["zone_axis"].shape[0]
    stop = length if stop is None else min(stop, length)
    offsets = group["offsets"][start : stop + 1]
    values = {
        field.name: group[field.name][
            slice(offsets[0], offsets[-1]) if field.name in PER_SPOT else slice(start, stop)
        ]
        for field in fields(Patterns)
        if field.name != "offsets"
    }
    return Patterns(offsets=offsets - offsets[0], **values)


def read_selected(path: Path, indices: NDArray[np.int64]) -> Iterator[Patterns]:
    """Yield the patterns with these ascending indices, one `BLOCK` of the store at a time."""
    for start in range(0, int(indices[-1]) + 1 if len(indices) else 0, BLOCK):
        inside = indices[(indices >= start) & (indices < start + BLOCK)]
        yield read_patterns(path, start, start + BLOCK).select(inside - start)


def read_material_ids(path: Path) -> NDArray[np.object_]:
    """Return the material of every pattern of a store, shape (P,)."""
    group: Any = zarr.open_group(path, mode="r")
    return group["material_id"][:]


class SpotReader:
    """Reads spots, and nothing else, of a store that it opens once.

    Attributes
    ----------
    offsets
        Spots of pattern p are offsets[p]:offsets[p+1] of the store, shape (P + 1,), int64.
    """

    def __init__(self, path: Path) -> None:
        group: Any = zarr.open_group(path, mode="r")
        self.offsets: NDArray[np.int64] = group["offsets"][:]
        self._columns = [group[name] for name in ("qx", "qy", "intensity")]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the S spots of the patterns start:stop.

        Returns
        -------
        q_x and q_y in 1/angstrom and intensity as a fraction of the incident beam, shape (S, 3).
        """
        spots = slice(int(self.offsets[start]), int(self.offsets[stop]))
        return np.stack([column[spots] for column in self._columns], axis=1)
