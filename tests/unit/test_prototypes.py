"""The embedded source: balanced, reproducible, and chemistry that can exist."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import spglib
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from diffractory.store import InputError
from diffractory.structures.sources.prototypes import retrieve

SYSTEMS = {
    "triclinic": (1, 2),
    "monoclinic": (3, 15),
    "orthorhombic": (16, 74),
    "tetragonal": (75, 142),
    "trigonal": (143, 167),
    "hexagonal": (168, 194),
    "cubic": (195, 230),
}
EQUAL = dict.fromkeys(SYSTEMS, 1)
COUNT = 700


def materials_of(count, shares=EQUAL):
    settings = {"count": count, "crystal_systems": shares}
    return list(retrieve(settings, Path("unused"), Path("unused")))


def space_group(structure):
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    return spglib.get_symmetry_dataset(cell, symprec=0.01).number


def system_of(number):
    return next(name for name, (first, last) in SYSTEMS.items() if first <= number <= last)


def label_of(material):
    return material.material_id.rsplit("-", 1)[0]


@pytest.fixture(scope="module")
def materials():
    return materials_of(COUNT)


@pytest.fixture(scope="module")
def structures(materials):
    return [Structure.from_dict(json.loads(m.content)) for m in materials]


@pytest.fixture(scope="module")
def systems(structures):
    return [system_of(space_group(s)) for s in structures]


@pytest.fixture(scope="module")
def library():
    """Structures of the library by label; some labels have several."""
    found = defaultdict(list)
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        found[entry["tags"]["aflow"]].append(entry["snl"].structure)
    return found


@pytest.fixture(scope="module")
def substitutions(materials, structures, library):
    """Pairs of prototype and substituted structure where the label says which prototype it is."""
    pairs = [
        (library[label_of(m)][0], s)
        for m, s in zip(materials, structures, strict=True)
        if len(library[label_of(m)]) == 1
    ]
    return [(old, new) for old, new in pairs if old.species != new.species]


def replaced(old, new):
    """Return the elements of a prototype and what stands in their place."""
    return {a.specie: b.specie for a, b in zip(old, new, strict=True)}


def test_same_bytes_in_another_process():
    program = (
        "import hashlib, json, sys; from pathlib import Path;"
        "from diffractory.structures.sources.prototypes import retrieve;"
        "found = retrieve(json.loads(sys.argv[1]), Path(), Path());"
        "print(hashlib.sha256(repr(list(found)).encode()).hexdigest())"
    )
    settings = {"count": 140, "crystal_systems": dict(reversed(EQUAL.items()))}
    digest = subprocess.run(
        [sys.executable, "-c", program, json.dumps(settings)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert digest == hashlib.sha256(repr(materials_of(140)).encode()).hexdigest()


@pytest.mark.parametrize("count", [1, 250])
def test_larger_count_only_adds(materials, count):
    assert materials_of(count) == materials[:count]


def test_structures_of_a_system_do_not_depend_on_the_shares(materials, systems):
    cubic = [m for m, s in zip(materials, systems, strict=True) if s == "cubic"]
    assert materials_of(100, {"cubic": 0.3, "hexagonal": 0}) == cubic


def test_every_crystal_system_gets_its_share(systems):
    assert Counter(systems) == dict.fromkeys(SYSTEMS, COUNT // 7)


def test_unequal_shares():
    parts = [Structure.from_dict(json.loads(m.content)) for m in materials_of(
        40, {"cubic": 3, "triclinic": 1})]  # fmt: skip
    assert Counter(system_of(space_group(s)) for s in parts) == {"cubic": 30, "triclinic": 10}


def test_no_share_is_refused():
    with pytest.raises(InputError, match="crystal_systems"):
        materials_of(5, {"cubic": 0})


def test_exhausted_system_is_named_and_not_filled_up(caplog, library):
    with caplog.at_level(logging.WARNING):
        found = materials_of(1212, {"triclinic": 100, "hexagonal": 1})
    systems = Counter(m.material_id.split("_")[1][0] for m in found)
    assert systems["h"] == 12
    assert 300 < systems["a"] < 1200
    (record,) = caplog.records
    assert f"triclinic {systems['a']} of 1200" in record.getMessage()
    assert "hexagonal 12 of 12" in record.getMessage()

    # To the last one, anions are where anions were.
    salt = "ABC2_aP16_1_4a_4a_8a"
    (prototype,) = library[salt]
    for material in found:
        if label_of(material) == salt:
            structure = Structure.from_dict(json.loads(material.content))
            anion = replaced(prototype, structure)[Element("Se")]
            assert anion == max(structure.composition, key=lambda e: e.X), structure.formula


def test_prototypes_come_first_and_substitutions_take_turns(
    materials, structures, systems, library
):
    members = defaultdict(list)
    for material, structure, system in zip(materials, structures, systems, strict=True):
        label = label_of(material)
        formulas = {s.composition.reduced_formula for s in library[label]}
        original = structure.composition.reduced_formula in formulas
        members[system].append((original, label))
    for system, entries in members.items():
        originals = [original for original, _ in entries]
        assert originals == sorted(originals, reverse=True), system
        turns = [s for original, s in entries if not original and len(library[s]) == 1]
        first_round = next((i for i, s in enumerate(turns) if s in turns[:i]), len(turns))
        assert set(turns[:first_round]) == set(turns), system


def test_every_space_group_comes_before_any_comes_twice(structures, systems):
    groups = defaultdict(list)
    for structure, system in zip(structures, systems, strict=True):
        groups[system].append(space_group(structure))
    least = {"triclinic": 2, "monoclinic": 9, "orthorhombic": 26, "tetragonal": 18,
             "trigonal": 15, "hexagonal": 7, "cubic": 17}  # fmt: skip
    for system, numbers in groups.items():
        assert len(set(numbers)) >= least[system], system
        assert len(set(numbers[: least[system]])) == least[system], system


def test_space_group_is_that_of_the_prototype(substitutions):
    assert len(substitutions) > 300
    for old, new in substitutions:
        assert space_group(old) == space_group(new), new.formula


def test_content_is_canonical_json_of_a_structure(materials, structures):
    def refuse(constant):
        raise AssertionError(constant)

    for material, structure in zip(materials, structures, strict=True):
        assert (material.source, material.format) == ("prototypes", "json")
        loaded = json.loads(material.content, parse_constant=refuse)
        assert (
            material.content == json.dumps(loaded, sort_keys=True, separators=(",", ":")).encode()
        )
        again = json.loads(json.dumps(structure.as_dict()))
        assert Structure.from_dict(again) == structure
        assert structure.is_ordered


def test_identifiers(materials, structures, library):
    assert len({m.material_id for m in materials}) == COUNT
    for material, structure in zip(materials, structures, strict=True):
        label, formula = material.material_id.rsplit("-", 1)
        assert label in library
        assert formula == structure.composition.reduced_formula


def test_substituted_oxides_and_halides_are_neutral(substitutions):
    salts = [n for _, n in substitutions if max(e.X for e in n.composition) > 2.95]
    assert len(salts) > 80
    for salt in salts:
        amounts = salt.composition.values()
        states = product(*(e.oxidation_states for e in salt.composition))
        sums = (sum(q * n for q, n in zip(qs, amounts, strict=True)) for qs in states)
        assert any(total == 0 for total in sums), salt.formula


def test_substitution_keeps_kinds_and_distinct_elements(substitutions):
    for old, new in substitutions:
        change = replaced(old, new)
        assert len(set(change.values())) == len(change), new.formula
        order = sorted(change, key=lambda e: e.X)
        if order[-1].X > 2.95:
            assert max(change.values(), key=lambda e: e.X) == change[order[-1]], new.formula


def radii(element, other):
    """Return pairs of radii that may be compared: of ions of one sign, and of atoms."""
    ionic = [
        (r, r_other)
        for q, r in element.ionic_radii.items()
        for q_other, r_other in other.ionic_radii.items()
        if q * q_other > 0
    ]
    metallic = [e.data.get("Metallic radius") or e.atomic_radius for e in (element, other)]
    return [*ionic, metallic]


def test_substituted_radii_are_similar(substitutions):
    pairs = {pair for old, new in substitutions for pair in replaced(old, new).items()}
    pairs = {(a, b) for a, b in pairs if a != b and a.symbol != "H"}
    assert len(pairs) > 100
    for a, b in pairs:
        assert min(abs(rb / ra - 1) for ra, rb in radii(a, b)) < 0.201, (a, b)


def test_no_atoms_too_close_or_too_far_apart(structures):
    for structure in structures:
        i, j, _, distance = structure.get_neighbor_list(5.0)
        radius = np.array([float(site.specie.atomic_radius) for site in structure])
        ratio = distance / (radius[i] + radius[j])
        assert 0.7 <= ratio.min() <= 1.25, structure.formula
        assert distance.min() > 1.1
        assert 5 < structure.volume / len(structure) < 60, structure.formula


def test_no_gases_and_no_radioactive_elements(structures):
    unwanted = {Element(e) for e in "He Ne Ar Kr Xe Tc Pm Po At Rn Fr Ra Ac Pa Np Pu Cf".split()}
    formulas = {s.composition.reduced_formula for s in structures}
    assert formulas.isdisjoint({"N2", "O2", "CO", "H3N", "NH3", "Cl2", "CNCl", "H3S", "CH"})
    assert all(unwanted.isdisjoint(s.composition) for s in structures)


@pytest.mark.parametrize(
    ("material_id", "volume"),  # experimental, cubic angstrom per formula unit
    [
        ("A_cF4_225_a-Ag", 4.086**3 / 4),
        ("A_cI2_229_a-V", 3.03**3 / 2),
        ("AB_cF8_216_c_a-ZnSe", 5.668**3 / 4),
        ("AB_cF8_225_a_b-NaBr", 5.973**3 / 4),
        ("AB2_cF12_225_a_c-SrF2", 5.80**3 / 4),
        ("A4BC_tI24_141_h_b_a-HfSiO4", 6.57**2 * 5.96 / 4),
        ("A2B_oC12_63_2c_c-HfSi2", 3.677 * 14.55 * 3.649 / 4),
        ("AB2_hP6_194_c_f-MoSe2", 3.289**2 * 12.927 * 0.75**0.5 / 2),
        ("A2B3_hR5_166_c_ac-Bi2Se3", 4.143**2 * 28.636 * 0.75**0.5 / 3),
    ],
)
def test_volumes_are_near_experiment(materials, structures, material_id, volume):
    index = [m.material_id for m in materials].index(material_id)
    _, units = structures[index].composition.get_reduced_composition_and_factor()
    assert structures[index].volume / units == pytest.approx(volume, rel=0.1)
