"""``run.json``: what made a product, from what, with which versions, when and on which machine."""

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from diffractory import __version__
from diffractory.store.files import write_text

PACKAGES = (
    "matplotlib", "numba", "numpy", "pandas", "pyarrow", "pymatgen", "pytorch-lightning",
    "scikit-learn", "scipy", "spglib", "torch", "zarr",
)  # fmt: skip
"""Packages whose versions can change a result."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and contents in sorted order."""
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        if file.name == "run.json" or file.name.startswith(".snakemake"):
            continue  # they hold times, which do not belong to the content
        name = os.fsencode(file.relative_to(path))  # a name need not be valid text
        digest.update(name + b"\0" + sha256(file).encode() + b"\n")
    return digest.hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration section in canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _git(*arguments: str) -> str | None:
    """Return what git says of the folder of this package, or None outside a checkout."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    versions = {"diffractory": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _peak_memory_gib() -> float:
    """Return the largest resident size so far of this process and of any ended child, in GiB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(w).ru_maxrss for w in who) * unit / 2**30


def short_commit(record: Mapping[str, Any]) -> str:
    """Return the commit in a record, with a plus sign if tracked files had been changed."""
    commit = record["git_commit"]
    return f"{commit[:10]}{'+' if record['git_dirty'] else ''}" if commit else "unknown"


@contextmanager
def recorded(
    path: Path, stage: str, config: Mapping[str, Any], inputs: Iterable[Path], seed: int
) -> Iterator[dict[str, Any]]:
    """Write ``run.json`` to ``path`` when the block ends without error.

    The block may add facts of its own (counts, say) to the dictionary that it gets; they are
    written under ``facts``.

    Parameters
    ----------
    path
        Where to write the record.
    stage
        Name of the rule.
    config
        The configuration keys that the stage read.
    inputs
        Files and folders that it read; their SHA-256 is recorded.
    seed
        Global seed.
    """
    start = datetime.now(UTC)
    facts: dict[str, Any] = {}
    yield facts
    commit = _git("rev-parse", "HEAD")
    record = {
        "stage": stage,
        "config": dict(config),
        "config_sha256": config_hash(config),
        "seed": seed,
        "versions": _versions(),
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain", "-uno")) if commit else None,
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        "device": "cpu",
        "start": start.isoformat(timespec="seconds"),
        "end": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - start).total_seconds(), 3),
        "peak_memory_gib": round(_peak_memory_gib(), 3),
        "inputs": {str(p): sha256(p) for p in inputs},
        "facts": facts,
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
