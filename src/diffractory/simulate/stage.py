"""The stages behind the rules `simulate_patterns` and `collect_patterns`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
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
from diffractory.simulate.orientations import (
    proper_rotations,
    random_rotations,
    rotations_about,
    rotations_along,
    to_fundamental_zone,
    zone_axes,
)
from diffractory.simulate.precession import average_over_cone, precession_cone
from diffractory.simulate.propagation import most_beams, pattern_memory
from diffractory.store import (
    InputError,
    Patterns,
    claimed,
    generator,
    one_thread,
    recorded,
    track,
    worker_pool,
    write_parquet,
    write_patterns,
    write_text,
)
from diffractory.store.provenance import read_record

CHUNK = 4
"""Structures that a worker process takes at a time."""

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
    from a convention of ours. So is the sense of a zone axis of a crystal without inversion, whose
    two patterns are mirror images in the zero-order Laue zone, and yet different. Random
    orientations have the zone axis 000.
    """
    rng = generator(seed, "orientations", material_id)
    count = settings["count"]
    symmetry, has_inversion = proper_rotations(crystal, laue)
    if settings["orientations"] == "random":
        rotations = to_fundamental_zone(random_rotations(count, rng), symmetry)
        return np.zeros((count, 3), dtype=np.int16), rotations
    uvw = zone_axes(crystal, laue, count)
    angles = rng.uniform(0, 2 * np.pi, count)
    if not has_inversion:
        uvw *= rng.choice([-1, 1], size=(count, 1))
    return uvw.astype(np.int16), rotations_along(uvw @ crystal.cell, angles)


def simulate_material(
    row: Mapping[str, Any], settings: Mapping[str, Any], seed: int
) -> tuple[list[Patterns], list[tuple[Any, ...]]]:
    """Return the patterns of one row of cleaned.parquet, and rows about the rejected ones."""
    crystal = Crystal.from_json(row["structure"], settings["debye_waller"])
    laue = np.array(row["laue_rotations"], dtype=np.int64).reshape(-1, 3, 3)
    axes, rotations = orientations(crystal, laue, row["material_id"], settings, seed)
    limit = beam_limit(settings)
    patterns, rejected = [], []
    for energy in settings["energies"]:
        beams = _select(crystal, rotations, energy, settings)
        counts = np.diff(beams.offsets).reshape(len(axes), -1).max(axis=1)
        fits = counts <= limit
        for axis, count in zip(axes[~fits], counts[~fits], strict=True):
            zone_axis = " ".join(map(str, axis))
            detail = f"{count} beams, more than {limit}"
            rejected.append((row["material_id"], zone_axis, energy, "too_many_beams", detail))
        if not fits.all():
            beams = _select(crystal, rotations[fits], energy, settings)
        if fits.any():
            patterns.append(
                _patterns(crystal, beams, row["material_id"], axes[fits], rotations[fits], settings)
            )
    return patterns, rejected


def beam_limit(settings: Mapping[str, Any]) -> int:
    """Return the most beams that a pattern may have."""
    return min(settings["max_beams"], most_beams(settings["memory"] * 2**30))


def _azimuths(settings: Mapping[str, Any]) -> tuple[float, int]:
    """Return the half angle of the precession cone in radian, and the number of azimuths."""
    angle = np.radians(settings["precession_angle"])
    return angle, settings["precession_steps"] if angle else 1


def _select(
    crystal: Crystal, rotations: NDArray[np.float64], energy: float, settings: Mapping[str, Any]
) -> Beams:
    """Return the beams of all orientations, each at all azimuths of the precession."""
    about_x, about_y = np.radians(settings["foil_tilt"])
    foil = rotations_about(1, about_y) @ rotations_about(0, about_x)
    normals = precession_cone(foil[None], *_azimuths(settings))[:, :, 2]
    return select_beams(
        crystal,
        precession_cone(rotations, *_azimuths(settings)),
        energy,
        settings["g_max"],
        settings["max_excitation_error"],
        np.tile(normals, (len(rotations), 1)),
    )


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
    how = (settings["g_max"], settings["parametrization"], settings["absorption"])
    if settings["engine"] == "kinematic":
        intensity = kinematic_intensities(crystal, beams, thicknesses, *how)
    else:
        where = (settings["device"], settings["memory"])
        intensity = bloch_intensities(crystal, beams, thicknesses, *how, *where)
    offsets, hkl, intensity = average_over_cone(beams, intensity, _azimuths(settings)[1])
    n = len(axes)
    pattern = np.repeat(np.arange(n), np.diff(offsets))
    thickness, spot = np.nonzero(intensity >= settings["min_intensity"])
    counts = np.bincount(thickness * n + pattern[spot], minlength=len(thicknesses) * n)
    q = (rotations[pattern[spot], :2] @ (hkl[spot] @ crystal.reciprocal)[:, :, None])[:, :, 0]
    return Patterns(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        qx=q[:, 0].astype(np.float32),
        qy=q[:, 1].astype(np.float32),
        intensity=intensity[thickness, spot],
        hkl=hkl[spot].astype(np.int16),
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

    Raises
    ------
    InputError
        If another process simulates this block, or the structures are damaged.
    """
    outputs, device = [store, rejected], settings["device"]
    with (
        claimed(store),
        recorded(run, "simulate_patterns", settings, [structures], outputs, seed, device) as facts,
    ):
        columns = ["material_id", "structure", "laue_rotations"]
        table = pq.read_table(structures, columns=columns)
        first, last = (len(table) * i // shards for i in (shard, shard + 1))
        rows = table.slice(first, last - first).to_pylist()
        patterns, refused = [], []
        note = f"Simulating shard {shard + 1} of {shards}"
        with simulate_materials(rows, settings, seed, threads) as results:
            for made, bad in track(results, note, len(rows), "structures"):
                patterns += made
                refused += bad
        facts["accepted"], _ = write_patterns(store, patterns)
        facts["rejected"] = dict(Counter(reason for *_, reason, _ in refused))
        write_parquet(rejected, pd.DataFrame(refused, columns=REJECTED_COLUMNS))


@contextmanager
def simulate_materials(
    rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], seed: int, threads: int
) -> Iterator[Iterable[tuple[list[Patterns], list[tuple[Any, ...]]]]]:
    """Yield what `simulate_material` returns for each row, in order, worked on in parallel."""
    work = partial(simulate_material, settings=settings, seed=seed)
    memory = settings["memory"] * 2**30
    processes = min(threads, int(memory / pattern_memory(beam_limit(settings))))
    if settings["device"] != "cpu" or processes == 1:
        numba.set_num_threads(min(threads, numba.get_num_threads()))
        yield map(work, rows)
        return
    advice = "use fewer threads, or lower simulate.memory or structures.max_volume."
    with worker_pool(processes, __name__, one_thread, advice) as pool:
        yield pool.map(work, rows, chunksize=CHUNK)


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
    inputs, outputs = [*stores, *rejected], [store, all_rejected]
    with recorded(run, "collect_patterns", settings, inputs, outputs, seed) as facts:
        refused = pd.concat([pd.read_parquet(path) for path in rejected])
        n_patterns, n_spots = write_patterns(store, list(stores))
        orientations = n_patterns // len(settings["thicknesses"]) + len(refused)
        if not n_patterns or len(refused) > max_rejected_fraction * orientations:
            raise InputError(
                f"{len(refused)} of {orientations} patterns have more than {beam_limit(settings)} "
                "beams, the most that simulate.max_beams and simulate.memory allow, which is over "
                f"max_rejected_fraction = {max_rejected_fraction}: raise them, or lower "
                "structures.max_volume, simulate.g_max or simulate.max_excitation_error"
            )
        write_parquet(all_rejected, refused)
        write_text(simulation, json.dumps(_whole_record(runs), indent=2) + "\n")
        facts["patterns"], facts["spots"] = n_patterns, n_spots


def _whole_record(runs: Sequence[Path]) -> dict[str, Any]:
    """Return one record for all shards: what they have in common, and their sums."""
    records = [read_record(path) for path in runs]
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
        "outputs": {
            f"{path.parent.name}/{name}": digest
            for path, record in zip(runs, records, strict=True)
            for name, digest in record.get("outputs", {}).items()
        },
    }
