"""Project folders to run the workflow in, and what must be equal in two runs."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
OF_EACH_STUDY = (
    "results/evaluation/symmetry/ours.parquet",
    "results/evaluation/symmetry/random_forest.parquet",
    "results/maps/ours",
    "results/tables/ued/table_accuracy.csv",
    "results/figures/structure_2d/figure_3.svg",
    "results/evaluation/generation/perovskites/ours.parquet",
)
"""What is equal only if all before it is: stores, models and predictions of each study."""
PARTS = ["Snakefile", "workflow", "config", "profiles", "slurm", "envs"]


@dataclass
class Project:
    """A copy of the workflow's files, with results of its own."""

    folder: Path

    def snakemake(self, *arguments: str, cores: int = 2, **environment: str):
        """Run snakemake in the folder; return the finished process with its output as text."""
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def planned(self, *arguments: str, **environment: str) -> dict[str, int]:
        """Return the number of jobs of each rule that a run would execute."""
        result = self.snakemake("-n", *arguments, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        output = result.stdout + result.stderr
        if "Nothing to be done" in output:
            return {}
        table = output.split("Job stats:")[1].split("total")[0]
        return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}

    def write_config(self, name: str, content: dict) -> str:
        """Write a config file of overrides; return its path for --configfile."""
        path = self.folder / "config" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)


def copy_project(folder: Path) -> Project:
    for part in PARTS:
        source = ROOT / part
        if source.is_symlink():
            (folder / part).symlink_to(source.readlink())
        elif source.is_dir():
            shutil.copytree(source, folder / part, symlinks=True)
        else:
            shutil.copy(source, folder / part)
    return Project(folder)


def products(folder: Path) -> dict[str, bytes]:
    """Return the bytes of everything that must be equal in two runs."""
    results = folder / "results"
    kinds = (
        "tables/**/*.csv",
        "tables/**/*.md",
        "figures/**/*.svg",
        "figures/**/*.csv",
        "evaluation/**/*.parquet",
        "maps/*/fractions.csv",
        "models/**/model.safetensors",
    )
    return {
        str(f.relative_to(results)): f.read_bytes() for kind in kinds for f in results.glob(kind)
    }


def check_each_study(folder: Path, like: Path) -> None:
    """Fail unless a run made `OF_EACH_STUDY`, and all that it made is equal to another's."""
    expected, found = products(like), products(folder)
    for target in OF_EACH_STUDY:
        assert any(f"results/{name}".startswith(target) for name in found)
    assert [name for name in found if expected[name] != found[name]] == []
