"""What the doctor finds, on this machine and on a cluster whose commands are small scripts."""

import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from diffractory import doctor
from diffractory.doctor import Finding, examine
from diffractory.store import recorded, write_text

ROOT = Path(__file__).parents[2]
PARTS = ["Snakefile", "config/config.yaml", "workflow/schemas/config.schema.yaml"]
PARTS += ["envs/constraints.txt", "profiles/slurm/config.yaml"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    for variable in ("DIFFRACTORY_DATA", "MP_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    for part in PARTS:
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    return tmp_path


def configure(project, **values):
    """Change keys of the configuration, and return it as the doctor reads it."""
    path = project / "config/config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))
    return doctor.read_config(project)


def by_check(findings):
    return {finding.check: finding for finding in findings}


def test_the_command_in_a_project_folder(project):
    """The whole command, once; the key is never shown."""
    result = subprocess.run(
        [sys.executable, "-c", "from diffractory.cli import main; main()", "doctor"],
        cwd=project,
        env=os.environ | {"MP_API_KEY": "abc123secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "secret" not in result.stdout + result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert all(re.match(r"(ok|warning|problem) +[A-Z\w]", line) for line in lines)
    assert result.returncode == any(line.startswith("problem") for line in lines)
    for found in ("API key: MP_API_KEY is set", "is valid", "GPU: torch", "cores", "0 records"):
        assert found in result.stdout
    assert not list(project.rglob("*diffractory-doctor*"))


def test_a_problem_is_told_by_the_exit_code(project):
    (project / "config/config.yaml").write_text("a: [")
    command = [sys.executable, "-c", "from diffractory.cli import main; main()", "doctor"]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert re.search(r"^problem configuration: .*config\.yaml is not YAML", result.stdout, re.M)


def test_outside_a_project_folder(tmp_path):
    found = by_check(examine(tmp_path))
    assert "no check of packages" in found["project"].found
    assert not {"packages", "configuration", "results"} & set(found)
    assert {"Python", "GPU", "processors", "SLURM", "scratch"} <= set(found)


def test_python_versions_are_those_of_the_package():
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (a, first), (b, last) = doctor.PYTHON
    assert requires == f">={a}.{first},<{b}.{last + 1}"
    assert doctor.python_version((a, first)).status == "ok"
    assert doctor.python_version((b, last)).status == "ok"
    assert doctor.python_version((a, first - 1)).status == "problem"
    assert doctor.python_version((b, last + 1)).status == "problem"


def test_deviating_packages_are_counted(tmp_path):
    constraints = tmp_path / "constraints.txt"
    torch = importlib.metadata.version("torch").split("+")[0]
    constraints.write_text(f"# pins\nnumpy==0.1\nno-such-package==3\ntorch=={torch}\nzarr==0.2\n")
    (finding,) = doctor.package_versions(constraints)
    assert finding.status == "warning"
    numpy, zarr = (importlib.metadata.version(name) for name in ("numpy", "zarr"))
    assert finding.found == (
        "2 of 3 are not of the tested version: "
        f"numpy {numpy} instead of 0.1, zarr {zarr} instead of 0.2"
    )
    constraints.write_text(f"torch=={torch}\n")
    assert [finding.status for finding in doctor.package_versions(constraints)] == ["ok"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("sead: 3", "unknown config key sead"),
        ("- 3", "holds no keys"),
        ("\xff", "is not YAML"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_broken_configuration_is_a_sentence(project, content, sentence):
    (project / "config/config.yaml").write_text(content, encoding="latin-1")
    finding = by_check(examine(project))["configuration"]
    assert finding.status == "problem"
    assert sentence in finding.found
    assert "\n" not in finding.found


def test_a_key_is_needed_for_one_source_only(project, monkeypatch):
    assert doctor.api_key(doctor.read_config(project)).status == "ok"
    config = configure(project, dataset="materials_project")
    assert doctor.api_key(config).status == "problem"
    monkeypatch.setenv("MP_API_KEY", "abc123secret")
    assert doctor.api_key(config) == Finding("ok", "API key", "MP_API_KEY is set")


def test_every_study_has_its_data_set(project):
    config = doctor.read_config(project)
    config["structure_2d"]["dataset"] = "perov_5"
    config["generation"]["datasets"] = ["perovskites", "carbon_24"]
    found = by_check(doctor.data_files(config, project))
    assert found["data set perov_5"].status == found["data set carbon_24"].status == "problem"
    config["structure_2d"]["dataset"] = "materials_project"
    assert doctor.api_key(config).status == "problem"


def test_only_the_configured_data_set_must_be_there(project, monkeypatch):
    config = configure(project, dataset="perov_5")
    data = project / "data"
    (data / "perov_5").mkdir(parents=True)
    (data / "perov_5/val.csv").touch()
    (project / "structures").mkdir()
    found = by_check(doctor.data_files(config, project))
    assert found["data set perov_5"].status == "problem"
    assert "val.csv" in found["data set perov_5"].found
    assert found["data set carbon_24"].status == "ok"
    assert found["data set folder"].found == "structures there"
    assert "data set prototypes" not in found
    monkeypatch.setenv("DIFFRACTORY_DATA", str(data))
    found = by_check(doctor.data_files(config, project))
    missing = data / "perov_5/test.csv"
    assert found["data set perov_5"].found == f"{missing} not there"
    missing.touch()
    assert by_check(doctor.data_files(config, project))["data set perov_5"].status == "ok"
    assert "not there" in by_check(doctor.data_files(config, project))["data set folder"].found


def test_memory_is_compared_with_the_configuration(project):
    config = doctor.read_config(project)
    config["simulate"]["memory"] = 1e6
    finding = doctor.processors(config)
    assert (finding.status, "1e+06 GiB" in finding.found) == ("warning", True)
    assert doctor.processors({}).status == "ok"


@pytest.mark.parametrize("study", ["symmetry", "ued", "structure_2d", "generation"])
def test_a_gpu_is_missed_where_the_configuration_names_one(project, study):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = doctor.read_config(project)
    assert doctor.gpus(config).status == "ok"
    config[study]["hardware"]["device"] = "cuda"
    assert doctor.gpus(config).status == "warning"


def test_calculators_are_started_where_a_run_uses_them(project):
    config = doctor.read_config(project)
    config["ued"]["calculator"] = config["generation"]["ground_state"]["calculator"] = "emt"
    config["structure_2d"] |= {"calculator": "no_such_package:Forces"}
    emt = Finding("ok", "calculator emt", "starts")
    assert list(doctor.calculators(config)) == [emt]
    for section, key, value in (("relax", "relaxed", 1), ("perturb", "method", "dynamics")):
        used = config["structure_2d"] | {section: config["structure_2d"][section] | {key: value}}
        first, second = doctor.calculators(config | {"structure_2d": used})
        assert first == emt
        assert (second.status, second.check) == ("problem", "calculator no_such_package:Forces")
        assert "No module named 'no_such_package'" in second.found
        both = used | {"calculator": "emt"}
        assert list(doctor.calculators(config | {"structure_2d": both})) == [emt]


def test_scratch_is_written_and_left_clean(tmp_path):
    finding = doctor.scratch(tmp_path)
    assert finding.status in {"ok", "warning"}
    assert "GiB free" in finding.found
    assert list(tmp_path.iterdir()) == []
    assert doctor.scratch(tmp_path / "nothing").status == "problem"
    assert not (tmp_path / "nothing").exists()


def test_a_folder_without_rights_is_a_problem(tmp_path):
    tmp_path.chmod(0o500)
    # root may write there all the same, but nobody into /proc
    folder = Path("/proc/self") if os.access(tmp_path, os.W_OK) else tmp_path
    finding = doctor.scratch(folder)
    tmp_path.chmod(0o700)
    assert finding.status == "problem"
    assert finding.found.startswith(f"{folder} cannot be written (")


def test_a_full_folder_is_a_problem(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes
    try:
        finding = doctor.scratch(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert finding.status == "problem"
    assert list(tmp_path.iterdir()) == []


def test_tmpdir_is_the_one_that_is_set(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nothing"))
    assert by_check(examine(tmp_path))["scratch"].found == f"{tmp_path}/nothing is not a folder"


def test_stale_results_are_counted(project, monkeypatch):
    monkeypatch.chdir(project)
    paths = [Path("results", f"{name}.parquet") for name in "abc"]
    for path, inputs in zip(paths, ([], paths[:1], paths[1:2]), strict=True):
        with recorded(path.with_suffix(".run.json"), path.stem, {}, inputs, [path], 7):
            write_text(path, path.stem)
    (finding,) = doctor.recorded_results(project / "results")
    assert (finding.status, finding.found) == ("ok", "3 records, no file has changed since")
    with recorded(paths[0].with_suffix(".run.json"), "a", {}, [], paths[:1], 7):
        write_text(paths[0], "made again")
    (finding,) = doctor.recorded_results(project / "results")
    assert finding.status == "warning"
    assert finding.found.startswith("1 of 3 records")
    assert finding.found.endswith("b.run.json")
    paths[1].unlink()
    assert "1 of 3" in next(doctor.recorded_results(project / "results")).found
    Path("results/c.run.json").write_text("{")
    finding = by_check(examine(project))["results"]
    assert finding.status == "problem"
    assert "c.run.json is not a record of a stage" in finding.found


def test_damaged_products_are_a_problem(project, monkeypatch):
    """Each is named as Snakemake knows it, and what came from it is not called stale."""
    monkeypatch.chdir(project)
    model, table = Path("results/models/net"), Path("results/tables/table_1.csv")
    with recorded(model / "run.json", "train", {}, [], [model], 7):
        write_text(model / "model.safetensors", "weights")
        write_text(model / "last.ckpt", "state")
    with recorded(table.with_suffix(".run.json"), "make", {}, [model / "last.ckpt"], [table], 7):
        write_text(table, "1")
    for path in (model / "model.safetensors", model / "last.ckpt", table):
        path.write_text("other")
    (finding,) = doctor.recorded_results(project / "results")
    assert finding.status == "problem"
    assert finding.found.startswith("2 products are damaged")
    assert finding.advice.endswith(f"snakemake --forcerun {model} {table}")


def test_partitions_are_told_in_words():
    sinfo = "cpu*|up|40|(null)\ngpu|up|4|gpu:a100:4(S:0-1),nvme:1\nold|down|2|gpu:2"
    assert doctor._partitions(sinfo) == (
        "cpu* (40 nodes), gpu (4 nodes, gpu:a100:4), old (2 nodes, gpu:2, down)"
    )
    assert doctor._partitions("") == "none"


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM; "])
def test_a_command_that_hangs_is_ended_with_its_children(tmp_path, stubborn):
    script = f"{stubborn}sleep 60 & echo $! > {tmp_path}/child; wait"
    start = time.monotonic()
    assert doctor._ask("sh", "-c", script, timeout=0.5) == (False, "no answer in 0.5 s")
    assert time.monotonic() - start < 30
    stat = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    # nobody waits for the child: on a busy machine it takes a moment to go
    while time.monotonic() - start < 30 and not _ended(stat):
        time.sleep(0.02)
    assert _ended(stat)


def _ended(stat):
    try:
        return stat.read_text().split()[2] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
