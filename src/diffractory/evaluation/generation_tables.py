"""Tables of the generation study, beside the numbers of Pakornchote et al. (2024)."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from diffractory.evaluation.generation import (
    COLUMNS,
    DISJOINT,
    ENERGY_STAND_IN,
    EQ_6,
    MODELS,
    OWN,
    PUBLISHED,
    STEPS,
    STUDY,
    chosen,
    count,
    counterpart,
    crystals_stand_in,
    evaluations,
    read_dataset,
    read_evaluation,
    relaxation_stand_in,
    split_kind,
)
from diffractory.evaluation.generation_notes import table_notes
from diffractory.evaluation.generation_numbers import FORMATION_ENERGY, NUMBERS, Judged
from diffractory.evaluation.published import published_column, published_values
from diffractory.evaluation.tables import (
    NOT_RUN,
    Table,
    check_name,
    provenance_note,
    write_table,
)
from diffractory.store import InputError, recorded

TABLES = {
    "1": ("reconstructed",),
    "2": ("generated", "reference"),
    "3": ("relaxed",),
    "S1": ("reconstructed",),
    "tolerances": ("reconstructed",),
    "steps": ("reconstructed",),
    "splits": ("reference", "reconstructed"),
}
"""Kinds of evaluation files that each table reads; the last one has the test crystals."""

CAPTIONS = {
    "1": "How often a model decodes a crystal to itself.",
    "2": "Crystals that the models generate, judged one by one and against the test crystals.",
    "3": "Generated crystals, compared with what they relax to under pressure.",
    "S1": "Reconstruction when Eq. 6 of the paper takes the place of its Eq. 7.",
    "tolerances": "Reconstruction by other measures.",
    "steps": "Reconstruction with fewer steps of denoising.",
    "splits": "What a split without duplicates and shared compositions does to the numbers.",
}

STUBS = {
    "S1": "Data set, model and equation",
    "steps": "Data set, model and steps",
    "splits": "Data set, model and split",
}

MORE = ("dp_cdvae", "ours")
"""Models that are also sampled in fewer steps and learn from the second split, by default."""

NOT_HERE = pd.DataFrame(columns=["split_kind", "split", "crystals", "duplicate_groups"])
"""Numbers of crystals of a data set that was not read."""

NO_CUTOFFS = {"structure": np.nan, "composition": np.nan}

NOTHING = {
    kind: pd.DataFrame(columns=sum(columns, ()), dtype=np.float64).astype(
        dict.fromkeys(columns.truths, bool)
    )
    for kind, columns in COLUMNS.items()
}
"""Evaluations of no crystals, for rows of what was not run."""

Frames = Mapping[str, Mapping[str, Mapping[str, pd.DataFrame]]]
"""Evaluations by kind, data set and model."""


class Row(NamedTuple):
    """A row of a table.

    Attributes
    ----------
    dataset, generator
        Name in the config of what was run; of what only the paper has, its names.
    label
        As printed.
    known
        Row of the published values; empty if there is none.
    sampler
        How the crystals were sampled.
    """

    dataset: str
    generator: str
    label: str
    known: str = ""
    sampler: str = OWN


def make_table(
    name: str,
    datasets: Mapping[str, Path],
    files: Mapping[str, Mapping[str, Mapping[str, Path]]],
    context: Mapping[str, Any],
    csv: Path,
    markdown: Path,
    run: Path,
) -> None:
    """Write one table with our numbers beside the published ones.

    Parameters
    ----------
    name
        A key of ``TABLES``.
    datasets
        ``dataset.parquet`` by data set, in the order to print.
    files
        Evaluation files by kind (of `generation.COLUMNS`), data set and model; what has none is
        shown as "not run".
    context
        ``scale``, ``seed``, ``calculator``, ``pressure`` (GPa), ``tolerances`` of the matches
        (``ltol``, ``stol``, ``angle_tol``), and by data set ``sources`` (its section of the
        config) and ``cutoffs`` (``structure``, ``composition``); for the table ``steps``,
        ``steps``: by model how often its own sampler asks the network.
    csv, markdown, run
        What to write: the cells, the table to read, and the record.

    Raises
    ------
    InputError
        If an input is not of the form described, or the study has no such table.
    """
    check_name(name, TABLES, "table", STUDY)
    used = {kind: files.get(kind, {}) for kind in TABLES[name]}
    read = [path for kind in used.values() for models in kind.values() for path in models.values()]
    config, inputs = {**context, "table": name}, [*datasets.values(), *read]
    with recorded(run, "tabulate_generation", config, inputs, [csv, markdown], context["seed"]):
        sizes = {dataset: read_dataset(path) for dataset, path in datasets.items()}
        frames = {
            kind: {
                dataset: {model: read_evaluation(path, kind) for model, path in models.items()}
                for dataset, models in of_kind.items()
            }
            for kind, of_kind in used.items()
        }
        cells = pd.DataFrame(_cells(name, sizes, frames, context))
        if cells.empty:
            raise InputError(f"table {name} has no rows: evaluate a model of {', '.join(datasets)}")
        cells = cells.assign(
            study=STUDY, table=name, items="crystals", scale=context["scale"], seed=context["seed"]
        )
        notes = [*table_notes(name, cells, context), provenance_note(cells[cells["n_train"] > 0])]
        if absent := _not_run(cells):
            notes.append(f"Not run: {'; '.join(absent)}.")
        stub = STUBS.get(name, "Data set and model")
        write_table(Table(cells, CAPTIONS[name], stub, tuple(notes)), csv, markdown)


def _cells(
    name: str, sizes: Mapping[str, pd.DataFrame], frames: Frames, context: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the cells of all rows, with the published number beside each."""
    for row in ROWS[name](list(sizes), frames):
        found = {kind: _chosen(row, frames[kind]) for kind in TABLES[name]}
        ran = all(frame is not None for frame in found.values())
        kind, size = split_kind(row.generator), sizes.get(row.dataset, NOT_HERE)
        judged = Judged(
            frames={
                kind: NOTHING[kind] if frame is None else frame for kind, frame in found.items()
            },
            size=size,
            split_kind=kind,
            cutoffs=context["cutoffs"][row.dataset] if ran else NO_CUTOFFS,
            stol=context["tolerances"]["stol"],
            sampler=row.sampler,
            steps=context["steps"][row.generator] if ran and name == "steps" else 0,
            seed=context["seed"],
        )
        n_test = len(judged.frames[TABLES[name][-1]]) if ran else count(size, "test", kind=kind)
        line = {
            "row": row.label,
            # What only the paper has is not run on any of ours.
            "dataset": row.dataset if row.dataset in sizes else ", ".join(sizes),
            "n_train": count(size, "train", kind=kind),
            "n_test": n_test,
        }
        for number in NUMBERS[name](judged):
            shown = number if ran else number._replace(value=NOT_RUN, interval="")
            yield {
                **line,
                **shown._asdict(),
                "published": _published(name, row, number.column),
                "stand_in": _stand_in(name, row, number.column, context),
            }


def _published(name: str, row: Row, column: str) -> str:
    """Return the published number; empty if there is none."""
    return str(published_column(STUDY, int(name), column).get(row.known, "")) if row.known else ""


def _not_run(cells: pd.DataFrame) -> list[str]:
    """Return the rows without numbers; of a data set without any, its name alone."""
    parts: list[str] = []
    for dataset, part in cells.groupby(cells["row"].str.partition(", ")[0], sort=False):
        absent = part["value"] == NOT_RUN
        rows = [str(dataset)] if absent.all() else part.loc[absent, "row"]
        parts += dict.fromkeys(rows)
    return parts


def _chosen(row: Row, frames: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame | None:
    """Return the part of an evaluation that a row is about; None if it was not run."""
    frame = frames.get(row.dataset, {}).get(row.generator)
    if frame is None or "sampler" not in frame:
        return frame
    part = chosen(frame, row.sampler)
    return None if row.sampler and part.empty else part


def _stand_in(name: str, row: Row, column: str, context: Mapping[str, Any]) -> str:
    """Return what stands in for parts of the published work behind one number."""
    if row.dataset not in context["sources"]:
        return ""
    parts = [crystals_stand_in(row.dataset, context["sources"][row.dataset])]
    if column == FORMATION_ENERGY:
        parts.append(ENERGY_STAND_IN)
    if name == "3":
        parts.append(relaxation_stand_in(context["calculator"]))
    return "; ".join(filter(None, parts))


def _published_rows(name: str, dataset: str) -> list[str]:
    """Return the models of which the paper has numbers for one of its data sets."""
    values = published_values()
    rows = values.loc[(values["study"] == STUDY) & (values["table"] == name), "row"]
    pairs = [row.split(", ") for row in dict.fromkeys(rows)]
    return [model for known, *models in pairs for model in models if known == dataset]


def _only_published(name: str, datasets: list[str]) -> Iterator[Row]:
    """Yield the rows of those data sets of the paper that were not run."""
    here = {counterpart(dataset).published for dataset in datasets}
    for dataset in PUBLISHED:
        for model in _published_rows(name, dataset) if dataset not in here else ():
            label = f"{dataset}, {model}"
            yield Row(dataset, model, label, label)


def _by_model(datasets: list[str], frames: Frames) -> Iterator[Row]:
    for dataset in datasets:
        for model, title in MODELS.items():
            yield Row(dataset, model, f"{counterpart(dataset).label}, {title}")


def _as_published(datasets: list[str], frames: Frames, name: str) -> Iterator[Row]:
    """Yield the rows of all models, and of those that only the paper has."""
    for dataset in datasets:
        label, published, _ = counterpart(dataset)
        others = [one for one in _published_rows(name, published) if one not in MODELS.values()]
        for model, title in [*zip(others, others, strict=True), *MODELS.items()]:
            yield Row(dataset, model, f"{label}, {title}", f"{published}, {title}")
    yield from _only_published(name, datasets)


def _by_relaxed(datasets: list[str], frames: Frames) -> Iterator[Row]:
    """Yield the rows of what was relaxed, or is in the published table."""
    run = [dataset for dataset in datasets if frames["relaxed"].get(dataset)]
    for dataset in run:
        label, published, _ = counterpart(dataset)
        listed = _published_rows("3", published)
        for model, title in MODELS.items():
            if model in frames["relaxed"][dataset] or title in listed:
                yield Row(dataset, model, f"{label}, {title}", f"{published}, {title}")
    yield from _only_published("3", run)


def _by_equation(datasets: list[str], frames: Frames) -> Iterator[Row]:
    for dataset in datasets:
        found = frames["reconstructed"].get(dataset, {})
        for model, title in MODELS.items():
            label = f"{counterpart(dataset).label}, {title}"
            if model.startswith("dp_cdvae"):
                yield Row(dataset, model, f"{label}, Eq. 6", sampler=EQ_6)
            if model.startswith("dp_cdvae") and model in found:
                yield Row(dataset, model, f"{label}, Eq. 7")


def _by_steps(datasets: list[str], frames: Frames) -> Iterator[Row]:
    for dataset in datasets:
        found = frames["reconstructed"].get(dataset, {})
        fewer = {
            model: [name for name in found[model]["sampler"].unique() if name.startswith(STEPS)]
            for model in MODELS
            if model in found
        }
        for model in [model for model in fewer if fewer[model]] or MORE:
            label = f"{counterpart(dataset).label}, {MODELS[model]}"
            yield Row(dataset, model, f"{label}, all")
            for sampler in sorted(fewer.get(model, []), key=lambda name: -evaluations(name, 0)):
                yield Row(dataset, model, f"{label}, {evaluations(sampler, 0)}", sampler=sampler)


def _by_split(datasets: list[str], frames: Frames) -> Iterator[Row]:
    for dataset in datasets:
        found = frames["reconstructed"].get(dataset, {})
        learnt = [model for model in MODELS if model in MORE or model + DISJOINT in found]
        for model in learnt:
            label = f"{counterpart(dataset).label}, {MODELS[model]}"
            yield Row(dataset, model, f"{label}, random split")
            yield Row(dataset, model + DISJOINT, f"{label}, disjoint split")


ROWS: dict[str, Callable[[list[str], Frames], Iterator[Row]]] = {
    "1": partial(_as_published, name="1"),
    "2": partial(_as_published, name="2"),
    "3": _by_relaxed,
    "S1": _by_equation,
    "tolerances": _by_model,
    "steps": _by_steps,
    "splits": _by_split,
}
"""The rows of each table."""
