"""Where a product came from, back to the structures as retrieved, by the records of its stages.

The record of a product is the first of these that is there:

1. ``run.json`` in it, if it is a folder, such as a model;
2. ``{name}.run.json`` beside it, where its own name is ``{name}`` or goes on with a dot after it,
   the longest first: ``bloch.perturbed.parquet`` belongs to ``bloch.perturbed.run.json``, not to
   ``bloch.run.json``;
3. ``run.json`` beside it, for a file of a model;
4. what another product's name says: ``cleaned.run.json`` for ``rejected.parquet``, and
   ``{name}.simulation.run.json`` for the shards in ``{name}.shards/``, deleted once joined.

The report has no record: it came from the tables and figures that it names.
"""

import functools
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from diffractory.errors import InputError
from diffractory.store.provenance import sha256, short_commit

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
        None if there is none: they came from outside, or are the report.
    inputs
        Shared between all products of one record.
    """

    paths: list[str]
    state: State
    record: Record | None = None
    inputs: list["Product"] = field(default_factory=list)


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


class _Tracer:
    def __init__(self) -> None:
        self.sha256 = functools.cache(sha256)
        self.records: dict[Path, tuple[Record, list[Product]]] = {}

    def root(self, path: Path) -> Product:
        whole = Path(os.path.abspath(path))  # noqa: PTH100, results may be a link to another disk
        if record := find_record(whole):
            return Product([str(path)], "not recorded", *self.read(record))
        if whole.suffix == ".html" and (names := _named_in_report(whole)):
            shown = self.group(dict.fromkeys(f"results/{name}" for name in names), whole.parent)
            return Product([str(path)], "not recorded", inputs=shown)
        what = "does not exist" if not whole.exists() else "is not a product of the workflow"
        raise InputError(f"{path} {what}: there is no run.json that says how it was made")

    def read(self, path: Path) -> tuple[Record, list[Product]]:
        """Return a record and the products that its stage read."""
        if path not in self.records:
            record, inputs = _read_record(path)
            self.records[path] = record, []  # before its inputs, in case they lead back to it
            self.records[path][1].extend(self.group(inputs, _results_folder(path)))
        return self.records[path]

    def group(self, inputs: Mapping[str, str | None], results: Path) -> list[Product]:
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

    def state(self, path: Path, digest: str | None) -> State:
        if not path.exists():
            return (
                "deleted once joined" if path.parent.suffix == ".shards" else "not there any more"
            )
        if digest is None:
            return "not recorded"
        return "unchanged" if self.sha256(path) == digest else "changed since"


def _results_folder(record: Path) -> Path:
    """Return the folder ``results`` that a record is in, which may have been copied and renamed."""
    named = [folder for folder in record.parents if folder.name == "results"]
    renamed = [folder.parent for folder in record.parents if folder.name in FOLDERS]
    return (named or renamed or [Path.cwd() / "results"])[0]


def _located(name: str, results: Path) -> Path:
    """Return where a file is that a record names, relative to the project if not absolute."""
    first, *rest = Path(name).parts
    return results.joinpath(*rest) if first == "results" else results.parent / name


def _named_in_report(path: Path) -> list[str]:
    """Return the first file of each table and figure in the report."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [
        html.unescape(name) for name in re.findall(r'class="files">[^<]*<code>([^<]+)</code>', text)
    ]


def _read_record(path: Path) -> tuple[Record, dict[str, str]]:
    """Return a record, and the SHA-256 of each file or folder that its stage read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
        return record, {str(k): str(v) for k, v in content["inputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a record of a stage ({error!r}): run its stage again"
        ) from error


def _counts(facts: Mapping[str, Any]) -> dict[str, int | dict[str, int]]:
    return {
        name: value
        for name, value in facts.items()
        if isinstance(value, int)
        or (isinstance(value, dict) and all(isinstance(n, int) for n in value.values()))
    }
