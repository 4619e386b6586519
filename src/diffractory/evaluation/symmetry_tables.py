"""Tables of the symmetry study: of Nathani et al. (2026) by number, and ours by name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.metrics import class_metrics
from diffractory.evaluation.published import published_column, text_differences
from diffractory.evaluation.symmetry import (
    MODELS,
    N_SYSTEMS,
    PRINTED,
    SPACE_GROUP_MODELS,
    STUDY,
    Outcome,
    read_dataset,
    read_predictions,
)
from diffractory.evaluation.symmetry_cells import (
    INTERVAL_NOTE,
    count_items,
    printed,
    share,
    title,
    train_and_test,
    vote_note,
)
from diffractory.evaluation.symmetry_own_tables import (
    PARTS,
    ablations_table,
    calibration_table,
    prototypes_table,
    robustness_table,
)
from diffractory.evaluation.symmetry_scan import STAND_INS, confusion_table, scan_table
from diffractory.evaluation.tables import NOT_RUN, Table, check_name, provenance_note, write_table
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
    "scan": tuple(MODELS),
    "scan_confusion": tuple(MODELS),
}
"""Models whose predictions each table reads, in printed order. All tables read the dataset.

The table of ablations has those of its models that have ablations, each followed by these; those of
the scan have the models that mapped it.
"""

OF_SCAN = ("scan", "scan_confusion")
"""Tables whose predictions are map folders."""

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

REBUILT = MODELS["mvof_ml"]
"""The model that is built from its description alone; see ``models.mvof_ml``."""


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
        Prediction files by model, for those in ``OF_SCAN`` map folders; a model without one is
        shown as "not run".
    context
        ``scale``, ``dataset``, ``source``, ``split_by``, ``seed``; for the tables with votes,
        ``aggregate``: the number of patterns per material in the vote; for the table of
        ablations, ``ablations``: the configuration section ``symmetry.ablations``, not empty; and
        for those in ``OF_SCAN``, ``scan``: the source of the scan.
    csv, markdown, run
        What to write: the cells, the table to read, and the record.
    hparams
        ``hparams.json`` of PE-AG-GMoE, for Table 6; without it the values are "not run".
    conditions
        What the stage `perturb_patterns` says of its patterns, for the table ``robustness``, whose
        predictions are of these; what `simulate_scan` says, for the table ``scan_confusion``.

    Raises
    ------
    InputError
        If an input is not of the form described, or the study has no such table.
    """
    check_name(name, TABLES, "table", STUDY)
    names = _printed_names(name, predictions, context)
    used = {model: predictions[model] for model in names if model in predictions}
    inputs = [dataset, *used.values(), *filter(None, [hparams, conditions])]
    config, outputs = {**context, "table": name}, [csv, markdown]
    with recorded(run, "tabulate_symmetry", config, inputs, outputs, context["seed"]):
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
                table = calibration_table(materials, used)
            case "robustness":
                table = robustness_table(materials, used, conditions)
            case "prototypes":
                table = prototypes_table(materials, used, context)
            case "ablations":
                table = ablations_table(names, materials, used, context)
            case "scan":
                table = scan_table(materials, used, context["scan"])
            case "scan_confusion":
                table = confusion_table(materials, used, conditions)
            case _:
                table = _table_of_votes(int(name), materials, used, context)
        absent = [printed for model, printed in names.items() if model not in used]
        write_table(_finished(name, table, absent, context), csv, markdown)


def _printed_names(
    name: str, predictions: Mapping[str, Path], context: Mapping[str, Any]
) -> dict[str, str]:
    """Return the models of a table, in order, each as it is printed."""
    if name != "ablations":
        models = predictions if name in OF_SCAN else MODELS
        return {model: MODELS[model] for model in TABLES[name] if model in models}
    names = {}
    for model in TABLES[name]:
        own = [key for key, change in context["ablations"].items() if change["of"] == model]
        if own:
            names[model] = MODELS[model]
        names |= {key: f"{MODELS[model]}, {key}" for key in own}
    return names


def _table_1(dataset: pd.DataFrame, used: Mapping[str, Path]) -> Table:
    train, test = train_and_test(dataset, "patterns")
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
    columns: dict[str, Any] = dict(count_items(dataset, "test"))
    scores = dict.fromkeys(("Precision", "Recall", "F1"), [NOT_RUN] * N_SYSTEMS)
    if "pe_ag_gmoe" in used:
        single = read_predictions(used["pe_ag_gmoe"], dataset, "crystal_system")
        columns["Patterns"] = single.total
        metrics = class_metrics(single.truth, single.predicted, N_SYSTEMS)
        for name, fractions in zip(scores, metrics[:3], strict=True):
            scores[name] = [printed(fraction, "%") for fraction in fractions]
    columns |= scores
    train, _ = train_and_test(dataset, "patterns")
    cells = [
        {"row": title(k), "column": column, "unit": "%" if column in scores else "count",
         "value": values[k], "interval": "",
         "published": published_column(STUDY, 2, column)[title(k)],
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
        vote_note(single, context),
        _average_note(number, ("", " (Agg.)")),
        *([text_differences(STUDY, number)] if number == 4 else []),
    )
    return Table(pd.DataFrame(cells), caption, "Crystal system", notes)


def _accuracy_column(
    number: int, name: str, dataset: pd.DataFrame, items: str, outcome: Outcome | None
) -> list[dict[str, Any]]:
    train, test = train_and_test(dataset, items)
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
            value, interval = share(outcome.right[chosen].sum(), test[chosen].sum(), "%")
        cells.append(
            {"row": label, "column": column, "unit": "%", "value": value, "interval": interval,
             "published": shown.get(label, ""), "items": items,
             "n_train": train[chosen].sum(), "n_test": test[chosen].sum()}
        )  # fmt: skip
    return cells


def _table_5(dataset: pd.DataFrame) -> Table:
    counts = count_items(dataset, "train")
    train, test = train_and_test(dataset, "patterns")
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
    train, test = train_and_test(dataset, "patterns")
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
    if "scan" in context:
        found.append(STAND_INS[context["scan"]])
    return "; ".join(found)


def _average(outcome: Outcome, label: str, unit: str) -> tuple[str, str]:
    """Return an average and its interval; systems without test items are left out of means."""
    right, total = outcome.right, outcome.total
    if label == ALL_ITEMS:
        return share(right.sum(), total.sum(), unit)
    right, total = right[AVERAGES[label]], total[AVERAGES[label]]
    present = total > 0
    mean = np.mean(right[present] / total[present]) if present.any() else np.nan
    return printed(float(mean), unit), ""


def _published(table: int, column: str) -> NDArray[np.float64]:
    """Return the printed class values of a column by crystal system, shape (7,); NaN if absent."""
    values = published_column(STUDY, table, column)[[title(k) for k in range(N_SYSTEMS)]]
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
