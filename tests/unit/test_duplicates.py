import os
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from diffractory.structures.duplicates import duplicate_groups
from diffractory.structures.labels import find_symmetry
from diffractory.structures.reading import Cell, read_cell

TOLERANCES = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}


def primitive(structure):
    numbers = np.array([site.specie.Z for site in structure], dtype=np.intc)
    cell = Cell(structure.lattice.matrix, structure.frac_coords, numbers)
    return find_symmetry(cell, 0.01).primitive


def groups_of(named, tolerances=TOLERANCES):
    """Groups of (material_id, cell) pairs as a dictionary of material_id to group."""
    with ThreadPoolExecutor(1) as pool:
        ids = [name for name, _ in named]
        cells = [cell for _, cell in named]
        found = duplicate_groups(ids, cells, tolerances, pool, 1)
    return dict(zip(ids, found, strict=True))


def brute_force(named):
    """Groups by chains of matches, the matcher being asked for every pair of the same atoms."""
    structures = {
        name: Structure(Lattice(cell.lattice), cell.numbers.tolist(), cell.positions)
        for name, cell in named
    }
    group = {name: {name} for name in structures}
    matcher = StructureMatcher(**TOLERANCES)
    alike = defaultdict(list)
    for name, cell in sorted(named, key=lambda item: item[0]):
        alike[cell.numbers.tobytes()].append(name)
    for names in alike.values():
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                if matcher.fit(
                    structures[first], structures[second], skip_structure_reduction=True
                ):
                    union = group[first] | group[second]
                    group.update(dict.fromkeys(union, union))
    return {name: min(members) for name, members in group.items()}


RUTILE = Structure.from_spacegroup(
    136, Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.3053, 0.3053, 0]]
)
ANATASE = Structure.from_spacegroup(
    141, Lattice.tetragonal(3.785, 9.514), ["Ti", "O"], [[0, 0, 0], [0, 0, 0.2081]]
)


def disturbed(n, seed):
    """Random crystals of two elements in P1, each in a few slightly disturbed copies."""
    rng = np.random.default_rng(seed)
    named = []
    for parent in range(n):
        angles = rng.uniform(75, 105, 3)
        lattice = Lattice.from_parameters(*rng.uniform(3.5, 5, 3), *angles)
        positions = rng.random((4, 3))
        for copy, size in enumerate([0, 0.05, 0.2, 0.5, 1.0]):
            sites = positions + rng.normal(0, size, (4, 3)) / 4
            strained = Lattice(lattice.matrix * (1 + rng.normal(0, size, (3, 1)) / 8))
            cell = Cell(strained.matrix, sites, np.array([6, 6, 8, 8], dtype=np.intc))
            named.append((f"{parent}-{copy}", find_symmetry(cell, 1e-4).primitive))
    return named


def test_other_cells_of_a_crystal_are_duplicates():
    supercell = RUTILE.make_supercell([2, 1, 3], in_place=False)
    skewed = RUTILE.make_supercell([[1, 0, 0], [2, 1, 0], [0, -1, 1]], in_place=False)
    shifted = RUTILE.copy().translate_sites(range(6), [0.1, 0.2, 0.3])
    larger = RUTILE.copy().scale_lattice(RUTILE.volume * 1.1)
    other_element = RUTILE.copy().replace_species({"Ti": "Sn"})
    structures = {
        "f": RUTILE, "e": supercell, "d": skewed, "c": shifted, "b": larger,
        "a": ANATASE, "g": other_element,
    }  # fmt: skip
    found = groups_of([(name, primitive(s)) for name, s in structures.items()])
    assert found == {"a": "a", "b": "b", "c": "b", "d": "b", "e": "b", "f": "b", "g": "g"}


def test_a_distortion_that_lowers_the_symmetry_hides_no_duplicate():
    """Within symprec or not, an atom that is a little off makes no other material."""
    moved = RUTILE.copy()
    moved.translate_sites([0], [0.01, 0.004, 0.02])
    numbers = np.array([site.specie.Z for site in moved], dtype=np.intc)
    symmetry = find_symmetry(Cell(moved.lattice.matrix, moved.frac_coords, numbers), 0.01)
    assert symmetry.space_group != 136
    assert groups_of([("a", primitive(RUTILE)), ("b", symmetry.primitive)])["b"] == "a"


def test_tolerances_are_obeyed():
    distorted = Structure.from_spacegroup(
        136, Lattice.tetragonal(4.594, 3.3), ["Ti", "O"], [[0, 0, 0], [0.28, 0.28, 0]]
    )
    named = [("a", primitive(RUTILE)), ("b", primitive(distorted))]
    assert groups_of(named)["b"] == "a"
    for name, tight in [("ltol", 0.01), ("stol", 0.001)]:
        assert groups_of(named, {**TOLERANCES, name: tight})["b"] == "b"


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_those_of_brute_force_in_any_order(seed):
    named = disturbed(12, seed)
    expected = brute_force(named)
    sizes = pd.Series(expected).value_counts()
    assert sizes.max() > 1
    assert len(sizes) > 12  # some copies are disturbed too much: both answers occur
    for shuffle in range(3):
        random.Random(shuffle).shuffle(named)
        assert groups_of(named) == expected


def test_matcher_is_asked_in_the_order_of_names():
    # It is not symmetric: asked the other way round it may answer otherwise.
    class Recorder(ThreadPoolExecutor):
        def submit(self, function, cells, pairs, tolerances):
            asked.extend(pairs)
            return super().submit(function, cells, pairs, tolerances)

    asked = []
    ids = ["c", "a", "d", "b"]
    with Recorder(1) as pool:
        duplicate_groups(ids, [primitive(RUTILE)] * 4, TOLERANCES, pool, 1)
    assert asked
    assert all(first < second for first, second in asked)  # ranks of the sorted names


def test_empty():
    assert groups_of([]) == {}


@pytest.mark.skipif("DIFFRACTORY_DATA" not in os.environ, reason="DIFFRACTORY_DATA is not set")
def test_groups_of_real_structures_are_those_of_brute_force():
    table = pd.read_csv(Path(os.environ["DIFFRACTORY_DATA"]) / "carbon_24" / "val.csv")[:150]
    named = []
    for name, cif in zip(table["material_id"], table["cif"], strict=True):
        named.append((name, find_symmetry(read_cell(cif.encode(), "cif"), 0.01).primitive))
    assert groups_of(named) == brute_force(named)
