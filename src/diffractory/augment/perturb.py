"""The stage behind the rule `perturb_patterns`: test patterns as a microscope would spoil them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffractory.augment import UNPERTURBED
from diffractory.augment.spots import (
    add_spots,
    drop_spots,
    jitter_positions,
    scale_positions,
    shift_centre,
)
from diffractory.simulate.stage import simulate_materials
from diffractory.store import (
    InputError,
    Patterns,
    generator,
    read_selected,
    recorded,
    track,
    write_parquet,
    write_patterns,
)
from diffractory.store.labels import labels_of_test

ROUNDING = 1e-6
"""Orientations that differ by less are the same, drawn on two kinds of machine."""


def perturb_patterns(
    patterns: Path,
    structures: Path,
    store: Path,
    conditions: Path,
    run: Path,
    settings: Mapping[str, Any],
    simulate: Mapping[str, Any],
    seed: int,
    threads: int,
) -> None:
    """Write test patterns as they are, and then all of them under every condition.

    Parameters
    ----------
    patterns, structures
        Pattern store and ``structures.parquet``.
    store, conditions, run
        What to write: the pattern store; a table with a row for each of its patterns (``pattern``:
        its index, ``perturbation``: a key of ``settings``, or ``"none"``, ``level``, ``original``:
        the index of the unperturbed one in ``patterns``, ``thickness`` in angstrom); the record.
    settings
        Configuration section ``symmetry.robustness``.
    simulate
        Configuration section ``simulate``; ``thicknesses`` is not read.
    seed
        Global seed.
    threads
        Threads or processes that simulate the other thicknesses.

    Raises
    ------
    InputError
        If there is no test pattern, or the store was not simulated with these settings.
    """
    config = {"robustness": dict(settings), "simulate": dict(simulate)}
    inputs, outputs, device = [patterns, structures], [store, conditions], simulate["device"]
    with recorded(run, "perturb_patterns", config, inputs, outputs, seed, device) as facts:
        original = _choose(patterns, structures, settings["patterns"], seed)
        chosen = Patterns.concatenate(list(read_selected(patterns, original)))
        parts = {(UNPERTURBED, 0.0): chosen}
        parts |= _spoilt(chosen, settings, simulate["g_max"], seed)
        parts |= _of_other_thickness(
            chosen, structures, settings["thickness"], simulate, seed, threads
        )
        n_patterns, _ = write_patterns(store, list(parts.values()))
        names, levels = zip(*parts, strict=True)
        table = pd.DataFrame({
            "pattern": np.arange(n_patterns),
            "perturbation": np.repeat(names, len(original)),
            "level": np.repeat(levels, len(original)),
            "original": np.tile(original, len(parts)),
            "thickness": np.concatenate([part.thickness for part in parts.values()]),
        })  # fmt: skip
        write_parquet(conditions, table)
        facts["patterns"], facts["conditions"] = n_patterns, len(parts)


def _choose(patterns: Path, structures: Path, count: int, seed: int) -> NDArray[np.int64]:
    """Return so many test patterns, or all, evenly over the store, which has them by material.

    One is drawn from each of as many equal stretches: a fixed stride could meet the same few zone
    axes in every material.
    """
    test = labels_of_test(patterns, structures, "test")["pattern"].to_numpy()
    count = min(count, len(test))
    bounds = np.arange(count + 1) * len(test) // count
    return test[generator(seed, "perturb", "patterns").integers(bounds[:-1], bounds[1:])]


def _spoilt(
    chosen: Patterns, settings: Mapping[str, Any], g_max: float, seed: int
) -> dict[tuple[str, float], Patterns]:
    """Return the patterns by perturbation and level, of all that need no simulation."""
    ways: dict[str, Callable[[Patterns, float, np.random.Generator], Patterns]] = {
        "missing_spots": drop_spots,
        "spurious_spots": lambda patterns, level, rng: add_spots(patterns, level, g_max, rng),
        "position_jitter": jitter_positions,
        "centre_offset": shift_centre,
        "calibration_error": lambda patterns, level, _: scale_positions(patterns, level),
    }
    return {
        (name, level): spoil(chosen, level, generator(seed, "perturb", f"{name}/{level}"))
        for name, spoil in ways.items()
        for level in settings[name]
    }


def _of_other_thickness(
    chosen: Patterns,
    structures: Path,
    thicknesses: Sequence[float],
    simulate: Mapping[str, Any],
    seed: int,
    threads: int,
) -> dict[tuple[str, float], Patterns]:
    """Simulate the same orientations and energies of the same materials at other thicknesses."""
    names = list(dict.fromkeys(chosen.material_id))
    columns = ["material_id", "structure", "laue_rotations"]
    table = pq.read_table(structures, columns=columns, filters=[("material_id", "in", names)])
    by_name = {row["material_id"]: row for row in table.to_pylist()}
    rows = [by_name[name] for name in names]
    found: dict[tuple[str, float], list[Patterns]] = {("thickness", t): [] for t in thicknesses}
    settings = {**simulate, "thicknesses": list(thicknesses)}
    with simulate_materials(rows, settings, seed, threads) as results:
        tracked = track(results, "Simulating other thicknesses", len(rows), "structures")
        for name, (made, _) in zip(names, tracked, strict=True):
            same = Patterns.concatenate([Patterns.empty(), *made])
            wanted = chosen.select(np.flatnonzero(chosen.material_id == name))
            turned = np.abs(same.orientation - wanted.orientation[:, None]).max(axis=(2, 3))
            is_same = (turned < ROUNDING) & (same.energy == wanted.energy[:, None])
            for (_, thickness), parts in found.items():
                picked = np.nonzero(is_same & (same.thickness == np.float32(thickness)))[1]
                if len(picked) != len(wanted):
                    raise InputError(
                        f"the patterns of {name} have orientations or energies that the section "
                        "simulate of the configuration does not give: simulate them again"
                    )
                parts.append(same.select(picked))
    return {condition: Patterns.concatenate(parts) for condition, parts in found.items()}
