"""Figure 2 of the symmetry study: a scan of nanoparticles, and the crystal systems found in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.published import published_column
from diffractory.evaluation.scan_maps import BACKGROUND, class_handles, draw_classes, scale_bar
from diffractory.evaluation.style import INK, MUTED, SYSTEM_COLOURS, WIDTH
from diffractory.evaluation.symmetry import MODELS, PRINTED, STUDY
from diffractory.evaluation.symmetry_scan import (
    AXES,
    NEAR_AXIS,
    SOURCE_OF_SHARES,
    STAND_INS,
    Truth,
    count_systems,
    how_mapped,
    read_maps,
    read_truth,
)
from diffractory.store import CRYSTAL_SYSTEMS
from diffractory.store.scan_maps import ABSTAINED, CLASSIFIED, ScanMap

SHOWN = {
    **dict(
        zip([f"along <{axis}>" for axis in AXES], ["#cc6677", "#ddcc77", "#44aa99"], strict=True)
    ),
    "other orientation": "#b8b8b8",
    "decahedron, several grains": "#aa4499",
    "overlapping particles": "#6a6a6a",
    "no particle": BACKGROUND,
}
"""Groups of positions that the panel of the truth tells apart, with their colours."""


def scan_figure(used: Mapping[str, Path], source: str, truth: Path | None) -> Drawing:
    """Draw a scan, its maps by each model, and the shares of the crystal systems.

    Parameters
    ----------
    used
        Map folders by model.
    source
        Of the scan: a key of ``STAND_INS``.
    truth
        What the stage `simulate_scan` says of each position; None for a measured scan.
    """
    maps = read_maps(used)
    first = next(iter(maps.values()))
    known = None if truth is None else read_truth(truth, first.state.shape)
    figure = Figure(figsize=(WIDTH, 4.5))
    grid = figure.add_gridspec(2, 2 + len(maps), width_ratios=[1.05, 0.42] + [1] * len(maps),
                               left=0.015, right=0.99, top=0.94, bottom=0.215, wspace=0.08,
                               hspace=0.24)  # fmt: skip
    ax = figure.add_subplot(grid[0, 0])
    _label(ax, "a", "Dark field")
    positions = _draw_scan(ax, first)
    if known is not None:
        ax = figure.add_subplot(grid[1, 0])
        _label(ax, "d", "What is there")
        positions["shown"] = _draw_truth(ax, known, first.state.shape)
    shares = []
    for k, (model, one) in enumerate(maps.items()):
        above, below = (figure.add_subplot(grid[line, 2 + k]) for line in (0, 1))
        _label(above, "" if k else "b", MODELS[model])
        _label(
            below, "" if k else "c", f"{count_systems(one).sum():,} of {one.state.size:,} positions"
        )
        positions[MODELS[model]] = _draw_map(above, one)
        shares.append(_draw_shares(below, model, one, labelled=k == 0))
    caption = (
        f"{STAND_INS[source][:1].upper()}{STAND_INS[source][1:]}. a: dark field, the electrons "
        "outside the direct beam. b: crystal system of each position by each method, in the "
        f"colours of c. {how_mapped(maps)} c: share of each crystal system in the classified "
        "positions, whose number is above; black marks: published shares, of another specimen "
        f"(the paper's text on its Figure 2; those of RF are rough).{_words_of_truth(known)} RF: "
        "hierarchical random forest. Ours: the network of this project."
    )
    places = positions.assign(panel="a, b" if known is None else "a, b, d")
    table = pd.concat([places, *shares]).assign(stand_in=STAND_INS[source])
    table = table.astype({"row": "Int64", "column": "Int64", "positions": "Int64"})
    return Drawing(figure, "Crystal systems in a scan of nanoparticles", caption, table)


def _label(ax: Axes, letter: str, title: str) -> None:
    ax.set_title(letter, loc="left", fontweight="bold", fontsize=9)
    ax.set_title(title)


def _draw_scan(ax: Axes, one: ScanMap) -> pd.DataFrame:
    """Draw the dark field; return it by position, in percent of the electrons of a frame."""
    percent = 100 * one.dark_field
    ax.imshow(percent, cmap="gray", interpolation="none")
    ax.set(xticks=[], yticks=[])
    scale_bar(ax, percent.shape[1], one.attributes["step"])
    row, column = np.indices(percent.shape)
    return pd.DataFrame(
        {"row": row.ravel(), "column": column.ravel(), "dark_field_percent": percent.ravel()}
    )


def _draw_truth(ax: Axes, known: Truth, shape: tuple[int, ...]) -> NDArray[np.str_]:
    """Draw what is under the probe; return its name by position."""
    index = np.select([known.groups[name] for name in SHOWN], range(len(SHOWN)))
    colours = np.array([to_rgb(colour) for colour in SHOWN.values()])
    ax.imshow(colours[index].reshape(*shape, 3), interpolation="none")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    handles = [
        Patch(facecolor=colour, edgecolor=MUTED, linewidth=0.4, label=name)
        for name, colour in SHOWN.items()
    ]
    _explain(ax, handles, 0.02)
    return np.array(list(SHOWN))[index]


def _draw_map(ax: Axes, one: ScanMap) -> NDArray[np.str_]:
    """Draw the crystal system of each position; return its name, or why there is none."""
    colours = [SYSTEM_COLOURS[name] for name in CRYSTAL_SYSTEMS]
    draw_classes(ax, one, one.crystal_system, colours)
    systems = np.array(CRYSTAL_SYSTEMS)[one.crystal_system]
    reasons = np.array(["", *ABSTAINED.values()])[one.state]
    return np.where(one.state == CLASSIFIED, systems, reasons).ravel()


def _draw_shares(ax: Axes, model: str, one: ScanMap, labelled: bool) -> pd.DataFrame:
    """Draw the share of each crystal system, and the published ones; return both."""
    counts = count_systems(one)[list(PRINTED)]
    percent = 100 * counts / max(counts.sum(), 1)
    systems = [CRYSTAL_SYSTEMS[k] for k in PRINTED]
    names = [system.capitalize() for system in systems]
    printed = [published_column(STUDY, SOURCE_OF_SHARES, name) for name in names]
    published = np.array([float(column.get(MODELS[model], "nan")) for column in printed])
    rows = np.arange(len(names))
    ax.barh(rows, percent, height=0.72, color=[SYSTEM_COLOURS[system] for system in systems])
    (marks,) = ax.plot(published, rows, linestyle="none", marker="|", markersize=9,
                       markeredgewidth=1.6, color=INK, label="published")  # fmt: skip
    for row, value, mark in zip(rows, percent, np.nan_to_num(published), strict=True):
        ax.text(max(value, mark) + 3, int(row), f"{value:.0f}", va="center", fontsize=6.5,
                color=MUTED)  # fmt: skip
    ax.set(xlim=(0, 115), ylim=(len(rows) - 0.4, -0.6), xlabel="Classified positions, %")
    ax.set_yticks(rows, names if labelled else [])
    ax.set_xticks([0, 50, 100])
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    handles = class_handles([], [], np.zeros(0, int), one.state)
    _explain(ax, [*([marks] if np.isfinite(published).any() else []), *handles], 0.27)
    return pd.DataFrame({"panel": "c", "model": MODELS[model], "crystal_system": systems,
                         "positions": counts, "percent": percent,
                         "published_percent": published})  # fmt: skip


def _explain(ax: Axes, handles: Sequence[Patch | Line2D], below: float) -> None:
    """Write a legend so far below a panel, as a fraction of its height."""
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -below), fontsize=6,
              handlelength=1.2, handleheight=0.9, labelspacing=0.2, borderaxespad=0,
              borderpad=0)  # fmt: skip


def _words_of_truth(known: Truth | None) -> str:
    if known is None:
        return ""
    return (
        " d: what is under the probe; orientations are those of single grains, within "
        f"{NEAR_AXIS:g} degrees of an axis."
    )
