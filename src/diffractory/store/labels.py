"""What the patterns of a store show: the labels of their materials."""

from pathlib import Path

import numpy as np
import pandas as pd

from diffractory.errors import InputError
from diffractory.store.columns import LATTICE
from diffractory.store.patterns import read_material_ids


def labels_of_split(patterns: Path, structures: Path, *splits: str) -> pd.DataFrame:
    """Return one row per pattern of some splits: its index in the store, its material's labels."""
    columns = ["material_id", "split", "crystal_system", "space_group", *LATTICE]
    materials = pd.read_parquet(structures, columns=columns)
    table = pd.DataFrame({"material_id": read_material_ids(patterns)})
    table["pattern"] = np.arange(len(table))
    table = table.merge(materials, on="material_id", how="left", validate="many_to_one")
    return table[table["split"].isin(splits)].reset_index(drop=True)


def labels_of_test(patterns: Path, structures: Path, *splits: str) -> pd.DataFrame:
    """Return what `labels_of_split` does, of splits to test with.

    Raises
    ------
    InputError
        If they have no pattern.
    """
    table = labels_of_split(patterns, structures, *splits)
    if table.empty:
        raise InputError(
            f"no pattern of {patterns} belongs to the test part: use more structures, or raise "
            "split.test"
        )
    return table
