"""Figures 2 and 4: one test pattern, what DD2D attends to in its crystal, and its candidates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.typing import NDArray

from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.structure_2d import ShownCrystal, read_example
from diffractory.evaluation.style import INK, MUTED, WIDTH
from diffractory.evaluation.ued_images import letter_panel

LATTICE = ("a", "b", "c", "\N{GREEK SMALL LETTER ALPHA}", "\N{GREEK SMALL LETTER BETA}",
           "\N{GREEK SMALL LETTER GAMMA}")  # fmt: skip

MOST_TOKENS = 32
"""Length up to which each token has a label of its own; longer sequences have labels of groups."""

COLUMNS = 4
"""Heads in a row of Figure 2."""

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

TRUTH = "#117733"

HEIGHT = 3.25
"""Of Figure 4, inch."""

WINDOW = (9.0, 16.0)
"""Least and most angstrom along a side of the drawing of a crystal."""


def attention_figure(path: Path | None) -> Drawing:
    """Draw the attention in the first and the last layer of the geometric encoder, by head.

    Raises
    ------
    InputError
        If the examples are not given or not of their form.
    """
    example = read_example(path)
    names, starts = _tokens(example.crystal)
    heads, length = example.attention.shape[1], len(names)
    columns = min(COLUMNS, heads)
    rows = -(-heads // columns)
    figure = Figure(figsize=(WIDTH, 0.35 + 2 * rows * (6.6 / columns + 0.12)))
    layers = figure.add_gridspec(2, 1, left=0.065, right=0.93, top=0.95, bottom=0.05, hspace=0.16)
    for k, weights in enumerate(example.attention):
        axes = layers[k].subgridspec(rows, columns, wspace=0.06, hspace=0.2).subplots(squeeze=False)
        norm = PowerNorm(0.5, 0, weights.max())
        for head, ax in enumerate(axes.flat):
            if head >= heads:
                ax.set_visible(False)
                continue
            image = ax.imshow(weights[head], cmap="Blues", norm=norm, interpolation="none")
            _label_tokens(ax, names, starts, head % columns == 0, head // columns == rows - 1)
            ax.set_title(f"{'Last' if k else 'First'} layer, head {head + 1}", fontsize=7)
            letter = chr(ord("a") + k * heads + head)
            ax.set_title(letter, loc="left", fontsize=9, fontweight="bold")
        bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=40, fraction=0.02)
        bar.set_label("Weight")
        bar.outline.set_linewidth(0.4)
    caption = (
        "Attention in the first and the last layer of the geometric encoder of DD2D, for the test "
        f"crystal {example.crystal.formula} ({example.crystal.material_id}). Each row: how much a "
        "token takes from each of the tokens (columns); a row adds up to 1. Colour by the square "
        "root, one scale for each layer. Tokens: start, lattice constants, Cartesian coordinates "
        "of the atoms in the order of atomic number and distance from the origin, their elements, "
        "end; lines part these groups. The start token sees itself and the lattice alone. Data: "
        "weights in percent."
    )
    index = [(layer, head + 1, names[i], names[j])
             for layer in ("first", "last") for head in range(heads)
             for i in range(length) for j in range(length)]  # fmt: skip
    data = pd.DataFrame(index, columns=["layer", "head", "token", "attends_to"])
    data["weight_percent"] = 100 * example.attention.ravel()
    return Drawing(figure, "Attention of the geometric encoder", caption, data)


def _tokens(crystal: ShownCrystal) -> tuple[list[str], dict[str, int]]:
    """Return the names of the tokens of a crystal, and where their groups start."""
    atoms = range(1, len(crystal.numbers) + 1)
    names = ["start", *LATTICE, *(f"{axis}{k}" for k in atoms for axis in "xyz")]
    names += [f"{symbol}{k}" for k, symbol in zip(atoms, crystal.elements, strict=True)]
    n = len(crystal.numbers)
    starts = {"start": 0, "lattice": 1, "positions": 7, "elements": 7 + 3 * n, "end": 7 + 4 * n}
    return [*names, "end"], starts


def _label_tokens(
    ax: Axes, names: Sequence[str], starts: dict[str, int], left: bool, below: bool
) -> None:
    """Label the tokens, or their groups, at the outer sides of a grid of panels."""
    edges = np.array([*starts.values(), len(names)]) - 0.5
    for edge in edges[1:-1]:
        ax.axhline(edge, color=MUTED, linewidth=0.3)
        ax.axvline(edge, color=MUTED, linewidth=0.3)
    if len(names) <= MOST_TOKENS:
        places, labels, size = np.arange(len(names), dtype=float), [*names], 105 / len(names)
        columns, turn = labels, 90
    else:
        places, labels, size = (edges[1:] + edges[:-1]) / 2, [*starts], 5.5
        columns, turn = ["", *labels[1:-1], ""], 0  # the ends have no room
    ax.set_xticks(places, columns if below else [], rotation=turn, fontsize=min(5.5, size))
    ax.set_yticks(places, labels if left else [], fontsize=min(5.5, size))
    ax.tick_params(length=0, pad=1)
    ax.spines[:].set(visible=True, linewidth=0.4)


def candidates_figure(path: Path | None) -> Drawing:
    """Draw a test pattern and the candidates for its crystal.

    Raises
    ------
    InputError
        If the examples are not given or not of their form.
    """
    example = read_example(path)
    truth, candidates = example.crystal, example.candidates
    columns = -(-len(candidates) // 2)
    figure = Figure(figsize=(WIDTH, HEIGHT))
    pattern = figure.add_axes((0.075, 0.3, 0.24, 0.24 * WIDTH / HEIGHT))
    _draw_pattern(pattern, example.spots)
    pattern.set_title(f"Pattern of {_printed(truth)}")
    panels = figure.add_gridspec(2, columns, left=0.355, right=0.995, top=0.885, bottom=0.15,
                                 wspace=0.07, hspace=0.36).subplots(squeeze=False)  # fmt: skip
    side = np.clip(max(_extent(one) for one in candidates), *WINDOW)
    elements = {z: symbol for one in candidates
                for z, symbol in zip(one.numbers, one.elements, strict=True)}  # fmt: skip
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    colours = {z: palette[k % len(palette)] for k, z in enumerate(sorted(elements))}
    for k, ax in enumerate(panels.flat):
        if k >= len(candidates):
            ax.set_visible(False)
            continue
        is_truth = candidates[k].material_id == truth.material_id
        _draw_crystal(ax, candidates[k], side, colours)
        r_factor = 100 * candidates[k].r_factor
        agrees = f"R {r_factor:.0f} %" if np.isfinite(r_factor) else "no match"
        label = f"{k + 1}. {_printed(candidates[k])}\n{candidates[k].score:.3f}, {agrees}"
        ax.set_title(label, fontsize=6.5, pad=3, linespacing=1.3,
                     color=TRUTH if is_truth else INK,
                     fontweight="bold" if is_truth else "normal")  # fmt: skip
        ax.spines[:].set(visible=True, color=TRUTH if is_truth else "#cccccc",
                         linewidth=1.6 if is_truth else 0.6)  # fmt: skip
    key = figure.add_axes((0.355, 0.0, 0.64, 0.12))
    _draw_key(key, elements, colours)
    letter_panel(pattern, "a")
    letter_panel(panels[0, 0], "b")
    place = next(
        (k for k, one in enumerate(candidates, 1) if one.material_id == truth.material_id), None
    )
    found = f"Green: the crystal that made it, at place {place}." if place else (
        "The crystal that made it is not among them."
    )  # fmt: skip
    caption = (
        f"A test pattern and the candidates that DD2D gives. a: pattern of {truth.formula} "
        f"({truth.material_id}); area of a spot by the logarithm of its intensity. b: the first "
        f"{len(candidates)} candidates of the gallery seen along c, with their cells, all to one "
        f"scale of {side:.3g} angstrom along a side; below the formula: cosine of the embeddings, "
        "and R-factor of the simulated pattern (no match: none of its brightest spots is as far "
        "out as one of the pattern). Atoms are drawn larger with atomic number, upper "
        f"ones over lower ones. {found}"
    )
    data = pd.DataFrame(
        {
            "place": k,
            "material_id": one.material_id,
            "formula": one.formula,
            "cosine": one.score,
            "r_factor_percent": 100 * one.r_factor,
            "truth": one.material_id == truth.material_id,
        }
        for k, one in enumerate(candidates, 1)
    )
    return Drawing(figure, "A pattern and its candidates", caption, data)


def _printed(crystal: ShownCrystal) -> str:
    return crystal.formula.translate(SUBSCRIPTS)


def _draw_pattern(ax: Axes, spots: NDArray[np.float64]) -> None:
    qx, qy, intensity = spots.T
    logarithm = np.log10(np.maximum(intensity, 1e-30))
    depth = max(logarithm.max() - logarithm.min(), 1e-9)
    ax.scatter(qx, qy, 0.5 + 14 * (logarithm - logarithm.min()) / depth, color=INK, linewidth=0)
    reach = 1.05 * np.abs(spots[:, :2]).max()
    ax.plot(0, 0, marker="+", color=MUTED, markersize=5)
    unit = "Å\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ONE}"
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=f"$q_x$, {unit}")
    ax.set_ylabel(f"$q_y$, {unit}", labelpad=1)
    ax.spines[:].set_visible(True)


def _extent(crystal: ShownCrystal) -> float:
    """Return the longer side, angstrom, of what holds the cell with some room."""
    corners = _corners(crystal)
    return float(1.15 * np.ptp(corners, axis=0).max())


def _corners(crystal: ShownCrystal) -> NDArray[np.float64]:
    a, b = crystal.cell[:2, :2]
    return np.array([[0, 0], a, a + b, b])


def _draw_crystal(
    ax: Axes, crystal: ShownCrystal, side: float, colours: dict[int, tuple[float, ...]]
) -> None:
    """Draw a square of a layer from above, with a cell in its middle."""
    corners = _corners(crystal)
    middle = corners.mean(axis=0)
    reach = int(np.ceil(1.5 * side / np.linalg.svd(crystal.cell[:2, :2])[1].min()))
    steps = np.indices((2 * reach + 1, 2 * reach + 1)).reshape(2, -1).T - reach
    shifts = steps @ crystal.cell[:2, :2] - middle
    places = (crystal.positions[:, None, :2] + shifts).reshape(-1, 2)
    z, number = (
        np.repeat(values, len(shifts)) for values in (crystal.positions[:, 2], crystal.numbers)
    )
    order = np.argsort(z, kind="stable")
    order = order[(np.abs(places[order]) < 0.6 * side).all(axis=1)]
    box = ax.get_position()
    points = 72 * WIDTH * box.width / side  # of 1/72 inch, to an angstrom
    radius = _radius(number[order]) * points
    x, y = places[order].T
    ax.scatter(x, y, (2 * radius) ** 2, edgecolor=INK, linewidth=0.3,
               color=[colours[z] for z in number[order]])  # fmt: skip
    ax.add_patch(Polygon(corners - middle, fill=False, edgecolor=INK, linewidth=0.8, zorder=3))
    ax.set(xlim=(-side / 2, side / 2), ylim=(-side / 2, side / 2), aspect="equal", xticks=[],
           yticks=[])  # fmt: skip


def _radius(number: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the radius of a drawn atom, angstrom."""
    return np.asarray(0.25 + 0.55 * (number / 100) ** (1 / 3))


def _draw_key(ax: Axes, elements: dict[int, str], colours: dict[int, tuple[float, ...]]) -> None:
    """Draw an atom of each element with its symbol in a row."""
    ax.axis("off")
    places = np.arange(len(elements)) % 12, -(np.arange(len(elements)) // 12)
    known = sorted(elements)
    size = (14 * _radius(np.array(known))) ** 2
    ax.scatter(*places, size, color=[colours[z] for z in known], edgecolor=INK, linewidth=0.3)
    for x, y, z in zip(*places, known, strict=True):
        ax.annotate(elements[z], (x, y), (8, 0), textcoords="offset points", va="center",
                    fontsize=7)  # fmt: skip
    ax.set(xlim=(-0.4, 11.9), ylim=(-1.6, 0.6))
