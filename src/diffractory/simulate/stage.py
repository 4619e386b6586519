"""The stages behind the rules `simulate_patterns` and `collect_patterns`."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffractory.simulate.beams import Beams, select_beams
from diffractory.simulate.bloch import bloch_intensities
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.kinematic import kinematic_intensities
from diffractory.simulate.orientations import random_rotations, rotations_along, zone_axes
from diffractory.store import (
    InputError,
    Patterns,
    generator,
    recorded,
    track,
    write_parquet,
    write_patterns,
    write_text,
)

ENGINES = {"bloch": bloch_intensities, "kinematic": kinematic_intensities}
REJECTED_COLUMNS = ["material_id", "zone_axis", "energy", "reason", "detail"]


def orientations(
    crystal: Crystal,
    laue: NDArray[np.int64],
    material_id: str,
    settings: Mapping[str, Any],
    seed: int,
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return zone axes, shape (P, 3), and rotations, shape (P, 3, 3), of one material.

    The in-plane rotation of a zone-axis pattern is random, as at the microscope: no model can learn
    from a convention of ours. Random orientations have the zone axis 000.
    """
    rng = generator(seed, "orientations", material_id)
    count = settings["count"]
    if settings["orientations"] == "random":
        return np.zeros((count, 3), dtype=np.int16), random_rotations(count, rng)
    uvw = zone_axes(crystal, laue, count)
    return uvw.astype(np.int16), rotations_along(
        uvw @ crystal.cell, rng.uniform(0, 2 * np.pi, count)
    )


def simulate_material(
    row: Mapping[str, Any], settings: Mapping[str, Any], seed: int
) -> tuple[list[Patterns], list[tuple[Any, ...]]]:
    """Return the patterns of one row of cleaned.parquet, and rows about the rejected ones."""
    crystal = Crystal.from_json(row["structure"])
    laue = np.array(row["laue_rotations"], dtype=np.int64).reshape(-1, 3, 3)
    axes, rotations = orientations(crystal, laue, row["material_id"], settings, seed)
    limits = settings["g_max"], settings["max_excitation_error"]
    patterns, rejected = [], []
    for energy in settings["energies"]:
        beams = select_beams(crystal, rotations, energy, *limits)
        counts = np.diff(beams.offsets)
        fits = counts <= settings["max_beams"]
        for axis, count in zip(axes[~fits], counts[~fits], strict=True):
            detail = f"{count} beams, more than max_beams = {settings['max_beams']}"
            zone_axis = " ".join(map(str, axis))
            rejected.append((row["material_id"], zone_axis, energy, "too_many_beams", detail))
        if not fits.all():
            beams = select_beams(crystal, rotations[fits], energy, *limits)
        if fits.any():
            patterns.append(
                _patterns(crystal, beams, row["material_id"], axes[fits], rotations[fits], settings)
            )
    return patterns, rejected


def _patterns(
    crystal: Crystal,
    beams: Beams,
    material_id: str,
    axes: NDArray[np.int16],
    rotations: NDArray[np.float64],
    settings: Mapping[str, Any],
) -> Patterns:
    """Solve all orientations at all thicknesses and keep the spots that are bright enough."""
    thicknesses = np.array(settings["thicknesses"])
    solve = ENGINES[settings["engine"]]
    intensity = solve(crystal, beams, thicknesses, settings["g_max"], settings["debye_waller"])
    n = len(axes)
    pattern = np.repeat(np.arange(n), np.diff(beams.offsets))
    kept = intensity >= settings["min_intensity"]
    thickness, beam = np.nonzero(kept)
    counts = np.bincount(thickness * n + pattern[beam], minlength=len(thicknesses) * n)
    return Patterns(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        qx=beams.g[beam, 0].astype(np.float32),
        qy=beams.g[beam, 1].astype(np.float32),
        intensity=intensity[thickness, beam],
        hkl=beams.hkl[beam].astype(np.int16),
        material_id=np.full(len(counts), material_id, dtype=object),
        zone_axis=np.tile(axes, (len(thicknesses), 1)),
        orientation=np.tile(rotations, (len(thicknesses), 1, 1)),
        thickness=np.repeat(thicknesses, n).astype(np.float32),
        energy=np.full(len(counts), beams.energy, dtype=np.float32),
    )


def simulate_patterns(
    structures: Path,
    store: Path,
    rejected: Path,
    run: Path,
    shard: int,
    shards: int,
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
) -> None:
    """Simulate the patterns of one contiguous block of the structures.

    Parameters
    ----------
    structures
        ``cleaned.parquet``.
    store, rejected, run
        Pattern store, table of rejected patterns and ``run.json`` to write.
    shard, shards
        This block (from 0) and the number of blocks.
    settings
        Configuration section ``simulate``.
    """
    numba.set_num_threads(min(threads, numba.get_num_threads()))
    columns = ["material_id", "structure", "laue_rotations"]
    table = pq.read_table(structures, columns=columns)
    first, last = (len(table) * i // shards for i in (shard, shard + 1))
    rows = table.slice(first, last - first).to_pylist()
    with recorded(run, "simulate_patterns", settings, [structures], seed) as facts:
        patterns, refused = [], []
        for row in track(
            rows, f"Simulating shard {shard + 1} of {shards}", len(rows), "structures"
        ):
            made, bad = simulate_material(row, settings, seed)
            patterns += made
            refused += bad
        facts["accepted"], _ = write_patterns(store, patterns)
        facts["rejected"] = dict(Counter(reason for *_, reason, _ in refused))
        write_parquet(rejected, pd.DataFrame(refused, columns=REJECTED_COLUMNS))


def collect_patterns(
    stores: Sequence[Path],
    rejected: Sequence[Path],
    runs: Sequence[Path],
    store: Path,
    all_rejected: Path,
    simulation: Path,
    run: Path,
    settings: Mapping[str, Any],
    max_rejected_fraction: float,
    seed: int,
) -> None:
    """Join the shards into one store, the same whatever their number.

    Parameters
    ----------
    stores, rejected, runs
        What `simulate_patterns` wrote for each shard, in order.
    store, all_rejected, simulation, run
        The whole store, the table of rejected patterns, the record of the simulation as a whole
        (summed over the shards) and the record of this stage, to write.
    settings
        Configuration section ``simulate``.
    max_rejected_fraction
        Largest fraction of the orientations that may be rejected.

    Raises
    ------
    InputError
        If no pattern is left, or too many were rejected.
    """
    inputs = [*stores, *rejected]
    with recorded(run, "collect_patterns", settings, inputs, seed) as facts:
        refused = pd.concat([pd.read_parquet(path) for path in rejected])
        n_patterns, n_spots = write_patterns(store, list(stores))
        orientations = n_patterns // len(settings["thicknesses"]) + len(refused)
        if not n_patterns or len(refused) > max_rejected_fraction * orientations:
            raise InputError(
                f"{len(refused)} of {orientations} patterns have more than simulate.max_beams = "
                f"{settings['max_beams']} beams, which is over max_rejected_fraction = "
                f"{max_rejected_fraction}: raise max_beams, or lower structures.max_volume, "
                "simulate.g_max or simulate.max_excitation_error"
            )
        write_parquet(all_rejected, refused)
        write_text(simulation, json.dumps(_whole_record(runs), indent=2) + "\n")
        facts["patterns"], facts["spots"] = n_patterns, n_spots


def _whole_record(runs: Sequence[Path]) -> dict[str, Any]:
    """Return one record for all shards: what they have in common, and their sums."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in runs]
    rejected: Counter[str] = Counter()
    for record in records:
        rejected.update(record["facts"]["rejected"])
    return records[0] | {
        "start": min(record["start"] for record in records),
        "end": max(record["end"] for record in records),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "peak_memory_gib": max(record["peak_memory_gib"] for record in records),
        "facts": {
            "shards": len(records),
            "accepted": sum(record["facts"]["accepted"] for record in records),
            "rejected": dict(rejected),
        },
    }
