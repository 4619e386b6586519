"""A stand-in for a scan that is not public: gold nanoparticles on amorphous carbon, by multislice.

One configuration of the atoms that heat moves is taken for all electrons, and what atoms scatter
beside the spots is its speckle. The probe is in focus, and as coherent as its waves can be.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ase import Atoms
from numpy.typing import NDArray
from scipy.constants import atomic_mass
from scipy.spatial import cKDTree

from diffractory.experiment.geometry import Grid
from diffractory.experiment.nanoparticles import Particle, scatter_particles, what_probes_meet
from diffractory.experiment.narrow_probe import Optics, Slices, cut_slices, patterns
from diffractory.experiment.scan import write_scan
from diffractory.experiment.stand_in import on_detector
from diffractory.store import (
    generator,
    one_thread,
    recorded,
    track,
    worker_pool,
    write_parquet,
)

GOLD_SLICE, CARBON_SLICE = 4.0, 10.0
"""Thickest slices, angstrom."""

CARBON_ATOMS = 2.0e-27 / (12.011 * atomic_mass)
"""Per cubic angstrom: 2.0 g/cm^3."""

CARBON_BOND = 1.4
"""Shortest distance of carbon atoms, angstrom."""

BLOCK = 8
"""Rows and columns of positions that are worked on at a time."""


def amorphous_carbon(side: float, thickness: float, rng: np.random.Generator) -> Atoms:
    """Return carbon atoms at random that keep a distance, in a box periodic along x and y.

    Parameters
    ----------
    side, thickness
        Of the box along x and y, and along z, angstrom.
    """
    count = round(CARBON_ATOMS * side**2 * thickness)
    positions = np.empty((0, 3))
    while len(positions) < count:
        tried = rng.uniform(0, [side, side, thickness], (count - len(positions), 3))
        both = np.concatenate([positions, tried])
        # A box that no pair reaches around stands for one that is not periodic along z.
        tree = cKDTree(both, boxsize=[side, side, thickness + CARBON_BOND])
        close = tree.query_pairs(CARBON_BOND, output_type="ndarray")
        keep = np.ones(len(both), dtype=bool)
        keep[close.max(axis=1)] = False
        positions = both[keep]
    return Atoms(f"C{count}", positions, cell=[side, side, thickness])


def carbon_slices(settings: Mapping[str, Any], optics: Optics, seed: int) -> Slices:
    """Return slices of a window of carbon film, which repeats."""
    rng = generator(seed, "gold/carbon", 0)
    film = amorphous_carbon(optics.width, settings["carbon"], rng)
    return cut_slices(film, optics, CARBON_SLICE)


@dataclass(frozen=True)
class Block:
    """Neighbouring positions and the atoms before them.

    Attributes
    ----------
    number
        In the order of the scan.
    corner
        Row and column of its first position.
    shape
        Rows and columns of positions.
    atoms
        Of gold, x, y and z as of a `Particle`, from the corner of the first position's window on,
        angstrom, shape (N, 3).
    """

    number: int
    corner: tuple[int, int]
    shape: tuple[int, int]
    atoms: NDArray[np.float64]


def blocks_of(
    settings: Mapping[str, Any], particles: list[Particle], optics: Optics, seed: int
) -> Iterator[Block]:
    """Yield the blocks of a scan, row by row, with atoms moved by their heat."""
    rows, columns = settings["positions"]
    spread = np.sqrt(settings["debye_waller"] / (8 * np.pi**2))
    atoms = np.concatenate([particle.positions for particle in particles])
    atoms = atoms + generator(seed, "gold/heat", 0).normal(0, spread, atoms.shape)
    corners = [(r, c) for r in range(0, rows, BLOCK) for c in range(0, columns, BLOCK)]
    for number, (row, column) in enumerate(corners):
        shape = min(BLOCK, rows - row), min(BLOCK, columns - column)
        start = np.array([column, row]) * settings["step"] - optics.points // 2 * optics.sampling
        near = atoms - [*start, 0]
        size = np.array(optics.tile(shape))[::-1] * optics.sampling
        inside = (near[:, :2] >= 0).all(axis=1) & (near[:, :2] < size).all(axis=1)
        yield Block(number, (row, column), shape, near[inside])


def simulate_block(
    block: Block, carbon: Slices, optics: Optics, settings: Mapping[str, Any], seed: int
) -> NDArray[np.int32]:
    """Return the frames of a block with all that a detector adds, electrons.

    Returns
    -------
    Shape (rows and columns of the block, rows and columns of the detector).
    """
    grid = Grid(tuple(settings["shape"]), settings["pixel_size"], 0.0)
    # A sharper detector would see the wave vectors of a window one by one.
    spread = max(settings["point_spread"], 0.5 / optics.width)
    q, _ = optics.frequencies()
    tile = optics.tile(block.shape)
    first = np.array(block.corner) * optics.stride - optics.points // 2
    matter = [_gold(block.atoms, tile, optics)] if len(block.atoms) else []
    rows = patterns([*matter, carbon.moved(first, tile)], block.shape, optics)
    image = np.stack([on_detector((row, q, q), grid, spread) for row in rows])
    rng = generator(seed, "gold/noise", block.number)
    counts = rng.poisson(settings["electrons"] * image)
    return np.rint(counts + rng.normal(0, settings["readout_noise"], image.shape)).astype(np.int32)


def simulate_scan(
    scan: Path, truth: Path, run: Path, settings: Mapping[str, Any], seed: int, threads: int
) -> None:
    """Simulate a stand-in for a scan of gold nanoparticles.

    Parameters
    ----------
    scan, truth, run
        Zarr array, Parquet table of what is under each position (see `what_probes_meet`, with
        ``position``, ``row`` and ``column``) and ``run.json`` to write.
    settings
        Configuration section ``symmetry.scan.gold``.
    threads
        Processes; the frames do not depend on it.

    Raises
    ------
    InputError
        If the particles do not fit into the scan or a process is killed.
    """
    optics, (rows, columns) = Optics.of(settings), settings["positions"]
    with recorded(run, "simulate_scan", dict(settings), [], [scan, truth], seed) as facts:
        row, column = np.indices((rows, columns)).reshape(2, -1)
        places = np.stack([column, row], axis=1) * settings["step"]
        particles = scatter_particles(settings, tuple(places.max(axis=0)), seed)
        met = what_probes_meet(particles, places, optics.energy, optics.convergence)
        named = pd.DataFrame({"position": np.arange(len(row)), "row": row, "column": column})
        blocks = list(blocks_of(settings, particles, optics, seed))
        advice = "use fewer threads."
        # One process too has a pool, so that linear algebra runs on one thread whatever `threads`.
        with worker_pool(threads, __name__, _prepare, advice) as pool:
            carbon = pool.submit(carbon_slices, settings, optics, seed).result()
            work = partial(
                simulate_block, carbon=carbon, optics=optics, settings=settings, seed=seed
            )
            frames = track(pool.map(work, blocks), "Simulating", len(blocks), "blocks")
            shape = (rows, columns, *settings["shape"])
            write_scan(
                scan,
                shape,
                _in_rows(frames, columns),
                settings["pixel_size"],
                settings["energy"],
                settings["step"],
                dtype=np.int32,
            )
        write_parquet(truth, named.join(met))
        facts["particles"] = dict(Counter(particle.kind for particle in particles))
        facts["positions"] = len(met)
        facts["electrons_per_frame"], facts["stand_in"] = settings["electrons"], True


def _prepare() -> None:
    one_thread()
    torch.set_num_threads(1)


def _in_rows(frames: Iterable[NDArray[np.int32]], columns: int) -> Iterator[NDArray[np.int32]]:
    """Yield frames in the order of positions, shape (positions, rows, columns), from blocks."""
    waiting: list[NDArray[np.int32]] = []
    for block in frames:
        waiting.append(block)
        if sum(other.shape[1] for other in waiting) == columns:
            band = np.concatenate(waiting, axis=1)
            yield band.reshape(-1, *band.shape[2:])
            waiting = []


def _gold(positions: NDArray[np.float64], tile: tuple[int, int], optics: Optics) -> Slices:
    """Return slices of gold atoms, shape (N, 3), from the first to the film at z = 0."""
    # An angstrom more at either end, as heat moves atoms.
    height = np.ceil((2 - positions[:, 2].min()) / GOLD_SLICE) * GOLD_SLICE
    y, x = np.array(tile) * optics.sampling
    moved = positions + np.array([0, 0, height - 1])
    return cut_slices(Atoms(f"Au{len(positions)}", moved, cell=[x, y, height]), optics, GOLD_SLICE)
