"""Tables of the symmetry study: of Nathani et al. (2026) by number, and ours by name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.calibration import (
    N_BINS,
    brier_score,
    calibration_errors,
    coverage_at,
    negative_log_likelihood,
    reliability,
    selection,
)
from diffractory.evaluation.metrics import class_metrics, wilson_interval
from diffractory.evaluation.published import NOT_GIVEN, published_column, text_differences
from diffractory.evaluation.symmetry import (
    MODELS,
    N_SYSTEMS,
    PRINTED,
    SPACE_GROUP_MODELS,
    STUDY,
    Outcome,
    Patterns,
    aggregated_how,
    check_name,
    read_dataset,
    read_predictions,
)
from diffractory.evaluation.symmetry_robustness import meaning, read_outcomes, row_label
from diffractory.evaluation.tables import NOT_RUN, Table, provenance_note, write_table
from diffractory.store import CRYSTAL_SYSTEMS, InputError, recorded

TABLES: dict[str, tuple[str, ...]] = {
    "1": ("mvof_ml", "random_forest", "pe_ag_gmoe", "ours"),
    "2": ("pe_ag_gmoe",),
    "3": tuple(MODELS),
    "4": SPACE_GROUP_MODELS,
    "5": (),
    "6": (),
    "calibration": tuple(MODELS),
    "robustness": tuple(MODELS),
    "prototypes": tuple(MODELS),
    "ablations": ("pe_ag_gmoe", "mvof_ml", "ours"),
}
"""Models whose predictions each table reads, in printed order. All tables read the dataset.

The table of ablations has those of its models that have ablations, each followed by these.
"""

VOTES = ("3", "4", "prototypes", "ablations")
"""Tables that read ``aggregate``."""

HYPERPARAMETERS = {
    "Input feature dimension": ("network", "input_dim"),
    "Hidden dimension": ("network", "hidden_dim"),
    "Number of encoder layers": ("network", "n_layers"),
    "Attention heads per layer": ("network", "n_heads"),
    "Dropout rate": ("network", "dropout"),
    "Learning rate": ("training", "learning_rate"),
    "Top-k experts in MoE layers": ("network", "top_k"),
    "Number of MoE experts (adjacency)": ("network", "n_experts_adjacency"),
    "Number of MoE experts (Graphomer)": ("network", "n_experts_graphormer"),
    "Loss function": ("loss",),
    "Load balancing weight (alpha)": ("network", "balance_weight"),
}
"""Where ``hparams.json`` has the value of each row of Table 6."""

CLASSES = {CRYSTAL_SYSTEMS[k].capitalize(): slice(k, k + 1) for k in PRINTED}
"""The rows of the crystal systems, each with the class that it covers."""

ALL_ITEMS, MEAN, MEAN_OF_SIX = "All test items", "Mean of systems", "Mean without triclinic"
AVERAGES = {ALL_ITEMS: slice(None), MEAN: slice(None), MEAN_OF_SIX: slice(1, None)}
"""The averages of an accuracy, each with the classes that it covers."""

PUBLISHED_AVERAGE = {"PE-AG-GMoE": ALL_ITEMS, "RF": MEAN_OF_SIX, "MVOF-ML": ALL_ITEMS}
"""Which of them the one published average of a model is; see ``_average_note``."""

QUESTIONS = {
    "Crystal system": "patterns",
    "Crystal system (Agg.)": "materials",
    "Space group": "patterns",
}
"""What is asked of a model as a whole, each with the items that it is asked about."""

PARTS = {"test": "known prototypes", "new_prototype": "new prototypes"}
"""The splits of the table of prototypes, as it prints them."""

WANTED_ACCURACY = 0.9
"""Fraction of the answers that shall be right where a model may abstain."""

REBUILT = MODELS["mvof_ml"]
"""The model that is built from its description alone; see ``models.mvof_ml``."""

INTERVAL_NOTE = (
    "Intervals: Wilson 95 %, with test items taken as independent. Patterns of one material are "
    "not, so that the intervals of single patterns are too narrow."
)


def make_table(
    name: str,
    dataset: Path,
    predictions: Mapping[str, Path],
    context: Mapping[str, Any],
    csv: Path,
    markdown: Path,
    run: Path,
    hparams: Path | None = None,
    conditions: Path | None = None,
) -> None:
    """Write one table with our numbers beside the published ones.

    Parameters
    ----------
    name
        A key of ``TABLES``.
    dataset
        ``dataset.parquet``: one row per material that has patterns.
    predictions
        Prediction files by model; a model without one is shown as "not run".
    context
        ``scale``, ``dataset``, ``source``, ``split_by``, ``seed``; for the tables in ``VOTES``,
        ``aggregate``: the number of patterns per material in the vote; and for the table of
        ablations, ``ablations``: the configuration section ``symmetry.ablations``, not empty.
    csv, markdown, run
        What to write: the cells, the table to read, and the record.
    hparams
        ``hparams.json`` of PE-AG-GMoE, for Table 6; without it the values are "not run".
    conditions
        What the stage `perturb_patterns` says of its patterns, for the table ``robustness``, whose
        predictions are of these.

    Raises
    ------
    InputError
        If an input is not of the form described, or the study has no such table.
    """
    check_name(name, TABLES, "table")
    names = _printed_names(name, context)
    used = {model: predictions[model] for model in names if model in predictions}
    inputs = [dataset, *used.values(), *filter(None, [hparams, conditions])]
    with recorded(run, "tabulate_symmetry", {**context, "table": name}, inputs, context["seed"]):
        materials = read_dataset(dataset)
        match name:
            case "1":
                table = _table_1(materials, used)
            case "2":
                table = _table_2(materials, used)
            case "5":
                table = _table_5(materials)
            case "6":
                table = _table_6(materials, hparams)
            case "calibration":
                table = _table_of_calibration(materials, used)
            case "robustness":
                table = _table_of_robustness(materials, used, conditions)
            case "prototypes":
                table = _table_of_prototypes(materials, used, context)
            case "ablations":
                table = _table_of_ablations(names, materials, used, context)
            case _:
                table = _table_of_votes(int(name), materials, used, context)
        absent = [printed for model, printed in names.items() if model not in used]
        write_table(_finished(name, table, absent, context), csv, markdown)


def _printed_names(name: str, context: Mapping[str, Any]) -> dict[str, str]:
    """Return the models of a table, in order, each as it is printed."""
    if name != "ablations":
        return {model: MODELS[model] for model in TABLES[name]}
    names = {}
    for model in TABLES[name]:
        own = [key for key, change in context["ablations"].items() if change["of"] == model]
        if own:
            names[model] = MODELS[model]
        names |= {key: f"{MODELS[model]}, {key}" for key in own}
    return names


def _table_1(dataset: pd.DataFrame, used: Mapping[str, Path]) -> Table:
    train, test = _items(dataset, "patterns")
    cells = []
    for model in TABLES["1"]:
        name = MODELS[model]
        sizes = {"items": "patterns", "n_train": train.sum(), "n_test": test.sum()}
        values = dict.fromkeys(("Training patterns", "Test patterns", *AVERAGES), (NOT_RUN, ""))
        if model in used:
            single = read_predictions(used[model], dataset, "crystal_system")
            sizes["n_test"] = single.total.sum()
            values = {"Training patterns": (sizes["n_train"], ""),
                      "Test patterns": (sizes["n_test"], "")}  # fmt: skip
            values |= {label: _average(single, label, "fraction") for label in AVERAGES}
        for column, (value, interval) in values.items():
            printed_as = "Test accuracy" if column == PUBLISHED_AVERAGE.get(name) else column
            shown = published_column(STUDY, 1, printed_as).get(name, "")
            unit = "fraction" if column in AVERAGES else "count"
            cells.append({"row": name, "column": column, "unit": unit, "value": value,
                          "interval": interval, "published": shown, **sizes})  # fmt: skip
    caption = "Accuracy of the crystal system from single patterns, by method."
    notes = (INTERVAL_NOTE, _average_note(3, ("",)), "Ours: the network of this project.")
    return Table(pd.DataFrame(cells), caption, "Method", notes)


def _table_2(dataset: pd.DataFrame, used: Mapping[str, Path]) -> Table:
    columns: dict[str, Any] = dict(_counts(dataset, "test"))
    scores = dict.fromkeys(("Precision", "Recall", "F1"), [NOT_RUN] * N_SYSTEMS)
    if "pe_ag_gmoe" in used:
        single = read_predictions(used["pe_ag_gmoe"], dataset, "crystal_system")
        columns["Patterns"] = single.total
        metrics = class_metrics(single.truth, single.predicted, N_SYSTEMS)
        for name, fractions in zip(scores, metrics[:3], strict=True):
            scores[name] = [_printed(fraction, "%") for fraction in fractions]
    columns |= scores
    train, _ = _items(dataset, "patterns")
    cells = [
        {"row": _title(k), "column": column, "unit": "%" if column in scores else "count",
         "value": values[k], "interval": "",
         "published": published_column(STUDY, 2, column)[_title(k)],
         "items": "patterns", "n_train": train[k], "n_test": columns["Patterns"][k]}
        for k in PRINTED for column, values in columns.items()
    ]  # fmt: skip
    caption = "Precision, recall and F1 of the crystal system by PE-AG-GMoE, single patterns."
    return Table(pd.DataFrame(cells), caption, "Crystal system", ())


def _table_of_votes(
    number: int, dataset: pd.DataFrame, used: Mapping[str, Path], context: Mapping[str, Any]
) -> Table:
    """Make Table 3 (crystal systems) or 4 (space groups, by true crystal system)."""
    target = {3: "crystal_system", 4: "space_group"}[number]
    single = {model: read_predictions(path, dataset, target) for model, path in used.items()}
    together = {
        model: said.aggregated(said.ranks(1, context["seed"])[0] < context["aggregate"])
        for model, said in single.items()
    }
    cells: list[dict[str, Any]] = []
    models = TABLES[str(number)]
    for model in models:
        cells += _accuracy_column(number, MODELS[model], dataset, "patterns", single.get(model))
    for model in models:
        cells += _accuracy_column(number, MODELS[model], dataset, "materials", together.get(model))
    what = {3: "the crystal system", 4: "the space group, by true crystal system"}[number]
    caption = f"Accuracy of {what}, from single patterns and from several together (Agg.)."
    notes = (
        INTERVAL_NOTE,
        _vote_note(single, context),
        _average_note(number, ("", " (Agg.)")),
        *([text_differences(STUDY, number)] if number == 4 else []),
    )
    return Table(pd.DataFrame(cells), caption, "Crystal system", notes)


def _vote_note(single: Mapping[str, Patterns], context: Mapping[str, Any]) -> str:
    return (
        f"Agg.: up to {context['aggregate']} patterns per material, drawn at random, combined "
        f"{aggregated_how(single)}."
    )


def _accuracy_column(
    number: int, name: str, dataset: pd.DataFrame, items: str, outcome: Outcome | None
) -> list[dict[str, Any]]:
    train, test = _items(dataset, items)
    column = f"{name} (Agg.)" if items == "materials" else name
    shown = published_column(STUDY, number, column).rename(
        {"Accuracy (avg.)": PUBLISHED_AVERAGE.get(name)}
    )
    if outcome is not None:
        test = outcome.total
    cells = []
    for label, chosen in (CLASSES | AVERAGES).items():
        value, interval = NOT_RUN, ""
        if outcome is not None and label in AVERAGES:
            value, interval = _average(outcome, label, "%")
        elif outcome is not None:
            value, interval = _share(outcome.right[chosen].sum(), test[chosen].sum(), "%")
        cells.append(
            {"row": label, "column": column, "unit": "%", "value": value, "interval": interval,
             "published": shown.get(label, ""), "items": items,
             "n_train": train[chosen].sum(), "n_test": test[chosen].sum()}
        )  # fmt: skip
    return cells


def _table_5(dataset: pd.DataFrame) -> Table:
    counts = _counts(dataset, "train")
    train, test = _items(dataset, "patterns")
    cells = []
    for label, chosen in (CLASSES | {"Total": slice(None)}).items():
        values = {column: str(values[chosen].sum()) for column, values in counts.items()}
        values["Percentage"] = f"{100 * train[chosen].sum() / max(train.sum(), 1):.2f}"
        for column, value in values.items():
            unit = "%" if column == "Percentage" else "count"
            cells.append(
                {"row": label, "column": column, "unit": unit, "value": value, "interval": "",
                 "published": published_column(STUDY, 5, column)[label], "items": "patterns",
                 "n_train": train[chosen].sum(), "n_test": test[chosen].sum()}
            )  # fmt: skip
    per_material = _published(5, "Patterns") / _published(5, "Materials")
    notes = (
        "Materials set apart for validation, or with their whole prototype, are in neither the "
        "training nor the test split.",
        "The paper speaks of 100 zone-axis patterns per structure; its own counts come to "
        f"{per_material.min():.1f} to {per_material.max():.1f} per material.",
    )
    caption = "The training split by crystal system."
    return Table(pd.DataFrame(cells), caption, "Crystal system", notes)


def _table_6(dataset: pd.DataFrame, hparams: Path | None) -> Table:
    train, test = _items(dataset, "patterns")
    published = published_column(STUDY, 6, "Value")
    values = dict.fromkeys(published.index, NOT_RUN)
    if hparams is not None:
        values = _hyperparameters(hparams)
    cells = [
        {"row": row, "column": "PE-AG-GMoE", "unit": "", "value": values[row], "interval": "",
         "published": shown, "items": "patterns", "n_train": train.sum(), "n_test": test.sum()}
        for row, shown in published.items()
    ]  # fmt: skip
    caption = "Hyperparameters of PE-AG-GMoE, as built and trained."
    notes = ("Not run: PE-AG-GMoE.",) if hparams is None else ()
    return Table(pd.DataFrame(cells), caption, "Parameter", notes)


def _hyperparameters(path: Path) -> dict[str, str]:
    """Return the values of a model's ``hparams.json`` by row of Table 6."""
    values = {}
    try:
        hparams = json.loads(path.read_text(encoding="utf-8"))
        for row, keys in HYPERPARAMETERS.items():
            value = hparams
            for key in keys:
                value = value[key]
            values[row] = str(value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold the hyperparameters of PE-AG-GMoE ({error!r}): train it again"
        ) from error
    return values


def _table_of_calibration(dataset: pd.DataFrame, used: Mapping[str, Path]) -> Table:
    train, test = _items(dataset, "patterns")
    coverage = f"Coverage at {100 * WANTED_ACCURACY:.0f} % accuracy"
    units = {
        "ECE": "fraction",
        "MCE": "fraction",
        "Brier score": "",
        "NLL (nat)": "",
        coverage: "%",
    }
    cells = []
    for model in TABLES["calibration"]:
        n_test = test.sum()
        values = [NOT_RUN] * len(units)
        if model in used:
            single = read_predictions(used[model], dataset, "crystal_system")
            n_test = single.total.sum()
            right = single.truth == single.predicted
            numbers = (
                *calibration_errors(reliability(single.confidence, right)),
                brier_score(single.truth, single.probability),
                negative_log_likelihood(single.truth, single.probability),
                coverage_at(WANTED_ACCURACY, selection(single.confidence, right)),
            )
            values = [
                _printed(number, unit) for number, unit in zip(numbers, units.values(), strict=True)
            ]
        cells += [
            {"row": MODELS[model], "column": column, "value": value, "interval": "", "unit": unit,
             "published": "", "items": "patterns", "n_train": train.sum(), "n_test": n_test}
            for (column, unit), value in zip(units.items(), values, strict=True)
        ]  # fmt: skip
    caption = "Calibration of the crystal system's probabilities, single patterns."
    notes = (
        "ECE and MCE: expected and maximum calibration error, the mean (over patterns) and the "
        "largest distance between accuracy and mean confidence in "
        f"{N_BINS} bins of equal width. Brier score: mean squared distance from the truth, summed "
        "over the seven systems, 0 to 2. NLL: negative log-likelihood of the true system; "
        "probabilities below 2.2e-16, such as the zeros of a forest, count as that. For all four, "
        "lower is better.",
        f"{coverage}: largest share of the patterns that can be answered, the most confident "
        f"first, with at least {100 * WANTED_ACCURACY:.0f} % of the answers right. Higher is "
        "better.",
        "The paper gives none of these.",
    )
    return Table(pd.DataFrame(cells), caption, "Method", notes)


class Answers(NamedTuple):
    """The outcomes of one model by ``QUESTIONS``; no space group where it tells none."""

    system: Patterns
    together: Outcome
    space_group: Patterns | None


def _answers(
    path: Path, of: str, dataset: pd.DataFrame, context: Mapping[str, Any], split: str
) -> Answers:
    """Read the predictions of a model, or of an ablation of it, for one split."""
    system = read_predictions(path, dataset, "crystal_system", split)
    together = system.aggregated(system.ranks(1, context["seed"])[0] < context["aggregate"])
    tells = of in SPACE_GROUP_MODELS
    group = read_predictions(path, dataset, "space_group", split) if tells else None
    return Answers(system, together, group)


def _accuracy_cell(
    dataset: pd.DataFrame, split: str, items: str, ran: bool, outcome: Outcome | None
) -> dict[str, Any]:
    """Return the accuracy over all items of a split, without its row and column."""
    name = items.capitalize()
    n_train, n_test = (_counts(dataset, part)[name].sum() for part in ("train", split))
    value, interval = NOT_GIVEN if ran else NOT_RUN, ""
    if outcome is not None:
        n_test = outcome.total.sum()
        value, interval = _share(outcome.right.sum(), n_test, "%")
    return {"unit": "%", "value": value, "interval": interval, "published": "", "items": items,
            "n_train": n_train, "n_test": n_test}  # fmt: skip


def _table_of_robustness(
    dataset: pd.DataFrame, used: Mapping[str, Path], conditions: Path | None
) -> Table:
    train, _ = _items(dataset, "patterns")
    outcomes = read_outcomes(conditions, used)
    rows = list(map(row_label, outcomes["perturbation"], outcomes["level"]))
    cells = []
    for row, part in outcomes.groupby(rows, sort=False):
        for model in TABLES["robustness"]:
            value, interval = NOT_RUN, ""
            if model in used:
                value, interval = _share(int(part[model].sum()), len(part), "%")
            cells.append(
                {"row": row, "column": MODELS[model], "unit": "%",
                 "value": value, "interval": interval, "published": "", "items": "patterns",
                 "n_train": train.sum(), "n_test": len(part)}
            )  # fmt: skip
    caption = "Accuracy of the crystal system from single patterns that are perturbed."
    notes = (f"{meaning(outcomes)} All rows are of the same test patterns.", INTERVAL_NOTE)
    return Table(pd.DataFrame(cells), caption, "Perturbation", notes)


def _table_of_prototypes(
    dataset: pd.DataFrame, used: Mapping[str, Path], context: Mapping[str, Any]
) -> Table:
    filled = [split for split in PARTS if (dataset["split"] == split).any()]
    answers = {
        (model, split): _answers(path, model, dataset, context, split)
        for model, path in used.items()
        for split in filled
    }
    cells = []
    for model in TABLES["prototypes"]:
        for k, (question, items) in enumerate(QUESTIONS.items()):
            for split, part in PARTS.items():
                said = answers.get((model, split))
                cell = _accuracy_cell(dataset, split, items, model in used, said and said[k])
                cells.append({"row": MODELS[model], "column": f"{question}, {part}"} | cell)
    new = "materials of prototypes that were set apart whole, so that no other split has them"
    notes = [
        INTERVAL_NOTE,
        _vote_note({model: said.system for (model, _), said in answers.items()}, context),
        f"Known prototypes: the test split, as in all other tables. New prototypes: {new}. Test "
        "items are counted in this order.",
    ]
    if context["split_by"] == "prototype":
        notes.append("This run splits by prototype: those of the test split are new as well.")
    if "new_prototype" not in filled:
        notes.append(
            "This run has no materials of new prototypes: split.new_prototypes is 0, or so low "
            "that no prototype was drawn."
        )
    caption = "Accuracy on materials of known prototypes, and of prototypes new to the models."
    return Table(pd.DataFrame(cells), caption, "Method", tuple(notes))


def _table_of_ablations(
    names: Mapping[str, str],
    dataset: pd.DataFrame,
    used: Mapping[str, Path],
    context: Mapping[str, Any],
) -> Table:
    ablations = context["ablations"]
    cells, singles = [], {}
    for model, name in names.items():
        of = ablations[model]["of"] if model in ablations else model
        said, error = None, NOT_RUN
        if model in used:
            said = _answers(used[model], of, dataset, context, "test")
            singles[of] = single = said.system
            diagram = reliability(single.confidence, single.truth == single.predicted)
            error = f"{calibration_errors(diagram)[0]:.3f}"
        row = [
            {"row": name, "column": question}
            | _accuracy_cell(dataset, "test", items, model in used, said and said[k])
            for k, (question, items) in enumerate(QUESTIONS.items())
        ]
        of_patterns = {"column": "ECE", "unit": "fraction", "value": error, "interval": ""}
        cells += [*row, row[0] | of_patterns]
    changes = "; ".join(
        f"{names[key]}: {_changes(ablations[key])}" for key in names if key in ablations
    )
    notes = (
        f"Settings in place of those of the network itself. {changes}.",
        INTERVAL_NOTE,
        _vote_note(singles, context),
        "ECE: expected calibration error of the crystal system, single patterns, as in the table "
        "of calibration.",
    )
    caption = "Networks with some of their settings replaced, each trained anew."
    return Table(pd.DataFrame(cells), caption, "Network", notes)


def _changes(ablation: Mapping[str, Any]) -> str:
    """Return the settings that an ablation replaces, each with its value."""
    settings = [
        f"{part}.{key} {value}"
        for part in ("network", "training")
        for key, value in ablation.get(part, {}).items()
    ]
    return ", ".join(settings) or "none"


def _finished(name: str, table: Table, absent: Sequence[str], context: Mapping[str, Any]) -> Table:
    """Add to a table what the data are, and which models were not run."""
    places = zip(table.cells["row"], table.cells["column"], strict=True)
    cells = table.cells.assign(
        study=STUDY,
        table=name,
        dataset=context["dataset"],
        scale=context["scale"],
        seed=context["seed"],
        stand_in=[_stand_in(row, column, context) for row, column in places],
    )
    notes = [*table.notes, provenance_note(cells)]
    if absent:
        notes.append(f"Not run: {'; '.join(absent)}.")
    return Table(cells, table.caption, table.stub, tuple(notes))


def _stand_in(row: str, column: str, context: Mapping[str, Any]) -> str:
    """Return what stands in for the published structures and model of a cell."""
    found = []
    if context["source"] == "prototypes":
        shared = context["split_by"] == "material" and not column.endswith(PARTS["new_prototype"])
        types = "the same types in training and test" if shared else "other types in the test"
        found.append(f"substituted prototypes, {types}, in place of the Materials Project")
    elif context["source"] != "materials_project":
        found.append(f"structures from {context['source']} in place of the Materials Project")
    if row.startswith(REBUILT) or column.startswith(REBUILT):
        found.append(f"{REBUILT} rebuilt from its description")
    return "; ".join(found)


def _title(k: int) -> str:
    return CRYSTAL_SYSTEMS[k].capitalize()


def _items(dataset: pd.DataFrame, items: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the training and test patterns or materials by crystal system, each shape (7,)."""
    name = items.capitalize()
    return _counts(dataset, "train")[name], _counts(dataset, "test")[name]


def _counts(dataset: pd.DataFrame, split: str) -> dict[str, NDArray[np.int64]]:
    """Count patterns, materials and distinct space groups by crystal system, each shape (7,)."""
    part = dataset[dataset["split"] == split]
    system, n = part["system"].to_numpy(), N_SYSTEMS
    distinct = part.drop_duplicates(["system", "space_group"])["system"].to_numpy()
    return {
        "Patterns": np.bincount(system, part["n_patterns"], n).astype(np.int64),
        "Materials": np.bincount(system, minlength=n),
        "Space groups": np.bincount(distinct, minlength=n),
    }


def _average(outcome: Outcome, label: str, unit: str) -> tuple[str, str]:
    """Return an average and its interval; systems without test items are left out of means."""
    right, total = outcome.right, outcome.total
    if label == ALL_ITEMS:
        return _share(right.sum(), total.sum(), unit)
    right, total = right[AVERAGES[label]], total[AVERAGES[label]]
    present = total > 0
    mean = np.mean(right[present] / total[present]) if present.any() else np.nan
    return _printed(float(mean), unit), ""


def _share(right: int, total: int, unit: str) -> tuple[str, str]:
    if total == 0:
        return NOT_GIVEN, ""
    low, high = wilson_interval(right, total)
    return _printed(right / total, unit), f"{_printed(low, unit)}\N{EN DASH}{_printed(high, unit)}"


def _printed(fraction: float, unit: str) -> str:
    """Return a fraction as the paper prints it: percent with one decimal, or three decimals."""
    if np.isnan(fraction):
        return NOT_GIVEN
    return f"{100 * fraction:.1f}" if unit == "%" else f"{fraction:.3f}"


def _published(table: int, column: str) -> NDArray[np.float64]:
    """Return the printed class values of a column by crystal system, shape (7,); NaN if absent."""
    values = published_column(STUDY, table, column)[[_title(k) for k in range(N_SYSTEMS)]]
    return pd.to_numeric(values, errors="coerce").to_numpy(np.float64)


def _average_note(table: int, kinds: Sequence[str]) -> str:
    """Return what the published averages are, computed from the published class values."""
    parts = []
    for kind in kinds:
        names = (f"PE-AG-GMoE{kind}", f"RF{kind}")
        said = [published_column(STUDY, table, name)["Accuracy (avg.)"] for name in names]
        weights = _published(2, "Materials" if kind else "Patterns")
        first, second = _published(table, names[0]), _published(table, names[1])[1:]
        parts.append(
            f"{said[0]} of {names[0]} is over all test items "
            f"({np.average(first, weights=weights):.1f}; the mean of seven systems is "
            f"{first.mean():.1f}), {said[1]} of {names[1]} is the mean of six systems without "
            f"triclinic ({second.mean():.1f}; over their test items it is "
            f"{np.average(second, weights=weights[1:]):.1f})"
        )
    return (
        f"Published averages differ in kind, as the class values of Table {table} and the test "
        f"items of Table 2 show: {'; '.join(parts)}. Each is shown in the place it belongs to."
    )
