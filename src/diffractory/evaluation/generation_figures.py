"""Figures of the generation study, numbered as in Pakornchote et al. (2024)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffractory.evaluation.drawing import Drawing, write_drawing
from diffractory.evaluation.generation import (
    MODELS,
    OWN,
    STEPS,
    STUDY,
    counterpart,
    crystals_stand_in,
    evaluations,
    read_evaluation,
    relaxation_stand_in,
)
from diffractory.evaluation.generation_crystal_figures import crystals_figure, trajectory_figure
from diffractory.evaluation.generation_schemes import encoders_figure, scheme_figure
from diffractory.evaluation.ranking import bootstrap
from diffractory.evaluation.style import INK, WIDTH, figure_style
from diffractory.evaluation.tables import check_name, listed
from diffractory.evaluation.ued_images import letter_panel
from diffractory.store import InputError, recorded

VARIANTS = ("dp_cdvae", "dp_cdvae_na", "dp_cdvae_gine", "dp_cdvae_na_gine")
"""Models that differ in the encoder alone."""

FIGURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "1": (("models",), ("dp_cdvae",)),
    "2": ((), ()),
    "S1": (("models",), VARIANTS),
    "S2": (("relaxed",), tuple(MODELS)),
    "crystals": (("samples", "generated"), tuple(MODELS)),
    "steps": (("reconstructed",), ("dp_cdvae", "ours")),
}
"""Kinds of files that each figure reads, and of which models."""

TRACE = ("2",)
"""Figures that read the trajectory."""

LOOKS = {
    "ftcp": "#bbbbbb",
    "cdvae": "#ee7733",
    "cdvae_fourier": "#cc3311",
    "dp_cdvae": "#0077bb",
    "dp_cdvae_na": "#33bbee",
    "dp_cdvae_gine": "#009988",
    "dp_cdvae_na_gine": "#332288",
    "ours": "#ee3377",
}
"""Colour of each model; most of Paul Tol's vibrant scheme."""

EDGES = np.array([-np.inf, 0, *2.0 ** np.arange(13), np.inf])
"""Of the ranges of Figure S2, meV/atom; as in the paper they double."""

Files = Mapping[str, Mapping[str, Path]]
"""Files by data set and model."""


def make_figure(
    name: str,
    files: Mapping[str, Files],
    context: Mapping[str, Any],
    svg: Path,
    png: Path,
    csv: Path,
    run: Path,
    trace: Path | None = None,
) -> None:
    """Write one figure from our data.

    Parameters
    ----------
    name
        A key of ``FIGURES``.
    files
        By kind, data set and model: what `sample_crystals` wrote (``samples``), evaluation files
        (``reconstructed``, ``generated``, ``relaxed``) and folders of models (``models``); models
        without one are left out and named in the caption.
    context
        As for `diffractory.evaluation.generation_tables.make_table`.
    svg, png, csv, run
        What to write: the figure twice, the plotted data, and the record.
    trace
        What `trace_crystal` wrote about a crystal of the first data set of ``sources``, for the
        figures in ``TRACE``.

    Raises
    ------
    InputError
        If an input is not of the form described, the study has no such figure, or no model ran
        that the figure could show.
    """
    check_name(name, FIGURES, "figure", STUDY)
    kinds, models = FIGURES[name]
    used = {kind: _of(files.get(kind, {}), models) for kind in kinds}
    if "models" in used:
        used["models"] = _descriptions(used["models"])
    inputs = [p for kind in used.values() for found in kind.values() for p in found.values()]
    inputs += [trace] if trace else []
    config, outputs, seed = {**context, "figure": name}, [svg, png, csv], context["seed"]
    with recorded(run, "plot_generation", config, inputs, outputs, seed), figure_style():
        match name:
            case "1":
                drawing = scheme_figure(_only(used["models"], name))
            case "2":
                drawing = trajectory_figure(trace)
            case "S1":
                drawing = encoders_figure(_only(used["models"], name), VARIANTS)
            case "S2":
                drawing = _energy_figure(used["relaxed"], context)
            case "crystals":
                drawing = crystals_figure(used["samples"], used["generated"])
            case _:
                drawing = _steps_figure(used["reconstructed"], context)
        shown = list(dict.fromkeys(dataset for kind in used.values() for dataset in kind))
        shown = shown or list(context["sources"])[:1]
        found = [crystals_stand_in(dataset, context["sources"][dataset]) for dataset in shown]
        stand_ins = [text for text in dict.fromkeys(found) if text and name not in ("1", "S1")]
        if name == "S2" and (relaxed := relaxation_stand_in(context["calculator"])):
            stand_ins.append(relaxed)
        if stand_ins:
            caption = f"{drawing.caption} Stand-ins: {'; '.join(stand_ins)}."
            drawing = drawing._replace(caption=caption)
        write_drawing(drawing, {**context, "dataset": listed(shown)}, svg, png, csv)


def _of(files: Files, models: tuple[str, ...]) -> dict[str, dict[str, Path]]:
    """Return the files of some models, in the order of these, of the data sets with any."""
    kept = {
        dataset: {model: found[model] for model in models if model in found}
        for dataset, found in files.items()
    }
    return {dataset: found for dataset, found in kept.items() if found}


def _descriptions(folders: Mapping[str, dict[str, Path]]) -> dict[str, dict[str, Path]]:
    """Return the ``architecture.json`` of each model of the first data set with most models."""
    dataset = max(folders, key=lambda name: len(folders[name]), default="")
    found = {model: path / "architecture.json" for model, path in folders.get(dataset, {}).items()}
    return {dataset: found} if found else {}


def _only(files: Mapping[str, dict[str, Path]], figure: str) -> dict[str, Path]:
    """Return the files of the only data set.

    Raises
    ------
    InputError
        If there is none.
    """
    if not files:
        raise InputError(
            f"figure {figure} shows networks of which none was trained: train DP-CDVAE"
        )
    return next(iter(files.values()))


def _not_run(models: tuple[str, ...], files: Files) -> str:
    ran = {model for found in files.values() for model in found}
    absent = [MODELS[model] for model in models if model not in ran]
    return f" Not run: {listed(absent)}." if absent else ""


# Figure S2


def _energy_figure(files: Files, context: Mapping[str, Any]) -> Drawing:
    """Draw how much energy generated crystals lose when they relax."""
    found = {
        (dataset, model): _losses(read_evaluation(path, "relaxed"))
        for dataset, models in files.items()
        for model, path in models.items()
    }
    if not found:
        raise InputError("figure S2 shows relaxed crystals, of which there are none: relax some")
    datasets = list(dict.fromkeys(dataset for dataset, _ in found))
    models = [model for model in MODELS if any((d, model) in found for d in datasets)]
    height = 0.68 + 0.95 * len(models)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_gridspec(
        len(models), len(datasets), left=0.07, right=0.99, top=1 - 0.25 / height,
        bottom=0.43 / height, wspace=0.06, hspace=0.3,
    ).subplots(squeeze=False, sharex=True, sharey=True)  # fmt: skip
    parts = []
    for (dataset, model), losses in found.items():
        ax = axes[models.index(model), datasets.index(dataset)]
        bins = _bins(losses).assign(crystals_of=dataset, model=MODELS[model])
        parts.append(bins)
        if len(losses):
            _draw_bins(ax, bins, LOOKS[model], np.sqrt(np.mean(losses**2)))
        ax.set_title(f"{MODELS[model]}, n = {len(losses):,}", loc="left", fontweight="bold", y=0.97)
    for column, dataset in enumerate(datasets):
        for row, model in enumerate(models):
            axes[row, column].set_visible((dataset, model) in found)
        axes[-1, column].set_visible(True)
        axes[-1, column].set_xlabel(f"{counterpart(dataset).label}: energy lost, meV/atom")
    axes[-1, 0].set_xticks(
        np.arange(1, len(EDGES) - 1, 2), [f"{edge:,g}" for edge in EDGES[1:-1:2]]
    )
    axes[-1, 0].set_xlim(0, len(EDGES) - 1)
    figure.text(0.008, 0.5, "Crystals, %", rotation=90, va="center")
    squeezed = " (below 0: it gained energy as it was compressed)" if context["pressure"] else ""
    caption = (
        f"Energy of generated crystals before relaxation at {context['pressure']:g} GPa, less that "
        "after it, of those whose relaxation came to its end (n). Ranges double from 1 meV/atom "
        f"on{squeezed}. Dark: the fullest range, the mode. Line: root of the mean square."
        f"{_not_run(('cdvae', 'cdvae_fourier', 'dp_cdvae'), files)}"
    )
    return Drawing(figure, "Energy lost in relaxation", caption, pd.concat(parts))


def _losses(relaxed: pd.DataFrame) -> NDArray[np.float64]:
    """Return energies before relaxation less those after it, meV/atom, where both are known."""
    ended = relaxed[relaxed["converged"]]
    losses = 1000 * (ended["energy_before"] - ended["energy_after"]).to_numpy(np.float64)
    return losses[np.isfinite(losses)]


def _bins(losses: NDArray[np.float64]) -> pd.DataFrame:
    """Return the share of energies in each range: not below its low edge, below its high one."""
    place = np.searchsorted(EDGES, losses, side="right") - 1
    count = np.bincount(place, minlength=len(EDGES) - 1)
    share = 100 * count / max(len(losses), 1)
    return pd.DataFrame(
        {"from_mev": EDGES[:-1], "below_mev": EDGES[1:], "crystals": count, "percent": share}
    )


def _draw_bins(ax: Axes, bins: pd.DataFrame, colour: str, rms: float) -> None:
    """Draw ranges with equal widths, and ``rms`` in its place among them."""
    fullest = int(bins["crystals"].argmax())
    bars = ax.bar(np.arange(len(bins)) + 0.5, bins["percent"], 0.92, color=colour, alpha=0.5)
    bars[fullest].set_alpha(1)
    place = 1 + (rms if rms < 1 else 1 + np.log2(rms))
    ax.axvline(min(place, len(bins) - 0.5), color=INK, linewidth=1)
    low, high = bins[["from_mev", "below_mev"]].iloc[fullest]
    mode = f"{low:,g}\N{EN DASH}{high:,g}"
    if not np.isfinite(low):
        mode = "below 0"
    elif not np.isfinite(high):
        mode = f"over {low:,g}"
    ax.text(0.015, 0.94, f"mode {mode}\nrms {rms:,.1f}", transform=ax.transAxes, va="top",
            fontsize=7, bbox={"pad": 1, "color": "#ffffffc0"})  # fmt: skip
    ax.grid(axis="y")


# Figure of steps


def _steps_figure(files: Files, context: Mapping[str, Any]) -> Drawing:
    """Draw the accuracy of reconstruction against how often the network is asked."""
    if not files:
        raise InputError("figure steps shows models of which none was evaluated: reconstruct some")
    datasets, models = list(files), FIGURES["steps"][1]
    height = 0.6 + 2.0 * len(datasets)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_gridspec(
        len(datasets), 2, left=0.075, right=0.99, top=1 - 0.25 / height, bottom=0.72 / height,
        wspace=0.2, hspace=0.3,
    ).subplots(squeeze=False, sharex=True)  # fmt: skip
    parts = []
    for dataset, row in zip(datasets, axes, strict=True):
        for model, path in files[dataset].items():
            own = context["steps"][model]
            course = _course(read_evaluation(path, "reconstructed"), own, context["seed"])
            for ax, name in zip(row, ("match_percent", "rms_percent"), strict=True):
                _draw_course(ax, course, name, model)
            parts.append(course.assign(crystals_of=dataset, model=MODELS[model]))
        row[0].set(ylim=(0, 102), ylabel="Match rate, %")
        row[1].set(ylim=(0, None), ylabel="Mean RMS distance, %")
        row[0].set_title(counterpart(dataset).label, loc="left", fontweight="bold")
    data = pd.concat(parts)
    asked = sorted(set(data["evaluations"]))
    for ax in axes.flat:
        ax.set_xscale("log")
        ax.set_xticks(asked, [f"{number:,}" for number in asked])
        ax.minorticks_off()
        ax.grid()
    for ax in axes[-1]:
        ax.set_xlabel("Evaluations of the network for one crystal")
    for letter, ax in zip("abcdefgh", axes.flat, strict=False):
        letter_panel(ax, letter)
    handles = {label: h for ax in axes[:, 0]
               for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles))
    caption = (
        "Reconstruction of test crystals with fewer steps of the reverse process. Left: share that "
        "is found again. Right: mean RMS distance of these, in percent of the cube root of the "
        "volume per atom. Filled: all steps of the model's own sampler; open: fewer. Bars: "
        f"bootstrap, 95 %.{_not_run(models, files)}"
    )
    data = data[["crystals_of", "model", *data.columns.drop(["crystals_of", "model", "own"])]]
    return Drawing(figure, "Accuracy against the number of steps", caption, data)


def _course(table: pd.DataFrame, own: int, seed: int) -> pd.DataFrame:
    """Return the match rate and the mean distance by evaluations, with their intervals."""
    rows = []
    for sampler, part in table.groupby("sampler"):
        if sampler != OWN and not str(sampler).startswith(STEPS):
            continue
        row: dict[str, float] = {
            "evaluations": evaluations(str(sampler), own), "crystals": len(part)
        }  # fmt: skip
        values = {
            "match_percent": 100.0 * part["matched"],
            "rms_percent": 100 * part["rms"].dropna(),
        }
        for name, column in values.items():
            found = column.to_numpy(np.float64)
            low, high = bootstrap(found, seed) if len(found) else (np.nan, np.nan)
            mean = found.mean() if len(found) else np.nan
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {"own": sampler == OWN})
    return pd.DataFrame(rows).sort_values("evaluations")


def _draw_course(ax: Axes, course: pd.DataFrame, name: str, model: str) -> None:
    x, y = course["evaluations"], course[name]
    colour = LOOKS[model]
    ax.plot(x, y, color=colour, linewidth=1.2, marker="o", markersize=4.5, label=MODELS[model],
            markerfacecolor="white")  # fmt: skip
    ax.plot(x[course["own"]], y[course["own"]], color=colour, linestyle="none", marker="o",
            markersize=4.5)  # fmt: skip
    ax.vlines(x, course[f"{name}_low"], course[f"{name}_high"], color=colour, linewidth=0.8)
