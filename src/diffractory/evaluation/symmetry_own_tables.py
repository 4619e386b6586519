"""Tables of the symmetry study that go beyond Nathani et al. (2026)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from diffractory.evaluation.calibration import (
    N_BINS,
    brier_score,
    calibration_errors,
    coverage_at,
    negative_log_likelihood,
    reliability,
    selection,
)
from diffractory.evaluation.published import NOT_GIVEN
from diffractory.evaluation.symmetry import (
    MODELS,
    SPACE_GROUP_MODELS,
    Outcome,
    Patterns,
    read_predictions,
)
from diffractory.evaluation.symmetry_cells import (
    INTERVAL_NOTE,
    count_items,
    printed,
    share,
    train_and_test,
    vote_note,
)
from diffractory.evaluation.symmetry_robustness import meaning, read_outcomes, row_label
from diffractory.evaluation.tables import NOT_RUN, Table

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


def calibration_table(dataset: pd.DataFrame, used: Mapping[str, Path]) -> Table:
    """Return how far the probabilities of each model can be trusted.

    Parameters
    ----------
    dataset
        As ``symmetry.read_dataset`` gives it.
    used
        Prediction files of the models that ran.
    """
    train, test = train_and_test(dataset, "patterns")
    coverage = f"Coverage at {100 * WANTED_ACCURACY:.0f} % accuracy"
    units = {
        "ECE": "fraction",
        "MCE": "fraction",
        "Brier score": "",
        "NLL (nat)": "",
        coverage: "%",
    }
    cells = []
    for model in MODELS:
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
                printed(number, unit) for number, unit in zip(numbers, units.values(), strict=True)
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
    n_train, n_test = (count_items(dataset, part)[name].sum() for part in ("train", split))
    value, interval = NOT_GIVEN if ran else NOT_RUN, ""
    if outcome is not None:
        n_test = outcome.total.sum()
        value, interval = share(outcome.right.sum(), n_test, "%")
    return {"unit": "%", "value": value, "interval": interval, "published": "", "items": items,
            "n_train": n_train, "n_test": n_test}  # fmt: skip


def robustness_table(
    dataset: pd.DataFrame, used: Mapping[str, Path], conditions: Path | None
) -> Table:
    """Return accuracies on perturbed patterns; ``conditions`` as ``read_outcomes`` takes them."""
    train, _ = train_and_test(dataset, "patterns")
    outcomes = read_outcomes(conditions, used)
    rows = list(map(row_label, outcomes["perturbation"], outcomes["level"]))
    cells = []
    for row, part in outcomes.groupby(rows, sort=False):
        for model in MODELS:
            value, interval = NOT_RUN, ""
            if model in used:
                value, interval = share(int(part[model].sum()), len(part), "%")
            cells.append(
                {"row": row, "column": MODELS[model], "unit": "%",
                 "value": value, "interval": interval, "published": "", "items": "patterns",
                 "n_train": train.sum(), "n_test": len(part)}
            )  # fmt: skip
    caption = "Accuracy of the crystal system from single patterns that are perturbed."
    notes = (f"{meaning(outcomes)} All rows are of the same test patterns.", INTERVAL_NOTE)
    return Table(pd.DataFrame(cells), caption, "Perturbation", notes)


def prototypes_table(
    dataset: pd.DataFrame, used: Mapping[str, Path], context: Mapping[str, Any]
) -> Table:
    """Return accuracies on known and on new prototypes; ``context`` as for ``make_table``."""
    filled = [split for split in PARTS if (dataset["split"] == split).any()]
    answers = {
        (model, split): _answers(path, model, dataset, context, split)
        for model, path in used.items()
        for split in filled
    }
    cells = []
    for model in MODELS:
        for k, (question, items) in enumerate(QUESTIONS.items()):
            for split, part in PARTS.items():
                said = answers.get((model, split))
                cell = _accuracy_cell(dataset, split, items, model in used, said and said[k])
                cells.append({"row": MODELS[model], "column": f"{question}, {part}"} | cell)
    new = "materials of prototypes that were set apart whole, so that no other split has them"
    notes = [
        INTERVAL_NOTE,
        vote_note({model: said.system for (model, _), said in answers.items()}, context),
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


def ablations_table(
    names: Mapping[str, str],
    dataset: pd.DataFrame,
    used: Mapping[str, Path],
    context: Mapping[str, Any],
) -> Table:
    """Return accuracies of networks and their ablations, given their printed names."""
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
        vote_note(singles, context),
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
