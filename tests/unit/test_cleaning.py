import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from diffractory.store import InputError
from diffractory.structures import cleaning
from diffractory.structures.cleaning import Labelled, clean_structures, label_structure
from diffractory.structures.reading import Rejected, read_cell

SETTINGS = {
    "symprec": 0.01,
    "max_sites": 20,
    "min_volume": 5.0,
    "max_volume": 1000.0,
    "min_distance": 0.7,
    "duplicates": {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0},
}

COLUMNS = (
    "material_id source formula n_sites a b c alpha beta gamma volume space_group crystal_system "
    "point_group prototype dimensionality structure duplicate_group laue_rotations symprec"
).split()


def cif(sites, formula="", a="4.2", columns="", cell=True):
    """A P1 CIF with a cubic cell; each site is a row: symbol, label, x, y, z, further columns."""
    rows = "\n".join(f" {row}" for row in sites)
    angles = "".join(f"_cell_angle_{name} 90\n" for name in ("alpha", "beta", "gamma"))
    lengths = "".join(f"_cell_length_{name} {a}\n" for name in "abc")
    return f"""data_test
{lengths + angles if cell else ""}{formula}
loop_
 _symmetry_equiv_pos_as_xyz
 'x, y, z'
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
{columns}{rows}
"""


CSCL = ["Cs Cs1 0 0 0", "Cl Cl1 0.5 0.5 0.5"]
SUM = "_chemical_formula_sum 'Cs1 Cl1'\n"
OCCUPANCY = " _atom_site_occupancy\n"
GOOD = cif(CSCL, SUM)
CARBON = cif([f"C C{i} {i / 8} 0.1 {i % 2 / 2}" for i in range(8)], "_chemical_formula_sum C8\n")

BAD = {
    "empty": ("unparsable", b""),
    "blank": ("unparsable", b" \n"),
    "not UTF-8": ("unparsable", GOOD.encode("utf-16")),
    "no CIF": ("unparsable", b"not a crystal at all"),
    "no cell": ("unparsable", cif(CSCL, cell=False)),
    "cut within a row": ("unparsable", GOOD[: GOOD.index("0.5 0.5 0.5") + 3]),
    "cut within the header": ("unparsable", GOOD[: GOOD.index("_cell_angle")]),
    "cut after an atom": ("unparsable", GOOD[: GOOD.index(" Cl Cl1")]),
    "cut after an atom of one element": ("unparsable", CARBON[: CARBON.index(" C C5")]),
    "fewer atoms than Z says": ("unparsable", cif(CSCL, SUM + "_cell_formula_units_Z 4\n")[:-21]),
    "unknown coordinate": ("unparsable", cif(["C C1 ? 0 0"])),
    "two structures": ("unparsable", GOOD + GOOD.replace("data_test", "data_other")),
    "NaN coordinate": ("not_finite", cif(["C C1 nan 0 0"])),
    "infinite coordinate": ("not_finite", cif(["C C1 -inf 0 0"])),
    "NaN lattice": ("not_finite", cif(CSCL, a="NaN")),
    "partial occupancy": ("disordered", cif(["Cs Cs1 0 0 0 0.5"], columns=OCCUPANCY)),
    "mixed site": (
        "disordered",
        cif(["Cs Cs1 0 0 0 0.5", "Rb Rb1 0 0 0 0.5"], columns=OCCUPANCY),
    ),
    "occupancy above one": (
        "disordered",
        cif(["Cs Cs1 0 0 0 0.7", "Rb Rb1 0 0 0 0.6"], columns=OCCUPANCY),
    ),
    "beyond lawrencium": ("unsupported_element", cif(["Rf Rf1 0 0 0"])),
    "dummy": ("unsupported_element", cif(["X X1 0 0 0"])),
    "no element, but boron's letter": ("unsupported_element", cif(["Bx Bx1 0 0 0"])),
    "too many sites": (
        "too_many_sites",
        cif([f"C C{i} {i % 3 / 3} {i // 3 % 3 / 3} {i // 9 / 3}" for i in range(27)], a="9"),
    ),
    "small cell": ("volume_out_of_range", cif(["C C1 0 0 0"], a="1.7")),
    "large cell": ("volume_out_of_range", cif(["C C1 0 0 0"], a="10.1")),
    "close atoms": ("atoms_too_close", cif(["C C1 0 0 0", "C C2 0.9 0 0"])),
    "one site, one element": ("atoms_too_close", cif(["C C1 0 0 0", "C C2 0 0 0"])),
    "one site, two elements": ("atoms_too_close", cif(["Na Na1 0 0 0", "Cl Cl1 0 0 0"])),
    "close to its own image": (
        "atoms_too_close",
        cif(["C C1 0 0 0"], a="4.2").replace("_cell_length_a 4.2", "_cell_length_a 0.6"),
    ),
}


def label(content, file_format="cif", **settings):
    content = content.encode() if isinstance(content, str) else content
    return label_structure({**SETTINGS, **settings}, file_format, content)


def accepted(content, file_format="cif"):
    outcome = label(content, file_format)
    assert isinstance(outcome, Labelled), outcome
    return outcome.row


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    reason, content = BAD[name]
    outcome = label(content)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    assert outcome.detail
    assert "\n" not in outcome.detail


def test_symmetry_not_found_is_named():
    # The atoms are closer than the tolerance: spglib gives up.
    outcome = label(cif(["C C1 0 0 0", "C C2 0.1 0 0"]), symprec=1.0, min_distance=0.1)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "symmetry_not_found"


def test_hung_parser_is_given_up(monkeypatch):
    def hang(content, file_format):
        while True:
            try:
                time.sleep(1)
            except Rejected:  # as libraries do that catch every exception
                monkeypatch.setattr(cleaning, "read_cell", read_cell)
                time.sleep(2)

    monkeypatch.setattr(cleaning, "TIME_LIMIT", 0.05)
    monkeypatch.setattr(cleaning, "read_cell", hang)
    outcome = label(GOOD)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "unparsable"
    assert "not done after" in outcome.detail
    time.sleep(1.1)  # the timer has stopped, or it would ring now


def test_good_cif():
    row = accepted(GOOD)
    assert (row["formula"], row["space_group"], row["n_sites"]) == ("CsCl", 221, 2)
    assert row["volume"] == pytest.approx(4.2**3)


@pytest.mark.parametrize(
    "text",
    [
        cif(CSCL),
        cif(CSCL, SUM + "_cell_formula_units_Z 1\n"),
        cif(CSCL, "_chemical_formula_sum 'not known'\n"),
        cif(CSCL, "_chemical_formula_sum ?\n"),
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        "data_global\n_journal_year 2026\n" + GOOD,
        GOOD.replace("4.2", "4.2(3)"),
        cif(["Cs+ Cs1 0 0 0", "CL1- Cl1 0.5 0.5 0.5"], SUM),
        cif(["Cs Cs1 0 0 0 1.0", "Cl Cl1 0.5 0.5 0.5 1.000(2)"], SUM, columns=OCCUPANCY),
    ],
    ids=range(10),
)
def test_cif_dialects(text):
    assert accepted(text)["formula"] == "CsCl"


def test_standard_formula_unit_is_no_truncation():
    text = cif([f"C C{i} {i / 2} 0 0" for i in range(2)], "_chemical_formula_sum C\n")
    assert accepted(text)["formula"] == "C"
    symmetric = Structure.from_spacegroup(
        225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).to(fmt="cif", symprec=0.01)
    assert accepted(symmetric)["space_group"] == 225


def test_deuterium_counts_as_hydrogen():
    row = accepted(cif(["D D1 0 0 0", "Li Li1 0.5 0.5 0.5"], "_chemical_formula_sum 'D1 Li1'\n"))
    assert row["formula"] == "LiH"
    assert "D" not in {s["species"][0]["element"] for s in json.loads(row["structure"])["sites"]}


QUARTZ = Structure.from_spacegroup(
    152, Lattice.hexagonal(4.916, 5.405), ["Si", "O"],
    [[0.4697, 0, 1 / 3], [0.4135, 0.2669, 0.1191 + 1 / 3]],
)  # fmt: skip
MIRRORED = Structure(QUARTZ.lattice, QUARTZ.species, -QUARTZ.frac_coords)
NACL = Structure.from_spacegroup(
    225, Lattice.cubic(5.64), ["Na+", "Cl-"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
RUTILE = Structure.from_spacegroup(
    136, Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.3053, 0.3053, 0]]
)


@pytest.mark.parametrize("file_format", ["cif", "poscar", "json", "xsf", "extxyz"])
@pytest.mark.parametrize(
    ("structure", "number", "parameters"),
    [
        (NACL, 225, (5.64, 5.64, 5.64, 90, 90, 90)),
        (RUTILE, 136, (4.594, 4.594, 2.959, 90, 90, 90)),
        (QUARTZ, 152, (4.916, 4.916, 5.405, 90, 90, 120)),
        (MIRRORED, 154, (4.916, 4.916, 5.405, 90, 90, 120)),
    ],
    ids=["NaCl", "rutile", "quartz", "left quartz"],
)
def test_known_crystals_in_every_format(structure, number, parameters, file_format, tmp_path):
    given = structure.get_primitive_structure()
    if file_format == "json":
        content = given.to_json()
    elif file_format in ("xsf", "extxyz"):
        given.remove_oxidation_states()
        path = tmp_path / f"x.{file_format}"
        given.to_ase_atoms().write(path)
        content = path.read_text()
    else:
        content = given.to(fmt=file_format)
    row = accepted(content, file_format)
    assert row["space_group"] == number
    found = [row[name] for name in ("a", "b", "c", "alpha", "beta", "gamma")]
    assert found == pytest.approx(parameters, abs=1e-4)
    assert row["n_sites"] == len(structure)


def test_structure_is_readable_with_and_without_pymatgen():
    row = accepted(NACL.get_primitive_structure().to_json(), "json")
    plain = json.loads(row["structure"])
    assert np.shape(plain["lattice"]["matrix"]) == (3, 3)
    assert {site["species"][0]["element"] for site in plain["sites"]} == {"Na", "Cl"}
    assert all(np.shape(site["abc"]) == (3,) for site in plain["sites"])
    structure = Structure.from_dict(plain)
    assert structure.get_space_group_info()[1] == 225
    assert structure.volume == pytest.approx(row["volume"])


def test_left_handed_basis_keeps_the_crystal():
    # Reading the same atoms in a left-handed basis must not turn quartz into its mirror image.
    swap = [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    lattice = Lattice(swap @ QUARTZ.lattice.matrix)
    left = Structure(lattice, QUARTZ.species, QUARTZ.frac_coords[:, [1, 0, 2]])
    assert np.linalg.det(left.lattice.matrix) < 0
    cell = read_cell(left.to_json().encode(), "json")
    assert np.linalg.det(cell.lattice) > 0
    assert accepted(left.to_json(), "json")["space_group"] == 152


@pytest.mark.parametrize(
    ("file_format", "content", "reason"),
    [
        ("poscar", "x\n1.0\n3 0 0\n0 3 0\n0 0 3\n1 1\ndirect\n0 0 0\n.5 .5 .5\n", "unparsable"),
        ("poscar", "x\n1.0\n3 0 0\n0 3 0\n0 0 3\nC\n2\ndirect\n0 0 0\nnan 0 0\n", "not_finite"),
        ("poscar", "x\n1.0\n3 0 0\n0 3 0\n0 0 3\nC\n2\ndirect\n0 0 0\n", "unparsable"),
        ("poscar", "x\n1.0\n3 0 0\n0 3 0\n0 0 3\nQq\n1\ndirect\n0 0 0\n", "unsupported_element"),
        ("json", "{}", "unparsable"),
        ("json", "{", "unparsable"),
        ("json", NACL.to_json().replace("5.64", "NaN"), "not_finite"),
        ("xyz", "1\nno cell\nC 0 0 0\n", "unparsable"),
        ("extxyz", '1\nLattice="3 0 0 0 3 0 0 0 3"\nX 0 0 0\n', "unsupported_element"),
        ("extxyz", 2 * '1\nLattice="3 0 0 0 3 0 0 0 3"\nC 0 0 0\n', "unparsable"),
        ("no_such_format", "C 0 0 0", "unparsable"),
    ],
)
def test_bad_input_of_other_formats_is_named(file_format, content, reason):
    outcome = label(content, file_format)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason


def write_retrieved(path, contents):
    table = pd.DataFrame(
        {
            "material_id": list(contents),
            "source": "test",
            "format": "cif",
            "content": [c.encode() if isinstance(c, str) else c for c in contents.values()],
        }
    )
    table.to_parquet(path, index=False)
    return table


def clean(folder, retrieved, processes=1, limit=1.0):
    folder.mkdir(exist_ok=True)
    out = [folder / name for name in ("cleaned.parquet", "rejected.parquet", "run.json")]
    clean_structures(retrieved, *out, SETTINGS, limit, 7, processes)
    return out


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Good and bad structures in turn, one of them twice, cleaned by one and by two processes."""
    folder = tmp_path_factory.mktemp("mixed")
    contents = {}
    for index, (name, (_, content)) in enumerate(BAD.items()):
        contents[f"z{name}"] = content
        contents[f"{99 - index} good"] = cif(CSCL, SUM, a=f"{4 + index % 4 / 10}")
    table = write_retrieved(folder / "retrieved.parquet", contents)
    twice = pd.concat([table, table.iloc[[1, 0]]])
    twice.to_parquet(folder / "retrieved.parquet", index=False)
    outputs = [clean(folder / str(n), folder / "retrieved.parquet", processes=n) for n in (1, 2)]
    return twice, outputs


def test_accepted_and_rejected_are_the_retrieved(mixed):
    table, ((structures, rejected, run), _) = mixed
    good, bad = pd.read_parquet(structures), pd.read_parquet(rejected)
    assert len(good) + len(bad) == len(table)
    assert list(good["material_id"]) == [i for i in table["material_id"][:-2] if "good" in i]
    assert list(bad["material_id"][:-2]) == [f"z{name}" for name in BAD]
    assert list(bad["reason"][:-2]) == [reason for reason, _ in BAD.values()]
    assert list(bad["reason"][-2:]) == ["duplicate_id"] * 2
    facts = json.loads(run.read_text())["facts"]
    assert facts["retrieved"] == len(table)
    assert facts["accepted"] == len(good)
    assert sum(facts["rejected"].values()) == len(bad)
    assert facts["rejected"]["duplicate_id"] == 2
    assert facts["duplicate_groups"] == 1


def test_columns(mixed):
    good = pd.read_parquet(mixed[1][0][0])
    assert list(good.columns) == COLUMNS
    assert set(good["duplicate_group"]) == {min(good["material_id"])}
    assert set(good["symprec"]) == {0.01}
    first = good["laue_rotations"][0]
    assert first.dtype == np.int8
    assert len(first) == 48 * 9
    np.testing.assert_allclose(good["a"], good["c"])


def test_bytes_do_not_depend_on_the_number_of_processes(mixed):
    one, two = mixed[1]
    for first, second in zip(one[:2], two[:2], strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_nothing_rejected(tmp_path):
    table = write_retrieved(tmp_path / "r.parquet", {"b": GOOD, "a": RUTILE.to(fmt="cif")})
    structures, rejected, _ = clean(tmp_path / "out", tmp_path / "r.parquet", 1, 0.0)
    assert list(pd.read_parquet(structures)["material_id"]) == list(table["material_id"])
    assert list(pd.read_parquet(rejected).columns) == ["material_id", "reason", "detail"]
    assert len(pd.read_parquet(rejected)) == 0


@pytest.mark.parametrize(
    ("contents", "limit", "message"),
    [
        ({"a": GOOD, "b": b"", "c": b""}, 0.5, r"2 of the 3 .* unparsable 2 times \(such as b\)"),
        ({"a": b"", "b": BAD["dummy"][1]}, 1.0, r"none is left"),
        ({}, 1.0, r"none is left"),
    ],
)
def test_too_little_left_stops_in_one_sentence(tmp_path, contents, limit, message):
    write_retrieved(tmp_path / "r.parquet", contents)
    with pytest.raises(InputError, match=message) as error:
        clean(tmp_path / "out", tmp_path / "r.parquet", limit=limit)
    assert str(error.value).count("\n") == 0
    assert not list(Path(tmp_path / "out").iterdir())
