"""The pattern store: ragged spot lists as flat arrays plus offsets, in a sharded Zarr v3 group."""

from collections.abc import Sequence
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


def _create(group: zarr.Group, name: str, length: int, dtype: Any, item: tuple[int, ...]) -> Any:
    chunk = max(1, min(CHUNK, length))
    shard = chunk * max(1, min(CHUNKS_PER_SHARD, -(-length // chunk)))
    return group.create_array(
        name, shape=(length, *item), dtype=dtype, chunks=(chunk, *item), shards=(shard, *item)
    )


def write_patterns(path: Path, parts: Sequence[Path | Patterns]) -> tuple[int, int]:
    """Write patterns, given in memory or as stores, as one store; return (patterns, spots).

    The result is the same however the patterns are divided into parts, and only one part is in
    memory at a time.
    """
    sizes = [_size(part) for part in parts]
    n_patterns, n_spots = (sum(column) for column in zip(*sizes, strict=True))
    with atomic_folder(path) as partial:
        group = zarr.open_group(partial, mode="w", zarr_format=3)
        pattern = spot = 0
        for part, (patterns, spots) in zip(parts, sizes, strict=True):
            data = read_patterns(part) if isinstance(part, Path) else part
            for field in fields(Patterns):
                name, values = field.name, getattr(data, field.name)
                per_spot = name in PER_SPOT
                if name not in group:
                    length = n_spots if per_spot else n_patterns + (name == "offsets")
                    dtype = str if name == "material_id" else values.dtype
                    _create(group, name, length, dtype, values.shape[1:])
                start = spot if per_spot else pattern
                array: Any = group[name]
                if len(values):
                    array[start : start + len(values)] = (
                        values + spot if name == "offsets" else values
                    )
            pattern, spot = pattern + patterns, spot + spots
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


def read_material_ids(path: Path) -> NDArray[np.object_]:
    """Return the material of every pattern of a store, shape (P,)."""
    group: Any = zarr.open_group(path, mode="r")
    return group["material_id"][:]
