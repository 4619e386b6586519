"""Layers as arrays, and batches of layers with their patterns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffractory.models.dd2d import Crystals
from diffractory.simulate.crystal import Crystal
from diffractory.store import InputError, SpotReader, generator, read_material_ids
from diffractory.training.batches import Batches

TIE = 6
"""Decimal places, angstrom, to which distances and coordinates decide on the order of atoms."""


@dataclass(frozen=True)
class Layers:
    """L layers with A atoms in all; those of layer l are offsets[l]:offsets[l+1].

    Atoms are in the order of atomic number, then distance from the origin, then x, y and z.

    Attributes
    ----------
    material_id
        Shape (L,), str.
    offsets
        Shape (L + 1,), int64.
    cell
        Lattice vectors as rows, c along z, angstrom, shape (L, 3, 3).
    positions
        Cartesian, angstrom, shape (A, 3).
    numbers
        Atomic numbers, shape (A,), int64.
    """

    material_id: NDArray[np.object_]
    offsets: NDArray[np.int64]
    cell: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cell)

    def batch(self, rows: NDArray[np.int64], q_max: float) -> Crystals:
        """Return some layers as networks read them, with reflections up to q_max, 1/angstrom."""
        cell = self.cell[rows]
        length = np.linalg.norm(cell, axis=2)
        i, j = [1, 0, 0], [2, 2, 1]
        cosine = (cell[:, i] * cell[:, j]).sum(axis=2) / (length[:, i] * length[:, j])
        lattice = np.concatenate([length, np.degrees(np.arccos(cosine))], axis=1)
        offsets, q = _reflections(cell, q_max)
        return Crystals(
            torch.from_numpy(lattice.astype(np.float32)),
            padded(self.positions.astype(np.float32), self.offsets, rows)[0],
            padded(self.numbers, self.offsets, rows)[0],
            padded(q, offsets, np.arange(len(rows)))[0],
        )


def read_layers(path: Path) -> Layers:
    """Read ``layers.parquet``."""
    return layers_of(pd.read_parquet(path, columns=["material_id", "structure"]))


def layers_of(table: pd.DataFrame) -> Layers:
    """Return the layers of a table with the columns ``material_id`` and ``structure`` (JSON)."""
    cells, positions, numbers = [], [], []
    for text in table["structure"]:
        crystal = Crystal.from_json(text)
        cartesian = crystal.positions @ crystal.cell
        distance = np.linalg.norm(cartesian, axis=1)
        x, y, z = cartesian.T.round(TIE)
        order = np.lexsort((z, y, x, distance.round(TIE), crystal.numbers))
        cells.append(crystal.cell)
        positions.append(cartesian[order])
        numbers.append(crystal.numbers[order].astype(np.int64))
    return Layers(
        material_id=table["material_id"].to_numpy(object),
        offsets=np.cumsum([0, *map(len, numbers)]),
        cell=np.array(cells).reshape(-1, 3, 3),
        positions=np.concatenate([np.empty((0, 3)), *positions]),
        numbers=np.concatenate([np.empty(0, dtype=np.int64), *numbers]),
    )


def padded(
    values: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Return the values of some rows, padded with zeros, (B, N, ...), and where they are, (B, N).

    Those of row r are values[offsets[r]:offsets[r+1]]; N is at least 1.
    """
    count = np.diff(offsets)[rows]
    place = np.arange(max(1, count.max(initial=0)))
    mask = place < count[:, None]
    result = np.zeros(mask.shape + values.shape[1:], dtype=values.dtype)
    result[mask] = values[(offsets[rows, None] + place)[mask]]
    return torch.from_numpy(result), torch.from_numpy(mask)


@numba.njit(cache=True)
def _reflections(
    cells: NDArray[np.float64], q_max: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return q_x and q_y of all h k up to q_max, one of h k and -h -k, and offsets of each cell."""
    offsets = np.zeros(len(cells) + 1, dtype=np.int64)
    most = 0
    for cell in cells:
        # No h beyond q_max |a|: the product of q and a is h.
        h = int(q_max * np.hypot(cell[0, 0], cell[0, 1]))
        k = int(q_max * np.hypot(cell[1, 0], cell[1, 1]))
        most += (h + 1) * (2 * k + 1)
    q = np.empty((most, 2), dtype=np.float32)
    n = 0
    for c, cell in enumerate(cells):
        area = cell[0, 0] * cell[1, 1] - cell[0, 1] * cell[1, 0]
        last_h = int(q_max * np.hypot(cell[0, 0], cell[0, 1]))
        last_k = int(q_max * np.hypot(cell[1, 0], cell[1, 1]))
        for h in range(last_h + 1):
            for k in range(-last_k if h else 1, last_k + 1):
                x = (h * cell[1, 1] - k * cell[0, 1]) / area
                y = (k * cell[0, 0] - h * cell[1, 0]) / area
                if x * x + y * y <= q_max * q_max:
                    q[n, 0], q[n, 1] = x, y
                    n += 1
        offsets[c + 1] = n
    return offsets, q[:n]


def pairs(layers: pd.DataFrame, patterns: Path, split: str) -> pd.DataFrame:
    """Return columns ``layer``, ``pattern`` (indices) and ``material_id`` of a split's patterns.

    Parameters
    ----------
    layers
        Columns ``material_id`` and ``split``.
    patterns
        Pattern store.

    Raises
    ------
    InputError
        If there is none.
    """
    ids = read_material_ids(patterns)
    of_pattern = pd.DataFrame({"material_id": ids, "pattern": np.arange(len(ids))})
    of_layer = layers[["material_id", "split"]].assign(layer=np.arange(len(layers)))
    of_split = of_layer[of_layer["split"] == split]
    table = of_pattern.merge(of_split, on="material_id").sort_values("pattern", ignore_index=True)
    if table.empty:
        raise InputError(
            f"{patterns} has no pattern of a layer of the split {split}: ask for more layers, or "
            "change the share of this split"
        )
    return table[["layer", "pattern", "material_id"]]


class PairBatch(NamedTuple):
    """B patterns, padded with zeros to the P spots of the longest, and their crystals.

    Attributes
    ----------
    spots
        q_x and q_y in 1/angstrom and intensity as a fraction of the incident beam, shape (B, P, 3),
        float32.
    mask
        True where a spot is, shape (B, P).
    crystals
        Crystal i made pattern i.
    pattern
        Indices in the store, shape (B,), int64.
    """

    spots: Tensor
    mask: Tensor
    crystals: Crystals
    pattern: Tensor


class PairBatches(Batches[PairBatch]):
    """Batches of layers and their patterns, which are read once and kept (12 bytes a spot).

    Parameters
    ----------
    store
        Pattern store.
    layers, table
        Layers, and what `pairs` returns of a split.
    batch_size
        Most pairs in a batch; the pairs of a pass are divided evenly, to one more or less.
    q_max
        Length of the longest reflection, 1/angstrom.
    seed
        Global seed.
    shuffle
        Whether to shuffle; if not, pairs are in the order of the store.
    """

    unit = "pairs"
    remedy = "raise batch_size or the number of layers"
    held: NDArray[np.float32] | None

    def __init__(
        self,
        store: Path,
        layers: Layers,
        table: pd.DataFrame,
        batch_size: int,
        q_max: float,
        seed: int,
        shuffle: bool,
    ) -> None:
        super().__init__(len(table), batch_size)
        self.reader = SpotReader(store)
        self.layers, self.q_max = layers, q_max
        self.layer = table["layer"].to_numpy(np.int64)
        self.pattern = table["pattern"].to_numpy(np.int64)
        self.seed, self.shuffle = seed, shuffle

    def __getitem__(self, k: int) -> PairBatch:
        pass_, batch = divmod(k, len(self))
        rows = np.arange(len(self.pattern))
        if self.shuffle:
            rows = generator(self.seed, "pair_batches", pass_).permutation(rows)
        rows = rows[self.bounds[batch] : self.bounds[batch + 1]]
        offsets, pattern = self.reader.offsets, self.pattern[rows]
        if self.held is None:
            self.held = self.reader.read(0, len(offsets) - 1)
        spots, mask = padded(self.held, offsets, pattern)
        crystals = self.layers.batch(self.layer[rows], self.q_max)
        return PairBatch(spots, mask, crystals, torch.from_numpy(pattern))
