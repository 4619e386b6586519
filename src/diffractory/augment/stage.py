"""The stages behind the rules `augment_structures` and `augment_patterns`, for any data set."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from diffractory.augment import calculators
from diffractory.augment.compose import Context, augment_crystal, parsed
from diffractory.augment.spot_steps import augment_spots, check_steps, material_bounds
from diffractory.simulate.crystal import Crystal
from diffractory.store import (
    InputError,
    one_thread,
    read_material_ids,
    read_patterns,
    recorded,
    track,
    worker_pool,
    write_parquet,
    write_patterns,
)
from diffractory.store.patterns import BLOCK

CHUNK = 4
"""Structures that a worker process takes at a time."""

MADE = ("structure", "laue_rotations", "augmentation")
"""Columns that are new, or others than those of the structure that it was."""

FAILED = "augmentation_failed"
"""The reason for which structures are set aside here."""


def augment_structures(
    cleaned: Path,
    augmented: Path,
    rejected: Path,
    run: Path,
    steps: Sequence[Mapping[str, Any]],
    calculator: str,
    max_rejected_fraction: float,
    seed: int,
    threads: int,
) -> None:
    """Augment each structure of a data set; its labels stay those of the structure that it was.

    Parameters
    ----------
    cleaned
        ``cleaned.parquet``.
    augmented, rejected, run
        What to write: that table with other structures and the column ``augmentation`` (JSON: the
        steps and what was drawn), and with the Laue operations that a supercell keeps; those set
        aside; the record.
    steps
        As described in `diffractory.augment.compose`; ``morph`` has nothing to morph to here.
    calculator
        As for `diffractory.augment.calculators.calculator`.
    max_rejected_fraction
        Largest fraction of the structures that may be set aside.
    seed
        Global seed.
    threads
        Worker processes.

    Raises
    ------
    InputError
        If the steps are none, none is left, or more is set aside than allowed.
    """
    config = {
        "steps": list(steps),
        "calculator": calculator,
        "max_rejected_fraction": max_rejected_fraction,
    }
    outputs = [augmented, rejected]
    with recorded(run, "augment_structures", config, [cleaned], outputs, seed) as facts:
        parsed(steps)
        table = pd.read_parquet(cleaned)
        work = partial(_augment, steps=steps, calculator_name=calculator, seed=seed)
        advice = "use fewer threads, or smaller supercells."
        with worker_pool(threads, __name__, one_thread, advice) as pool:
            columns = [table[name] for name in ("material_id", "structure", "laue_rotations")]
            made = pool.map(work, *columns, chunksize=CHUNK)
            results = list(track(made, "Augmenting", len(table), "structures"))
        failures = [
            (name, FAILED, result)
            for name, result in zip(table["material_id"], results, strict=True)
            if isinstance(result, str)
        ]
        if len(failures) == len(table) or len(failures) > max_rejected_fraction * len(table):
            example = f", such as {failures[0][0]}: {failures[0][2]}" if failures else ""
            raise InputError(
                f"{len(failures)} of the {len(table)} structures in {cleaned} cannot be augmented"
                f"{example}; change the steps, or see max_rejected_fraction"
            )
        done = [result for result in results if not isinstance(result, str)]
        accepted = table[[not isinstance(result, str) for result in results]].copy()
        for name, values in zip(MADE, zip(*done, strict=True), strict=True):
            accepted[name] = values
        write_parquet(augmented, accepted)
        refused = pd.DataFrame(failures, columns=["material_id", "reason", "detail"], dtype=str)
        write_parquet(rejected, refused)
        facts["accepted"], facts["rejected"] = len(accepted), {FAILED: len(failures)}


def _augment(
    material_id: str,
    structure: str,
    laue: NDArray[np.int64],
    steps: Sequence[Mapping[str, Any]],
    calculator_name: str,
    seed: int,
) -> tuple[str, NDArray[np.int64], str] | str:
    """Return the columns `MADE`, or why the structure cannot be augmented."""
    needed = {"relax", "phonon", "random_displacements", "dynamics"} & {n for s in steps for n in s}
    context = Context(calculator=_calculator(calculator_name) if needed else None)
    try:
        crystal, drawn = augment_crystal(
            Crystal.from_json(structure), steps, seed, material_id, context
        )
        if not np.isfinite(crystal.positions).all():
            return "an atom has no finite position"
        repeats = np.prod([(1, 1, 1)] + [x["cells"] for x in drawn if "cells" in x], axis=0)
        return crystal.to_json(), _of_supercell(laue, repeats), json.dumps(drawn)
    except Exception as error:  # a calculator or a solver may raise anything on odd crystals
        return str(error) or type(error).__name__


def _of_supercell(laue: NDArray[np.int64], repeats: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those Laue operations that keep the lattice of a supercell, in its basis, flat."""
    turned = laue.reshape(-1, 3, 3) * repeats
    kept = (turned % repeats[:, None] == 0).all(axis=(1, 2))
    return (turned[kept] // repeats[:, None]).ravel()


@cache
def _calculator(name: str) -> Calculator:
    """Return the calculator of this process."""
    return calculators.calculator(name)


def augment_patterns(
    patterns: Path,
    augmented: Path,
    draws: Path,
    run: Path,
    steps: Sequence[Mapping[str, Any]],
    seed: int,
) -> None:
    """Augment all patterns of a store, a block at a time.

    Parameters
    ----------
    patterns
        Pattern store; the patterns of a material stand together in it.
    augmented, draws, run
        What to write: the store; a table with a row for each pattern (``pattern``: its index, and
        what `augment_spots` says was drawn); the record.
    steps
        As described in `diffractory.augment.spot_steps`.
    seed
        Global seed.

    Raises
    ------
    InputError
        If the steps are none.
    """
    inputs, outputs = [patterns], [augmented, draws]
    with recorded(run, "augment_patterns", {"steps": list(steps)}, inputs, outputs, seed) as facts:
        check_steps(steps)
        blocks = list(_blocks(material_bounds(read_material_ids(patterns))))
        augmented.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{augmented.name}.", dir=augmented.parent) as folder:
            parts, tables = [], []
            total = blocks[-1][1] if blocks else 0
            for first, last in track(blocks, "Augmenting", total, "patterns", weight=BLOCK):
                made, drawn = augment_spots(read_patterns(patterns, first, last), steps, seed)
                parts.append(Path(folder) / str(first))
                write_patterns(parts[-1], [made])
                tables.append(pd.DataFrame({"pattern": np.arange(first, last), **drawn}))
            facts["patterns"], facts["spots"] = write_patterns(augmented, parts)
        write_parquet(draws, pd.concat(tables) if tables else pd.DataFrame({"pattern": []}))


def _blocks(bounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of about `BLOCK` patterns, with no material in two blocks."""
    first = 0
    for bound in bounds[1:]:
        if bound - first >= BLOCK or bound == bounds[-1]:
            yield first, bound
            first = bound
