"""Bloch-wave patterns per second, beside abTEM's BlochWaves: same beams, same threads, one run.

Crystals are pymatgen's AFLOW prototypes, from small cubic to large triclinic cells, with and
without inversion; orientations are random. Structure factors, beam selection and matrices count on
both sides. abTEM runs in two ways, and the faster is the one compared with: patterns in turn with
threaded linear algebra, as its own loop over orientations does, or one pattern per thread; with
--quick in the latter alone, which is nearly always the faster. The last line is JSON.
"""

import argparse
import json
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from diffractory.simulate.beams import Beams, select_beams
from diffractory.simulate.bloch import bloch_intensities
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.orientations import random_rotations
from diffractory.simulate.stage import simulate_patterns

THREADS = min(4, numba.get_num_threads())
CONFIG = yaml.safe_load((Path(__file__).parents[1] / "config" / "config.yaml").read_text())
ENERGY, THICKNESS, G_MAX, S_MAX = 200e3, 200.0, 1.5, 0.05
CLASSES = [(50, 100), (100, 200), (200, 400), (400, 600)]
"""Beams per pattern."""


class Case(NamedTuple):
    """A crystal of the mixture."""

    name: str
    atoms: Any
    crystal: Crystal
    centric: bool
    beams: int


def prototypes() -> list[Case]:
    """Return all prototypes, with their number of beams in one orientation."""
    from ase import Atoms  # the stage's processes import this file, and not the peers
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    cases = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure.get_primitive_structure()
        numbers = np.array(structure.atomic_numbers)
        crystal = Crystal(np.array(structure.lattice.matrix), structure.frac_coords, numbers)
        beams = select_beams(
            crystal, random_rotations(1, np.random.default_rng(0)), ENERGY, G_MAX, S_MAX
        )
        centric = len(crystal.translations(-np.eye(3))) > 0
        atoms = Atoms(
            crystal.numbers, cell=crystal.cell, scaled_positions=crystal.positions, pbc=True
        )
        cases.append(Case(entry["tags"]["aflow"], atoms, crystal, centric, len(beams.hkl)))
    return sorted(cases, key=lambda case: (case.beams, case.name))


def spread(cases: list[Case], count: int) -> list[Case]:
    """Return some cases, evenly spread over their sorted list."""
    return [cases[i] for i in np.linspace(0, len(cases) - 1, count).round().astype(int)]


def ours(case: Case, rotations: NDArray[np.float64], thicknesses: list[float]) -> tuple[Beams, Any]:
    """Return beams and intensities."""
    beams = select_beams(case.crystal, rotations, ENERGY, G_MAX, S_MAX)
    return beams, bloch_intensities(case.crystal, beams, np.array(thicknesses), G_MAX)


def abtem_pattern(factors: Any, rotation: NDArray[np.float64]) -> Any:
    """Return abTEM's pattern of one orientation."""
    from abtem.bloch import BlochWaves

    waves = BlochWaves(factors, ENERGY, S_MAX, G_MAX, orientation_matrix=rotation)
    return waves.calculate_diffraction_patterns(THICKNESS, lazy=False)


def abtem_seconds(
    case: Case, rotations: NDArray[np.float64], ways: list[int]
) -> tuple[list[float], list[Any]]:
    """Return the seconds that abTEM takes with so many patterns at a time, and its patterns."""
    from abtem.bloch import StructureFactor

    seconds = []
    for workers in ways:
        start = time.perf_counter()
        with threadpool_limits(THREADS // workers), ThreadPoolExecutor(workers) as pool:
            factors = StructureFactor(
                case.atoms, g_max=2 * G_MAX, parametrization="lobato", cutoff="hard", centering="P"
            ).build(lazy=False)
            patterns = list(pool.map(partial(abtem_pattern, factors), rotations))
        seconds.append(time.perf_counter() - start)
    return seconds, patterns


def our_seconds(
    case: Case, rotations: NDArray[np.float64], thicknesses: list[float], repeats: int = 3
) -> float:
    """Return the seconds that we take, at best."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ours(case, rotations, thicknesses)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def largest_difference(case: Case, rotations: NDArray[np.float64], patterns: list[Any]) -> float:
    """Return the largest difference of any intensity, as a fraction of the incident beam."""
    beams, intensity = ours(case, rotations, [THICKNESS])
    flux = intensity[0] * beams.obliquity  # abTEM gives |psi_g|^2, we the flux through the foil
    largest = 0.0
    for p, pattern in enumerate(patterns):
        rows = slice(beams.offsets[p], beams.offsets[p + 1])
        values = np.asarray(pattern.array).ravel()
        of = dict(zip(map(tuple, np.asarray(pattern.miller_indices)), values, strict=True))
        expected = np.array([of.pop(tuple(hkl)) for hkl in beams.hkl[rows]])
        # What abTEM has beyond that is forbidden by the lattice, and must be dark.
        largest = max(largest, np.abs(flux[rows] - expected).max(), *of.values(), 0.0)
    return float(largest)


def compare(cases: list[Case], quick: bool) -> dict[str, float]:
    """Print patterns per second of each class on both sides; return ratio and difference."""
    orientations, per_class, ways = (8, 1, [THREADS]) if quick else (100, 3, [1, THREADS])
    print(f"{orientations} orientations of each crystal, {THREADS} threads")
    names = [f"abTEM, {n} at a time 1/s" for n in ways]
    print(f"    beams inversion crystals  ours 1/s  {'  '.join(names)}  ratio")
    rotations = random_rotations(orientations, np.random.default_rng(1))
    abtem_seconds(cases[0], rotations[:1], [1])  # import and plan
    total = np.zeros(1 + len(ways))
    difference = 0.0
    for low, high in CLASSES[:-1] if quick else CLASSES:
        for centric in (True, False):
            inside = [c for c in cases if low <= c.beams < high and c.centric == centric]
            chosen = spread(inside, min(per_class, len(inside)))
            seconds = np.zeros(1 + len(ways))
            for case in chosen:
                theirs, patterns = abtem_seconds(case, rotations, ways)
                seconds += our_seconds(case, rotations, [THICKNESS]), *theirs
                difference = max(difference, largest_difference(case, rotations, patterns))
            rate = len(chosen) * orientations / seconds
            has = "yes" if centric else "no"
            print(
                f"{low:>4}-{high:<4} {has:>9} {len(chosen):>8} {rate[0]:>9.0f}"
                + "".join(f"{value:>26.1f}" for value in rate[1:])
                + f"{rate[0] / rate[1:].max():7.0f}"
            )
            total += seconds
    in_turn = {} if quick else {"ratio_vs_abtem_in_turn": total[1] / total[0]}
    ratio = {"ratio_vs_abtem": total[1:].min() / total[0]}
    return ratio | in_turn | {"max_abs_difference": difference}


def scaling(cases: list[Case], orientations: int, count: int) -> float:
    """Print the time of a pattern by its beams; return the larger of the two fitted exponents."""
    rotations = random_rotations(orientations, np.random.default_rng(2))
    exponents = []
    for centric in (True, False):
        inside = [c for c in cases if 100 <= c.beams <= 1000 and c.centric == centric]
        chosen = spread(inside, min(count, len(inside)))
        times = [our_seconds(case, rotations, [THICKNESS]) / orientations for case in chosen]
        beams = [case.beams for case in chosen]
        exponents.append(np.polyfit(np.log(beams), np.log(times), 1)[0])
        listed = ", ".join(f"{n}: {t * 1e3:.2f}" for n, t in zip(beams, times, strict=True))
        print(f"ms a pattern by beams, {'with' if centric else 'without'} inversion: {listed}")
    return float(max(exponents))


def extra_thickness(cases: list[Case], orientations: int, count: int) -> float:
    """Return what a second thickness costs, as a fraction of the first."""
    rotations = random_rotations(orientations, np.random.default_rng(3))
    chosen = spread([c for c in cases if 50 <= c.beams < 600], count)
    settings = [THICKNESS], [THICKNESS / 2, THICKNESS]
    seconds = np.array(  # in turns, so that a busy moment of the machine meets both alike
        [
            [[our_seconds(case, rotations, setting, 1) for setting in settings] for _ in range(9)]
            for case in chosen
        ]
    )
    one, two = seconds.min(axis=1).sum(axis=0)
    return two / one - 1


def whole_stage(orientations: int, count: int) -> dict[str, float]:
    """Return patterns per second of the stage, and that as a fraction of the engine's own rate."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    from diffractory.structures.cleaning import Labelled, label_structure

    rows, crystals = [], []
    for entry in spread(AFLOW_PROTOTYPE_LIBRARY, count):
        content = json.dumps(entry["snl"].structure.as_dict()).encode()
        labelled = label_structure(CONFIG["structures"], "json", content)
        if isinstance(labelled, Labelled):
            rows.append({"material_id": entry["tags"]["aflow"], **labelled.row})
            crystals.append(Crystal.from_json(labelled.row["structure"], 0.5))
    settings = CONFIG["simulate"] | {"count": orientations, "orientations": "random"}
    rotations = random_rotations(orientations, np.random.default_rng(4))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pd.DataFrame(rows).to_parquet(folder / "cleaned.parquet")
        outputs = [folder / file for file in ("store.zarr", "rejected.parquet", "run.json")]
        start = time.perf_counter()
        simulate_patterns(folder / "cleaned.parquet", *outputs, 0, 1, settings, 0, THREADS)
        stage = time.perf_counter() - start
    start = time.perf_counter()
    for crystal in crystals:
        beams = select_beams(crystal, rotations, ENERGY, G_MAX, S_MAX)
        bloch_intensities(crystal, beams, np.array([THICKNESS]), G_MAX)
    engine = time.perf_counter() - start
    patterns = len(rows) * orientations
    print(f"{patterns} patterns: engine {patterns / engine:.0f}/s, stage {patterns / stage:.0f}/s")
    return {"stage_patterns_per_second": patterns / stage, "stage_vs_engine": engine / stage}


def main() -> None:
    """Run all parts and print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer crystals and orientations")
    quick = parser.parse_args().quick
    numba.set_num_threads(THREADS)
    cases = prototypes()
    ours(cases[0], np.eye(3)[None], [THICKNESS])  # compile, both for real and for complex matrices
    ours(next(c for c in cases if not c.centric), np.eye(3)[None], [THICKNESS])
    result = compare(cases, quick)
    result["cost_exponent"] = scaling(cases, *((8, 4) if quick else (40, 10)))
    result["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result["extra_thickness_cost"] = extra_thickness(cases, *((30, 3) if quick else (100, 12)))
    result |= whole_stage(*((200, 40) if quick else (400, 288)))
    print(json.dumps({key: float(f"{value:.3g}") for key, value in result.items()}))


if __name__ == "__main__":
    main()
