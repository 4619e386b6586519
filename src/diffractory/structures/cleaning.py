"""From retrieved structures to clean and labelled ones, and a list of those set aside."""

import json
import os
import signal
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pymatgen.core.composition import Composition
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Element

from diffractory.store import InputError, recorded, track, worker_pool, write_parquet
from diffractory.structures.duplicates import duplicate_groups
from diffractory.structures.labels import dimensionality, find_neighbours, find_symmetry
from diffractory.structures.reading import Cell, Rejected, read_cell

TIME_LIMIT = 60
"""Seconds after which a structure is given up."""

CHUNK = 16
"""Structures that a worker takes at a time."""


class Labelled(NamedTuple):
    """An accepted structure: its columns of the table, and a primitive cell to compare."""

    row: dict[str, Any]
    primitive: Cell


def clean_structures(
    retrieved: Path,
    cleaned: Path,
    rejected: Path,
    run: Path,
    settings: Mapping[str, Any],
    max_rejected_fraction: float,
    seed: int,
    processes: int,
) -> None:
    """Clean, label and group the retrieved structures.

    Parameters
    ----------
    retrieved
        Parquet table with ``material_id``, ``source``, ``format`` and ``content``, as described in
        `diffractory.structures.sources.base`.
    cleaned, rejected
        Where to write the accepted and the rejected structures (Parquet), each in the order of
        retrieval.
    run
        Where to write the record of this run.
    settings
        Configuration section ``structures``.
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
        If nothing is left, or more is rejected than allowed.
    """
    config = {"structures": dict(settings), "max_rejected_fraction": max_rejected_fraction}
    outputs = [cleaned, rejected]
    with recorded(run, "clean_structures", config, [retrieved], outputs, seed) as facts:
        table = pd.read_parquet(retrieved)
        advice = f"for {retrieved}, use fewer processes or a smaller structures.max_sites."
        with worker_pool(processes, __name__, quiet, advice) as pool:
            outcomes = _label_all(table, settings, pool)
            check_enough(table, outcomes, retrieved, max_rejected_fraction)
            accepted = _labelled_table(table, outcomes)
            accepted["duplicate_group"] = duplicate_groups(
                accepted["material_id"].tolist(),
                [outcome.primitive for outcome in outcomes if isinstance(outcome, Labelled)],
                settings["duplicates"],
                pool,
                processes,
            )
        accepted["symprec"] = float(settings["symprec"])
        refused = rejected_table(table, outcomes)
        write_parquet(cleaned, accepted)
        write_parquet(rejected, refused)
        facts["retrieved"] = len(table)
        facts["accepted"] = len(accepted)
        facts["rejected"] = refused["reason"].value_counts().to_dict()
        facts["duplicate_groups"] = accepted["duplicate_group"].nunique()


def quiet() -> None:
    """Silence the libraries: what matters of their warnings is a reason for rejection here."""
    warnings.simplefilter("ignore")
    os.environ["SPGLIB_WARNING"] = "OFF"


def label_structure(
    settings: Mapping[str, Any], file_format: str, content: bytes
) -> Labelled | Rejected:
    """Read, check and label one structure, or return why it is set aside.

    Parameters
    ----------
    settings
        Configuration section ``structures``.
    file_format, content
        As for `read_cell`.
    """
    # The timer goes on ringing, since a library may swallow the first exception; it cannot
    # interrupt compiled code.
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT, 1.0)
    try:
        cell = read_cell(content, file_format)
        _check_size(cell, settings)
        bonds = find_neighbours(cell, settings["min_distance"])
        closest = bonds.distance.min(initial=np.inf)
        if closest < settings["min_distance"]:
            detail = f"two atoms are {closest:.3f} angstrom apart"
            return Rejected("atoms_too_close", detail)
        symmetry = find_symmetry(cell, settings["symprec"])
    except Rejected as rejected:
        return rejected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    conventional = symmetry.conventional
    lattice = Lattice(conventional.lattice)
    symbols = [Element.from_Z(z).symbol for z in conventional.numbers.tolist()]
    row = {
        "formula": Composition(Counter(symbols)).reduced_formula,
        "n_sites": len(symbols),
        **dict(zip(("a", "b", "c"), lattice.abc, strict=True)),
        **dict(zip(("alpha", "beta", "gamma"), lattice.angles, strict=True)),
        "volume": conventional.volume,
        "space_group": symmetry.space_group,
        "crystal_system": symmetry.crystal_system,
        "point_group": symmetry.point_group,
        "prototype": symmetry.prototype,
        "dimensionality": dimensionality(bonds, len(cell.numbers)),
        "structure": to_json(conventional),
        "duplicate_group": "",
        "laue_rotations": symmetry.laue_rotations.ravel(),
    }
    return Labelled(row, symmetry.primitive)


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise Rejected("unparsable", f"not done after {TIME_LIMIT} s")


def _check_size(cell: Cell, settings: Mapping[str, Any]) -> None:
    n_sites, most = len(cell.numbers), settings["max_sites"]
    if n_sites > most:
        raise Rejected("too_many_sites", f"{n_sites} sites, more than {most}")
    smallest, largest = settings["min_volume"], settings["max_volume"]
    if not smallest <= cell.volume <= largest:
        detail = f"{cell.volume:.6g} cubic angstrom, not within {smallest:g} to {largest:g}"
        raise Rejected("volume_out_of_range", detail)


def to_json(cell: Cell) -> str:
    """Return the dictionary form of pymatgen's ``Structure``, in short."""
    sites = [
        {"species": [{"element": Element.from_Z(z).symbol, "occu": 1}], "abc": abc}
        for z, abc in zip(cell.numbers.tolist(), cell.positions.tolist(), strict=True)
    ]
    structure = {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "lattice": {"matrix": cell.lattice.tolist()},
        "sites": sites,
    }
    return json.dumps(structure, separators=(",", ":"))


def _label_all(
    table: pd.DataFrame, settings: Mapping[str, Any], pool: Executor
) -> list[Labelled | Rejected]:
    repeated = table["material_id"].duplicated()
    new = table[~repeated]
    labelled = pool.map(
        partial(label_structure, settings), new["format"], new["content"], chunksize=CHUNK
    )
    outcomes = iter(list(track(labelled, "Cleaning", len(new), "structures")))
    detail = "an earlier structure has the same material_id"
    return [Rejected("duplicate_id", detail) if again else next(outcomes) for again in repeated]


def check_enough(
    table: pd.DataFrame,
    outcomes: Sequence[Labelled | Rejected],
    source: Path,
    max_rejected_fraction: float,
) -> None:
    """Stop if none of the structures of a table is left, or too few.

    Raises
    ------
    InputError
        If all are rejected, or more than this fraction.
    """
    examples: dict[str, list[str]] = {}
    for material_id, outcome in zip(table["material_id"], outcomes, strict=True):
        if isinstance(outcome, Rejected):
            examples.setdefault(outcome.reason, []).append(material_id)
    count = sum(map(len, examples.values()))
    if count < len(table) and count <= max_rejected_fraction * len(table):
        return
    reasons = ", ".join(
        f"{reason} {len(ids)} times (such as {ids[0]})"
        for reason, ids in sorted(examples.items(), key=lambda item: -len(item[1]))
    )
    if count == len(table):
        advice = "none is left: look at the data set"
    else:
        advice = f"at most {max_rejected_fraction:.0%} may be: see max_rejected_fraction"
    raise InputError(
        f"{count} of the {len(table)} structures in {source} are rejected"
        f"{' for ' if reasons else ''}{reasons}, and {advice}."
    )


def rejected_table(table: pd.DataFrame, outcomes: Sequence[Labelled | Rejected]) -> pd.DataFrame:
    """Return ``material_id``, ``reason`` and ``detail`` of those structures that are set aside."""
    rows = [
        (material_id, outcome.reason, outcome.detail)
        for material_id, outcome in zip(table["material_id"], outcomes, strict=True)
        if isinstance(outcome, Rejected)
    ]
    return pd.DataFrame(rows, columns=["material_id", "reason", "detail"], dtype=str)


def _labelled_table(table: pd.DataFrame, outcomes: Sequence[Labelled | Rejected]) -> pd.DataFrame:
    accepted = [isinstance(outcome, Labelled) for outcome in outcomes]
    rows = [outcome.row for outcome in outcomes if isinstance(outcome, Labelled)]
    names = table.loc[accepted, ["material_id", "source"]].reset_index(drop=True)
    return names.join(pd.DataFrame(rows))
