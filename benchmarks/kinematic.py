"""Kinematic patterns per second, beside diffsims: same crystals, orientations and limits, one run.

Crystals are pymatgen's AFLOW prototypes; reflections, beams and structure factors count on both
sides, and diffsims gets all orientations of a crystal in one call. Its electrons come from the
other side, its intensities have no absolute scale and its shape factor is not that of a foil:
spots, positions and relative |F_g|^2 are compared instead (thin foil here, shape factor 1 there).
Some 3 % of the spots are here alone: of oblique cells orix leaves out reflections of high indices
near the limit of |g|. diffsims is not among the project's dependencies: ``pip install diffsims``.
The last line is JSON.
"""

import argparse
import json
import sys
import time
from functools import partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

try:
    from diffpy.structure import Atom, Lattice, Structure
    from diffsims.generators.simulation_generator import SimulationGenerator
    from orix.crystal_map import Phase
    from orix.quaternion import Rotation
except ImportError:
    sys.exit("This benchmark compares with diffsims: install it with `pip install diffsims`.")

from diffractory.simulate.beams import Beams, select_beams
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.kinematic import kinematic_intensities
from diffractory.simulate.orientations import random_rotations

THREADS = min(4, numba.get_num_threads())
ENERGY, G_MAX, S_MAX = 200e3, 1.5, 0.05
OTHER_SIDE = np.diag([1.0, -1.0, -1.0])
"""From diffsims' axes, where electrons travel along -z, to ours."""


def crystal_pair(entry: dict[str, Any]) -> tuple[Crystal, Phase]:
    """Return a prototype in our form and in that of diffsims, in one orientation."""
    structure = entry["snl"].structure.get_primitive_structure()
    atoms = [Atom(site.specie.symbol, site.frac_coords) for site in structure]
    lattice = Lattice(*structure.lattice.parameters)
    phase = Phase(point_group="1", structure=Structure(atoms, lattice))
    numbers = np.array(structure.atomic_numbers)
    return Crystal(phase.structure.lattice.base, structure.frac_coords, numbers), phase


def ours(
    crystal: Crystal, rotations: NDArray[np.float64], thickness: float
) -> tuple[Beams, NDArray[np.float32]]:
    """Return beams and intensities."""
    to_laboratory = OTHER_SIDE @ rotations.transpose(0, 2, 1)  # orix's matrices turn the axes
    beams = select_beams(crystal, to_laboratory, ENERGY, G_MAX, S_MAX)
    return beams, kinematic_intensities(crystal, beams, np.array([thickness]), G_MAX)[0]


def theirs(phase: Phase, rotations: NDArray[np.float64]) -> list[Any]:
    """Return the vectors of each pattern."""
    generator = SimulationGenerator(
        ENERGY / 1e3, shape_factor_model=lambda s, width: np.ones_like(s)
    )
    result = generator.calculate_diffraction2d(
        phase, Rotation.from_matrix(rotations), G_MAX, max_excitation_error=S_MAX
    )
    return list(result.coordinates)


def seconds(call: Any, repeats: int) -> float:
    """Return the least time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def agreement(
    crystal: Crystal, phase: Phase, rotations: NDArray[np.float64]
) -> tuple[int, int, float]:
    """Return the number of common spots and of all, and the largest difference of their |F_g|^2.

    The difference is a fraction of the strongest of a pattern.
    """
    beams, intensity = ours(crystal, rotations, 0.01)  # so thin that its shape factor is 1
    squared = intensity / beams.obliquity
    common, total, largest = 0, 0, 0.0
    for p, vectors in enumerate(theirs(phase, rotations)):
        rows = slice(beams.offsets[p], beams.offsets[p + 1])
        here, there = beams.g[rows] @ OTHER_SIDE, vectors.data
        a, b = squared[rows], np.asarray(vectors.intensity)
        a, b = (
            np.where(np.linalg.norm(g, axis=1) > 1e-6, values, 0)  # the direct beam apart
            for g, values in ((here, a), (there, b))
        )
        a, b = a / a.max(), b / b.max()
        same = np.linalg.norm(here[:, None] - there, axis=2) < 1e-5
        # The rounding errors of extinct reflections are spots to either side, and to neither here.
        of_a, of_b = np.nonzero(same & (a > 1e-6)[:, None] & (b > 1e-6))
        common += len(of_a)
        total += int((a > 1e-6).sum() + (b > 1e-6).sum()) - len(of_a)
        largest = max(largest, float(np.abs(a[of_a] - b[of_b]).max()))
    return common, total, largest


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer crystals")
    quick = parser.parse_args().quick
    numba.set_num_threads(THREADS)
    orientations, count = 100, 3 if quick else 8
    pairs = [crystal_pair(entry) for entry in AFLOW_PROTOTYPE_LIBRARY]
    pairs = sorted(
        (pair for pair in pairs if pair[0].volume < 850), key=lambda pair: pair[0].volume
    )
    rotations = random_rotations(orientations, np.random.default_rng(0))
    ours(pairs[0][0], rotations[:1], 200.0)  # compile
    print(f"{orientations} orientations of each crystal")
    print(f"{'volume':>7} {'atoms':>5} {'beams':>6} {'ours 1/s':>9} {'diffsims 1/s':>12} ratio")
    total = np.zeros(2)
    common, spots, largest = 0, 0, 0.0
    for index in np.linspace(len(pairs) // 8, len(pairs) - 1, count).astype(int):
        crystal, phase = pairs[index]
        beams, _ = ours(crystal, rotations, 200.0)
        used = np.array(
            [
                seconds(partial(ours, crystal, rotations, 200.0), 3),
                seconds(partial(theirs, phase, rotations), 1),
            ]
        )
        total += used
        both, all_, difference = agreement(crystal, phase, rotations[:5])
        common, spots, largest = common + both, spots + all_, max(largest, difference)
        rate = orientations / used
        print(
            f"{crystal.volume:7.0f} {len(crystal.numbers):5} {len(beams.hkl) / orientations:6.0f} "
            f"{rate[0]:9.0f} {rate[1]:12.1f} {used[1] / used[0]:5.0f}"
        )
    result = {
        "ratio_vs_diffsims": total[1] / total[0],
        "common_spots": common / spots,
        "max_difference_of_squared_structure_factors": largest,
    }
    print(json.dumps({key: float(f"{value:.4g}") for key, value in result.items()}))


if __name__ == "__main__":
    main()
