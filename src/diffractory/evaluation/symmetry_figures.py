"""Figures of the symmetry study: of Nathani et al. (2026) by number, and ours by name."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffractory.evaluation.architecture import architecture_figure
from diffractory.evaluation.drawing import Drawing, write_drawing
from diffractory.evaluation.metrics import confusion_matrix, row_normalized
from diffractory.evaluation.published import published_column
from diffractory.evaluation.style import (
    INK,
    MUTED,
    SYSTEM_COLOURS,
    WIDTH,
    figure_style,
)
from diffractory.evaluation.symmetry import (
    MODELS,
    N_SYSTEMS,
    PRINTED,
    STUDY,
    Outcome,
    aggregated_how,
    read_dataset,
    read_predictions,
)
from diffractory.evaluation.symmetry_curves import absent, calibration_figure, zone_axes_figure
from diffractory.evaluation.symmetry_robustness import robustness_figure
from diffractory.evaluation.symmetry_scan_figure import scan_figure
from diffractory.evaluation.tables import check_name, listed
from diffractory.store import CRYSTAL_SYSTEMS, InputError, recorded

ARCHITECTURE = {
    "5": ("", False, "PE-AG-GMoE from spots to classes"),
    "6": ("encoder", False, "Pointlist encoder"),
    "7": ("graph", False, "Attention graph"),
    "8": ("graphormer", True, "Graphormer with mixtures of experts"),
}
"""Figures of the built network: which block is drawn, whether its blocks too, and the title."""

FIGURES: dict[str, tuple[str, ...]] = {
    "1": tuple(MODELS),
    "2": tuple(MODELS),
    "3": (),
    "4": (),
    **dict.fromkeys(ARCHITECTURE, ()),
    "zone_axes": tuple(MODELS),
    "calibration": tuple(MODELS),
    "robustness": tuple(MODELS),
}
"""Models whose predictions each figure reads, for Figure 2 map folders; all read the dataset."""

NAMES = [CRYSTAL_SYSTEMS[k].capitalize() for k in PRINTED]
COLOURS = [SYSTEM_COLOURS[CRYSTAL_SYSTEMS[k]] for k in PRINTED]
BINS = np.linspace(0, 1, 21)
"""Edges of the histograms of the confidence."""

MIN_BLOCK, MAX_LINE = 9, 80
"""Bars of Figure 4: least that a crystal system takes, so that its name fits, and per line."""

Block = tuple[str, int, pd.DataFrame]
"""A crystal system, the place of its first bar, and its space groups."""


def make_figure(
    name: str,
    dataset: Path,
    predictions: Mapping[str, Path],
    context: Mapping[str, Any],
    svg: Path,
    png: Path,
    csv: Path,
    run: Path,
    architecture: Path | None = None,
    conditions: Path | None = None,
) -> None:
    """Write one figure from our data.

    Parameters
    ----------
    name
        A key of ``FIGURES``.
    dataset
        ``dataset.parquet``: one row per material that has patterns.
    predictions
        Prediction files by model, for Figure 2 map folders; models without one are left out and
        named in the caption.
    context
        ``scale``, ``dataset``, ``source``, ``seed``; for Figure 1, ``aggregate``: the number of
        patterns per material in the vote; and for Figure 2, ``scan``: the source of the scan.
    svg, png, csv, run
        What to write: the figure twice, the plotted data, and the record.
    architecture
        ``architecture.json`` of PE-AG-GMoE, for the figures in ``ARCHITECTURE``.
    conditions
        What the stage `perturb_patterns` says of its patterns, for the figure ``robustness``, whose
        predictions are of these; what `simulate_scan` says of a simulated scan, for Figure 2.

    Raises
    ------
    InputError
        If an input is not of the form described, the study has no such figure, or no model ran
        that the figure could show.
    """
    check_name(name, FIGURES, "figure", STUDY)
    used = {model: predictions[model] for model in FIGURES[name] if model in predictions}
    if FIGURES[name] and not used:
        raise InputError(
            f"figure {name} shows predictions, but no model ran: run one of {listed(FIGURES[name])}"
        )
    inputs = [dataset, *used.values(), *filter(None, [architecture, conditions])]
    config, outputs = {**context, "figure": name}, [svg, png, csv]
    with recorded(run, "plot_symmetry", config, inputs, outputs, context["seed"]):
        materials = read_dataset(dataset)
        with figure_style():
            drawing = _drawing(name, materials, used, context, architecture, conditions)
            write_drawing(drawing, context, svg, png, csv)


def _drawing(
    name: str,
    dataset: pd.DataFrame,
    used: Mapping[str, Path],
    context: Mapping[str, Any],
    architecture: Path | None,
    conditions: Path | None,
) -> Drawing:
    match name:
        case "1":
            return _figure_1(dataset, used, context)
        case "2":
            return scan_figure(used, context["scan"], conditions)
        case "3":
            return _figure_3(dataset)
        case "4":
            return _figure_4(dataset)
        case "zone_axes":
            return zone_axes_figure(dataset, used, context["seed"])
        case "calibration":
            return calibration_figure(dataset, used)
        case "robustness":
            return robustness_figure(conditions, used)
    if architecture is None:
        raise InputError(f"figure {name} shows the network PE-AG-GMoE, which was not run: train it")
    return architecture_figure(architecture, *ARCHITECTURE[name])


def _figure_1(
    dataset: pd.DataFrame, used: Mapping[str, Path], context: Mapping[str, Any]
) -> Drawing:
    figure = Figure(figsize=(WIDTH, 2.85 * len(used)))
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        len(used), 4, width_ratios=(1, 1, 0.62, 0.62), left=0.135, right=0.985, wspace=0.09,
        hspace=0.45, top=1 - 0.52 / height, bottom=0.48 / height,
    )  # fmt: skip
    singles = {
        model: read_predictions(path, dataset, "crystal_system") for model, path in used.items()
    }
    data = []
    for line, (model, single) in enumerate(singles.items()):
        chosen = single.ranks(1, context["seed"])[0] < context["aggregate"]
        axes = [figure.add_subplot(grid[line, column]) for column in range(4)]
        kinds = ((single, "patterns"), (single.aggregated(chosen), "materials"))
        for k, (outcome, items) in enumerate(kinds):
            confusions = _draw_confusion(axes[k], outcome)
            confidences = _draw_confidence(axes[2 + k], outcome)
            n = f"{len(outcome.truth):,} {items}"
            axes[k].set_title(f"Predicted, %\n{n}")
            axes[2 + k].set_title(f"Confidence\n{n}")
            data.append(confusions.assign(model=MODELS[model], panel="ab"[k], items=items))
            data.append(confidences.assign(model=MODELS[model], panel="cd"[k], items=items))
        for letter, ax in zip("abcd", axes, strict=True):
            ax.text(0, 1.12, letter, transform=ax.transAxes, fontweight="bold", fontsize=9)
            ax.set_yticks(range(len(NAMES)), NAMES if ax is axes[0] else [])
        axes[0].text(-0.03, 1.12, MODELS[model], transform=axes[0].transAxes, ha="right",
                     fontweight="bold", fontsize=9)  # fmt: skip
    caption = (
        "Crystal systems predicted from single patterns (a, c) and from up to "
        f"{context['aggregate']} patterns of a material together (b, d), combined "
        f"{aggregated_how(singles)}. a, b: share of each true system (row) that was given each "
        "name (column), in percent. c, d: confidence by true system; each histogram has its own "
        "height, the line marks the median. The confidence of a vote is the mean probability of "
        "the winner, that of a fusion the fused probability. RF: hierarchical random forest. "
        f"Ours: the network of this project.{absent(used)}"
    )
    columns = ["model", "panel", "items", "true", "predicted", "bin_low", "bin_high", "count",
               "percent"]  # fmt: skip
    title = "Confusion and confidence of the crystal system"
    return Drawing(figure, title, caption, pd.concat(data)[columns])


def _draw_confusion(ax: Axes, outcome: Outcome) -> pd.DataFrame:
    counts = confusion_matrix(outcome.truth, outcome.predicted, N_SYSTEMS)
    counts = counts[np.ix_(PRINTED, PRINTED)]
    percent = 100 * row_normalized(counts)
    centres = np.arange(len(NAMES))
    ax.pcolormesh(
        centres, centres, percent, cmap="Blues", vmin=0, vmax=115, edgecolors="white", linewidth=1
    )
    ax.set_ylim(len(NAMES) - 0.5, -0.5)
    for (i, j), value in np.ndenumerate(percent):
        if value > 0.5:  # zeros stay empty
            colour = "white" if value > 60 else INK
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=7.5)
    ax.set_xticks(centres, [name[:5] for name in NAMES], rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    true, predicted = np.meshgrid(NAMES, NAMES, indexing="ij")
    return pd.DataFrame({"true": true.ravel(), "predicted": predicted.ravel(),
                         "count": counts.ravel(), "percent": percent.ravel()})  # fmt: skip


def _draw_confidence(ax: Axes, outcome: Outcome) -> pd.DataFrame:
    data = []
    for row, (k, name, colour) in enumerate(zip(PRINTED, NAMES, COLOURS, strict=True)):
        confidence = outcome.confidence[outcome.system == k]
        counts, _ = np.histogram(confidence, BINS)
        base = row + 0.42
        ax.axhline(base, color="#d8d8d8", linewidth=0.6, zorder=0)
        if counts.any():
            top = base - 0.8 * counts / counts.max()
            ax.stairs(top, BINS, baseline=base, fill=True, color=colour)
            median = np.median(confidence)
            ax.plot([float(median)] * 2, [base, base - 0.8], color=INK, linewidth=1)
        data.append(pd.DataFrame({
            "true": name, "bin_low": BINS[:-1], "bin_high": BINS[1:], "count": counts,
            "percent": 100 * counts / max(counts.sum(), 1),
        }))  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(len(NAMES) - 0.5, -0.5))
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return pd.concat(data)


def _figure_3(dataset: pd.DataFrame) -> Drawing:
    training = dataset[dataset["split"] == "train"]
    patterns = np.bincount(training["system"], training["n_patterns"], N_SYSTEMS)[list(PRINTED)]
    percent = 100 * patterns / max(patterns.sum(), 1)
    published = published_column(STUDY, 5, "Percentage")[NAMES].astype(float).to_numpy()
    figure = Figure(figsize=(WIDTH, 2.75))
    ax = figure.add_axes((0.125, 0.165, 0.68, 0.735))
    rows = np.arange(len(NAMES))
    ax.barh(rows, percent, height=0.66, color=COLOURS, label="this dataset")
    ax.plot(published, rows, linestyle="none", marker="|", markersize=15, markeredgewidth=2,
            color=INK)  # fmt: skip
    ax.set_yticks(rows, NAMES)
    ax.set(xlim=(0, 1.06 * max(percent.max(), published.max())), xlabel="Patterns, %",
           ylim=(len(rows) - 0.5, -0.5))  # fmt: skip
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    beside = ax.get_yaxis_transform()
    ax.plot(1.135, -0.9, transform=beside, marker="|", markersize=8, markeredgewidth=2, color=INK,
            clip_on=False)  # fmt: skip
    for x, head, values in ((1.09, "here", percent), (1.275, "published", published)):
        ax.text(x, -0.75, head, transform=beside, ha="right", va="bottom", color=MUTED)
        for row, value in enumerate(values):
            ax.text(x, row, f"{value:.2f}", transform=beside, ha="right", va="center")
    caption = (
        "Share of the diffraction patterns by crystal system, training split. Bars: this dataset, "
        f"{patterns.sum():,.0f} patterns; black marks: the published shares, from Table 5 of the "
        "paper."
    )
    data = pd.DataFrame({"crystal_system": NAMES, "patterns": patterns.astype(int),
                         "percent": percent, "published_percent": published})  # fmt: skip
    return Drawing(figure, "Patterns by crystal system", caption, data)


def _figure_4(dataset: pd.DataFrame) -> Drawing:
    counts = (
        dataset[dataset["split"] == "test"]
        .groupby(["system", "space_group"], as_index=False)
        .agg(patterns=("n_patterns", "sum"), materials=("material_id", "nunique"))
        .sort_values(["system", "patterns", "space_group"], ascending=[False, False, True])
        .reset_index(drop=True)
    )
    if counts.empty:
        raise InputError("the dataset has no test materials: raise split.test")
    lines = _lines(counts)
    figure = Figure(figsize=(WIDTH, 1.5 * len(lines) + 0.34))
    height = figure.get_figheight()
    grid = figure.add_gridspec(len(lines), 1, left=0.1, right=0.995, hspace=0.5,
                               top=1 - 0.2 / height, bottom=0.44 / height)  # fmt: skip
    width = max(line[-1][1] + max(len(line[-1][2]), MIN_BLOCK) for line in lines)
    for row, line in enumerate(lines):
        ax = figure.add_subplot(grid[row])
        ax.set(yscale="log", ylim=(0.7, 1.5 * counts["patterns"].max()), xlim=(-1, width))
        _draw_space_groups(ax, line)
    ax.set_xlabel("Space group number")
    caption = (
        f"Patterns per space group in the test split ({len(counts)} space groups, "
        f"{counts['patterns'].sum():,} patterns), on a logarithmic scale, by descending number "
        "within each crystal system."
    )
    counts["crystal_system"] = [CRYSTAL_SYSTEMS[k].capitalize() for k in counts.pop("system")]
    data = counts[["crystal_system", "space_group", "patterns", "materials"]]
    return Drawing(figure, "Patterns per space group in the test split", caption, data)


def _lines(counts: pd.DataFrame) -> list[list[Block]]:
    """Divide the crystal systems, in order, among as few and then as even lines as possible."""
    blocks = [counts[counts["system"] == k] for k in PRINTED]
    blocks = [block for block in blocks if len(block)]
    widths = np.array([max(len(block), MIN_BLOCK) + 1 for block in blocks])
    starts = np.concatenate([[0], np.cumsum(widths)])

    def longest(cuts: tuple[int, ...]) -> int:
        return int(np.diff(starts[[0, *cuts, len(blocks)]]).max())

    for n_cuts in range(len(blocks)):
        cuts = min(combinations(range(1, len(blocks)), n_cuts), key=longest)
        if longest(cuts) <= MAX_LINE:
            break
    line_of = np.searchsorted(cuts, range(len(blocks)), side="right")
    lines: list[list[Block]] = [[] for _ in range(len(cuts) + 1)]
    for line, start, block in zip(line_of, starts[:-1], blocks, strict=True):
        first = starts[[0, *cuts]][line]
        lines[line].append((CRYSTAL_SYSTEMS[block["system"].iloc[0]], int(start - first), block))
    return lines


def _draw_space_groups(ax: Axes, line: list[Block]) -> None:
    ticks: list[int] = []
    for system, start, block in line:
        place = range(start, start + len(block))
        ticks += place
        ax.bar(place, block["patterns"], width=0.8, color=SYSTEM_COLOURS[system])
        ax.text(start - 0.4, 1.02, system.capitalize(), transform=ax.get_xaxis_transform())
    numbers = pd.concat([block["space_group"] for _, _, block in line])
    ax.set_xticks(ticks, [str(number) for number in numbers], rotation=90)
    ax.tick_params(axis="x", labelsize=5.5, length=0, pad=2)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.minorticks_off()
    ax.grid(axis="y")
    ax.set_ylabel("Patterns")
