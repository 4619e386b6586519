"""Figure 2, a denoising trajectory in steps, and a grid of generated crystals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.generation import (
    MODELS,
    OWN,
    chosen,
    counterpart,
    model_label,
    read_evaluation,
)
from diffractory.evaluation.generation_drawings import (
    SHRUNK,
    ShownCell,
    bounds,
    draw_atoms,
    draw_crystal,
    draw_edges,
    draw_key,
    frame,
    key_rows,
    obstacle,
    project,
    radii,
    shown_cell,
)
from diffractory.evaluation.generation_schemes import printed
from diffractory.evaluation.style import INK, MUTED, WIDTH
from diffractory.evaluation.tables import listed, read_columns
from diffractory.evaluation.ued_images import letter_panel
from diffractory.store import InputError

PANELS, COLUMNS = 6, 3
"""Steps of the trajectory that Figure 2 shows, and panels in a row."""

ROOM = (0.15, 0.55)
"""Least and most free space around the cell in Figure 2, in the longer side of its projection."""

SHOWN = 6
"""Generated crystals in a row of the grid, of all data sets together."""

CRYSTAL = ["lattice", "positions", "numbers"]

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

VALID, INVALID = "#117733", "#aa3311"

Files = Mapping[str, Mapping[str, Path]]
"""Files by data set and model."""


class State(NamedTuple):
    """A crystal within the reverse process: time, crystal, coordinates before wrapping (N, 3)."""

    step: int
    time: float
    cell: ShownCell
    unwrapped: NDArray[np.float64]


def trajectory_figure(path: Path | None) -> Drawing:
    """Draw a crystal at evenly spaced steps of the reverse process.

    Raises
    ------
    InputError
        If the file is not given, or not of the form that `trace_crystal` writes.
    """
    states, name, material_id = _read_trace(path)
    places = np.linspace(0, len(states) - 1, min(PANELS, len(states))).round().astype(int)
    shown = [states[k] for k in dict.fromkeys(places)]
    elements = {int(z) for state in shown for z in state.cell.numbers}
    room = float(np.clip(max(map(_needed_room, shown)), *ROOM))
    rows = -(-len(shown) // COLUMNS)
    height = 0.2 + 2.35 * rows + 0.22 * key_rows(elements)
    figure = Figure(figsize=(WIDTH, height))
    bottom = (0.08 + 0.22 * key_rows(elements)) / height
    panels = figure.add_gridspec(rows, COLUMNS, left=0.03, right=0.99, top=1 - 0.27 / height,
                                 bottom=bottom, wspace=0.06, hspace=0.14)  # fmt: skip
    for k, (ax, state) in enumerate(zip(panels.subplots(squeeze=False).flat, shown, strict=False)):
        _draw_state(ax, state, room)
        ax.set_title(f"step {state.step:,}")
        letter_panel(ax, chr(ord("a") + k))
    for ax in figure.axes[len(shown) :]:
        ax.set_visible(False)
    draw_key(figure.add_axes((0.03, 0.02 / height, 0.96, 0.22 * key_rows(elements) / height)),
             elements)  # fmt: skip
    start = f"the test crystal {material_id}" if material_id else "a draw from the prior"
    caption = (
        f"The reverse process of {name} from noise (step {shown[0].step:,}) to a crystal (step "
        f"{shown[-1].step:,}), decoded from the latent vector of {start}; one real run. Dashed: "
        "cell. Coloured: atoms in the cell, at "
        f"{SHRUNK:g} of the covalent radius. White: atoms outside of the cell, before their "
        "coordinates are wrapped into it; an arrow leads to each wrapped atom. White with a dotted "
        "edge: farther out than the panel reaches."
    )
    data = pd.concat([_trace_rows(state) for state in shown])
    return Drawing(figure, "Denoising of a crystal", caption, data)


def _read_trace(path: Path | None) -> tuple[list[State], str, str]:
    """Return the states, first to last, the label of the model and the crystal encoded."""
    if path is None:
        raise InputError("the trajectory to show is not given: trace a crystal")
    table = read_columns(
        path, ["step", "time", *CRYSTAL, "unwrapped", "material_id", "generator"]
    ).sort_values("step", ascending=False)
    if table.empty:
        raise InputError(f"{path} has no step: trace a crystal again")
    try:
        states = []
        for row in table.to_dict("records"):
            cell = shown_cell(row)
            before = np.array(row["unwrapped"], dtype=np.float64).reshape(cell.positions.shape)
            states.append(State(int(row["step"]), float(row["time"]), cell, before))
        name = model_label(table["generator"].iloc[0])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not hold a trajectory ({error!r}): trace a crystal again"
        ) from error
    return states, name, str(table["material_id"].iloc[0])


def _obstacle(state: State) -> str:
    """Return why a state cannot be drawn; empty where it can."""
    return obstacle(state.cell) or ("" if np.isfinite(state.unwrapped).all() else "not finite")


def _square(cell: ShownCell) -> tuple[NDArray[np.float64], float]:
    """Return the middle of a projected cell and its longer side, angstrom."""
    low, high = (bound[:2] for bound in bounds(cell.lattice))
    return (low + high) / 2, max(float((high - low).max()), 1.0)


def _needed_room(state: State) -> float:
    """Return how far atoms reach out of a cell, in the longer side of its projection."""
    if _obstacle(state):
        return 0.0
    middle, side = _square(state.cell)
    out = np.abs(project(state.unwrapped @ state.cell.lattice)[:, :2] - middle).max(axis=1)
    return float((out + 1.15 * radii(state.cell.numbers)).max(initial=0) / side - 0.5)


def _draw_state(ax: Axes, state: State, room: float) -> None:
    """Draw the wrapped atoms in their cell, and where those from outside come from."""
    if reason := _obstacle(state):
        _say(ax, reason)
        return
    lattice, numbers = state.cell.lattice, state.cell.numbers
    middle, side = _square(state.cell)
    side *= 1 + 2 * room
    frame(ax, middle, side)
    draw_edges(ax, lattice, np.ones(12, dtype=np.bool_), linestyle=(0, (3, 2)), zorder=1)
    inside = project(state.cell.positions @ lattice)
    moved = (np.abs(state.unwrapped - state.cell.positions) > 1e-3).any(axis=1)
    outside = project(state.unwrapped @ lattice)[moved]
    reach = side / 2 - 1.15 * radii(numbers[moved])
    far = np.abs(outside[:, :2] - middle).max(axis=1) > reach
    outside[:, :2] = _drawn_near(inside[moved, :2] - middle, outside[:, :2] - middle, reach)
    outside[:, :2] += middle
    way = outside[:, :2] - inside[moved, :2]
    length = np.linalg.norm(way, axis=1, keepdims=True)
    rim = inside[moved, :2] + way / np.maximum(length, 1e-9) * radii(numbers[moved])[:, None]
    for start, end in zip(outside[:, :2], rim, strict=True):
        ax.annotate("", end, start, zorder=2.5, arrowprops={
            "arrowstyle": "-|>", "mutation_scale": 6, "color": MUTED, "linewidth": 0.5,
            "shrinkA": 0, "shrinkB": 0,
        })  # fmt: skip
    draw_atoms(ax, inside, numbers, lattice, zorder=2)
    for part, line in ((~far, "-"), (far, (0, (1, 1)))):
        draw_atoms(ax, outside[part], numbers[moved][part], lattice, zorder=3, linestyle=line,
                   facecolor="white")  # fmt: skip


def _drawn_near(
    start: NDArray[np.float64], end: NDArray[np.float64], reach: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ends, or where the way from the start to them leaves a square of half side reach."""
    way = end - start
    room = np.maximum(reach[:, None] - np.sign(way) * start, 1e-9)
    share = (room / np.maximum(np.abs(way), room)).min(axis=1, initial=1)
    return np.asarray(start + share[:, None] * way)


def _say(ax: Axes, reason: str) -> None:
    """Write in empty axes why there is no crystal."""
    frame(ax, np.zeros(2), 1.0)
    ax.text(0, 0, reason, ha="center", va="center", color=MUTED, fontsize=6.5)


def _trace_rows(state: State) -> pd.DataFrame:
    positions = [*state.cell.positions.T, *state.unwrapped.T]
    names = ["x", "y", "z", "x_unwrapped", "y_unwrapped", "z_unwrapped"]
    number = {"step": state.step, "time": state.time, "atomic_number": state.cell.numbers}
    return pd.DataFrame(number | dict(zip(names, positions, strict=True)))


def crystals_figure(samples: Files, generated: Files) -> Drawing:
    """Draw the first crystals that each model generated.

    Parameters
    ----------
    samples, generated
        What `sample_crystals` and `evaluate_generation` wrote.

    Raises
    ------
    InputError
        If there is no model with both, or a file is not of its form.
    """
    datasets = [name for name in samples if set(samples[name]) & set(generated.get(name, ()))]
    models = [m for m in MODELS if any(m in samples[d] and m in generated[d] for d in datasets)]
    if not models:
        raise InputError("figure crystals shows generated crystals, of which there are none")
    each = max(SHOWN // len(datasets), 1)
    parts = [
        _read_shown(samples[dataset][model], generated[dataset][model], each).assign(
            crystals_of=dataset, model=MODELS[model]
        )
        for model in models
        for dataset in datasets
        if model in samples[dataset] and model in generated[dataset]
    ]
    table = pd.concat(parts, ignore_index=True)
    cells = [shown_cell(row) for row in table.to_dict("records")]
    elements = {int(z) for cell in cells for z in cell.numbers}
    key, top = 0.08 + 0.2 * key_rows(elements), 0.3
    height = top + 1.22 * len(models) + key
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_gridspec(
        len(models), each * len(datasets), left=0.1, right=0.995, top=1 - top / height,
        bottom=(key + 0.32) / height, wspace=0.06, hspace=0.42,
    ).subplots(squeeze=False)  # fmt: skip
    for ax in axes.flat:
        ax.axis("off")
    for (dataset, model, place), cell, row in zip(
        table[["crystals_of", "model", "place"]].itertuples(index=False),
        cells, table.to_dict("records"), strict=True,
    ):  # fmt: skip
        line = [MODELS[m] for m in models].index(model)
        _draw_generated(axes[line, each * datasets.index(dataset) + place], cell, row)
    for ax, model in zip(axes[:, 0], models, strict=True):
        ax.annotate(printed(model).replace("+", "\n+"), (0, 0.5), (-46, 0), fontweight="bold",
                    xycoords="axes fraction", textcoords="offset points", va="center",
                    fontsize=7)  # fmt: skip
    for ax, dataset in zip(axes[0, ::each], datasets, strict=True):
        ax.annotate(counterpart(dataset).label, (0, 1), (0, 6), fontweight="bold",
                    xycoords="axes fraction", textcoords="offset points")  # fmt: skip
    draw_key(figure.add_axes((0.1, 0.02 / height, 0.89, (key - 0.08) / height)), elements)
    absent = [MODELS[model] for model in MODELS if model not in models]
    caption = (
        f"The first {each} crystals that each model generated of each data set, in the order in "
        "which they were drawn, none left out. Each fills its panel: scales differ. Atoms at "
        f"{SHRUNK:g} of the covalent radius, pale at the back, those on a face of the cell on both "
        "sides. Below: reduced formula, and whether the crystal is valid (no atoms within 0.5 "
        "angstrom, neutral by SMACT). "
        f"{f'Not run: {listed(absent)}.' if absent else ''}"
    ).strip()
    columns = ["crystals_of", "model", "item", "formula", "n_sites", "finite", "valid_structure",
               "valid_composition"]  # fmt: skip
    return Drawing(figure, "Generated crystals", caption, table[columns])


def _read_shown(samples: Path, generated: Path, most: int) -> pd.DataFrame:
    """Return the first generated crystals of the model's own sampler, with their measures."""
    table = read_columns(samples, ["task", "sampler", "item", *CRYSTAL])
    crystals = chosen(table[table["task"] == "generation"], OWN).sort_values("item")[:most]
    measures = chosen(read_evaluation(generated, "generated"), OWN)
    both = crystals[["item", *CRYSTAL]].merge(measures, on="item", validate="one_to_one")
    if len(both) < len(crystals) or both.empty:
        raise InputError(f"{generated} is not about the crystals in {samples}: evaluate them again")
    return both.assign(place=np.arange(len(both)))


def _draw_generated(ax: Axes, cell: ShownCell, row: Mapping[Any, Any]) -> None:
    reason = obstacle(cell)
    if reason:
        _say(ax, reason)
    else:
        draw_crystal(ax, cell)
    problem = _problem(row)
    formula = str(row["formula"]).translate(SUBSCRIPTS)
    size = 6.5 if len(formula) < 14 else 5
    for text, drop, colour in (
        (formula, -2, INK),
        (problem or "valid", -11, INVALID if problem else VALID),
    ):
        ax.annotate(text, (0.5, 0), (0, drop), xycoords="axes fraction", ha="center", va="top",
                    textcoords="offset points", fontsize=size, color=colour)  # fmt: skip


def _problem(row: Mapping[Any, Any]) -> str:
    """Return what is wrong with a generated crystal; empty if nothing is."""
    if not row["finite"]:
        return "not finite"
    if not row["valid_structure"]:
        return "atoms too close"
    return "" if row["valid_composition"] else "not neutral"
