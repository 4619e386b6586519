"""The pages of documentation: every command in them is run, and what they refer to exists.

`HOW` says how each command is run here: at the ci scale, with small files in place of the words in
capitals, and what takes hours or a cluster as a dry run. A command that is in a page and not in
`HOW`, or in `HOW` and in no page, fails a test. Benchmarks are run by test_benchmarks.py.
"""

import shutil
import signal
import subprocess
import sys

import ase.io
import numpy as np
import pandas as pd
import pytest
import yaml
from pages import (
    FENCE,
    LANGUAGES,
    PAGES,
    blocks,
    changes,
    commands,
    environment,
    in_blocks,
    name,
    run,
)
from projects import ROOT
from pymatgen.core import Lattice, Structure
from snakemake.utils import update_config

from diffractory.config import validate
from diffractory.store import read_patterns
from diffractory.store.images import ImageReader
from diffractory.store.points import to_points, write_points

CI = "--cores 2 --configfile config/ci.yaml"
AT_ROOT = f"cd {ROOT} && "
INSTALLED = "--dry-run --no-index --no-build-isolation -c envs/constraints.txt"
"""Resolves everything without installing; all that is needed must be there already."""
ALONE = f"pip install {INSTALLED} --no-deps -e ."
PREDICT = "diffractory predict results/scans/gold.zarr --model results/models/symmetry/ours"
EVALUATE = "diffractory evaluate-structures data/structures data/structures --processes 2"
SOME_TESTS = "pytest -p no:cacheprovider -q tests/unit/test_config.py"

HOW = {
    # Installing and testing: what is installed stays.
    "pip install -c envs/constraints.txt -e .": f"{AT_ROOT}{ALONE}",
    "pip install -c envs/constraints.txt -e '.[test]'":
        f"{AT_ROOT}pip install {INSTALLED} -e '.[test]'",
    "pip install -c envs/constraints.txt -e . && snakemake --cores all":
        f"(cd {ROOT} && {ALONE}) && snakemake {CI}",
    "pip install -c envs/constraints.txt -e '.[test]' && pytest":
        f"{AT_ROOT}{ALONE} && {SOME_TESTS}",
    "python -m venv .venv && source .venv/bin/activate":
        "cd $(mktemp -d) && python -m venv --without-pip .venv && source .venv/bin/activate "
        "&& test $VIRTUAL_ENV = $PWD/.venv",
    "git clone https://github.com/diffractory/diffractory && cd diffractory":
        "git init -q upstream/diffractory && git -C upstream/diffractory -c user.name=somebody "
        "-c user.email=somebody@example.org commit -q --allow-empty -m 'A project' "
        "&& export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=url.file://$PWD/upstream/.insteadOf "
        "GIT_CONFIG_VALUE_0=https://github.com/diffractory/ && cd $(mktemp -d) "
        "&& git clone https://github.com/diffractory/diffractory && cd diffractory",
    "apt-get install slurm-wlm slurmdbd munge mariadb-server-core chromium":
        "apt-get install --simulate slurm-wlm slurmdbd munge mariadb-server-core chromium",
    "pytest": f"{AT_ROOT}{SOME_TESTS}",
    "pytest -n 0 tests/unit": f"{AT_ROOT}{SOME_TESTS} -n 0",
    ".ci/run": f"{AT_ROOT}bash -n .ci/run",
    "ruff check && ruff format --check && mypy":
        f"{AT_ROOT}ruff check --no-cache src && ruff format --no-cache --check src "
        "&& mypy src/diffractory/errors.py",
    "snakefmt --check Snakefile workflow && snakemake --lint":
        f"{AT_ROOT}snakefmt --check Snakefile workflow && snakemake --lint",
    # Runs of the workflow: what is finished is found finished, the rest is planned.
    "snakemake --cores all": f"snakemake {CI}",
    "snakemake --cores all results/tables/symmetry/table_3.csv":
        f"snakemake results/tables/symmetry/table_3.csv {CI}",
    "snakemake --cores all results/scans/gold.zarr": f"snakemake results/scans/gold.zarr {CI}",
    "snakemake -n": "snakemake -n",
    "snakemake --unlock": "snakemake --unlock",
    "snakemake --cores all --configfile config/desk.yaml":
        "snakemake -n --configfile config/desk.yaml",
    "snakemake --cores all --config dataset=perov_5": "snakemake -n --config dataset=perov_5",
    "snakemake -n --configfile config/paper.yaml": "snakemake -n --configfile config/paper.yaml",
    "snakemake --profile slurm --configfile config/paper.yaml":
        "snakemake -n --profile slurm --configfile config/paper.yaml",
    "snakemake --cores all --configfile mine.yaml": "snakemake -n --configfile mine.yaml",
    "snakemake --cores all results/patterns/my_folder/bloch --configfile mine.yaml":
        f"snakemake results/patterns/my_folder/bloch {CI} mine.yaml",
    # Products and machine.
    "diffractory inspect": "diffractory inspect --help",
    "diffractory inspect results/report.html": "diffractory inspect results/report.html",
    "diffractory inspect results/tables/symmetry/table_3.csv":
        "diffractory inspect results/tables/symmetry/table_3.csv",
    "diffractory doctor": "diffractory doctor || test $? = 1",  # 1: it found a problem
    "tensorboard --logdir results/models/symmetry":
        "tensorboard --inspect --logdir results/models/symmetry/mvof_ml",
    # With data of one's own.
    "diffractory predict": "diffractory predict --help",
    "diffractory predict SCAN --model results/models/symmetry/ours":
        f"{PREDICT} && test -f gold.map/map.zarr/zarr.json",
    "diffractory evaluate-structures GENERATED REFERENCE": EVALUATE,
    "diffractory steer FOLDER --watch": "",  # see test_steering_until_it_is_stopped
}  # fmt: skip
FOLLOWED = [ROOT / "docs/adding_a_model.md", ROOT / "docs/adding_a_data_source.md"]
"""Pages that a test of its own follows from block to block."""


@pytest.fixture(scope="module")
def documented(finished, tmp_path_factory):
    """Return a folder with the finished run, and small files of all kinds that pages speak of."""
    folder = tmp_path_factory.mktemp("documented") / "run"
    shutil.copytree(finished.folder, folder, symlinks=True)
    data = folder / "data"
    (data / "structures").mkdir(parents=True)
    for metal, a in (("Cu", 3.61), ("Ag", 4.09), ("Au", 4.08), ("Al", 4.05)):
        crystal = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [metal], [(0, 0, 0)])
        crystal.to(str(data / f"structures/{metal}.cif"))
    frames = [ase.io.read(path) for path in sorted(data.glob("structures/*"))]
    ase.io.write(data / "trajectory.xyz", frames)
    (data / "perov_5").mkdir()
    for split in ("val", "test"):  # of which runs are planned alone
        (data / f"perov_5/{split}.csv").touch()
    (folder / "mine.yaml").write_text(blocks(ROOT / "docs/your_own_structures.md", "yaml")[0])
    series = ImageReader(folder / "results/patterns/mote2/experiment")
    (folder / "images").mkdir()
    for number, image in enumerate(series.read(np.arange(3))):
        np.save(folder / f"images/{number}.npy", image)
    layers = read_patterns(folder / "results/patterns/layers/unperturbed")
    spots = slice(*layers.offsets[:2])
    points = to_points(layers.qx[spots], layers.qy[spots], layers.intensity[spots], 2.5, 0.025)
    write_points(folder / "pattern.json", points, np.array([]))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_it_is(page):
    kinds = {kind for kind, _ in FENCE.findall(page.read_text())}
    assert kinds <= LANGUAGES, "bash: run; python: run; yaml: checked; diff: applied; text: not"


def test_every_command_is_run_and_every_run_is_of_a_command():
    documented = {command for page in PAGES for command in commands(page)}
    elsewhere = {command for page in FOLLOWED for command in in_blocks(page)}
    elsewhere |= {command for command in documented if command.startswith("python benchmarks/")}
    assert documented - elsewhere - set(HOW) == set(), "say in HOW how it is run"
    assert set(HOW) - documented == set(), "no page has this command any more"


@pytest.mark.parametrize("command", [command for command, how in HOW.items() if how])
def test_command(documented, command):
    if command.startswith("apt-get") and not shutil.which("apt-get"):
        pytest.skip("packages of Debian, which this is not")
    output = run(documented, "bash", "-c", HOW[command])
    if command.startswith("snakemake") and CI in HOW[command] and "my_folder" not in command:
        assert "Nothing to be done" in output


def test_steering_until_it_is_stopped(documented):
    command = "diffractory steer images --watch".split()
    with subprocess.Popen(
        command, cwd=documented, env=environment(documented), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        _, summary = process.communicate(timeout=300)
    assert process.returncode == 0, summary
    assert lines[0].startswith("file\tclass")
    assert {line.split("\t")[0] for line in lines[1:]} == {f"{n}.npy" for n in range(3)}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in FOLLOWED and blocks(page, "python")], ids=name
)
def test_programs_of_a_page_run_one_after_the_other(documented, page):
    run(documented, sys.executable, "-c", "\n".join(blocks(page, "python")))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name)
def test_configurations_of_a_page_are_valid(page):
    for block in blocks(page, "yaml"):
        config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
        update_config(config, yaml.safe_load(block))
        schema = ROOT / "workflow/schemas/config.schema.yaml"
        validate(config, schema, ROOT / "config/config.yaml")


def apply(page, folder):
    """Do to a copy of the project what a page says."""
    for path, language, text in changes(page):
        file = folder / path
        if language == "python":
            assert not file.exists()
            file.write_text(text)
            continue
        before, after = (
            "".join(line[1:] for line in text.splitlines(keepends=True) if line[0] in signs)
            for signs in (" -", " +")
        )
        content = file.read_text()
        assert content.count(before) == 1, f"{path} has not, or more than once:\n{before}"
        file.write_text(content.replace(before, after))


@pytest.fixture
def changed(documented, request, tmp_path):
    """Return a copy of the finished run and of the package, changed as a page says."""
    folder = tmp_path / "run"
    shutil.copytree(documented, folder, symlinks=True)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    apply(ROOT / request.param, folder)
    return folder


def follow(page, folder):
    """Run the commands of a page in a changed project, at the ci scale."""
    for command in in_blocks(ROOT / page):
        assert command.startswith("snakemake --cores all ")
        words = command.replace("--cores all ", "").split()
        run(folder, *words, *CI.split(), PYTHONPATH=str(folder / "src"))


MODEL, SOURCE = "docs/adding_a_model.md", "docs/adding_a_data_source.md"


@pytest.mark.parametrize("changed", [MODEL], indirect=True)
def test_adding_a_model(changed):
    follow(MODEL, changed)
    said = pd.read_parquet(changed / "results/evaluation/symmetry/rings.parquet")
    ours = pd.read_parquet(changed / "results/evaluation/symmetry/ours.parquet")
    assert said["pattern"].tolist() == ours["pattern"].tolist()
    probability = said.filter(regex="^probability_")
    assert probability.shape[1] == 7
    assert (probability.sum(axis=1) - 1).abs().max() < 1e-5
    table, figure = "tables/symmetry/table_3.csv", "figures/symmetry/figure_calibration.svg"
    run(changed, "snakemake", *(f"results/{shown}" for shown in (table, figure)), *CI.split(),
        PYTHONPATH=str(changed / "src"))  # fmt: skip
    assert "Rings" in set(pd.read_csv(changed / "results" / table)["column"])
    assert "Rings" in (changed / "results" / figure).read_text()


@pytest.mark.parametrize("changed", [SOURCE], indirect=True)
def test_adding_a_data_source(changed):
    follow(SOURCE, changed)
    structures = pd.read_parquet(
        changed / "results/structures/molecular_dynamics/structures.parquet"
    )
    assert sorted(structures["formula"]) == ["Ag", "Al", "Au", "Cu"]
    assert set(structures["source"]) == {"trajectory"}
    assert set(structures["space_group"]) == {225}
