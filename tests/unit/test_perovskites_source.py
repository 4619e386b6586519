"""Perovskites from radii: the grid of Perov-5, near its lattice constants, and sound geometry."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Structure

from diffractory.store import InputError
from diffractory.structures.cleaning import Labelled, label_structure
from diffractory.structures.sources import SOURCES
from diffractory.structures.sources.perovskites import ANIONS, CATIONS, retrieve

CLEANING = {"symprec": 0.01, "max_sites": 20, "min_volume": 5.0, "max_volume": 1000.0,
            "min_distance": 0.7}  # fmt: skip


def made(count, source=retrieve):
    return list(source({"count": count}, Path("unused"), Path("unused")))


@pytest.fixture(scope="module")
def everything():
    return {m.material_id.removeprefix("perovskite_"): m for m in made(18_928)}


@pytest.fixture(scope="module")
def structure(everything):
    return lambda name: Structure.from_dict(json.loads(everything[name].content))


def test_all_of_the_published_grid(everything):
    assert len(everything) == 18_928 == len(CATIONS) ** 2 * len(ANIONS)
    assert {(m.source, m.format) for m in everything.values()} == {("perovskites", "json")}
    with pytest.raises(InputError, match=r"`count` of the perovskites is 18929.* are 18928"):
        made(18_929)


def test_larger_count_only_adds(everything):
    few = made(150, SOURCES["perovskites"])
    assert few == list(everything.values())[:150]
    # an order without system: all kinds are there early
    names = [m.material_id.removeprefix("perovskite_") for m in few]
    assert {name.removeprefix(re.match("(?:[A-NP-Z][a-z]?|Os){2}", name)[0]) for name in names} == {
        *ANIONS
    }


def test_same_bytes_in_another_process():
    program = (
        "import hashlib; from pathlib import Path;"
        "from diffractory.structures.sources.perovskites import retrieve;"
        "found = list(retrieve({'count': 90}, Path(), Path()));"
        "print(hashlib.sha256(repr(found).encode()).hexdigest())"
    )
    digest = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert digest == hashlib.sha256(repr(made(90)).encode()).hexdigest()


def test_strontium_titanate_by_hand(structure):
    """Shannon's crystal radii: Sr2+ 1.32, Ti4+ 0.745, O2- 1.26 angstrom."""
    crystal = structure("SrTiO3")
    length = 1.559 + 0.834 * (0.745 + 1.26) + 0.324 * (1.32 + 1.26)
    assert crystal.lattice.parameters == pytest.approx((length,) * 3 + (90,) * 3)
    assert [site.specie.symbol for site in crystal] == ["Sr", "Ti", "O", "O", "O"]
    assert length == pytest.approx(3.905, rel=0.05)  # experiment
    # Sr sits where its nearest bonds are 2^(1/8) times those of sixfold coordination.
    assert crystal.get_distance(0, 3) == pytest.approx(2**0.125 * (1.32 + 1.26), abs=1e-6)
    assert crystal.get_distance(1, 2) == pytest.approx(0.745 + 1.26, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "group"),
    [("SrTiO2S", 99), ("BaZrO3", 221), ("CaTiO3", 99), ("BaZrO2S", 123), ("CaTaOFN", 25)],
)
def test_symmetry(everything, name, group):
    labelled = label_structure(CLEANING, "json", everything[name].content)
    assert labelled.row["space_group"] == group
    assert labelled.row["n_sites"] == 5


def test_swapped_cations_are_another_crystal(structure):
    one, other = structure("BaTiO3"), structure("TiBaO3")
    assert one.composition == other.composition
    assert other.volume > 1.2 * one.volume


def test_all_are_accepted_and_no_atoms_are_close(everything):
    shortest = []
    for material in list(everything.values())[:300]:
        outcome = label_structure(CLEANING, "json", material.content)
        assert isinstance(outcome, Labelled), (material.material_id, outcome)
        crystal = Structure.from_dict(json.loads(material.content))
        shortest.append(crystal.distance_matrix[np.triu_indices(5, 1)].min())
    assert min(shortest) > 1.55  # B-O is 0.41 + 1.26
    assert max(shortest) < 2.8


@pytest.mark.skipif("DIFFRACTORY_DATA" not in os.environ, reason="DIFFRACTORY_DATA is not set")
def test_lattice_constants_are_near_those_of_perov_5(everything):
    """Site by site: A is at the origin of Perov-5's cells, B in the middle."""
    file = Path(os.environ["DIFFRACTORY_DATA"]) / "perov_5" / "test.csv"
    with file.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    anions = {tuple(sorted(sites.split())): name for name, sites in ANIONS.items()}
    errors = []
    for row in rows:
        symbols = re.findall(r"^ +([A-Z][a-z]?) +\S+ +1 ", row["cif"], re.MULTILINE)
        name = symbols[0] + symbols[1] + anions[tuple(sorted(symbols[2:]))]
        ours = np.diag(json.loads(everything[name].content)["lattice"]["matrix"]).mean()
        published = float(re.search(r"_cell_length_a +(\S+)", row["cif"])[1])
        errors.append(ours / published - 1)
    assert len(errors) == 3785
    assert np.abs(errors).mean() < 0.036
    assert np.mean(errors) == pytest.approx(0, abs=0.005)
