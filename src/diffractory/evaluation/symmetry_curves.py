"""Figures of the symmetry study that compare the models by one line each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffractory.evaluation.calibration import EDGES, N_BINS, reliability, selection
from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.style import MUTED, WIDTH
from diffractory.evaluation.symmetry import (
    MODELS,
    SPACE_GROUP_MODELS,
    Patterns,
    aggregated_how,
    read_predictions,
)
from diffractory.evaluation.tables import listed

LOOKS = {
    "pe_ag_gmoe": ("#0077bb", "o"),
    "random_forest": ("#ee7733", "s"),
    "mvof_ml": ("#009988", "D"),
    "ours": ("#cc3311", "^"),
}
"""Colour and marker of each model; colours of Paul Tol's vibrant scheme."""

N_DRAWS = 10
MOST_ZONE_AXES = 20

MOST_POINTS = 200
"""Points of a curve of accuracy against coverage."""


def zone_axes_figure(dataset: pd.DataFrame, used: Mapping[str, Path], seed: int) -> Drawing:
    """Draw accuracy against the number of zone axes that are combined.

    Parameters
    ----------
    dataset
        As ``symmetry.read_dataset`` gives it.
    used
        Prediction files of the models that ran.
    seed
        Global seed.
    """
    targets = {"crystal_system": list(used)}
    if telling := [model for model in used if model in SPACE_GROUP_MODELS]:
        targets["space_group"] = telling
    figure, axes = _panels(len(targets))
    data, words = [], ""
    for ax, (target, models) in zip(axes, targets.items(), strict=True):
        singles = {model: read_predictions(used[model], dataset, target) for model in models}
        for model, single in singles.items():
            curve = _accuracy_by_count(single, seed)
            colour, marker = LOOKS[model]
            ax.fill_between(curve["zone_axes"], curve["lowest"], curve["highest"], color=colour,
                            alpha=0.2, linewidth=0)  # fmt: skip
            ax.plot(curve["zone_axes"], curve["accuracy"], color=colour, marker=marker,
                    markersize=3, linewidth=1, label=MODELS[model])  # fmt: skip
            data.append(curve.assign(model=MODELS[model], target=target))
        ax.set(xlabel="Zone axes per material", ylabel="Accuracy, %")
        ax.set_title(target.replace("_", " ").capitalize())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 5, 10]))
        words = words or aggregated_how(singles)
    axes[0].legend(loc="best")
    caption = (
        f"Accuracy against the number of zone axes that are combined, {words}. Materials with "
        f"fewer patterns give all that they have. Lines: mean of {N_DRAWS} random draws; bands: "
        f"lowest to highest.{absent(used)}"
    )
    columns = ["model", "target", "zone_axes", "accuracy", "lowest", "highest", "materials"]
    title = "Accuracy against the number of zone axes"
    return Drawing(figure, title, caption, pd.concat(data)[columns])


def _accuracy_by_count(single: Patterns, seed: int) -> pd.DataFrame:
    """Return mean, lowest and highest accuracy in percent of the draws, by number of zone axes."""
    ranks = single.ranks(N_DRAWS, seed)
    counts = range(1, min(MOST_ZONE_AXES, int(ranks.max()) + 1) + 1)
    materials = len(single.names)
    accuracy = np.array(
        [[single.aggregated(rank < n).right.sum() for rank in ranks] for n in counts]
    ) * (100 / materials)
    return pd.DataFrame({
        "zone_axes": counts, "accuracy": accuracy.mean(axis=1), "lowest": accuracy.min(axis=1),
        "highest": accuracy.max(axis=1), "materials": materials,
    })  # fmt: skip


def calibration_figure(dataset: pd.DataFrame, used: Mapping[str, Path]) -> Drawing:
    """Draw reliability, and accuracy against coverage; parameters as ``zone_axes_figure``."""
    figure, (left, right) = _panels(2)
    data = []
    left.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle="--")
    for model, path in used.items():
        single = read_predictions(path, dataset, "crystal_system")
        is_right = single.truth == single.predicted
        colour, marker = LOOKS[model]
        diagram = reliability(single.confidence, is_right)
        bins = pd.DataFrame({
            "bin_low": 100 * EDGES[:-1], "bin_high": 100 * EDGES[1:], "patterns": diagram.items,
            "confidence": 100 * diagram.confidence, "accuracy": 100 * diagram.accuracy,
        })  # fmt: skip
        filled = bins[bins["patterns"] > 0]
        left.plot(filled["confidence"], filled["accuracy"], color=colour, linewidth=1)
        left.scatter(filled["confidence"], filled["accuracy"], color=colour, marker=marker,
                     s=4 + 120 * filled["patterns"] / len(is_right), linewidth=0)  # fmt: skip
        chosen = selection(single.confidence, is_right)
        # Evenly over the coverage, and from the first point to the last.
        wanted = np.linspace(0, chosen.coverage[-1], MOST_POINTS)
        points = np.unique(np.searchsorted(chosen.coverage, wanted))
        curve = 100 * pd.DataFrame(chosen._asdict()).iloc[points]
        right.plot(curve["coverage"], curve["accuracy"], color=colour, linewidth=1.2,
                   marker=marker, markersize=3, markevery=0.1, label=MODELS[model])  # fmt: skip
        data += [bins.assign(model=MODELS[model], panel="a"),
                 curve.assign(model=MODELS[model], panel="b")]  # fmt: skip
    left.set(xlim=(0, 101.5), ylim=(0, 101.5), xlabel="Confidence, %", ylabel="Accuracy, %")
    left.set_title("Reliability")
    right.set(xlim=(0, 101.5), xlabel="Coverage, % of patterns", ylabel="Accuracy, %")
    right.set_title("Abstaining where confidence is low")
    right.legend(loc="lower left")
    caption = (
        "Calibration of the crystal system, single patterns. a: accuracy against mean confidence "
        f"(the probability of the predicted system) in {N_BINS} bins of equal width; the area of a "
        "marker grows with the share of the patterns, and the dashed line is perfect calibration. "
        "b: accuracy on the patterns that are answered when a model abstains below a threshold "
        f"of the confidence, against their share.{absent(used)}"
    )
    columns = ["model", "panel", "bin_low", "bin_high", "patterns", "confidence", "threshold",
               "coverage", "accuracy"]  # fmt: skip
    title = "Calibration of the crystal system"
    # Int64, as the curves have no number of patterns.
    table = pd.concat(data)[columns].astype({"patterns": "Int64"})
    return Drawing(figure, title, caption, table)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH * (0.54 if count == 1 else 1), 3.1))
    width = figure.get_figwidth()
    grid = figure.add_gridspec(1, count, left=0.52 / width, right=1 - 0.1 / width, top=0.91,
                               bottom=0.135, wspace=0.22)  # fmt: skip
    axes = [figure.add_subplot(grid[k]) for k in range(count)]
    for letter, ax in zip("ab", axes, strict=False):
        ax.grid()
        if count > 1:
            ax.text(-0.1, 1.035, letter, transform=ax.transAxes, fontweight="bold", fontsize=9)
    return figure, axes


def absent(used: Mapping[str, Path]) -> str:
    """Return the sentence on the models that did not run, or nothing."""
    names = [name for model, name in MODELS.items() if model not in used]
    return f" Not run: {listed(names)}." if names else ""
