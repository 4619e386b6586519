"""Rates of the generation study: metrics of structures.

Crystals in memory are judged as `diffractory evaluate-structures` does, with reconstruction, and
without formation energies: 10,000 generated ones against 9,000, with --quick 200 against 180. They
are random, of 2 to 20 atoms of the usual density, half of them of carbon alone, so that many have
the same atoms; half of the generated ones are known ones with atoms slightly moved. Fingerprints
stand beside matminer's, of the same crystals in the same run. The last line is JSON.
"""

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
from pymatgen.core.structure import Structure

from diffractory.evaluation.crystal_metrics import (
    DEFAULT_TOLERANCES,
    TOLERANCES,
    Fingerprints,
    covered,
    densities,
    estimated_mean,
    estimated_wasserstein,
    fingerprints,
    match,
    nearest,
    novel,
    unique,
    valid_composition,
    valid_structure,
)
from diffractory.structures.reading import Cell

SECONDS_PER_PAIR = 10.0
CUTOFFS = 0.4, 10.0


def random_cells(count: int, seed: int) -> list[Cell]:
    """Return random crystals, none with two atoms closer than 1 angstrom or so."""
    rng = np.random.default_rng(seed)
    cells = []
    for number in range(count):
        atoms = int(rng.integers(2, 21))
        # Sites of a primitive cubic lattice, shaken, so that no two atoms are close.
        side = int(np.ceil(atoms ** (1 / 3)))
        grid = np.indices((side, side, side)).reshape(3, -1).T
        places = grid[rng.permutation(len(grid))[:atoms]] + rng.uniform(-0.25, 0.25, (atoms, 3))
        lattice = (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3))) * 2.4 * side
        elements = rng.choice(rng.integers(3, 84, 3), atoms) if number % 2 else np.full(atoms, 6)
        order = np.argsort(elements)
        cells.append(Cell(lattice, (places / side)[order], elements[order].astype(np.intc)))
    return cells


def moved(cell: Cell, seed: int) -> Cell:
    """Return a crystal with its atoms moved by about 0.1 angstrom."""
    noise = np.random.default_rng(seed).normal(scale=0.02, size=cell.positions.shape)
    return cell._replace(positions=cell.positions + noise)


def timed(name: str, times: dict[str, float], work: Callable[[], Any]) -> Any:
    """Return the result of a call; print its time and add it to the list, s."""
    start = time.perf_counter()
    result = work()
    times[name] = time.perf_counter() - start
    print(f"{name:24}{times[name]:10.2f} s", flush=True)
    return result


def matminer_fingerprints(cells: list[Cell]) -> list[Any]:
    """Return the mean of matminer's fingerprints over the sites of each crystal."""
    preset = CrystalNNFingerprint.from_preset("ops")
    structures = [Structure(cell.lattice, cell.numbers.tolist(), cell.positions) for cell in cells]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            np.mean([preset.featurize(structure, n) for n in range(len(structure))], axis=0)
            for structure in structures
        ]


def fingerprint_rates(count: int) -> dict[str, float]:
    """Print the rates of fingerprints on one core and return them."""
    cells, times = random_cells(count, 0), {}
    fingerprints(cells[:1], 1)  # compile
    print(f"fingerprints of {count} crystals, one core")
    found = timed("ours", times, lambda: fingerprints(cells, 1).structure)
    expected = timed("matminer", times, lambda: matminer_fingerprints(cells))
    difference = np.abs(found - expected).max(axis=1)
    print(f"difference: median {np.median(difference):.1e}, largest {difference.max():.1e}")
    return {
        "fingerprints_per_second": count / times["ours"],
        "fingerprints_ratio_vs_matminer": times["matminer"] / times["ours"],
        "fingerprints_median_difference": float(np.median(difference)),
    }


def metric_rates(generated: int, reference: int, processes: int) -> dict[str, float]:
    """Print the time of each kind of metric and return the rate of all."""
    true = random_cells(reference, 1)
    made = [moved(cell, n) for n, cell in enumerate(true[: generated // 2])]
    made += random_cells(generated - len(made), 2)
    limits = DEFAULT_TOLERANCES, SECONDS_PER_PAIR, processes
    unique(made[:2], *limits)  # starts the server of the processes
    times: dict[str, float] = {}
    print(f"{generated:,} generated crystals against {reference:,}, {processes} processes")

    def judge() -> Any:
        valid = valid_structure(made) & valid_composition(made)
        return valid, [estimated_wasserstein(densities(made)[:1000], densities(true), 0)]

    def coverage(ours: Fingerprints, theirs: Fingerprints) -> Any:
        distances = (nearest(a, b) for a, b in zip(ours, theirs, strict=True))
        return estimated_mean(covered(*distances, *CUTOFFS), 0)

    timed("validity, distributions", times, judge)
    ours, theirs = timed(
        "fingerprints", times, lambda: [fingerprints(cells, processes) for cells in (made, true)]
    )
    timed("coverage", times, lambda: (coverage(ours, theirs), coverage(theirs, ours)))
    timed("unique", times, lambda: unique(made, *limits))
    timed("novel", times, lambda: novel(made, true, *limits))
    pairs = list(zip(made[: generated // 2], true, strict=False))
    timed("reconstruction", times, lambda: match(pairs, TOLERANCES, SECONDS_PER_PAIR, processes))
    print(f"{'all':24}{sum(times.values()):10.2f} s")
    return {"metric_structures_per_second": (generated + reference) / sum(times.values())}


def main() -> None:
    """Print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="take fewer crystals")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.processes)
    result = fingerprint_rates(20 if options.quick else 100)
    sizes = (200, 180) if options.quick else (10_000, 9_000)
    result |= metric_rates(*sizes, options.processes)
    rounded = {key: float(f"{value:.4g}") for key, value in result.items()}
    print(json.dumps({**rounded, "processes": options.processes}))


if __name__ == "__main__":
    main()
