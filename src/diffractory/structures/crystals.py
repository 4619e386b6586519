"""Crystals as networks that generate them read them: reduced cells, and two divisions into sets.

Cells are primitive and Niggli-reduced (I. Křivý & B. Gruber, Acta Cryst. A 32, 297 (1976)), a along
x, b in the plane of x and y, right-handed; coordinates lie in [0, 1), sites are sorted by atomic
number.

The first division, ``split``, is the published kind: at random, or by files named ``train``,
``val`` and ``test``. Duplicates may lie on both sides of it. The second, ``disjoint_split``, keeps
one crystal of each group of duplicates, and its sets share neither prototype nor composition:

- Whole prototypes are drawn for each set. Of crystals whose formula is then in two sets, those in
  the smaller of the sets for testing stay: test before validation before train.
- Where a prototype is too frequent to be on a side of its own (more frequent than the test or the
  validation set is to be), as in perovskites, whole chemical systems are drawn.
- Where a formula is too frequent, as in carbon, sets share it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from diffractory.store import InputError, generator, recorded, track, worker_pool, write_parquet
from diffractory.structures.cleaning import CHUNK, Labelled, check_enough, quiet, rejected_table
from diffractory.structures.labels import find_symmetry
from diffractory.structures.layers import upright
from diffractory.structures.reading import Cell, Rejected, read_cell

KEPT = ["material_id", "source", "formula", "space_group", "prototype", "duplicate_group"]
"""Columns of the cleaned structures that go on."""

FILES = {"train": "train", "val": "validation", "test": "test"}
"""Sets by the names of the files of a published split, without suffix."""

BELOW_ONE = 1 - 1e-7
"""Fractional coordinates above are 0: networks would round them to 1, in single precision."""

PRECEDENCE = {"test": 0, "validation": 1, "train": 2}
"""Which set keeps a crystal that could not be in both."""


def prepare_crystals(
    cleaned: Path,
    crystals: Path,
    rejected: Path,
    run: Path,
    settings: Mapping[str, Any],
    max_rejected_fraction: float,
    seed: int,
    processes: int,
) -> None:
    """Reduce the cells of clean structures and divide them into sets.

    Parameters
    ----------
    cleaned
        ``cleaned.parquet``.
    crystals
        Where to write the crystals (Parquet): ``material_id``, ``source``, ``formula`` (reduced),
        ``n_sites``, ``space_group``, ``prototype``, ``duplicate_group``, ``split`` (train,
        validation or test), ``disjoint_split`` (likewise, empty if left out), ``lattice`` (9, rows
        are vectors, angstrom), ``positions`` (3 N, fractional) and ``numbers`` (N).
    rejected, run
        Where to write those set aside, and the record. It says how many crystals of ``split``'s
        test set have a duplicate in training, and what ``disjoint_split`` is disjoint in.
    settings
        ``max_sites`` (of the primitive cell), ``split`` (``"random"`` or ``"file"``, which is
        random for sources without files), ``test`` and ``validation`` (fractions of the crystals).
        Where files name the test set, but only one more, that one gives the validation set too, in
        the same proportion to train.
    max_rejected_fraction
        Largest fraction of the structures that may be rejected.
    seed
        Global seed.
    processes
        Number of worker processes. They import the main module, so that a script which calls this
        function must do so under ``if __name__ == "__main__"``.

    Raises
    ------
    InputError
        If nothing is left, more is rejected than allowed, or files do not say what set they are.
    """
    config = {"crystals": dict(settings), "max_rejected_fraction": max_rejected_fraction}
    with recorded(run, "prepare_crystals", config, [cleaned], [crystals, rejected], seed) as facts:
        table = pd.read_parquet(cleaned)
        work = partial(reduced_crystal, settings["max_sites"])
        advice = f"for {cleaned}, use fewer processes or a smaller max_sites."
        with worker_pool(processes, __name__, quiet, advice) as pool:
            made = pool.map(work, table["structure"], table["symprec"], chunksize=CHUNK)
            outcomes = list(track(made, "Reducing cells", len(table), "crystals"))
        check_enough(table, outcomes, cleaned, max_rejected_fraction)
        accepted = _crystal_table(table, outcomes)
        accepted.insert(7, "split", published_split(accepted, settings, seed))
        disjoint, facts["disjoint_in"] = disjoint_split(accepted, settings, seed)
        accepted.insert(8, "disjoint_split", disjoint)
        refused = rejected_table(table, outcomes)
        write_parquet(crystals, accepted)
        write_parquet(rejected, refused)
        facts["accepted"] = len(accepted)
        facts["rejected"] = refused["reason"].value_counts().to_dict()
        for name in ("split", "disjoint_split"):
            facts[name] = accepted[name].replace("", "left out").value_counts().to_dict()
        groups, split = accepted["duplicate_group"], accepted["split"]
        facts["duplicate_groups"] = groups.nunique()
        facts["unique_fraction"] = round(groups.nunique() / len(accepted), 4)
        in_train = groups[split == "test"].isin(groups[split == "train"])
        facts["test_with_duplicate_in_train"] = int(in_train.sum())


def reduced_crystal(max_sites: int, structure: str, symprec: float) -> Labelled | Rejected:
    """Return the columns and the reduced cell of a crystal, or why it is set aside.

    Parameters
    ----------
    max_sites
        Most sites of the primitive cell.
    structure
        Dictionary form of pymatgen's ``Structure`` (JSON), in any cell and direction.
    symprec
        Distance tolerance of symmetry, angstrom.
    """
    try:
        cell = find_symmetry(read_cell(structure.encode(), "json"), symprec).primitive
    except Rejected as rejected:
        return rejected
    n_sites = len(cell.numbers)
    if n_sites > max_sites:
        return Rejected("too_many_sites", f"{n_sites} sites, more than {max_sites}")
    positions = cell.positions % 1.0
    positions[positions > BELOW_ONE] = 0.0
    cell = Cell(upright(cell.lattice), positions, cell.numbers)
    row = {
        "n_sites": n_sites,
        "lattice": cell.lattice.ravel(),
        "positions": cell.positions.ravel(),
        "numbers": cell.numbers.astype(np.int64),
    }
    return Labelled(row, cell)


def _crystal_table(table: pd.DataFrame, outcomes: Sequence[Labelled | Rejected]) -> pd.DataFrame:
    rows = pd.DataFrame([outcome.row for outcome in outcomes if isinstance(outcome, Labelled)])
    accepted = [isinstance(outcome, Labelled) for outcome in outcomes]
    found = table.loc[accepted, KEPT].reset_index(drop=True).join(rows)
    found.insert(3, "n_sites", found.pop("n_sites"))
    return found


def published_split(table: pd.DataFrame, settings: Mapping[str, Any], seed: int) -> list[str]:
    """Return train, validation or test for each crystal, at random or by its file.

    Parameters
    ----------
    table
        ``material_id`` and ``source``, which ends with a colon and the path of the file, if any.
    settings, seed
        As for `prepare_crystals`.

    Raises
    ------
    InputError
        If files are to say it and do not.
    """
    draws = [generator(seed, "split_crystals", name).random() for name in table["material_id"]]
    held_out = settings["validation"] / (1 - settings["test"])
    if settings["split"] == "random" or not table["source"].str.contains(":").any():
        draws = [(draw - settings["test"]) / (1 - settings["test"]) for draw in draws]
        return ["test" if d < 0 else "validation" if d < held_out else "train" for d in draws]
    files = table["source"].str.partition(":")[2]
    sides = [FILES.get(PurePath(file).stem, file) for file in files]
    if not set(sides) <= set(PRECEDENCE) or "test" not in sides or len(set(sides)) == 1:
        raise InputError(
            f"the files {', '.join(files.unique())} do not say what set they are: "
            f"name them {', '.join(FILES)}, of which test and another must be there, or set split "
            "to random"
        )
    if len(set(sides)) == len(PRECEDENCE):
        return sides
    return [
        side if side == "test" else "validation" if draw < held_out else "train"
        for side, draw in zip(sides, draws, strict=True)
    ]


def disjoint_split(
    table: pd.DataFrame, settings: Mapping[str, Any], seed: int
) -> tuple[list[str], list[str]]:
    """Return the set of each crystal, empty if it is left out, and what the sets do not share.

    Parameters
    ----------
    table
        ``duplicate_group``, ``prototype``, ``formula`` and ``numbers``.
    settings
        ``test`` and ``validation``: fractions of the crystals that are no duplicates. Sets come as
        near to them as whole prototypes or chemical systems do.
    seed
        Global seed.
    """
    unique = table.drop_duplicates("duplicate_group").copy()
    unique["chemical_system"] = ["-".join(map(str, np.unique(z))) for z in unique["numbers"]]
    smallest = min(settings["test"], settings["validation"]) * len(unique)
    kinds = ("prototype", "chemical_system", "formula")
    divisible = [kind for kind in kinds if unique[kind].value_counts().max() <= smallest]
    apart = [*divisible, "duplicate_group"][:1]
    side = _draw(unique[apart[0]], settings, seed)
    if apart == ["prototype"] and "formula" in divisible:
        apart.append("formula")
        rank = side.map(PRECEDENCE)
        side = side[rank == rank.groupby(unique["formula"]).transform("min")]
    return side.reindex(table.index, fill_value="").tolist(), apart


def _draw(labels: "pd.Series[str]", settings: Mapping[str, Any], seed: int) -> "pd.Series[str]":
    """Fill test, validation and train, in this order, with all that has one label at a time."""
    sizes = labels.value_counts()
    order = sorted(sizes.index, key=lambda label: generator(seed, "disjoint_split", label).random())
    sizes = sizes[order]
    middle = (sizes.cumsum() - sizes / 2) / len(labels)
    held_out = settings["test"] + settings["validation"]
    choices = [middle < settings["test"], middle < held_out]
    side = np.select(choices, ["test", "validation"], "train")
    return labels.map(dict(zip(order, side.tolist(), strict=True)))
