"""Crystals as arrays, and batches of them for networks that generate crystals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffractory.models.periodic_graph import UnitCells
from diffractory.store import InputError, generator
from diffractory.training.batches import Batches


@dataclass(frozen=True)
class CrystalArrays:
    """C crystals with A atoms in all; those of crystal c are offsets[c]:offsets[c+1].

    Attributes
    ----------
    row
        Index in the table that they are from, shape (C,), int64.
    material_id
        Shape (C,), str.
    offsets
        Shape (C + 1,), int64.
    lattice
        Lattice vectors as rows, angstrom, shape (C, 3, 3).
    positions
        Fractional coordinates, shape (A, 3).
    numbers
        Atomic numbers, shape (A,), int64.
    """

    row: NDArray[np.int64]
    material_id: NDArray[np.object_]
    offsets: NDArray[np.int64]
    lattice: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lattice)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Atoms of each crystal, shape (C,)."""
        return np.diff(self.offsets)

    def cells(self, crystals: NDArray[np.int64]) -> UnitCells:
        """Return some crystals, by their index, as networks take them."""
        counts = self.counts[crystals]
        before = np.cumsum(counts) - counts
        atoms = np.repeat(self.offsets[crystals] - before, counts) + np.arange(counts.sum())
        return UnitCells(
            torch.from_numpy(self.positions[atoms].astype(np.float32)),
            torch.from_numpy(self.numbers[atoms]),
            torch.from_numpy(self.lattice[crystals].astype(np.float32)),
            torch.from_numpy(counts),
        )


def read_crystals(path: Path, column: str, split: str) -> CrystalArrays:
    """Read a split of ``crystals.parquet``.

    Parameters
    ----------
    column
        ``split`` or ``disjoint_split``, which the split is of.
    split
        ``train``, ``validation`` or ``test``.

    Raises
    ------
    InputError
        If there is no crystal in it, or the file is not such a table.
    """
    names = ["material_id", column, "lattice", "positions", "numbers"]
    try:
        table = pq.read_table(path, columns=names)
        row = np.flatnonzero(pc.equal(table[column], split).to_numpy())
        table = table.take(row)
        values = {
            name: np.asarray(pc.list_flatten(table[name]))
            for name in ("lattice", "positions", "numbers")
        }
        counts = np.asarray(pc.list_value_length(table["numbers"]), dtype=np.int64)
        crystals = CrystalArrays(
            row,
            np.asarray(table["material_id"], dtype=object),
            np.concatenate([[0], np.cumsum(counts)]),
            values["lattice"].reshape(-1, 3, 3).astype(np.float64),
            values["positions"].reshape(-1, 3).astype(np.float64),
            values["numbers"].astype(np.int64),
        )
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} is no table of crystals with {column}: {error}") from error
    if not len(crystals):
        raise InputError(
            f"{path} has no crystal whose {column} is {split}: take more crystals, or other parts "
            "for the splits in generation.crystals"
        )
    if len(crystals.lattice) != len(row) or len(crystals.positions) != len(crystals.numbers):
        raise InputError(
            f"{path} has crystals without three coordinates for each atom: make it again"
        )
    return crystals


class CrystalBatch(NamedTuple):
    """B crystals with N atoms in all.

    Processes that train together each have some of the W crystals of a whole batch; else B is W.

    Attributes
    ----------
    counts
        Atoms of each crystal, shape (B,), int64.
    fractional, numbers, lattice
        As `UnitCells` has them.
    pattern
        Rows of the table of crystals, of the whole batch, shape (W,), int64.
    """

    counts: Tensor
    fractional: Tensor
    numbers: Tensor
    lattice: Tensor
    pattern: Tensor

    @property
    def cells(self) -> UnitCells:
        """The crystals as networks take them."""
        return UnitCells(self.fractional, self.numbers, self.lattice, self.counts)


class CrystalBatches(Batches[CrystalBatch]):
    """Batches of crystals.

    Parameters
    ----------
    crystals
        What they are of.
    batch_size
        Most crystals in a batch; those of a pass are divided evenly, to one more or less.
    seed
        Global seed.
    shuffle
        Whether to shuffle; if not, crystals are in the order of the table.
    """

    unit = "crystals"
    remedy = (
        "lower generation.hardware.devices or nodes, or raise batch_size or the number of crystals"
    )

    def __init__(self, crystals: CrystalArrays, batch_size: int, seed: int, shuffle: bool) -> None:
        super().__init__(len(crystals), batch_size)
        self.crystals, self.seed, self.shuffle = crystals, seed, shuffle

    def __getitem__(self, k: int) -> CrystalBatch:
        pass_, batch = divmod(k, len(self))
        order: NDArray[Any] = np.arange(len(self.crystals))
        if self.shuffle:
            order = generator(self.seed, "crystal_batches", pass_).permutation(order)
        whole = order[self.bounds[batch] : self.bounds[batch + 1]]
        cells = self.crystals.cells(whole[self.rank :: self.world])
        pattern = torch.from_numpy(self.crystals.row[whole])
        return CrystalBatch(cells.counts, cells.fractional, cells.numbers, cells.lattice, pattern)


def list_columns(cells: UnitCells) -> dict[str, pa.Array]:
    """Return lattices, positions and numbers as columns of ``crystals.parquet``."""
    counts = cells.counts.cpu().numpy()
    ends = np.concatenate([[0], np.cumsum(counts)])
    return {
        "lattice": _lists(9 * np.arange(len(ends)), cells.lattice.double()),
        "positions": _lists(3 * ends, cells.fractional.double()),
        "numbers": _lists(ends, cells.numbers),
    }


def _lists(offsets: NDArray[np.int64], values: Tensor) -> pa.ListArray:
    return pa.ListArray.from_arrays(offsets.astype(np.int32), values.cpu().numpy().ravel())
