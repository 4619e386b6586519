"""What the commands print, and that bad input ends with a sentence instead of a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffractory.cli import main
from diffractory.store import recorded, write_text

LONG = Path("results", "structures", "a_data_set_with_a_long_name" * 4)


def make(name, inputs, **facts):
    product = LONG / f"{name}.parquet"
    with recorded(
        product.with_suffix(".run.json"), f"make {name}", {}, inputs, [product], 7
    ) as added:
        added |= facts
        write_text(product, name)
    return product


def edit(product, **values):
    record = product.with_suffix(".run.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | values))


@pytest.fixture
def last(tmp_path, monkeypatch):
    """Return the last product of a chain of four in the working directory: a, [b], c and d."""
    monkeypatch.chdir(tmp_path)
    a = make("a", [])
    b = make("[b]", [a], accepted=5, rejected={"disordered": 2, "too_big": 1}, note="x")
    c = make("c", [a, b])
    for product in (a, b, c):
        edit(product, git_commit="0123456789abcdef", git_dirty=False)
    edit(b, git_dirty=True, start="2026-03-04T05:06:59+02:00", seconds=3723.4)
    return make("d", [a, b, c])


def run(monkeypatch, capsys, *arguments):
    """Run a command in this process; return its exit code, output and complaint."""
    monkeypatch.setattr(sys, "argv", ["diffractory", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def test_inspect_prints_the_tree(last, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "inspect", last)
    assert code == 0
    lines = [line.lstrip("│├└─ ").rstrip() for line in out.splitlines()]
    assert lines[0] == str(last)
    assert lines[1].startswith("make d, 20")
    assert lines.count(f"{LONG}/a.parquet: unchanged") == 1
    assert lines.count(f"{LONG}/a.parquet: unchanged, made as above") == 2
    assert lines.count(f"{LONG}/[b].parquet: unchanged, made as above") == 1
    assert "make [b], 2026-03-04 03:06 UTC, took 1:02:03, commit 0123456789+, seed 7" in lines
    assert "accepted 5, rejected 3 (disordered 2, too_big 1)" in lines
    assert sum(line.startswith("Versions: diffractory ") for line in lines) == 1
    assert lines[-1].startswith("A plus sign after the commit")


def test_inspect_tells_what_changed(last, monkeypatch, capsys):
    (LONG / "a.parquet").write_text("other")
    (LONG / "c.parquet").unlink()
    _, out, _ = run(monkeypatch, capsys, "inspect", last)
    assert "a.parquet: changed since\n" in out
    assert "[b].parquet: unchanged\n" in out
    assert "c.parquet: not there any more\n" in out


def test_inspect_tells_what_is_damaged(last, monkeypatch, capsys):
    last.write_text("other")
    _, out, _ = run(monkeypatch, capsys, "inspect", last)
    assert out.count("damaged or changed after it was written: d.parquet\n") == 1
    assert out.count("damaged") == 1


def test_inspect_names_the_stages_with_other_versions(last, monkeypatch, capsys):
    record = json.loads((LONG / "[b].run.json").read_text())
    versions = {k: v for k, v in record["versions"].items() if k != "zarr"}
    edit(LONG / "[b].parquet", versions=versions | {"numpy": "1.0"})
    _, out, _ = run(monkeypatch, capsys, "inspect", last)
    assert "\nmake [b] had numpy 1.0, zarr missing\n" in out
    assert out.count(" had numpy") == 1


def test_bad_input_is_one_sentence(last, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "inspect", "nothing.csv")
    assert (code, out) == (2, "")
    assert err.startswith("Error: nothing.csv does not exist: ")
    (LONG / "c.run.json").write_text("{")
    code, out, err = run(monkeypatch, capsys, "inspect", last)
    assert (code, out) == (2, "")
    assert "c.run.json is not a record of a stage" in err
    assert err.count("\n") == 1
    code, _, err = run(monkeypatch, capsys, "inspect", "x" * 5000)
    assert code == 2
    assert "File name too long" in err


def test_installed_command(last):
    command = Path(sys.executable).with_name("diffractory")
    folder = LONG / "elsewhere"
    folder.mkdir()
    result = subprocess.run(
        [command, "inspect", Path("..") / last.name],
        cwd=folder,
        env=os.environ | {"COLUMNS": "40"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"├── {LONG}/a.parquet: unchanged\n" in result.stdout
    missing = subprocess.run(
        [command, "inspect", "nothing"], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert missing.stderr.startswith("Error: nothing does not exist")
    assert missing.stderr.count("\n") == 1


def test_help_loads_nothing_heavy():
    code = "import sys, diffractory.cli; print(*{m.split('.')[0] for m in sys.modules})"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    heavy = {"torch", "pymatgen", "matplotlib", "pandas", "numpy", "zarr", "snakemake"}
    assert not heavy & set(output.split())
