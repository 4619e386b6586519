"""The command evaluate-structures, on folders and tables."""

import re

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from test_cli import run
from test_crystal_metrics import ODD
from test_fingerprints import PEROVSKITE
from test_structure_matching import NACL, SALT, moved

CELLS = {"a": SALT, "b": PEROVSKITE, "c": NACL}


def write(folder, cells, suffix="cif"):
    folder.mkdir()
    for name, (lattice, positions, numbers) in cells.items():
        structure = Structure(Lattice(lattice), numbers, positions)
        structure.to(
            filename=str(folder / f"{name}.{suffix}"), fmt=suffix.replace("vasp", "poscar")
        )
    return folder


@pytest.fixture
def folders(tmp_path):
    made = {"a": moved(SALT, 0.01), "b": moved(PEROVSKITE, 0.01), "c": SALT}
    return write(tmp_path / "generated", made), write(tmp_path / "reference", CELLS)


def table(out):
    """Value and n of each measure."""
    lines = [re.split(r" {2,}", line) for line in out.splitlines()]
    return {line[0]: (line[1], line[3]) for line in lines if len(line) > 3}


def test_table_of_two_folders(folders, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "evaluate-structures", *folders, "--processes", 2)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{folders[0]}: 3 of 3 structures read"
    found = table(out)
    assert found["valid structure, %"] == ("100", "3")
    assert found["COV-R, %"][1] == "3"
    assert found["unique, %"] == ("66.67", "3")
    assert found["novel, %"] == ("0", "3")
    assert set(found) >= {"COV-P, %", "W(density), g/cm3", "W(number of elements)", "valid, %"}


def test_pairs_of_the_same_name(folders, tmp_path, monkeypatch, capsys):
    (folders[0] / "c.cif").rename(folders[0] / "other.cif")
    options = "--paired", "--processes", 2
    code, out, _ = run(monkeypatch, capsys, "evaluate-structures", *folders, *options)
    assert code == 0
    assert "2 pairs of the same name" in out
    found = table(out)
    assert found["match rate, %"] == ("100", "2")
    assert found["same space group, %"][1] == "2"
    only = write(tmp_path / "only", {"z": SALT}, "vasp")
    code, _, complaint = run(monkeypatch, capsys, "evaluate-structures", only, folders[1], *options)
    assert code == 2
    assert "the same name" in complaint


def test_broken_files_are_named_and_counted(folders, monkeypatch, capsys):
    (folders[0] / "broken.cif").write_text("data_x\n_cell_length_a nan\n")
    (folders[0] / "empty.cif").write_text("")
    code, out, err = run(monkeypatch, capsys, "evaluate-structures", *folders, "--processes", 1)
    assert code == 0
    assert "3 of 5 structures read" in out
    assert "broken is left out" in err
    assert "empty is left out: unparsable: the file is empty" in err


def test_tables_of_the_workflow(tmp_path, monkeypatch, capsys):
    def parquet(name, cells, **columns):
        rows = [[one.lattice.ravel(), one.positions.ravel(), one.numbers] for one in cells]
        frame = pd.DataFrame(rows, columns=["lattice", "positions", "numbers"]).assign(**columns)
        frame.to_parquet(tmp_path / name)
        return tmp_path / name

    made = parquet(
        "generated.parquet",
        [moved(SALT, 0.01), moved(PEROVSKITE, 0.01), ODD["nan"], SALT],
        task=["reconstruction", "generation", "generation", "reconstruction"],
        sampler=["", "", "", "eq_6"],
        item=[0, 0, 1, 0],
        material_id=["a", "", "", "a"],
    )
    true = parquet("crystals.parquet", CELLS.values(), material_id=[*CELLS])
    code, out, _ = run(monkeypatch, capsys, "evaluate-structures", made, true, "--processes", 1)
    assert code == 0
    assert table(out)["valid structure, %"] == ("50", "2")
    assert table(out)["novel, %"] == ("0", "2")
    arguments = "evaluate-structures", made, true, "--paired", "--processes", 1
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0
    assert table(out)["match rate, %"] == ("100", "1")
    bare = parquet("bare.parquet", [])
    code, _, complaint = run(monkeypatch, capsys, "evaluate-structures", bare, true)
    assert (code, "no structure that can be read" in complaint) == (2, True)


def test_names_that_repeat_are_refused(tmp_path, monkeypatch, capsys):
    text = Structure(Lattice(SALT.lattice), SALT.numbers, SALT.positions).to(fmt="cif")
    frame = pd.DataFrame({"material_id": ["x", "x"], "cif": [text, text]})
    frame.to_csv(tmp_path / "twice.csv", index=False)
    arguments = "evaluate-structures", tmp_path / "twice.csv", tmp_path
    code, _, complaint = run(monkeypatch, capsys, *arguments, "--processes", 1)
    assert code == 2
    assert "two structures are named x" in complaint


def test_nothing_to_read_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1")
    lacking = tmp_path / "lacking.parquet"
    pd.DataFrame({"lattice": [np.eye(3).ravel()]}).to_parquet(lacking)
    for path, words in (
        (tmp_path / "missing", "neither a folder nor"),
        (tmp_path / "empty", "is empty"),
        (broken, "not a readable Parquet file"),
        (lacking, "no column 'positions'"),
    ):
        code, _, complaint = run(monkeypatch, capsys, "evaluate-structures", path, tmp_path)
        assert code == 2
        assert str(path) in complaint
        assert words in complaint
