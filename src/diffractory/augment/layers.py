"""Stages for two-dimensional crystals: relaxation, and snapshots of their thermal motion.

Layers stand as in `diffractory.structures.layers`, across z.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from diffractory.augment import calculators
from diffractory.augment.calculators import relax, snapshots
from diffractory.augment.compose import augment_crystal
from diffractory.augment.crystals import displace, repeat
from diffractory.simulate.crystal import Crystal
from diffractory.store import (
    InputError,
    generator,
    one_thread,
    recorded,
    track,
    worker_pool,
    write_parquet,
)
from diffractory.structures.layers import lattice_columns, upright

Made = TypeVar("Made")

calculator_of_process = cache(calculators.calculator)
"""Loaded once by each worker process."""


def relax_layers(
    layers: Path,
    relaxed: Path,
    rejected: Path,
    run: Path,
    settings: Mapping[str, Any],
    calculator: str,
    seed: int,
    threads: int,
) -> None:
    """Relax atoms and lattice of the first layers of a table; the height of the cells stays.

    Nothing else of the standard setting is restored: a may become longer than b, and the vacuum
    differs by what the layer grew.

    Parameters
    ----------
    layers
        ``layers.parquet``.
    relaxed, rejected, run
        What to write: that table with other structures, lattices and thicknesses, and the column
        ``relaxed`` (bool); the layers whose relaxation failed; the record.
    settings
        ``relaxed`` (how many of the materials, in the order of the table) and ``max_force``
        (eV/angstrom).
    calculator
        As for `diffractory.augment.calculators.calculator`.
    seed
        Global seed.
    threads
        Worker processes.

    Raises
    ------
    InputError
        If none is left.
    """
    config = {"layers": dict(settings), "calculator": calculator}
    with recorded(run, "relax_layers", config, [layers], [relaxed, rejected], seed) as facts:
        table = pd.read_parquet(layers)
        chosen = np.arange(len(table)) < settings["relaxed"]
        work = partial(_relax, calculator=calculator, max_force=settings["max_force"])
        rows, failures = _apply(
            work, calculator, table[chosen], threads, "Relaxing", "relaxation_failed"
        )
        accepted = table[~table["material_id"].isin(failures["material_id"])].copy()
        _check_some(accepted, failures, layers)
        accepted["relaxed"] = accepted["material_id"].isin(rows)
        made = pd.DataFrame(rows.values(), index=accepted.index[accepted["relaxed"]])
        for name in made:
            accepted.loc[made.index, name] = made[name]
        write_parquet(relaxed, accepted)
        write_parquet(rejected, failures)
        facts["relaxed"], facts["rejected"] = len(rows), len(failures)


def perturb_layers(
    layers: Path,
    perturbed: Path,
    rejected: Path,
    run: Path,
    settings: Mapping[str, Any],
    calculator: str,
    seed: int,
    threads: int,
) -> None:
    """Make a snapshot of the thermal motion of each layer.

    Parameters
    ----------
    layers
        ``layers.parquet``, or what `relax_layers` wrote.
    perturbed, rejected, run
        What to write: a table in the same order with ``material_id``, ``structure`` (JSON that
        `Crystal.from_json` reads, with occupancies), ``drawn`` (JSON: the method, and the
        temperature or debye_waller) and ``cells`` (repeats along a and b); the layers for which
        that failed; the record.
    settings
        ``method`` (``"dynamics"`` or ``"gaussian"``), ``cells`` (repeats along a and b) and
        ``fold``: whether all cells are laid over each other into one, where each atom then has an
        occupancy of one by their number; else the supercell stays. For dynamics ``temperature``
        (kelvin), ``duration`` (ps), ``timestep`` (fs) and ``friction`` (1/ps); for the Gaussian
        method ``debye_waller`` (B, square angstrom).
    calculator
        As for `diffractory.augment.calculators.calculator`; for dynamics.
    seed
        Global seed.
    threads
        Worker processes.

    Raises
    ------
    InputError
        If none is left.
    """
    config = {"perturbed": dict(settings), "calculator": calculator}
    with recorded(run, "perturb_layers", config, [layers], [perturbed, rejected], seed) as facts:
        table = pd.read_parquet(layers, columns=["material_id", "structure"])
        dynamics = settings["method"] == "dynamics"
        work = partial(_perturb, settings=settings, calculator=calculator, seed=seed)
        needed = calculator if dynamics else None
        texts, failures = _apply(work, needed, table, threads, "Perturbing", "perturbation_failed")
        made = pd.DataFrame({"material_id": list(texts), "structure": list(texts.values())})
        _check_some(made, failures, layers)
        quantity = "temperature" if dynamics else "debye_waller"
        drawn = {"method": settings["method"], quantity: settings[quantity]}
        made["drawn"] = json.dumps(drawn)
        made["cells"] = [list(settings["cells"])] * len(made)
        write_parquet(perturbed, made)
        write_parquet(rejected, failures)
        facts["perturbed"], facts["rejected"] = len(made), len(failures)


def make_distractors(
    layers: Path, distractors: Path, run: Path, settings: Mapping[str, Any], seed: int
) -> None:
    """Make crystals that are nearly those of the test, for a gallery in which these are harder.

    Parameters
    ----------
    layers
        ``layers.parquet``, or what `relax_layers` wrote.
    distractors, run
        What to write: a table with ``material_id`` (that of the test crystal, ``~`` and a number),
        ``structure`` (JSON) and ``drawn`` (JSON); the record.
    settings
        ``count`` (of each test crystal) and ``steps`` (as in `diffractory.augment.compose`).
    seed
        Global seed.

    Raises
    ------
    InputError
        If there is no test crystal, or a step cannot be applied.
    """
    with recorded(run, "make_distractors", settings, [layers], [distractors], seed) as facts:
        table = pd.read_parquet(layers, columns=["material_id", "structure", "split"])
        test = table[table["split"] == "test"]
        if test.empty:
            raise InputError(f"{layers} has no layer to test with: raise structure_2d.layers.test")
        made = []
        for name, text in zip(test["material_id"], test["structure"], strict=True):
            crystal = Crystal.from_json(text)
            for number in range(settings["count"]):
                new = f"{name}~{number}"
                changed, drawn = augment_crystal(crystal, settings["steps"], seed, new)
                changed = replace(changed, cell=upright(changed.cell))
                made.append((new, changed.to_json(), json.dumps(drawn)))
        columns = ["material_id", "structure", "drawn"]
        write_parquet(distractors, pd.DataFrame(made, columns=columns))
        facts["distractors"] = len(made)


def folded(supercell: Crystal, cells: tuple[int, int]) -> Crystal:
    """Lay all cells of a supercell over each other into one.

    Its kinematic structure factors are those of the supercell at the reflections that one cell has,
    by the number of cells; the diffuse scattering between them is lost.

    Parameters
    ----------
    cells
        Repeats along a and b.
    """
    repeats = np.array([*cells, 1])
    return replace(
        supercell,
        cell=supercell.cell / repeats[:, None],
        positions=supercell.positions * repeats,
        occupancies=np.full(len(supercell.numbers), 1 / repeats.prod()),
    )


def _relax(material_id: str, structure: str, calculator: str, max_force: float) -> dict[str, Any]:
    """Return the columns that relaxation changes."""
    crystal = Crystal.from_json(structure)
    made = relax(crystal, calculator_of_process(calculator), in_plane=True, max_force=max_force)
    made = replace(made, cell=upright(made.cell))
    heights = made.positions[:, 2] * made.cell[2, 2]
    return {
        **lattice_columns(made.cell),
        "thickness": float(np.ptp(heights)),
        "structure": made.to_json(),
    }


def _perturb(
    material_id: str, structure: str, settings: Mapping[str, Any], calculator: str, seed: int
) -> str:
    rng = generator(seed, "perturb_layers", material_id)
    n, m = settings["cells"]
    crystal = repeat(Crystal.from_json(structure), (n, m, 1))
    if settings["method"] == "dynamics":
        (crystal,) = snapshots(
            crystal,
            calculator_of_process(calculator),
            settings["temperature"],
            1,
            rng,
            settings["timestep"],
            settings["friction"],
            settings["duration"],
        )
    else:
        crystal = displace(crystal, settings["debye_waller"], rng)
    return (folded(crystal, (n, m)) if settings["fold"] else crystal).to_json()


def _apply(
    work: Callable[[str, str], Made],
    calculator: str | None,
    table: pd.DataFrame,
    threads: int,
    label: str,
    reason: str,
) -> tuple[dict[str, Made], pd.DataFrame]:
    """Return what ``work`` makes of each material and its structure, and a table of failures.

    ``calculator`` is the name of the one that it needs, or None.
    """
    advice = "use fewer threads, or fewer cells."
    with worker_pool(threads, __name__, one_thread, advice) as pool:
        columns = table["material_id"], table["structure"]
        results = pool.map(partial(_attempt, work, calculator), *columns)
        outcomes = list(track(results, label, len(table), "layers"))
    made, failures = {}, []
    for name, (result, failure) in zip(table["material_id"], outcomes, strict=True):
        if result is None:
            failures.append((name, reason, failure))
        else:
            made[name] = result
    columns_of_failures = ["material_id", "reason", "detail"]
    return made, pd.DataFrame(failures, columns=columns_of_failures, dtype=str)


def _attempt(
    work: Callable[[str, str], Made], calculator: str | None, material_id: str, structure: str
) -> tuple[Made | None, str]:
    """Return what ``work`` makes, or None and why it failed."""
    if calculator:
        calculator_of_process(calculator)  # that there is none is no fault of the layer
    try:
        return work(material_id, structure), ""
    except Exception as error:  # a calculator may raise anything on odd crystals
        return None, str(error) or type(error).__name__


def _check_some(made: pd.DataFrame, failures: pd.DataFrame, layers: Path) -> None:
    if made.empty:
        examples = [f", such as {row.material_id}: {row.detail}" for row in failures.itertuples()]
        raise InputError(f"no layer of {layers} is left{''.join(examples[:1])}")
