"""What perturbations of the patterns cost: accuracy of the crystal system against their level."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from diffractory.augment import UNPERTURBED
from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.metrics import wilson_interval
from diffractory.evaluation.style import MUTED, WIDTH
from diffractory.evaluation.symmetry import MODELS
from diffractory.evaluation.symmetry_curves import LOOKS, absent
from diffractory.evaluation.tables import listed, read_columns
from diffractory.store import InputError


class Perturbation(NamedTuple):
    """Words for a perturbation, and the factor from its level to its unit."""

    name: str
    unit: str
    factor: float = 1


PERTURBATIONS = {
    "missing_spots": Perturbation("Missing spots", "%", 100),
    "spurious_spots": Perturbation("Spurious spots", "%", 100),
    "position_jitter": Perturbation("Position jitter", "1/Å"),
    "centre_offset": Perturbation("Offset of the centre", "1/Å"),
    "calibration_error": Perturbation("Calibration error", "%", 100),
    "thickness": Perturbation("Foil thickness", "Å"),
}
"""By their name in the table of conditions, in the order of panels and rows."""


def row_label(perturbation: str, level: float) -> str:
    """Return a perturbation and its level in words, such as "Missing spots, 10 %"."""
    if perturbation == UNPERTURBED:
        return "As simulated"
    words = PERTURBATIONS[perturbation]
    return f"{words.name}, {words.factor * level:g} {words.unit}"


def read_outcomes(conditions: Path | None, used: Mapping[str, Path]) -> pd.DataFrame:
    """Return one row per pattern: what was done to it, and whether each model was right.

    Parameters
    ----------
    conditions
        What the stage `perturb_patterns` says of each pattern of its store.
    used
        Prediction files of these patterns, by model.

    Returns
    -------
    ``perturbation``, ``level`` and ``thickness`` (angstrom) as in the conditions, and by the name
    of each model whether its crystal system is the true one.

    Raises
    ------
    InputError
        If a file is missing or not of this form, or predictions are not of these patterns.
    """
    if conditions is None:
        raise InputError(
            "robustness is of perturbed patterns, whose conditions are not given: perturb them"
        )
    table = read_columns(conditions, ["pattern", "perturbation", "level", "thickness"])
    for model, path in used.items():
        said = read_columns(path, ["pattern", "crystal_system", "predicted_crystal_system"])
        right = (said["crystal_system"] == said["predicted_crystal_system"]).set_axis(
            said["pattern"]
        )
        if sorted(right.index) != sorted(table["pattern"]):
            raise InputError(
                f"{path} does not hold one prediction for each pattern of {conditions}: evaluate "
                "the model again"
            )
        table[model] = table["pattern"].map(right)
    return table.drop(columns="pattern")


def meaning(outcomes: pd.DataFrame) -> str:
    """Return what the perturbations are, in words, given what ``read_outcomes`` returns."""
    simulated = np.unique(outcomes["thickness"][outcomes["perturbation"] == UNPERTURBED])
    return (
        "Missing spots: each spot but the direct beam is lost with this probability. Spurious "
        "spots: so many per diffracted spot, at random places, with intensities of the same "
        "pattern's spots. Position jitter: normal; its standard deviation per axis. Offset of the "
        "centre: the whole pattern is moved, in a random direction. Calibration error: all "
        "positions are scaled. Foil thickness: simulated again, for another thickness than the "
        f"{listed([f'{thickness:g}' for thickness in simulated])} Å of all other patterns."
    )


def robustness_figure(conditions: Path | None, used: Mapping[str, Path]) -> Drawing:
    """Draw accuracy against the level of each perturbation; parameters as ``read_outcomes``."""
    outcomes = read_outcomes(conditions, used)
    plain = outcomes[outcomes["perturbation"] == UNPERTURBED]
    figure = Figure(figsize=(WIDTH, 4.5))
    axes = figure.subplots(2, 3, sharey=True, gridspec_kw={
        "left": 0.07, "right": 0.985, "top": 0.9, "bottom": 0.095, "wspace": 0.12, "hspace": 0.4,
    })  # fmt: skip
    data = []
    for letter, ax, name in zip("abcdef", axes.flat, PERTURBATIONS, strict=True):
        words = PERTURBATIONS[name]
        # As simulated, patterns stand at level 0, or at the thickness that they are of.
        start = plain["thickness"] if name == "thickness" else 0.0
        points = pd.concat([plain.assign(level=start), outcomes[outcomes["perturbation"] == name]])
        for model in used:
            curve = _curve(points["level"], points[model])
            colour, marker = LOOKS[model]
            level = words.factor * curve["level"]
            ax.fill_between(level, curve["low"], curve["high"], color=colour, alpha=0.13,
                            linewidth=0)  # fmt: skip
            ax.plot(level, curve["accuracy"], color=colour, marker=marker,
                    markersize=3.5, linewidth=1.2, label=MODELS[model])  # fmt: skip
            data.append(curve.assign(model=MODELS[model], perturbation=name))
        for level in np.unique(start):
            ax.axvline(level, color=MUTED, linewidth=0.8, linestyle="--", zorder=0)
        ax.set_xlabel(f"{words.name}, {words.unit}")
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        ax.text(0, 1.04, letter, transform=ax.transAxes, fontweight="bold", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("Accuracy, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(used), borderaxespad=0.2)
    table = pd.concat(data)
    caption = (
        f"Accuracy of the crystal system from {len(plain):,} single test patterns, the same in all "
        f"points, against the level of six perturbations. {meaning(outcomes)} Dashed lines: the "
        "patterns as simulated. Bands: Wilson 95 % intervals, with patterns taken as independent."
        f"{absent(used)}"
    )
    # As text: data are written with two decimals, which are too few for levels.
    table["level"] = table["level"].map("{:g}".format)
    columns = ["model", "perturbation", "level", "accuracy", "low", "high", "patterns"]
    return Drawing(figure, "Accuracy on perturbed patterns", caption, table[columns])


def _curve(level: "pd.Series[float]", right: "pd.Series[bool]") -> pd.DataFrame:
    """Return accuracy and its interval in percent, and the number of patterns, by level."""
    counts = right.groupby(level).agg(["sum", "size"])
    intervals = [wilson_interval(n, of) for n, of in counts.itertuples(index=False)]
    curve = 100 * pd.DataFrame(intervals, columns=["low", "high"], index=counts.index)
    curve["accuracy"] = 100 * counts["sum"] / counts["size"]
    return curve.assign(patterns=counts["size"]).reset_index()
