"""Tables of the study of two-dimensional crystals, beside the numbers of Fu et al. (2025)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.published import NOT_GIVEN, published_column, published_values
from diffractory.evaluation.ranking import bootstrap
from diffractory.evaluation.structure_2d import (
    CALCULATORS,
    EXPERIMENTAL,
    FAMILIES,
    MODELS,
    STUDY,
    TEST,
    UNCHANGED,
    chosen,
    condition_name,
    count_layers,
    crystals_stand_in,
    motion_stand_in,
    read_answers,
    read_dataset,
)
from diffractory.evaluation.symmetry_cells import printed
from diffractory.evaluation.tables import (
    NOT_RUN,
    Table,
    check_name,
    provenance_note,
    write_table,
)
from diffractory.store import InputError, recorded


class Score(NamedTuple):
    """A number about ranks: the share of the first ``k``, or, for 0, the mean reciprocal."""

    column: str
    k: int
    rank: str = "rank"

    @property
    def unit(self) -> str:
        """Unit of the printed number."""
        return "%" if self.k else ""

    def of(self, answers: pd.DataFrame) -> NDArray[np.float64]:
        """Return what each pattern adds to the mean."""
        rank = answers[self.rank].to_numpy(np.float64)
        return (rank <= self.k).astype(np.float64) if self.k else 1 / rank

    def chance(self, size: int) -> float:
        """Return what it is for an order drawn at random from so many crystals."""
        return min(1, self.k / size) if self.k else float(np.mean(1 / np.arange(1, size + 1)))


class Line(NamedTuple):
    """A row of a table: a model, and its answers; None where it was not run."""

    model: str
    label: str
    answers: pd.DataFrame | None
    family: str = ""


TOP = {k: Score(f"Top-{k}", k) for k in (1, 3, 5, 10)}

CHECKED = tuple(Score(f"Top-{k}, checked", k, "checked_rank") for k in (1, 10))

MRR = Score("MRR", 0)

TABLES = {
    "1": (*TOP.values(), MRR),
    "conditions": (TOP[1], TOP[10], *CHECKED),
    "galleries": (TOP[1], TOP[10], *CHECKED),
    "families": (TOP[1], TOP[10], MRR),
    "ablations": (*TOP.values(), MRR),
}
"""Scores of each table."""

CAPTIONS = {
    "1": "How often the crystal of a pattern is among the first of the gallery.",
    "conditions": "Retrieval from changed patterns, before and after a check by simulation.",
    "galleries": "Retrieval from a gallery with distractors, which are nearly the test crystals.",
    "families": "Retrieval by the family of the layer.",
    "ablations": "Retrieval with other numbers of heads and layers in DD2D.",
}

STUBS = {"families": "Model and family", "galleries": "Model, patterns and gallery",
         "conditions": "Model and patterns", "ablations": "DD2D with"}  # fmt: skip

SIZE, TWINS = "Gallery", "With a twin"

NOTES = (
    "Top-k: share of the test patterns whose crystal is among the first k of the gallery; crystals "
    "with an equal score count as better. MRR: mean of 1 / rank. Chance: the gallery in an order "
    "drawn at random.",
    "Intervals: bootstrap over test patterns, 95 %. Where all or none are right they have no "
    "width, however few the patterns.",
    f"{TWINS}: share of the test crystals for which another of the gallery has the same pattern, "
    "within the tolerance of the check. No method can tell these two but by luck.",
)

CHECKED_NOTE = (
    "Checked: patterns of the first candidates are simulated, and the candidates put in the order "
    "of their R-factors, after the best rotation, scale and fall-off. A crystal that is not among "
    "them keeps its rank."
)


def make_table(
    name: str,
    dataset: Path,
    predictions: Mapping[str, Path],
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
    dataset
        ``dataset.parquet``: numbers of layers by split and family.
    predictions
        Prediction files by model; one of ``MODELS``, or of the ablations, without a file is shown
        as "not run".
    context
        ``scale``, ``dataset``, ``seed``, ``source`` of the crystals, ``perturbed`` (``method`` and
        ``calculator``), and for the ablations ``ablations``: by model ``n_layers``, ``n_heads``
        and ``width``.
    csv, markdown, run
        What to write: the cells, the table to read, and the record.

    Raises
    ------
    InputError
        If an input is not of the form described, or the study has no such table.
    """
    check_name(name, TABLES, "table", STUDY)
    models = _ablations(context) if name == "ablations" else MODELS
    used = {model: predictions[model] for model in models if model in predictions}
    config, outputs = {**context, "table": name}, [csv, markdown]
    inputs, seed = [dataset, *used.values()], context["seed"]
    with recorded(run, "tabulate_structure_2d", config, inputs, outputs, seed):
        layers = read_dataset(dataset)
        answers = {model: read_answers(path) for model, path in used.items()}
        match name:
            case "conditions":
                lines = _by_condition(answers)
            case "galleries":
                lines = _by_gallery(answers)
            case "families":
                lines = _by_family(answers, layers)
            case _:
                lines = _by_model(answers, models)
        cells = pd.DataFrame(_cells(list(lines), TABLES[name], layers, name == "1", context))
        cells = cells.assign(
            study=STUDY,
            table=name,
            items="crystals",
            dataset=context["dataset"],
            scale=context["scale"],
            seed=seed,
        )
        notes = [*NOTES, *_more_notes(name, cells), _relaxed_note(layers, context)]
        notes.append(provenance_note(cells))
        if absent := [label for model, label in models.items() if model not in used]:
            notes.append(f"Not run: {'; '.join(absent)}.")
        stub = STUBS.get(name, "Model and patterns")
        write_table(Table(cells, CAPTIONS[name], stub, tuple(notes)), csv, markdown)


def _ablations(context: Mapping[str, Any]) -> dict[str, str]:
    """Return what the networks of the ablations are called, the smallest first."""
    if not context.get("ablations"):
        raise InputError("there are no ablations to show: name some in structure_2d.ablations")
    settings = {
        model: (network["n_layers"], network["n_heads"], network["width"])
        for model, network in context["ablations"].items()
    }
    return {
        model: "layers: {}, heads: {}, width: {}".format(*shape)
        for model, shape in sorted(settings.items(), key=lambda item: item[1])
    }


def _by_model(answers: Mapping[str, pd.DataFrame], models: Mapping[str, str]) -> Iterator[Line]:
    for model, label in models.items():
        yield Line(model, label, chosen(answers[model]) if model in answers else None)


def _by_condition(answers: Mapping[str, pd.DataFrame]) -> Iterator[Line]:
    found = [name for table in answers.values() for name in table["condition"].unique()]
    for model, label in MODELS.items():
        for condition in dict.fromkeys([UNCHANGED, *found]):
            shown = chosen(answers[model], condition) if model in answers else None
            yield Line(model, f"{label}, {condition_name(condition)}", shown)


def _by_gallery(answers: Mapping[str, pd.DataFrame]) -> Iterator[Line]:
    found = [name for table in answers.values() for name in table["gallery"].unique()]
    asked = {name for table in answers.values() for name in table["condition"]}
    for model, label in MODELS.items():
        for condition in (UNCHANGED, *({EXPERIMENTAL} & asked)):
            for gallery in dict.fromkeys([TEST, *found]):
                shown = chosen(answers[model], condition, gallery) if model in answers else None
                yield Line(model, f"{label}, {condition_name(condition)}, {gallery}", shown)


def _by_family(answers: Mapping[str, pd.DataFrame], layers: pd.DataFrame) -> Iterator[Line]:
    for model, label in MODELS.items():
        for family in FAMILIES:
            shown = chosen(answers[model]) if model in answers else None
            shown = shown if shown is None else shown[shown["family"] == family]
            if count_layers(layers, "test", family):
                yield Line(model, f"{label}, {family}", shown, family)


def _cells(
    lines: list[Line],
    scores: tuple[Score, ...],
    layers: pd.DataFrame,
    compared: bool,
    context: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the cells of all lines, and of chance in each of their galleries."""
    crystals, motion = crystals_stand_in(context), motion_stand_in(context)
    for line in lines:
        n_test = count_layers(layers, "test", line.family)
        perturbed = line.model.endswith("_perturbed")
        row = {
            "row": line.label,
            "n_train": count_layers(layers, "train", line.family),
            "n_test": n_test if line.answers is None else len(line.answers),
            "stand_in": "; ".join(filter(None, [crystals, motion if perturbed else ""])),
        }
        known = published_accuracies(line.model) if compared else {}
        for score in scores:
            value, interval = _value(line.answers, score, context["seed"])
            published = known.get(score.column, "")
            yield row | {"column": score.column, "unit": score.unit, "value": value,
                         "interval": interval, "published": published}  # fmt: skip
        for column, unit in ((SIZE, ""), (TWINS, "%")):
            value = _about_gallery(line.answers, column)
            yield row | {"column": column, "unit": unit, "value": value, "interval": "",
                         "published": ""}  # fmt: skip
    ran = [line.answers["gallery_size"] for line in lines if line.answers is not None]
    sizes = {int(size) for column in ran for size in column.unique()}
    for size in sorted(sizes or {count_layers(layers, "test")}):
        row = {
            "row": f"Chance among {size:,}",
            "n_train": 0,
            "n_test": count_layers(layers, "test"),
            "stand_in": crystals,
            "interval": "",
            "published": "",
        }
        for score in scores:
            value = printed(score.chance(size), score.unit)
            yield row | {"column": score.column, "unit": score.unit, "value": value}
        yield row | {"column": SIZE, "unit": "", "value": f"{size:,}"}


def _value(answers: pd.DataFrame | None, score: Score, seed: int) -> tuple[str, str]:
    """Return a score and its interval."""
    if answers is None:
        return NOT_RUN, ""
    if answers.empty:
        return NOT_GIVEN, ""
    values = score.of(answers)
    low, high = (printed(end, score.unit) for end in bootstrap(values, seed))
    return printed(float(values.mean()), score.unit), f"{low}\N{EN DASH}{high}"


def _about_gallery(answers: pd.DataFrame | None, column: str) -> str:
    """Return the size of the gallery, or the share of twins in it."""
    if answers is None:
        return NOT_RUN
    if answers.empty:
        return NOT_GIVEN
    if column == SIZE:
        return f"{answers['gallery_size'].iloc[0]:,}"
    return printed(float((answers["twins"] > 0).mean()), "%")


def published_accuracies(model: str) -> dict[str, str]:
    """Return the published accuracies of a model by column, percent; none for ours."""
    rows = {"dd2d": "Unperturbed", "dd2d_perturbed": "Perturbed"}
    if model not in rows:
        return {}
    return {
        score.column: published_column(STUDY, 1, str(k))[rows[model]] for k, score in TOP.items()
    }


def _more_notes(name: str, cells: pd.DataFrame) -> Iterator[str]:
    """Yield the notes that one table has beside those of all."""
    if name == "1":
        text = published_values().set_index(["study", "table", "row", "column"])["value"]
        crystals, test = (
            int(text[STUDY, "1 (text)", "Unperturbed", column])
            for column in ("Samples", "Test samples")
        )
        chances = [f"{100 * k / test:.1f}" for k in TOP]
        yield (
            f"Published: {test} test crystals of {crystals:,}; chance among {test} is "
            f"{', '.join(chances)} %. The fewer crystals in the gallery, the easier: compare each "
            "with its chance. The paper gives neither intervals nor twins."
        )
        yield _comparison(cells)
        yield (
            "Perturbed: learns from patterns of crystals in thermal motion, and is asked about "
            "such; its gallery has the crystals at rest."
        )
    elif name in ("conditions", "galleries"):
        yield CHECKED_NOTE
    elif name == "families":
        yield "The gallery has the crystals of all families; sizes are of the one family."
    else:
        yield (
            "The published numbers are in Supplementary Table 1 of the paper, which this project "
            "does not have."
        )


def _comparison(cells: pd.DataFrame) -> str:
    """Return how each model does against the published accuracies of its kind of patterns."""
    parts = []
    for model, label in MODELS.items():
        known = published_accuracies("dd2d_perturbed" if "perturbed" in model else "dd2d")
        ours = cells[cells["row"] == label].set_index("column")["value"]
        if ours["Top-1"] == NOT_RUN:
            continue
        below = {name: float(value) - float(ours[name]) for name, value in known.items()}
        below = {name: points for name, points in below.items() if points > 0}
        missed = [f"{name} by {points:.1f}" for name, points in below.items()]
        parts.append(f"{label}: {'below in ' + ', '.join(missed) if missed else 'none below'}")
    return f"Against the published accuracies, in points: {'; '.join(parts) or NOT_RUN}."


def _relaxed_note(layers: pd.DataFrame, context: Mapping[str, Any]) -> str:
    calculator = context["perturbed"]["calculator"]
    used = CALCULATORS.get(calculator, calculator)
    relaxed, total = (count_layers(layers, "test", "", name) for name in ("relaxed", "layers"))
    return (
        f"{relaxed:,} of the {total:,} test crystals were relaxed with {used}; others are as their "
        "source gives them."
    )
