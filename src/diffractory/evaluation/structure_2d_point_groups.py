"""Figure 3: how alike point groups are, and which ones the candidates have."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.structure_2d import chosen, read_answers
from diffractory.evaluation.style import MUTED, SYSTEM_COLOURS, WIDTH
from diffractory.evaluation.tables import listed
from diffractory.evaluation.ued_images import letter_panel
from diffractory.store import InputError

SYSTEMS: dict[str, dict[str, str]] = {
    "triclinic": {"1": "1", "-1": "-1"},
    "monoclinic": {"2": "2y", "m": "-2y", "2/m": "2y -1"},
    "orthorhombic": {"222": "2z 2x", "mm2": "2z -2x", "mmm": "2z 2x -1"},
    "tetragonal": {
        "4": "4z", "-4": "-4z", "4/m": "4z -1", "422": "4z 2x", "4mm": "4z -2x", "-42m": "-4z 2x",
        "4/mmm": "4z 2x -1",
    },
    "trigonal": {"3": "3z", "-3": "3z -1", "32": "3z 2x", "3m": "3z -2x", "-3m": "3z 2x -1"},
    "hexagonal": {
        "6": "6z", "-6": "-6z", "6/m": "6z -1", "622": "6z 2x", "6mm": "6z -2x", "-6m2": "-6z -2x",
        "6/mmm": "6z 2x -1",
    },
    "cubic": {
        "23": "2z 3d", "m-3": "2z 3d -1", "432": "4z 3d", "-43m": "-4z 3d", "m-3m": "4z 3d -1",
    },
}  # fmt: skip
"""Generators of the point groups by crystal system: the order of a rotation, with a minus sign if
an inversion follows, and its Cartesian axis, where d is [111]. Source: International Tables A,
with a along x, the unique axis b in the monoclinic system, 321, 3m1 and -3m1 in the trigonal."""

GENERATORS = {symbol: words for groups in SYSTEMS.values() for symbol, words in groups.items()}

COLOURS = {symbol: SYSTEM_COLOURS[name] for name, groups in SYSTEMS.items() for symbol in groups}

PAPER = ("mm2", "2/m")
"""Point groups whose predictions the paper shows."""

WIDTHS = {"narrow": 1, "medium": 3, "wide": 5}
"""Numbers of candidates, as the paper calls them."""

SHADES = ("#cccccc", "#9ecae1", "#4292c6", "#084594")
"""Of chance, and of the three numbers of candidates."""

MOST = 7
"""Point groups with bars of their own."""

OTHERS = "other"


@cache
def operations(symbol: str) -> frozenset[tuple[float, ...]]:
    """Return the operations of a point group as Cartesian matrices, 9 numbers each, row by row."""
    group = {_rounded(np.eye(3))}
    found = list(group)
    generators = [_generator(word) for word in GENERATORS[symbol].split()]
    for entries in found:  # grows until every product is there
        for generator in generators:
            product = _rounded(generator @ np.reshape(entries, (3, 3)))
            if product not in group:
                group.add(product)
                found.append(product)
    return frozenset(group)


def _generator(word: str) -> NDArray[np.float64]:
    sign = -1 if word.startswith("-") else 1
    order = int(word.strip("-")[0])
    axis = {"x": [1, 0, 0], "y": [0, 1, 0], "d": [1, 1, 1]}.get(word[-1], [0, 0, 1])
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = 2 * np.pi / order
    turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return np.asarray(sign * turned, dtype=np.float64)


def _rounded(matrix: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.ravel(matrix).round(6) + 0.0)  # no negative zeros


def similarity(one: str, other: str) -> float:
    """Return the Jaccard index of two point groups: operations in both, over those in either."""
    a, b = operations(one), operations(other)
    return len(a & b) / len(a | b)


def point_group_figure(path: Path) -> Drawing:
    """Draw how alike the point groups of the test are, and which ones the candidates have.

    Raises
    ------
    InputError
        If the file is not of the form that `evaluate_retrieval` writes.
    """
    answers = chosen(read_answers(path, "candidates", "point_group"))
    group = answers.set_index("material_id")["point_group"]
    if odd := sorted(set(group) - set(GENERATORS)):
        raise InputError(f"{path} has the point group {odd[0]!r}, which is none of the 32")
    if odd := sorted({name for row in answers["candidates"] for name in row} - set(group.index)):
        raise InputError(f"{path} has the candidate {odd[0]}, which is no test crystal")
    numbers = group.value_counts()
    figure = Figure(figsize=(WIDTH, 4.6))
    columns = figure.add_gridspec(1, 2, width_ratios=(1, 1.5), left=0.035, right=0.99, top=0.93,
                                  bottom=0.16, wspace=0.42)  # fmt: skip
    tree = figure.add_subplot(columns[0])
    merges = _draw_tree(tree, numbers)
    targets = _targets(numbers)
    axes = columns[1].subgridspec(len(targets), 1, hspace=0.42).subplots(squeeze=False)[:, 0]
    parts = [merges]
    for ax, target in zip(axes, targets, strict=True):
        candidates = answers.loc[answers["point_group"] == target, "candidates"]
        shares = _shares(candidates, group)
        _draw_shares(ax, shares, target)
        ax.set_title(f"Patterns of {target} ({numbers[target]:,})", loc="left", fontweight="bold")
        parts.append(shares.assign(panel="b", true=target))
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower right", ncols=4, handlelength=1, columnspacing=1.2)
    letter_panel(tree, "a")
    letter_panel(axes[0], "b")
    caption = (
        f"Point groups of the {len(answers):,} test crystals, with their numbers, and what DD2D "
        "answers. a: likeness of point groups by their operations: Jaccard index of the sets of "
        "matrices in Cartesian axes (settings of the International Tables: monoclinic axis b, "
        "321, 3m1, -3m1), merged by average linkage; colours: crystal systems. b: point groups of "
        f"the candidates for patterns of crystals of {listed(targets)}, among the first "
        f"{listed([str(k) for k in WIDTHS.values()])} candidates (narrow, medium, wide), beside "
        "chance, which is the share of the gallery."
    )
    return Drawing(figure, "Point groups of the candidates", caption, pd.concat(parts))


def _targets(numbers: "pd.Series[int]") -> list[str]:
    """Return the point groups of the paper if the test has both, else its two most frequent."""
    if set(PAPER) <= set(numbers.index):
        return list(PAPER)
    order = sorted(numbers.index, key=lambda symbol: (-numbers[symbol], symbol))
    return order[:2]


def _draw_tree(ax: Axes, numbers: "pd.Series[int]") -> pd.DataFrame:
    """Draw the dendrogram of point groups, and return its merges."""
    symbols = [symbol for symbol in GENERATORS if symbol in numbers.index]
    merges = []
    if len(symbols) > 1:
        distance = np.array([[1 - similarity(a, b) for b in symbols] for a in symbols])
        links = linkage(squareform(distance, checks=False), "average")
        tree = dendrogram(links, no_plot=True)
        for height, place in zip(tree["dcoord"], tree["icoord"], strict=True):
            ax.plot(1 - np.array(height), np.array(place) / 10 - 0.5, color=MUTED, linewidth=0.9)
        members = [[symbol] for symbol in symbols]
        for one, other, height, _ in links:
            merges.append((members[int(one)], members[int(other)], 1 - height))
            members.append(members[int(one)] + members[int(other)])
        symbols = [symbols[leaf] for leaf in tree["leaves"]]
    for place, symbol in enumerate(symbols):
        ax.plot(1, place, marker="s", markersize=6, color=COLOURS[symbol], clip_on=False, zorder=3)
        ax.annotate(f"{symbol} ({numbers[symbol]:,})", (1, place), (7, 0), va="center",
                    textcoords="offset points", annotation_clip=False, fontsize=7.5)  # fmt: skip
    lowest = min([height for *_, height in merges], default=0)
    ax.set(xlim=(max(0, lowest - 0.04), 1), ylim=(len(symbols) - 0.4, -0.6), yticks=[])
    ax.set_xlabel("Jaccard index of the operations")
    ax.spines["left"].set_visible(False)
    table = pd.DataFrame(merges, columns=["one", "other", "jaccard_index"])
    joined = {name: table[name].map(" ".join) for name in ("one", "other")}
    return table.assign(panel="a", **joined)


def _shares(candidates: Iterable[Sequence[str]], group: "pd.Series[str]") -> pd.DataFrame:
    """Return the percentage of each point group, in the gallery and among the first candidates."""
    lists = {"chance": group}
    for name, k in WIDTHS.items():
        lists[name] = group[[first for row in candidates for first in row[:k]]]
    shares = pd.DataFrame(
        {name: 100 * found.value_counts(normalize=True) for name, found in lists.items()}
    ).fillna(0.0)
    order = [symbol for symbol in GENERATORS if symbol in shares.index]
    shares = shares.loc[order]
    shown = shares.max(axis=1).sort_values(kind="stable", ascending=False).index[:MOST]
    kept = shares[shares.index.isin(shown)]
    rest = shares[~shares.index.isin(shown)].sum().rename(OTHERS)
    if len(kept) < len(shares):
        kept = pd.concat([kept, rest.to_frame().T])
    return kept.rename_axis("point_group").reset_index()


def _draw_shares(ax: Axes, shares: pd.DataFrame, target: str) -> None:
    labels: Mapping[str, str] = {"chance": "chance"} | {
        name: f"{name}: first {k}" if k > 1 else f"{name}: the first" for name, k in WIDTHS.items()
    }
    places = np.arange(len(shares))
    for k, (name, label) in enumerate(labels.items()):
        ax.bar(places + 0.2 * (k - 1.5), shares[name], 0.19, color=SHADES[k], label=label)
    ax.set_xticks(places, shares["point_group"])
    for text in ax.get_xticklabels():
        text.set_fontweight("bold" if text.get_text() == target else "normal")
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("Share, %")
    ax.grid(axis="y")
