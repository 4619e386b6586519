"""Rates of the generation study: graphs, networks, and metrics of structures.

Graphs are of crystals of 20 atoms, up to 7 angstrom and 20 neighbours, beside pymatgen's lists of
neighbours of the same crystals in the same run. Networks are DP-CDVAE at the published size with
random weights, on crystals of 20 atoms: steps of training, forward and back, and steps of sampling
by Eq. 7; with --device cuda they run there. The time of 1,000 crystals in 1,000 steps follows from
these. No other code of this network runs without compiled extensions of torch.

Crystals in memory are judged as `diffractory evaluate-structures` does, with reconstruction, and
without formation energies: 10,000 generated ones against 9,000, with --quick 100 against 90. They
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
from pymatgen.core.structure import Structure

from diffractory.evaluation.crystal_metrics import (
    densities,
    nearest,
    valid_composition,
    valid_structure,
)
from diffractory.evaluation.crystal_scores import (
    DEFAULT_TOLERANCES,
    TOLERANCES,
    covered,
    estimated_mean,
    estimated_wasserstein,
)
from diffractory.evaluation.fingerprints import Fingerprints, fingerprints
from diffractory.evaluation.structure_matching import comparers, match, originality
from diffractory.models.crystal_vae import CrystalVae
from diffractory.models.periodic_graph import UnitCells, periodic_graph
from diffractory.structures.reading import Cell

SECONDS_PER_PAIR = 10.0
CUTOFFS = 0.4, 10.0


def random_cells(count: int, seed: int, n_atoms: int = 0) -> list[Cell]:
    """Return random crystals, of 2 to 20 or of `n_atoms`, no two closer than 1 angstrom or so."""
    rng = np.random.default_rng(seed)
    cells = []
    for number in range(count):
        atoms = n_atoms or int(rng.integers(2, 21))
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


def batch_of(cells: list[Cell], device: str) -> UnitCells:
    """Return crystals as one batch."""
    arrays = [np.concatenate([getattr(cell, name) for cell in cells])
              for name in ("positions", "numbers")]  # fmt: skip
    lattice = np.stack([cell.lattice for cell in cells])
    counts = np.array([len(cell.numbers) for cell in cells])
    fractional, numbers, lattice, counts = map(torch.from_numpy, (*arrays, lattice, counts))
    batch = fractional.float(), numbers.long(), lattice.float(), counts
    return UnitCells(*(part.to(device) for part in batch))


def repeated(work: Callable[[], Any], seconds: float, device: str) -> float:
    """Return how often a call is done in a second."""
    work()
    times, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or times < 2:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times += 1
    return times / (time.perf_counter() - start)


def network_rates(count: int, seconds: float, device: str) -> dict[str, float]:
    """Print the rates of graphs and of DP-CDVAE, and return them."""
    cells = random_cells(count, 3, 20)
    batch = batch_of(cells, device)
    structures = [Structure(cell.lattice, cell.numbers.tolist(), cell.positions) for cell in cells]
    peer = count * repeated(
        lambda: [structure.get_neighbor_list(7.0) for structure in structures], seconds, "cpu"
    )
    result = {
        "graphs_per_second": count * repeated(lambda: periodic_graph(batch, 7, 20), seconds, device)
    }
    result["graphs_ratio_vs_pymatgen"] = result["graphs_per_second"] / peer
    network = CrystalVae(published_settings()).to(device)

    def train() -> None:
        network.zero_grad()
        network.loss(batch)["loss"].backward()

    result["train_crystals_per_second"] = count * repeated(train, seconds, device)
    z, time_left = network.draw_latent(count), torch.full((count,), 0.5, device=device)

    def sample() -> None:
        with torch.no_grad():
            network.denoise(batch, z, time_left)

    rate = count * repeated(sample, seconds, device)
    result["sampling_crystal_steps_per_second"] = rate
    result["minutes_for_1000_crystals_in_1000_steps"] = 1e6 / rate / 60
    for name, value in result.items():
        print(f"{name:42}{value:10,.4g}")
    return result


def published_settings() -> dict[str, Any]:
    """Return the network of DP-CDVAE at the published size, from config/paper.yaml."""
    default, paper = (
        yaml.safe_load((Path(__file__).parents[1] / f"config/{name}.yaml").read_text())[
            "generation"
        ]
        for name in ("config", "paper")
    )
    network = {
        key: value | paper["network"].get(key, {}) if isinstance(value, dict)
        else paper["network"].get(key, value)
        for key, value in default["network"].items()
    }  # fmt: skip
    diffusion = default["diffusion"] | paper["diffusion"]
    return network | default["models"]["dp_cdvae"] | {"max_sites": 20, "diffusion": diffusion}


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
    pairs = list(zip(made[: generated // 2], true, strict=False))
    with comparers(processes) as pool:
        limits = SECONDS_PER_PAIR, pool
        match(pairs[:2], TOLERANCES, *limits)  # starts the processes
        timed(
            "unique, novel",
            times,
            lambda: originality(made, true, DEFAULT_TOLERANCES, *limits, processes),
        )
        timed("reconstruction", times, lambda: match(pairs, TOLERANCES, *limits))
    print(f"{'all':24}{sum(times.values()):10.2f} s")
    return {"metric_structures_per_second": (generated + reference) / sum(times.values())}


def main() -> None:
    """Print the tables and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="take fewer crystals")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(options.processes)
    sizes = (8, 1.0) if options.quick else (256 if options.device == "cuda" else 64, 20.0)
    result = network_rates(*sizes, options.device)
    result |= fingerprint_rates(10 if options.quick else 100)
    sizes = (100, 90) if options.quick else (10_000, 9_000)
    result |= metric_rates(*sizes, options.processes)
    rounded = {key: float(f"{value:.4g}") for key, value in result.items()}
    print(json.dumps({**rounded, "processes": options.processes}))


if __name__ == "__main__":
    main()
