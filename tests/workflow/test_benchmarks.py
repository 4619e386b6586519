"""Every benchmark runs to its line of JSON."""

import importlib.util
import json

import pytest
from pages import PAGES, commands, run
from projects import ROOT

OPTIONS = {"generation": ["--processes", "1"], "structures": ["--processes", "2"]}
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


def test_every_benchmark_is_documented_and_those_that_are_exist():
    documented = {command for page in PAGES for command in commands(page)}
    named = {command for command in documented if command.startswith("python benchmarks/")}
    assert named == {f"python benchmarks/{name}.py" for name in BENCHMARKS}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark(tmp_path, name):
    """One thread each: two that wait for each other on a busy core take a hundred times as long."""
    if name == "kinematic" and not importlib.util.find_spec("diffsims"):
        pytest.skip("diffsims, which it compares with, is not installed")
    command = ["python", str(ROOT / f"benchmarks/{name}.py"), "--quick", *OPTIONS.get(name, [])]
    output = run(tmp_path, *command, OMP_NUM_THREADS="1", DIFFRACTORY_DATA="")
    assert json.loads(output.splitlines()[-1])
