"""Tables of the symmetry study, numbered as in Nathani et al. (2026)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.metrics import class_metrics, draw_per_group, vote, wilson_interval
from diffractory.evaluation.published import NOT_GIVEN, published_column, text_differences
from diffractory.evaluation.tables import NOT_RUN, Table, listed, provenance_note, write_table
from diffractory.store import InputError, recorded

STUDY = "symmetry"

MODELS = {"pe_ag_gmoe": "PE-AG-GMoE", "random_forest": "RF", "mvof_ml": "MVOF-ML"}
"""Models by the name of their file, as the paper prints them."""

TABLES: dict[int, tuple[str, ...]] = {
    1: ("mvof_ml", "random_forest", "pe_ag_gmoe"),
    2: ("pe_ag_gmoe",),
    3: ("pe_ag_gmoe", "random_forest"),
    4: ("pe_ag_gmoe", "random_forest"),
    5: (),
}
"""Models whose predictions each table reads, in printed order; all tables read the dataset."""

SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
"""Crystal systems in the order of classes; the paper prints them in the opposite order."""

PRINTED = tuple(reversed(range(len(SYSTEMS))))
N_SPACE_GROUPS = 230

ALL_ITEMS, MEAN_OF_7, MEAN_OF_6 = "All test items", "Mean of systems", "Mean without triclinic"
AVERAGE_ROW = {"PE-AG-GMoE": ALL_ITEMS, "RF": MEAN_OF_6, "MVOF-ML": ALL_ITEMS}
"""Which of our rows the paper's one average stands for, found from its class values."""

STAND_IN = {
    "materials_project": "",
    "prototypes": "prototype structures in place of the Materials Project",
}


@dataclass(frozen=True)
class Outcome:
    """Truth and prediction of N test items, which are patterns or materials.

    Attributes
    ----------
    system
        True crystal system as an index into ``SYSTEMS``, shape (N,).
    truth, predicted
        True and predicted class (of the crystal system or of the space group), shape (N,).
    confidence
        Probability of the predicted class, for materials its mean over the drawn patterns.
    """

    system: NDArray[np.int64]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.float64]:
        """Number of right predictions by true crystal system, shape (7,)."""
        return np.bincount(self.system, self.truth == self.predicted, len(SYSTEMS))

    @property
    def total(self) -> NDArray[np.int64]:
        """Number of items by true crystal system, shape (7,)."""
        return np.bincount(self.system, minlength=len(SYSTEMS))


def read_parquet(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read these columns of a table.

    Raises
    ------
    InputError
        If the file cannot be read, a column is missing, or a value is.
    """
    try:
        table = pd.read_parquet(path, columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as a table with {columns}: {error}.") from error
    if missing := [name for name in columns if table[name].isna().any()]:
        raise InputError(f"{path} has rows without {missing[0]}: make it again.")
    return table


def read_dataset(path: Path) -> pd.DataFrame:
    """Read the materials that have patterns, with ``system`` as an index into ``SYSTEMS``."""
    columns = ["material_id", "split", "crystal_system", "space_group", "n_patterns"]
    dataset = read_parquet(path, columns)
    return dataset.assign(system=_classes(path, dataset["crystal_system"]))


def read_outcomes(
    path: Path, dataset: pd.DataFrame, target: str, aggregate: int, seed: int
) -> tuple[Outcome, Outcome]:
    """Read the predictions of one model: of single patterns, and of materials by majority vote.

    Parameters
    ----------
    path
        The model's Parquet file, one row per test pattern.
    dataset
        As ``read_dataset`` gives it.
    target
        ``"crystal_system"`` or ``"space_group"``.
    aggregate
        Number of patterns per material in the vote, drawn without replacement.
    seed
        Global seed.

    Raises
    ------
    InputError
        If the file is not of this form or holds a material outside the test split.
    """
    by_class = [f"probability_{system}" for system in SYSTEMS]
    scores = by_class if target == "crystal_system" else ["probability_space_group"]
    columns = ["pattern", "material_id", "crystal_system", "space_group"]
    table = read_parquet(path, [*columns, f"predicted_{target}", *scores])
    if table.empty:
        raise InputError(f"{path} has no predictions: train and evaluate the model again.")
    material, names = pd.factorize(table["material_id"], sort=True)
    tested = set(dataset.loc[dataset["split"] == "test", "material_id"])
    if strangers := [str(name) for name in names if name not in tested]:
        raise InputError(
            f"{path} predicts {strangers[0]}, which is not in the test split "
            f"({len(strangers)} such materials): make it again from the present dataset."
        )
    # Sorted, so that the draw does not depend on the order of the rows.
    order = np.lexsort([table["pattern"], material])
    table, material = table.iloc[order], material[order].astype(np.int64)
    system = _classes(path, table["crystal_system"])
    predicted = table[f"predicted_{target}"]
    probability = table[scores].to_numpy(np.float64)
    if target == "crystal_system":
        truth, n_classes = system, len(SYSTEMS)
        label = _classes(path, predicted)
        single = Outcome(system, truth, label, probability[np.arange(len(label)), label])
    else:
        truth, n_classes = _groups(path, table["space_group"]), N_SPACE_GROUPS + 1
        label, probability = _groups(path, predicted), probability[:, 0]
        single = Outcome(system, truth, label, probability)
    drawn = draw_per_group(material, [str(name) for name in names], aggregate, seed)
    voted, confidence = vote(
        material[drawn], label[drawn], probability[drawn], len(names), n_classes
    )
    first = np.searchsorted(material, np.arange(len(names)))
    return single, Outcome(system[first], truth[first], voted, confidence)


def _classes(path: Path, names: "pd.Series[str]") -> NDArray[np.int64]:
    codes = pd.Categorical(names, categories=SYSTEMS).codes.astype(np.int64)
    if (codes < 0).any():
        bad = names[codes < 0].iloc[0]
        raise InputError(f"{path} names the crystal system {bad!r}; known are {listed(SYSTEMS)}.")
    return codes


def _groups(path: Path, numbers: "pd.Series[int]") -> NDArray[np.int64]:
    groups = numbers.to_numpy(np.int64)
    if groups.min() < 1 or groups.max() > N_SPACE_GROUPS:
        raise InputError(f"{path} has a space group outside 1 to {N_SPACE_GROUPS}: make it again.")
    return groups


def check_number(number: int, known: Mapping[int, Any], kind: str) -> None:
    """Raise InputError if this study has no table or figure of this number."""
    if number not in known:
        raise InputError(f"The {STUDY} study has no {kind} {number}; it has {sorted(known)}.")


def make_table(
    number: int,
    dataset: Path,
    predictions: Mapping[str, Path],
    context: Mapping[str, Any],
    csv: Path,
    markdown: Path,
    run: Path,
) -> None:
    """Write one table of the paper with our numbers beside the published ones.

    Parameters
    ----------
    number
        A key of ``TABLES``.
    dataset
        ``dataset.parquet``: one row per material that has patterns.
    predictions
        Prediction files by model; a model without one is shown as "not run".
    context
        ``scale``, ``dataset``, ``source``, ``seed`` and ``aggregate`` (patterns in the vote).
    csv, markdown, run
        What to write: the cells, the table to read, and the record.

    Raises
    ------
    InputError
        If an input is not of the form described, or the study has no such table.
    """
    check_number(number, TABLES, "table")
    used = {model: predictions[model] for model in TABLES[number] if model in predictions}
    inputs = [dataset, *used.values()]
    with recorded(run, f"{STUDY}_table", {**context, "number": number}, inputs, context["seed"]):
        materials = read_dataset(dataset)
        if number == 1:
            table = _table_1(materials, used, context)
        elif number == 2:
            table = _table_2(materials, used, context)
        elif number == 5:
            table = _table_5(materials, context)
        else:
            table = _accuracy_table(number, materials, used, context)
        write_table(table, csv, markdown)


def _table_1(dataset: pd.DataFrame, used: Mapping[str, Path], context: Mapping[str, Any]) -> Table:
    cells = []
    sizes = _sizes(dataset, "patterns")
    for model in TABLES[1]:
        name, n_test = MODELS[model], sizes.test.sum()
        values = dict.fromkeys((ALL_ITEMS, MEAN_OF_7, MEAN_OF_6), (NOT_RUN, ""))
        if model in used:
            single, _ = _outcomes(used[model], dataset, "crystal_system", context)
            values, n_test = dict(_summary(single, "fraction")), len(single.truth)
        base = {"row": name, "n_train": sizes.train.sum(), "n_test": n_test, "items": "patterns"}
        counts = {"Training patterns": base["n_train"], "Test patterns": n_test}
        for column, count in counts.items():
            value = count if model in used else NOT_RUN
            shown = published_column(STUDY, 1, column)[name]
            cells.append(base | {"column": column, "unit": "count", "value": value,
                                 "published": shown})  # fmt: skip
        for column, (value, interval) in values.items():
            given = column == AVERAGE_ROW[name]
            shown = published_column(STUDY, 1, "Test accuracy")[name] if given else ""
            cells.append(base | {"column": column, "unit": "fraction", "value": value,
                                 "interval": interval, "published": shown})  # fmt: skip
    caption = "Accuracy of the crystal system from single patterns, by method."
    notes = [INTERVAL_NOTE, _average_note(3, "PE-AG-GMoE", "RF")]
    return _finished(1, cells, context, caption, "Method", notes, used)


def _table_2(dataset: pd.DataFrame, used: Mapping[str, Path], context: Mapping[str, Any]) -> Table:
    test = dataset[dataset["split"] == "test"]
    counts = _counts(test)
    sizes = _sizes(dataset, "patterns")
    columns = {name: "count" for name in counts} | dict.fromkeys(("Precision", "Recall", "F1"), "%")
    values: dict[str, Any] = {name: [NOT_RUN] * len(SYSTEMS) for name in columns}
    if "pe_ag_gmoe" in used:
        single, _ = _outcomes(used["pe_ag_gmoe"], dataset, "crystal_system", context)
        metrics = class_metrics(single.truth, single.predicted, len(SYSTEMS))
        values = counts | {"Patterns": metrics.support}
        for name, column in zip(("Precision", "Recall", "F1"), metrics, strict=False):
            values[name] = [printed(value, "%") for value in column]
    cells = [
        {"row": SYSTEMS[k].capitalize(), "column": column, "unit": unit, "value": values[column][k],
         "published": published_column(STUDY, 2, column)[SYSTEMS[k].capitalize()],
         "n_train": sizes.train[k], "n_test": sizes.test[k], "items": "patterns"}
        for k in PRINTED for column, unit in columns.items()
    ]  # fmt: skip
    caption = "Precision, recall and F1 of the crystal system by PE-AG-GMoE, single test patterns."
    return _finished(2, cells, context, caption, "Crystal system", [], used)


def _accuracy_table(
    number: int, dataset: pd.DataFrame, used: Mapping[str, Path], context: Mapping[str, Any]
) -> Table:
    """Tables 3 (crystal systems) and 4 (space groups by true crystal system)."""
    target = {3: "crystal_system", 4: "space_group"}[number]
    outcomes = {model: _outcomes(path, dataset, target, context) for model, path in used.items()}
    cells = []
    for kind, items in enumerate(("patterns", "materials")):
        sizes = _sizes(dataset, items)
        for model in TABLES[number]:
            name = MODELS[model]
            column = f"{name} (Agg.)" if items == "materials" else name
            given = published_column(STUDY, number, column)
            shown = dict(given) | {AVERAGE_ROW[name]: given["Accuracy (avg.)"]}
            outcome = outcomes[model][kind] if model in outcomes else None
            test = sizes.test if outcome is None else outcome.total
            for label, chosen in _rows():
                value, interval = (NOT_RUN, "") if outcome is None else _accuracy(outcome, label)
                cells.append(
                    {"row": label, "column": column, "unit": "%", "value": value,
                     "interval": interval, "published": shown.get(label, ""), "items": items,
                     "n_train": sizes.train[chosen].sum(), "n_test": test[chosen].sum()}
                )  # fmt: skip
    what = {3: "the crystal system", 4: "the space group, by true crystal system"}[number]
    caption = f"Accuracy of {what}, from single patterns and from votes over patterns (Agg.)."
    vote_note = (
        f"Agg.: majority vote over up to {context['aggregate']} patterns of each material, drawn at "
        "random; ties go to the higher mean probability."
    )
    notes = [INTERVAL_NOTE, vote_note, _average_note(number, "PE-AG-GMoE", "RF"),
             _average_note(number, "PE-AG-GMoE (Agg.)", "RF (Agg.)"),
             *text_differences(STUDY, number)]  # fmt: skip
    return _finished(number, cells, context, caption, "Crystal system", notes, used)


def _table_5(dataset: pd.DataFrame, context: Mapping[str, Any]) -> Table:
    counts = _counts(dataset[dataset["split"] == "train"])
    sizes = _sizes(dataset, "patterns")
    share = counts["Patterns"] / max(counts["Patterns"].sum(), 1)
    columns = counts | {"Percentage": share}
    cells = []
    for label, chosen in [*_rows()[: len(SYSTEMS)], ("Total", slice(None))]:
        for column, values in columns.items():
            unit = "%" if column == "Percentage" else "count"
            value = values[chosen].sum()
            cells.append(
                {"row": label, "column": column, "unit": unit, "items": "patterns",
                 "value": f"{100 * value:.2f}" if unit == "%" else value,
                 "published": published_column(STUDY, 5, column)[label],
                 "n_train": sizes.train[chosen].sum(), "n_test": sizes.test[chosen].sum()}
            )  # fmt: skip
    caption = "The training split by crystal system."
    patterns, materials = (_published_numbers(5, name) for name in ("Patterns", "Materials"))
    ratio = patterns / materials
    notes = [
        "Materials set apart for validation are in neither the training nor the test split.",
        "The paper speaks of 100 zone-axis patterns per structure; its own counts are "
        f"{ratio.min():.1f} to {ratio.max():.1f} per material.",
    ]
    return _finished(5, cells, context, caption, "Crystal system", notes, {})


INTERVAL_NOTE = (
    "In brackets: Wilson 95 % interval, with test items taken as independent. Patterns of one "
    "material are not, so that the interval of single patterns is too narrow."
)


class _Sizes:
    """Items of the training and test splits by crystal system, each of shape (7,)."""

    def __init__(self, train: NDArray[np.int64], test: NDArray[np.int64]) -> None:
        self.train, self.test = train, test


def _sizes(dataset: pd.DataFrame, items: str) -> _Sizes:
    name = items.capitalize()
    train, test = (_counts(dataset[dataset["split"] == split])[name] for split in ("train", "test"))
    return _Sizes(train, test)


def _counts(materials: pd.DataFrame) -> dict[str, NDArray[np.int64]]:
    """Count patterns, materials and distinct space groups by crystal system, each shape (7,)."""
    system = materials["system"].to_numpy()
    distinct = materials.drop_duplicates(["system", "space_group"])["system"].to_numpy()
    n = len(SYSTEMS)
    return {
        "Patterns": np.bincount(system, materials["n_patterns"], n).astype(np.int64),
        "Materials": np.bincount(system, minlength=n),
        "Space groups": np.bincount(distinct, minlength=n),
    }


def _rows() -> list[tuple[str, Any]]:
    """Return the rows of the accuracy tables, each with the systems that it covers."""
    systems: list[tuple[str, Any]] = [(SYSTEMS[k].capitalize(), slice(k, k + 1)) for k in PRINTED]
    whole = slice(None)
    return [*systems, (ALL_ITEMS, whole), (MEAN_OF_7, whole), (MEAN_OF_6, slice(1, None))]


def _accuracy(outcome: Outcome, row: str) -> tuple[str, str]:
    """Return accuracy and interval, in percent as printed, of one row of the accuracy tables."""
    if row.lower() in SYSTEMS:
        k = SYSTEMS.index(row.lower())
        return _fraction(outcome.right[k], outcome.total[k], "%")
    return dict(_summary(outcome, "%"))[row]


def _summary(outcome: Outcome, unit: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the three averages as printed; systems without test items are left out of the means."""
    right, total = outcome.right, outcome.total
    yield ALL_ITEMS, _fraction(right.sum(), total.sum(), unit)
    for row, first in ((MEAN_OF_7, 0), (MEAN_OF_6, 1)):
        present = np.flatnonzero(total[first:]) + first
        mean = (right[present] / total[present]).mean() if len(present) else np.nan
        yield row, (printed(mean, unit), "")


def _fraction(right: float, total: float, unit: str) -> tuple[str, str]:
    if total == 0:
        return NOT_GIVEN, ""
    low, high = wilson_interval(right, total)
    return printed(right / total, unit), f"{printed(low, unit)}–{printed(high, unit)}"


def printed(fraction: float, unit: str) -> str:
    """Return a fraction as the paper prints it: percent with one decimal, or three decimals."""
    if np.isnan(fraction):
        return NOT_GIVEN
    return f"{100 * fraction:.1f}" if unit == "%" else f"{fraction:.3f}"


def _published_numbers(table: int, column: str) -> NDArray[np.float64]:
    """Return the printed class values of a column by crystal system, shape (7,); NaN if absent."""
    values = published_column(STUDY, table, column)
    names = [system.capitalize() for system in SYSTEMS]
    return pd.to_numeric(values[names], errors="coerce").to_numpy(np.float64)


def _average_note(table: int, pooled: str, averaged: str) -> str:
    """Return what the paper's two averages are, computed from its own class values."""
    items = "Materials" if "Agg." in pooled else "Patterns"
    weights = _published_numbers(2, items)
    ours, theirs = _published_numbers(table, pooled), _published_numbers(table, averaged)
    six = slice(1, None)
    average = "Accuracy (avg.)"
    return (
        f"The published averages differ in kind: from the class values of Table {table} and the "
        f"test {items.lower()} of Table 2, the one of {pooled} "
        f"({published_column(STUDY, table, pooled)[average]}) is over all test items "
        f"({np.average(ours, weights=weights):.1f}; unweighted {ours.mean():.1f}), the one of "
        f"{averaged} ({published_column(STUDY, table, averaged)[average]}) the unweighted mean of "
        f"six systems without triclinic ({theirs[six].mean():.1f}; weighted "
        f"{np.average(theirs[six], weights=weights[six]):.1f}). Each stands in the row it belongs to."
    )


def _outcomes(
    path: Path, dataset: pd.DataFrame, target: str, context: Mapping[str, Any]
) -> tuple[Outcome, Outcome]:
    return read_outcomes(path, dataset, target, context["aggregate"], context["seed"])


def _finished(
    number: int,
    cells: list[dict[str, Any]],
    context: Mapping[str, Any],
    caption: str,
    stub: str,
    notes: list[str],
    used: Mapping[str, Path],
) -> Table:
    source = context["source"]
    stand_in = STAND_IN.get(source, f"structures from {source} in place of the Materials Project")
    frame = pd.DataFrame(cells).assign(
        study=STUDY, table=number, dataset=context["dataset"], scale=context["scale"],
        seed=context["seed"], stand_in=stand_in,
    )  # fmt: skip
    frame["interval"] = frame["interval"].fillna("") if "interval" in frame else ""
    absent = [MODELS[model] for model in TABLES[number] if model not in used]
    if absent:
        notes = [*notes, f"Not run: {listed(absent)}."]
    return Table(frame, caption, stub, (*notes, provenance_note(frame)))
