"""What the records of a run say in its report: what ran, what was set aside, what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os.path import relpath
from pathlib import Path
from typing import Any

from diffractory.evaluation.tables import listed
from diffractory.store.provenance import not_a_record, read_record, short_commit

KEPT = ("accepted", "patterns", "relaxed", "perturbed", "converged")
"""What records call the number of items that a stage kept."""


@dataclass(frozen=True)
class Stage:
    """What one record says, ready to print."""

    name: str
    product: str
    record: dict[str, Any]
    details: dict[str, list[tuple[str, str]]]

    @property
    def commit(self) -> str:
        """Short commit, with a plus sign if tracked files had been changed."""
        return short_commit(self.record)

    @property
    def kept(self) -> int | None:
        """Number of items that the stage kept, or None."""
        facts = self.record["facts"]
        return next((facts[name] for name in KEPT if name in facts), None)

    @property
    def rejected(self) -> tuple[int, list[tuple[str, int]]] | None:
        """Number of items set aside, and the reasons with their counts, if the record has them."""
        facts = self.record["facts"]
        found = facts.get("rejected", facts.get("reasons"))
        if isinstance(found, dict):
            return sum(found.values()), list(found.items())
        return None if found is None else (int(found), [])


@dataclass(frozen=True)
class Cost:
    """What all jobs of a stage cost together."""

    name: str
    jobs: int
    seconds: float
    longest: float
    peak_memory_gib: float
    percent: float
    """Time in per cent of that of the stage that took the most."""


@dataclass(frozen=True)
class Ran:
    """When and on what all jobs ran."""

    jobs: int
    seconds: float
    start: datetime
    end: datetime
    machines: tuple[str, ...]
    commits: tuple[str, ...]


def read_stage(path: Path, folder: Path) -> Stage:
    """Read the record of a stage, and name it as seen from a folder.

    Raises
    ------
    InputError
        If it is not a record.
    """
    try:
        record = read_record(path)
        details = {
            "Configuration": _flat(record["config"]),
            "Counts and facts": _flat(record["facts"]),
            "Inputs (SHA-256)": _flat(record["inputs"]),
        }
        product = Path(relpath(path, folder)).as_posix()
        return Stage(record["stage"], product, record, details)
    except (KeyError, AttributeError) as error:
        raise not_a_record(path, error) from error


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as lines of dotted name and value."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            lines += _flat(item, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", str(item)))
    return lines


def software(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """Return the different sets of versions, each with the stages that ran with it."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        versions = ", ".join(f"{name} {v}" for name, v in stage.record["versions"].items())
        found.setdefault(versions, []).append(stage.name)
    return [(versions, listed(list(dict.fromkeys(names)))) for versions, names in found.items()]


def costs(stages: Sequence[Stage]) -> list[Cost]:
    """Return the cost of each stage, the longest first."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for stage in stages:
        jobs.setdefault(stage.name, []).append(stage.record)
    times = {name: [record["seconds"] for record in records] for name, records in jobs.items()}
    most = max((sum(seconds) for seconds in times.values()), default=0) or 1
    found = [
        Cost(
            name,
            len(records),
            sum(times[name]),
            max(times[name]),
            max(record["peak_memory_gib"] for record in records),
            100 * sum(times[name]) / most,
        )
        for name, records in jobs.items()
    ]
    return sorted(found, key=lambda cost: -cost.seconds)


def what_ran(stages: Sequence[Stage]) -> Ran | None:
    """Return when and on what the stages ran, or None where there are none."""
    records = [stage.record for stage in stages]
    if not records:
        return None
    return Ran(
        jobs=len(records),
        seconds=sum(record["seconds"] for record in records),
        start=min(_time(record["start"]) for record in records),
        end=max(_time(record["end"]) for record in records),
        machines=tuple(dict.fromkeys(_machine(record) for record in records)),
        commits=tuple(dict.fromkeys(stage.commit for stage in stages)),
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _machine(record: Mapping[str, Any]) -> str:
    """Return the processor, its cores and the device of a job."""
    host = record["host"]
    name = host.get("processor") or host["machine"]
    return f"{name}, {host['cores']} cores, {record['device']}"


def duration(seconds: float) -> str:
    """Return a time in words, such as "1 h 02 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
