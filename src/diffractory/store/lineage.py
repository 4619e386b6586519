"""Where a product came from, back to the structures as retrieved, by the records of its stages."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from diffractory.errors import InputError
from diffractory.store.provenance import (
    find_record,
    not_a_record,
    read_record,
    sha256,
    short_commit,
)

State = Literal[
    "unchanged", "changed since", "not there any more", "deleted once joined", "not recorded"
]

FOLDERS = ("structures", "patterns", "models", "evaluation", "tables", "figures")
"""What the workflow makes in ``results``."""


@dataclass(frozen=True)
class Record:
    """What a ``run.json`` says of the stage.

    Attributes
    ----------
    seconds
        How long the stage took.
    commit
        Short git commit, with a plus sign if tracked files had been changed, or "unknown".
    counts
        Numbers of items by what became of them, such as ``rejected``, in parts where it has them.
    """

    path: Path
    stage: str
    start: datetime
    seconds: float
    commit: str
    seed: int
    counts: dict[str, int | dict[str, int]]
    versions: dict[str, str]


@dataclass
class Product:
    """Files that one stage wrote, and what it read.

    Attributes
    ----------
    paths
        As the record of the stage that read them has them.
    state
        Of the files, beside the SHA-256 in that record.
    record
        None if there is none: they came from outside.
    inputs
        Shared between all products of one record, as the next.
    damaged
        All files and folders with this record that differ from it.
    """

    paths: list[str]
    state: State
    record: Record | None = None
    inputs: list["Product"] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


def lineage(paths: Sequence[Path]) -> list[Product]:
    """Return the tree of what each product came from; every file is read once.

    Parameters
    ----------
    paths
        Products of the workflow, or their records.

    Raises
    ------
    InputError
        If a product has no record, or a record in its tree is broken.
    """
    tracer = _Tracer()
    return [tracer.root(path) for path in paths]


class _Tracer:
    def __init__(self) -> None:
        self.sha256 = functools.cache(sha256)
        self.records: dict[Path, tuple[Record, list[Product], list[Path]]] = {}

    def root(self, path: Path) -> Product:
        whole = Path(os.path.abspath(path))  # noqa: PTH100, results may be a link to another disk
        if record := find_record(whole):
            return Product([str(path)], "not recorded", *self.read(record))
        what = "does not exist" if not whole.exists() else "is not a product of the workflow"
        raise InputError(f"{path} {what}: there is no run.json that says how it was made")

    def read(self, path: Path) -> tuple[Record, list[Product], list[Path]]:
        """Return a record, the products that its stage read, and what it wrote and differs now."""
        if path not in self.records:
            record, inputs, outputs = _read_record(path)
            products = {path.parent / name: digest for name, digest in outputs.items()}
            damaged = [
                p for p, digest in products.items() if self.state(p, digest) == "changed since"
            ]
            self.records[path] = record, [], damaged  # before its inputs, which may lead back to it
            self.records[path][1].extend(self.group(inputs, _results_folder(path)))
        return self.records[path]

    def group(self, inputs: Mapping[str, str], results: Path) -> list[Product]:
        """Return inputs as products, those of one record and state together."""
        groups: dict[tuple[Path | None, State, str], list[str]] = {}
        for name, digest in inputs.items():
            path = _located(name, results)
            record, state = find_record(path), self.state(path, digest)
            groups.setdefault((record, state, "" if record else name), []).append(name)
        return [
            Product(names, state, *self.read(record)) if record else Product(names, state)
            for (record, state, _), names in groups.items()
        ]

    def state(self, path: Path, digest: str) -> State:
        if not path.exists():
            return (
                "deleted once joined" if path.parent.suffix == ".shards" else "not there any more"
            )
        return "unchanged" if self.sha256(path) == digest else "changed since"


def _results_folder(record: Path) -> Path:
    """Return the folder ``results`` that a record is in, which may have been copied and renamed."""
    named = [folder for folder in record.parents if folder.name == "results"]
    if record.name == "report.run.json":
        return record.parent
    renamed = [folder.parent for folder in record.parents if folder.name in FOLDERS]
    return (named or renamed or [Path.cwd() / "results"])[0]


def _located(name: str, results: Path) -> Path:
    """Return where a file is that a record names, relative to the project if not absolute."""
    first, *rest = Path(name).parts
    return results.joinpath(*rest) if first == "results" else results.parent / name


def _read_record(path: Path) -> tuple[Record, dict[str, str], dict[str, str]]:
    """Return a record, and the SHA-256 of each file or folder that its stage read and wrote."""
    content = read_record(path)
    try:
        record = Record(
            path=path,
            stage=str(content["stage"]),
            start=datetime.fromisoformat(content["start"]),
            seconds=float(content["seconds"]),
            commit=short_commit(content),
            seed=int(content["seed"]),
            counts=_counts(content["facts"]),
            versions={str(k): str(v) for k, v in content["versions"].items()},
        )
        return record, _digests(content["inputs"]), _digests(content.get("outputs", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise not_a_record(path, error) from error


def _digests(files: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name): str(digest) for name, digest in files.items()}


def _counts(facts: Mapping[str, Any]) -> dict[str, int | dict[str, int]]:
    return {
        name: value
        for name, value in facts.items()
        if isinstance(value, int)
        or (isinstance(value, dict) and all(isinstance(n, int) for n in value.values()))
    }
