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
    config = {"split": dict(settings)}
    with recorded(run, "split_structures", config, [cleaned], [structures], seed) as facts:
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
    """Return ``"train"``, ``"validation"``, ``"test"`` or ``"new_prototype"`` for each material.

    Materials of some prototypes are a second test set, of prototypes that no other part has. Of the
    rest, duplicates stay together, and by option whatever shares a prototype. Each group draws for
    itself, so that further materials move none, unless they join groups or rename one.

    Parameters
    ----------
    duplicate_groups
        Name of each material's group of duplicates.
    prototypes
        Prototype label of each material.
    split
        ``new_prototypes`` (fraction of the prototypes), ``by`` (``"material"`` or ``"prototype"``),
        ``test`` (fraction of all groups) and ``validation`` (fraction of the rest).
    seed
        Global seed.
    """
    groups = pd.Series(duplicate_groups, dtype=object)
    prototype = _tied(groups, pd.Series(prototypes, dtype=object))
    keys = prototype if split["by"] == "prototype" else groups
    side = {key: _side(generator(seed, "split", key).random(), split) for key in keys.unique()}
    new = {
        key
        for key in prototype.unique()
        if generator(seed, "new_prototype", key).random() < split["new_prototypes"]
    }
    return [
        "new_prototype" if label in new else side[key]
        for label, key in zip(prototype, keys, strict=True)
    ]


def _tied(groups: "pd.Series[str]", labels: "pd.Series[str]") -> "pd.Series[str]":
    """Return one name for all prototypes that share duplicates: these may differ within symprec."""
    links = (groups.factorize()[0], labels.factorize()[0])
    size = len(groups)
    graph = coo_array(([1] * size, (links[0], links[1] + size)), shape=(2 * size, 2 * size))
    part = connected_components(graph, directed=False)[1][links[0]]
    return labels.groupby(part).transform("min")


def _side(draw: float, split: Mapping[str, Any]) -> str:
    if draw < split["test"]:
        return "test"
    rest = (draw - split["test"]) / (1 - split["test"])
    return "validation" if rest < split["validation"] else "train"
