"""The embedded source of 2D crystals: known geometry, symmetry, chemistry, and the same bytes."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import spglib
from pymatgen.core.composition import Composition
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from diffractory.structures.cleaning import Labelled, label_structure
from diffractory.structures.sources import layers
from diffractory.structures.sources.layers import retrieve

COUNT = 900
SPACE_GROUPS = {
    "1t": 164, "1t_prime": 11, "2h": 187, "aginp2s6": 149, "anti_1t": 164, "arsenene": 164,
    "bc3": 191, "bi2te2s": 164, "bi2te3": 164, "biocl": 129, "bn": 187, "crgete3": 162,
    "cri3": 162, "fe3gete2": 187, "feocl": 59, "fese": 129, "gaas": 156, "gase": 187,
    "gase_1t": 164, "gese": 31, "ges2": 115, "graphane": 164, "graphene": 191, "hydroxide": 164,
    "in2se3": 156, "janus_1t": 156, "janus_2h": 156, "janus_gase": 156, "k2nif4": 123, "m2c": 164,
    "m2c_oh": 164, "m2ct2": 164, "m3c2": 164, "m3c2_oh": 164, "m3c2t2": 164, "m4c3": 164,
    "m4c3t2": 164, "mb2": 183, "mnbi2te4": 164, "mnps3": 162, "mosi2n4": 187, "pbs": 129,
    "pentagonal": 14, "phosphorene": 53, "silicene": 164, "sip": 187, "snf4": 123, "tis3": 11,
    "zrcl": 164, "zrncl": 164,
}  # fmt: skip
"""Of the crystal of layers and vacuum."""
SALTS = {"1t", "2h", "anti_1t", "bi2te2s", "bi2te3", "biocl", "bn", "cri3", "feocl", "fese",
         "gaas", "ges2", "hydroxide", "in2se3", "janus_1t", "janus_2h", "k2nif4", "mnbi2te4",
         "mosi2n4", "pbs", "snf4", "zrncl"}  # fmt: skip
CLEANING = {"symprec": 0.01, "max_sites": 100, "min_volume": 5.0, "max_volume": 3000.0,
            "min_distance": 0.7}  # fmt: skip

KNOWN = {
    # In the plane, angstrom. Of layers in C2DB (Gjerding et al., 2D Mater. 8, 044002 (2021)), or
    # textbook values of the layered crystal (chlorides, bromides, iodides, hydroxides, MPX3).
    "graphene-C": [2.46],
    "silicene-Si": [3.87],
    "silicene-Ge": [4.06],
    "silicene-Sn": [4.68],
    "arsenene-P": [3.28],
    "arsenene-Sb": [4.12],
    "arsenene-Bi": [4.34],
    "phosphorene-P": [3.31, 4.58],
    "phosphorene-As": [3.69, 4.77],
    "bn-BN": [2.50],
    "bn-AlN": [3.13],
    "bn-GaN": [3.21],
    "bn-ZnO": [3.29],
    "gaas-InAs": [4.39],
    "2h-MoS2": [3.16],
    "2h-MoSe2": [3.32],
    "2h-WS2": [3.18],
    "2h-WSe2": [3.28],
    "2h-Te2Mo": [3.55],
    "2h-NbSe2": [3.47],
    "2h-TaS2": [3.34],
    "2h-HfS2": [3.54],
    "1t-TiS2": [3.41],
    "1t-SnSe2": [3.81],
    "1t-PtSe2": [3.75],
    "1t-PtO2": [3.14],
    "1t-HfSe2": [3.77],
    "1t-MgCl2": [3.64],
    "1t-NiCl2": [3.49],
    "1t-CdI2": [4.24],
    "1t_prime-Te2Mo": [3.45, 6.36],
    "gase-GaSe": [3.82],
    "gase-GaS": [3.64],
    "gase-InSe": [4.09],
    "gese-GeS": [3.66, 4.47],
    "gese-SnSe": [4.29, 4.39],
    "gese-SnS": [4.07, 4.24],
    "cri3-CrI3": [6.87],
    "cri3-CrBr3": [6.30],
    "cri3-CrCl3": [5.96],
    "cri3-BiI3": [7.52],
    "bi2te3-Bi2Te3": [4.38],
    "bi2te3-Bi2Se3": [4.14],
    "bi2te3-Sb2Te3": [4.26],
    "mosi2n4-Si2MoN4": [2.91],
    "mosi2n4-Si2WN4": [2.91],
    "mnbi2te4-Mn(BiTe2)2": [4.33],
    "m2ct2-Ti2CO2": [3.03],
    "m2ct2-Zr2CO2": [3.31],
    "m2ct2-V2CO2": [2.90],
    "m2ct2-Nb2CO2": [3.13],
    "hydroxide-Ca(HO)2": [3.59],
    "hydroxide-Mg(HO)2": [3.14],
    "hydroxide-Ni(HO)2": [3.13],
    "feocl-FeClO": [3.78, 3.30],
    "feocl-TiClO": [3.78, 3.38],
    "feocl-CrSBr": [4.76, 3.50],
    "biocl-LaClO": [4.12],
    "biocl-BiBrO": [3.92],
    "biocl-BiIO": [3.99],
    "zrncl-HfNCl": [3.58],
    "mnps3-MnPS3": [6.08],
    "mnps3-FePS3": [5.95],
    "mnps3-NiPS3": [5.81],
    "mnps3-CdPS3": [6.22],
    "crgete3-CrSiTe3": [6.76],
    "ges2-ZnCl2": [3.70],
    "janus_1t-BiTeI": [4.38],
    "tis3-ZrS3": [5.12, 3.62],
    "pentagonal-PdS2": [5.46, 5.56],
}


def materials_of(count):
    return list(retrieve({"count": count}, Path("unused"), Path("unused")))


@pytest.fixture(scope="module")
def materials():
    return materials_of(COUNT)


@pytest.fixture(scope="module")
def crystals(materials):
    """Structures by identifier."""
    return {m.material_id: Structure.from_dict(json.loads(m.content)) for m in materials}


@pytest.fixture(scope="module")
def stacks(crystals):
    return {name: s for name, s in crystals.items() if name.startswith("stack")}


def structure_of(layer):
    return Structure.from_dict(json.loads(layers._retrieved(layer).content))


def kind_of(name):
    return name.split("-")[0]


def distances(structure, first, second, cutoff):
    """Return the sorted distances in angstrom from the first atom of an element to others."""
    i = structure.indices_from_symbol(first)[0]
    neighbours = structure.get_neighbors(structure[i], cutoff)
    return np.sort([n.nn_distance for n in neighbours if n.specie.symbol == second])


def test_every_prototype_and_kind_of_stack_comes_before_any_comes_twice(materials):
    kinds = [kind_of(m.material_id) for m in materials]
    singles = [kind for kind in kinds if not kind.startswith("stack")]
    assert set(singles[: len(SPACE_GROUPS)]) == set(SPACE_GROUPS)
    assert kinds[len(SPACE_GROUPS) : len(SPACE_GROUPS) + 8] == ["stack_aa", "stack_ab"] * 4


@pytest.mark.parametrize("count", [1, 130])
def test_larger_count_only_adds(materials, count):
    assert materials_of(count) == materials[:count]


def test_same_bytes_in_another_process(materials):
    program = (
        "import hashlib; from pathlib import Path;"
        "from diffractory.structures.sources.layers import retrieve;"
        "found = list(retrieve({'count': 130}, Path(), Path()));"
        "print(hashlib.sha256(repr(found).encode()).hexdigest())"
    )
    digest = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert digest == hashlib.sha256(repr(materials[:130]).encode()).hexdigest()


def test_identifiers_are_unique_and_name_what_is_there(materials, crystals):
    assert len(crystals) == COUNT
    for material in materials:
        assert (material.source, material.format) == ("layers", "json")
        kind, *parts = material.material_id.split("-")
        structure = crystals[material.material_id]
        if kind.startswith("stack"):
            lower, lower_formula, upper, upper_formula = parts
            assert {lower, upper} <= set(SPACE_GROUPS)
            both = Composition(lower_formula).elements + Composition(upper_formula).elements
            assert set(both) == set(structure.elements)
        else:
            assert parts == [structure.composition.reduced_formula]


def test_fewer_than_asked_for_are_named(monkeypatch, caplog):
    few = [p for p in layers.PROTOTYPES if p.name in ("silicene", "gese")]
    monkeypatch.setattr(layers, "PROTOTYPES", few)
    monkeypatch.setattr(layers, "REGISTRIES", {})
    with caplog.at_level(logging.WARNING):
        found = materials_of(50)
    assert len(found) == 21
    assert "21 of 50" in caplog.text


def test_symmetry_is_that_of_the_prototype(crystals):
    for name, structure in crystals.items():
        if not name.startswith("stack"):
            cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
            found = spglib.get_symmetry_dataset(cell, symprec=0.001).number
            assert found == SPACE_GROUPS[kind_of(name)], name


def test_layers_are_in_the_middle_of_15_angstrom_of_vacuum(crystals):
    for name, structure in crystals.items():
        a, b, c = structure.lattice.matrix
        assert a[0] > 0, name
        assert b[1] > 0, name
        assert np.abs([a[1], a[2], b[2], c[0], c[1]]).max() < 1e-7, name
        heights = structure.cart_coords[:, 2]
        assert c[2] - np.ptp(heights) == pytest.approx(15.0, abs=1e-6)
        assert heights.min() + heights.max() == pytest.approx(c[2], abs=1e-6)


def test_no_atoms_too_close(crystals):
    # Of these prototypes some oxides and nitrides would be.
    rest = [p for p in layers.PROTOTYPES if p.name in ("fese", "1t_prime")]
    made = {layer.name: structure_of(layer) for p in rest for layer in layers._layers(p)}
    assert len(made) > 250
    for name, structure in {**made, **crystals}.items():
        i, j, _, distance = structure.get_neighbor_list(4.0)
        radius = np.array([float(site.specie.atomic_radius) for site in structure])
        assert (distance / (radius[i] + radius[j])).min() > 0.7, name
        assert distance.min() > 0.9, name


def test_elements_of_a_prototype_stay_distinct(materials, crystals):
    first = {kind_of(m.material_id): crystals[m.material_id] for m in reversed(materials)}
    for name, structure in crystals.items():
        if not name.startswith("stack"):
            assert len(structure.elements) == len(first[kind_of(name)].elements), name


def test_cleaning_takes_them_for_two_dimensional(materials):
    sample = materials[:120] + materials[120::8]
    outcomes = [label_structure(CLEANING, m.format, m.content) for m in sample]
    assert all(isinstance(outcome, Labelled) for outcome in outcomes)
    dimensions = np.array([outcome.row["dimensionality"] for outcome in outcomes])
    assert (dimensions == 2).mean() > 0.98


def test_salts_are_neutral(crystals):
    salts = [s for name, s in crystals.items() if kind_of(name) in SALTS]
    assert len(salts) > 250
    for salt in salts:
        anions = {"H": [1], "N": [-3], "P": [-3, 3, 5], "As": [-3, 3, 5], "Sb": [-3, 3, 5]}
        states = [
            anions.get(e.symbol) or sorted({*e.icsd_oxidation_states, *e.oxidation_states})
            for e in salt.composition
        ]
        amounts = salt.composition.values()
        sums = (sum(q * n for q, n in zip(qs, amounts, strict=True)) for qs in product(*states))
        assert any(total == 0 for total in sums), salt.formula


def test_graphene(crystals):
    structure = crystals["graphene-C"]
    bond = 2.46 / np.sqrt(3)
    assert distances(structure, "C", "C", 2.6) == pytest.approx([bond] * 3 + [2.46] * 6, abs=1e-6)


def test_coordination_of_2h_and_1t(crystals):
    prism, octahedron = crystals["2h-MoS2"], crystals["1t-ZrS2"]
    for structure, metal in ((prism, "Mo"), (octahedron, "Zr")):
        bonds = distances(structure, metal, "S", 3.0)
        assert len(bonds) == 6
        assert np.ptp(bonds) < 1e-6
    # The two anions of a prism are one above the other; across an octahedron they are opposite.
    sulfur = [prism.cart_coords[i] for i in prism.indices_from_symbol("S")]
    assert sulfur[0][:2] == pytest.approx(sulfur[1][:2], abs=1e-6)
    zr = octahedron.cart_coords[octahedron.indices_from_symbol("Zr")[0]]
    sites = [n.coords - zr for n in octahedron.get_neighbors(octahedron[0], 3.0)]
    assert sum(sites) == pytest.approx(np.zeros(3), abs=1e-6)


def test_bonds_follow_the_sum_of_the_radii(crystals):
    # Crystal radii after Shannon: Mo4+ 0.79, W4+ 0.80, S2- 1.70 angstrom.
    molybdenum = distances(crystals["2h-MoS2"], "Mo", "S", 3.0)[0]
    tungsten = distances(crystals["2h-WS2"], "W", "S", 3.0)[0]
    assert tungsten / molybdenum == pytest.approx((0.80 + 1.70) / (0.79 + 1.70), abs=1e-4)
    # Covalent radii after Cordero: Ti 1.60, C 0.76, O 0.66, F 0.57 angstrom. Two kinds of bonds.
    oxide, fluoride = crystals["m2ct2-Ti2CO2"], crystals["m2ct2-Ti2CF2"]
    carbon = [distances(s, "Ti", "C", 2.4)[0] for s in (oxide, fluoride)]
    ends = distances(oxide, "Ti", "O", 2.4)[0], distances(fluoride, "Ti", "F", 2.4)[0]
    assert carbon[0] == pytest.approx(carbon[1], abs=1e-3)
    assert ends[1] / ends[0] == pytest.approx((1.60 + 0.57) / (1.60 + 0.66), abs=1e-3)


def test_lattice_constants_are_near_known_ones(materials, crystals):
    found = {**known_of_later_turns(set(KNOWN) - set(crystals)), **crystals}
    errors = {
        name: np.array(found[name].lattice.abc[: len(known)]) / known - 1
        for name, known in KNOWN.items()
    }
    # The first of each prototype is known itself; what radii predict are all others.
    given = {m.material_id for m in materials[: len(SPACE_GROUPS)]} & set(errors)
    assert max(abs(errors[name]).max() for name in given) < 0.01
    predicted = np.abs(np.concatenate([errors[name] for name in set(KNOWN) - given]))
    assert len(predicted) > 50
    assert predicted.max() < 0.11, errors
    assert predicted.mean() < 0.03


def known_of_later_turns(names):
    """Return crystals of which a longer run has more, by identifier."""
    found = {}
    for prototype in layers.PROTOTYPES:
        wanted = {name for name in names if kind_of(name) == prototype.name}
        members = layers._layers(prototype)
        while wanted:
            layer = next(members)
            if layer.name in wanted:
                wanted.remove(layer.name)
                found[layer.name] = structure_of(layer)
    return found


def test_stacks_touch_with_van_der_waals_radii(stacks):
    assert len(stacks) > 100
    for name, structure in stacks.items():
        gap = nearest_between_layers(structure, name)
        assert gap == pytest.approx(0.0, abs=1e-5), name


def nearest_between_layers(structure, name):
    """Return the least excess (angstrom) of distances between layers over van der Waals radii."""
    _, _, formula, _, _ = name.split("-")
    n = next(
        k
        for k in range(1, len(structure))
        if Composition("".join(s.specie.symbol for s in structure[:k])).reduced_formula == formula
        and structure.cart_coords[:k, 2].max() < structure.cart_coords[k:, 2].min()
    )
    i, j, _, distance = structure.get_neighbor_list(6.0)
    radius = np.array([site.specie.van_der_waals_radius for site in structure])
    across = (i < n) & (j >= n)
    return (distance - radius[i] - radius[j])[across].min()


def test_stacks_have_the_mean_cell_of_layers_that_match(stacks, crystals):
    checked = 0
    for name, structure in stacks.items():
        _, *parts = name.split("-")
        lower, upper = ("-".join(parts[:2]), "-".join(parts[2:]))
        if lower in crystals and upper in crystals:
            a, b = crystals[lower].lattice.a, crystals[upper].lattice.a
            assert max(a, b) / min(a, b) < 1.03
            assert structure.lattice.a == pytest.approx((a + b) / 2, abs=1e-6)
            checked += 1
    assert checked > 60


def test_registries(stacks):
    places = {}
    for registry in ("aa", "ab"):
        structure = stacks[f"stack_{registry}-2h-MoS2-2h-WS2"]
        order = np.argsort(structure.cart_coords[:, 2])
        metals = [structure[int(i)] for i in order if structure[int(i)].specie.symbol != "S"]
        sulfur = [structure[int(i)] for i in order if structure[int(i)].specie.symbol == "S"]
        shift = [b.frac_coords[:2] - a.frac_coords[:2]
                 for a, b in ((metals[0], metals[1]), (sulfur[0], metals[1]),
                              (metals[0], sulfur[2]))]  # fmt: skip
        places[registry] = [bool(np.abs(s - s.round()).max() < 1e-6) for s in shift]
    # 2H: each metal lies above or below sulfur. 3R: W above S, and S of WS2 above neither Mo nor S.
    assert places == {"aa": [False, True, True], "ab": [False, True, False]}


def test_elements_of_mxenes_and_elemental_layers(crystals):
    for name, structure in crystals.items():
        symbols = {e.symbol for e in structure.elements}
        if kind_of(name) in ("m2c", "m3c2", "m4c3"):
            assert len(symbols & {"C", "N"}) == 1
            assert all(Element(s).group <= 7 for s in symbols - {"C", "N"})
        if kind_of(name) == "arsenene":
            assert Element(*symbols).group == 15
