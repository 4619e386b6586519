"""``run.json``: what made a product, from what, with which versions, when and on which machine.

The record of a product is the first of these that is there:

1. ``run.json`` in it, if it is a folder, such as a model;
2. ``{name}.run.json`` beside it, where its own name is ``{name}`` or goes on with a dot after it,
   the longest first: ``bloch.perturbed.parquet`` belongs to ``bloch.perturbed.run.json``, not to
   ``bloch.run.json``;
3. ``run.json`` beside it, for a file of a model;
4. what another product's name says: ``cleaned.run.json`` for ``rejected.parquet``, and
   ``{name}.simulation.run.json`` for the shards in ``{name}.shards/``, deleted once joined.

A stage reads an input only if its SHA-256 is still the one in the record of the stage that wrote
it, so that nothing is made from a damaged file.
"""

import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os.path import relpath
from pathlib import Path
from typing import Any

from diffractory import __version__
from diffractory.errors import InputError
from diffractory.store.files import write_text

PACKAGES = (
    "abTEM", "ase", "chgnet", "finufft", "matplotlib", "numba", "numpy", "pandas", "phonopy",
    "pyarrow", "pymatgen", "pytorch-lightning", "scikit-learn", "scipy", "spglib", "torch", "zarr",
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


def find_record(path: Path) -> Path | None:
    """Return the record of a product by the rule above, or None."""
    folder, parts = path.parent, path.name.split(".")
    if parts[-2:] == ["run", "json"]:
        return path if path.is_file() else None
    starts = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    candidates = [path / "run.json", *(folder / f"{start}.run.json" for start in starts)]
    candidates.append(folder / "run.json")
    if path.name == "rejected.parquet":
        candidates.append(folder / "cleaned.run.json")
    if folder.suffix == ".shards":
        candidates.append(folder.with_suffix(".simulation.run.json"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def whole_product(path: Path, record: Path) -> Path:
    """Return the product that Snakemake knows a file by: its folder, if the record is in there."""
    return record.parent if record.name == "run.json" else path


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a ``run.json``.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content.items())
    except (OSError, ValueError, AttributeError) as error:
        raise not_a_record(path, error) from error


def not_a_record(path: Path, reason: Exception) -> InputError:
    """Return the error that a file is not what `recorded` writes."""
    return InputError(
        f"{path} is not a record of a stage ({reason!r}): make it again with snakemake --forcerun "
        f"{relpath(whole_product(path, path))}"
    )


def verified(inputs: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file or folder, which must be that in the record of its stage.

    What no record knows came from outside and is taken as it is.

    Raises
    ------
    InputError
        If one is damaged or was changed since, its record is damaged, or it cannot be read.
    """
    digests = {}
    for path in inputs:
        try:
            digests[str(path)] = sha256(path)
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}): see to its disk, and to your rights"
            ) from error
        if source := find_record(path):
            _check(path, digests[str(path)], source)
    return digests


def _check(path: Path, digest: str, source: Path) -> None:
    """Compare a file or folder, or all in it that its record knows, with this record."""
    record = read_record(source)
    outputs = record.get("outputs")
    if "stage" not in record or not isinstance(outputs, dict):
        return  # of another program, or of a version that did not record its products
    for name, expected in outputs.items():
        product = source.parent / name
        if product == path:
            found = digest
        elif path in product.parents:
            found = sha256(product)
        else:
            continue
        if found != expected:
            raise InputError(
                f"{product} is damaged, or was changed or removed after the stage "
                f"{record['stage']} wrote it: delete {whole_product(product, source)} and run again"
            )


def _outputs(outputs: Iterable[Path], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each product by its name in a folder, or of all that is in there."""
    products = [
        path
        for output in outputs
        for path in (sorted(folder.iterdir()) if output == folder else [output])
    ]
    return {Path(relpath(path, folder)).as_posix(): sha256(path) for path in products}


def _processor() -> str:
    """Return the model of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def _device_name(device: str) -> str:
    """Return the name of the card for ``"cuda"``."""
    if device == "cpu":
        return device
    import torch

    return torch.cuda.get_device_name(device)


@contextmanager
def recorded(
    path: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Iterable[Path],
    outputs: Iterable[Path],
    seed: int,
    device: str = "cpu",
) -> Iterator[dict[str, Any]]:
    """Check the inputs, and write ``run.json`` to ``path`` when the block ends without error.

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
        Files and folders that it reads; their SHA-256 is recorded.
    outputs
        Files and folders that it writes; their SHA-256 is recorded by their names relative to the
        folder of ``path``. That folder itself stands for all that is in it.
    seed
        Global seed.
    device
        What it computes on: ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    InputError
        If an input is damaged or was changed since its stage wrote it.
    """
    start = datetime.now(UTC)
    digests = verified(inputs)
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
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "device": _device_name(device),
        "start": start.isoformat(timespec="seconds"),
        "end": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - start).total_seconds(), 3),
        "peak_memory_gib": round(_peak_memory_gib(), 3),
        "inputs": digests,
        "outputs": _outputs(outputs, path.parent),
        "facts": facts,
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
