"""Figures of the study of two-dimensional crystals, numbered as in Fu et al. (2025)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffractory.evaluation.drawing import Drawing, write_drawing
from diffractory.evaluation.ranking import top_share
from diffractory.evaluation.structure_2d import (
    EXPERIMENTAL,
    MODELS,
    STUDY,
    UNCHANGED,
    chosen,
    condition_name,
    crystals_stand_in,
    motion_stand_in,
    read_answers,
)
from diffractory.evaluation.structure_2d_example_figures import (
    attention_figure,
    candidates_figure,
)
from diffractory.evaluation.structure_2d_point_groups import point_group_figure
from diffractory.evaluation.structure_2d_scheme import scheme_figure
from diffractory.evaluation.style import MUTED, WIDTH, figure_style
from diffractory.evaluation.tables import check_name, listed
from diffractory.evaluation.ued_images import letter_panel
from diffractory.store import InputError, recorded

FIGURES: dict[str, tuple[str, ...]] = {
    "1": (),
    "2": (),
    "3": ("dd2d",),
    "4": (),
    "retrieval": tuple(MODELS),
}
"""Prediction files that each figure reads."""

EXAMPLES = ("2", "4")
"""Figures that read the examples."""

ARCHITECTURE = {"1": "dd2d"}
"""Figures that read ``architecture.json``, and of which model."""

LOOKS = {
    "dd2d": ("#0077bb", "-"),
    "dd2d_perturbed": ("#0077bb", (0, (3, 1.5))),
    "invariant": ("#ee7733", "-"),
    "invariant_perturbed": ("#ee7733", (0, (3, 1.5))),
}
"""Colour and line of each model; colours of Paul Tol's vibrant scheme."""

CONDITIONS = (UNCHANGED, "rotated", EXPERIMENTAL)
"""Conditions that the figure of retrieval shows."""

MOST_CANDIDATES = 100


def make_figure(
    name: str,
    predictions: Mapping[str, Path],
    context: Mapping[str, Any],
    svg: Path,
    png: Path,
    csv: Path,
    run: Path,
    examples: Path | None = None,
    architecture: Path | None = None,
) -> None:
    """Write one figure from our data.

    Parameters
    ----------
    name
        A key of ``FIGURES``.
    predictions
        Prediction files by model; models without one are left out and named in the caption.
    context
        As for `diffractory.evaluation.structure_2d_tables.make_table`.
    svg, png, csv, run
        What to write: the figure twice, the plotted data, and the record.
    examples
        ``examples.parquet``, for the figures in ``EXAMPLES``.
    architecture
        File of the model in ``ARCHITECTURE``.

    Raises
    ------
    InputError
        If an input is not of the form described, the study has no such figure, or no model ran
        that the figure could show.
    """
    check_name(name, FIGURES, "figure", STUDY)
    used = {model: predictions[model] for model in FIGURES[name] if model in predictions}
    inputs = [*used.values(), *filter(None, [examples, architecture])]
    config, outputs, seed = {**context, "figure": name}, [svg, png, csv], context["seed"]
    with recorded(run, "plot_structure_2d", config, inputs, outputs, seed), figure_style():
        match name:
            case "1":
                drawing = scheme_figure(_ran(architecture, name))
            case "2":
                drawing = attention_figure(examples)
            case "3":
                drawing = point_group_figure(_ran(used.get("dd2d"), name))
            case "4":
                drawing = candidates_figure(examples)
            case _:
                drawing = _retrieval_figure(used, motion_stand_in(context))
        stand_in = crystals_stand_in(context)
        if stand_in and name != "1":
            drawing = drawing._replace(caption=f"{drawing.caption} Stand-in: {stand_in}.")
        write_drawing(drawing, context, svg, png, csv)


def _ran(path: Path | None, figure: str) -> Path:
    """Return the file of DD2D that a figure shows.

    Raises
    ------
    InputError
        If it is not given.
    """
    if path is None:
        raise InputError(f"figure {figure} shows DD2D, which was not run: train it")
    return path


def _retrieval_figure(used: Mapping[str, Path], motion: str) -> Drawing:
    if not used:
        raise InputError("figure retrieval shows networks, of which none was run: train one")
    answers = {model: read_answers(path) for model, path in used.items()}
    asked = {name for table in answers.values() for name in table["condition"]}
    shown = [condition for condition in CONDITIONS if condition in asked]
    figure = Figure(figsize=(WIDTH, 2.9))
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False, gridspec_kw={
        "left": 0.07, "right": 0.99, "top": 0.91, "bottom": 0.235, "wspace": 0.08,
    })[0]  # fmt: skip
    parts = []
    for ax, condition in zip(axes, shown, strict=True):
        for model, table in answers.items():
            part = chosen(table, condition)
            if len(part):
                parts.append(_draw_course(ax, part, model).assign(condition=condition))
        ax.plot([], [], color=MUTED, linestyle=":", linewidth=1, label="chance")
        ax.set_title(condition_name(condition).capitalize(), loc="left", fontweight="bold")
        ax.set(xscale="log", ylim=(0, 102), xlabel="Candidates, k")
        ax.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        ax.set_xlim(0.9, 1.1 * max(part["k"].max() for part in parts))
        ax.minorticks_off()
        ax.grid()
    axes[0].set_ylabel("Crystal among the first k, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(used) + 1)
    for letter, ax in zip("abc", axes, strict=False):
        letter_panel(ax, letter)
    absent = [MODELS[model] for model in MODELS if model not in used]
    not_run = f" Not run: {listed(absent)}." if absent else ""
    moved = f" Stand-in: {motion}." if motion and any("perturbed" in m for m in used) else ""
    caption = (
        "Share of the test patterns whose crystal is among the first k of the gallery of the test, "
        f"for patterns {listed([condition_name(c) for c in shown])}. Dotted: chance, k by the size "
        f"of the gallery. Perturbed: of crystals in thermal motion.{not_run}{moved}"
    )
    data = pd.concat(parts)
    return Drawing(figure, "Retrieval against the number of candidates", caption, data)


def _draw_course(ax: Axes, answers: pd.DataFrame, model: str) -> pd.DataFrame:
    """Draw the top-k of a model against k, and chance, and return both in percent."""
    size = int(answers["gallery_size"].iloc[0])
    k = np.arange(1, min(MOST_CANDIDATES, size) + 1)
    rank = answers["rank"].to_numpy(np.int64)
    share = [100 * top_share(rank, int(most)) for most in k]
    course = pd.DataFrame({"k": k, "top_k": share, "chance": 100 * k / size})
    colour, line = LOOKS[model]
    ax.plot(k, course["top_k"], color=colour, linestyle=line, label=MODELS[model])
    ax.plot(k, course["chance"], color=MUTED, linestyle=":", linewidth=1)
    return course.assign(model=MODELS[model])
