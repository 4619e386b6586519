"""Images of MoTe2 monolayers per second, beside the loop over atoms of the published study.

Both sum up the waves of the same atoms, about 9,000 with vacancies, strain and thermal motion, on
the same 261 x 261 grid, with the same scattering factors, on the same cores: as many processes at a
time, each with an image of its own. The loop is written here as the authors' released generator has
it: scattering factors once, phase and Debye-Waller factor of every atom at every pixel. A quick run
times it on fewer atoms; its time is proportional to their number. Noise and augmentation are timed
on one core, beside the simulation as the study runs it, with 2 x 2 points a pixel. With a GPU,
products of matrices are timed too, and the seconds for 70,000 images given. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from diffractory.augment.compose import augment_crystal
from diffractory.augment.crystals import repeat
from diffractory.augment.images import Image, detect
from diffractory.augment.mote2 import orthogonal_cell
from diffractory.simulate.crystal import Crystal, mean_square_displacement
from diffractory.simulate.fourier import Grid, fourier_image, pixel_image
from diffractory.simulate.scattering import scattering_factor
from diffractory.store import one_thread

CORES = min(4, numba.get_num_threads())
GRID = Grid(1.3, 0.01)
CELLS = (51, 30, 1)
B = 0.3  # square angstrom
STEPS = [
    {"vacancies": {"fraction": [0.02, 0.2]}},
    {"strain": {"limit": 0.1, "in_plane": True}},
    {"thermal": {"debye_waller": [0.0, 0.6]}},
]
DETECTOR = [
    {"point_spread": 0.04},
    {"relative_noise": [0.0, 0.5]},
    {"poisson": [1e6, 1e8]},
    {"readout": 1.0},
]
OVERSAMPLING = 2
IMAGES_OF_STUDY = 70_000


def crystal(seed: int, cells: tuple[int, int, int] = CELLS) -> Crystal:
    """Return the crystal of one image, of all augmentations."""
    cell = orthogonal_cell("2h")
    perfect = replace(cell, displacements=mean_square_displacement(B))
    return augment_crystal(repeat(perfect, cells), STEPS, seed, "benchmark", None)[0]


def atom_loop(atoms: Crystal, first: int | None = None) -> NDArray[np.float64]:
    """Return the image of (the first) atoms, one after the other."""
    qx, qy = GRID.q
    squared = qx**2 + qy**2
    factors = {z: scattering_factor(int(z), np.sqrt(squared)) for z in np.unique(atoms.numbers)}
    positions = (atoms.positions @ atoms.cell)[:first]
    amplitude = np.zeros(GRID.shape, dtype=complex)
    for (x, y, _), z in zip(positions, atoms.numbers, strict=False):
        phase = np.exp(-2j * np.pi * (qx * x + qy * y))
        amplitude += factors[z] * phase * np.exp(-B / 4 * squared)
    return np.abs(amplitude) ** 2


def seconds_each(pool: ProcessPoolExecutor, call: Callable[[Any], Any], items: list[Any]) -> float:
    """Return the time per item with all processes at work."""
    start = time.perf_counter()
    list(pool.map(call, items, chunksize=max(1, len(items) // (8 * CORES))))
    return (time.perf_counter() - start) / len(items)


def image_of(atoms: Crystal) -> float:
    """Make an image and leave it in the process, as a store would be written from there."""
    return float(fourier_image(atoms, GRID)[0, 0])


def loop_of(atoms: Crystal, first: int | None) -> float:
    """Do what `image_of` does, the published way."""
    return float(atom_loop(atoms, first)[0, 0])


def single(call: Callable[[int], Any], count: int) -> float:
    """Return the seconds of one call, the median of some."""
    times = []
    for k in range(count):
        start = time.perf_counter()
        call(k)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="time the loop on fewer atoms")
    quick = parser.parse_args().quick
    one_thread()
    crystals = [crystal(k) for k in range(4 * CORES)]
    n_atoms = np.mean([len(atoms.numbers) for atoms in crystals])
    looped = 200 if quick else None
    with ProcessPoolExecutor(CORES, initializer=one_thread) as pool:
        list(pool.map(image_of, crystals))  # import, compile and plan
        ours = seconds_each(pool, image_of, crystals * (4 if quick else 16))
        theirs = seconds_each(pool, partial(loop_of, first=looped), crystals[:CORES])
    theirs *= n_atoms / looped if looped else 1
    compared = crystal(0, (12, 7, 1)) if quick else crystals[0]
    expected = atom_loop(compared)
    difference = np.abs(fourier_image(compared, GRID) - expected) / expected
    image = fourier_image(crystals[0], GRID)
    simulation = single(lambda k: pixel_image(crystals[k % len(crystals)], GRID, OVERSAMPLING), 30)
    augmentation = single(lambda k: crystal(k), 30)
    noise = single(lambda k: detect(Image(image, GRID.step), DETECTOR, 0, str(k)), 30)
    print(f"{n_atoms:.0f} atoms, {GRID.shape[0]} x {GRID.shape[1]} pixels, {CORES} cores")
    print(f"loop over atoms   {theirs:9.3f} s an image" + (" (from 200 atoms)" if quick else ""))
    print(f"Fourier transform {ours:9.5f} s an image")
    print(f"on one core, ms: simulation {simulation * 1e3:.2f}, ", end="")
    print(f"augmentation {augmentation * 1e3:.2f}, noise {noise * 1e3:.2f}")
    result = {
        "ratio_vs_atom_loop": theirs / ours,
        "max_relative_difference": float(difference.max()),
        "images_per_second": 1 / ours,
        "noise_and_augmentation_vs_simulation": (noise + augmentation) / simulation,
    }
    if torch.cuda.is_available():
        fourier_image(crystals[0], GRID, device="cuda")
        gpu = single(lambda k: fourier_image(crystals[k % len(crystals)], GRID, device="cuda"), 100)
        on_gpu = fourier_image(compared, GRID, device="cuda")
        print(f"{torch.cuda.get_device_name()}: {gpu * 1e3:.2f} ms an image")
        result |= {
            "gpu_images_per_second": 1 / gpu,
            "gpu_seconds_for_70000_images": IMAGES_OF_STUDY * gpu,
            "gpu_max_relative_difference": float((np.abs(on_gpu - expected) / expected).max()),
        }
    print(json.dumps({key: float(f"{value:.4g}") for key, value in result.items()}))


if __name__ == "__main__":
    main()
