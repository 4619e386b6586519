"""Division of the materials into training, validation and test sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from diffractory.store import generator, recorded, write_parquet


def split_structures(
    cleaned: Path, structures: Path, run: Path, settings: Mapping[str, Any], seed: int
) -> None:
    """Add the column ``split`` to the cleaned structures.

    It is a stage of its own so that another split simulates nothing again.

    Parameters
    ----------
    cleaned, structures, run
        The table to read, and the table and the record to write.
    settings
        Configuration section ``split``.
    seed
        Global seed.
    """
    with recorded(run, "split_structures", {"split": dict(settings)}, [cleaned], seed) as facts:
        table = pd.read_parquet(cleaned)
        groups, labels = table["duplicate_group"].tolist(), table["prototype"].tolist()
        split = assign_splits(groups, labels, settings, seed)
        table.insert(list(table.columns).index("structure"), "split", split)
        write_parquet(structures, table)
        facts["materials"] = table["split"].value_counts().to_dict()


def assign_splits(
    duplicate_groups: Sequence[str],
    prototypes: Sequence[str],
    split: Mapping[str, Any],
    seed: int,
) -> list[str]:
    """Return ``"train"``, ``"validation"`` or ``"test"`` for each material.

    Duplicates stay together, and by option whatever shares a prototype. Each group draws for
    itself, so that further materials move none, unless they join groups or rename one.

    Parameters
    ----------
    duplicate_groups
        Name of each material's group of duplicates.
    prototypes
        Prototype label of each material.
    split
        ``by`` (``"material"`` or ``"prototype"``), ``test`` (fraction of all groups) and
        ``validation`` (fraction of the rest).
    seed
        Global seed.
    """
    keys = pd.Series(duplicate_groups, dtype=object)
    if split["by"] == "prototype":
        # Duplicates may differ in prototype within symprec: they tie their prototypes together.
        labels = pd.Series(prototypes, dtype=object)
        links = (keys.factorize()[0], labels.factorize()[0])
        size = len(keys)
        graph = coo_array(([1] * size, (links[0], links[1] + size)), shape=(2 * size, 2 * size))
        part = connected_components(graph, directed=False)[1][links[0]]
        keys = labels.groupby(part).transform("min")
    side = {key: _side(generator(seed, "split", key).random(), split) for key in keys.unique()}
    return [side[key] for key in keys]


def _side(draw: float, split: Mapping[str, Any]) -> str:
    if draw < split["test"]:
        return "test"
    rest = (draw - split["test"]) / (1 - split["test"])
    return "validation" if rest < split["validation"] else "train"
