"""Figures of the ultrafast-diffraction study, numbered as in Shaaban et al. (2025)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from diffractory.evaluation.architecture import architecture_figure
from diffractory.evaluation.drawing import Drawing, write_drawing
from diffractory.evaluation.metrics import row_normalized
from diffractory.evaluation.style import INK, MUTED, WIDTH, figure_style
from diffractory.evaluation.tables import check_name, listed
from diffractory.evaluation.ued import (
    CLASSES,
    IMPOSSIBLE,
    MODELS,
    STAND_IN,
    STUDY,
    Example,
    published_confusion,
    read_confusion,
    read_examples,
    read_series,
)
from diffractory.evaluation.ued_images import (
    IMAGE_NOTE,
    difference_image,
    draw_image,
    draw_scale_bar,
    letter_panel,
    raw_norm,
    shrunk,
)
from diffractory.evaluation.ued_latent_figures import (
    latent_figure,
    scheme_figure,
    tsne_figure,
)
from diffractory.store import InputError, recorded

FIGURES: dict[str, tuple[str, ...]] = {
    "1": (),
    "2": (),
    "3": ("cnn_syn",),
    "4": ("experiment/cnn_syn", "experiment/cnn_exp"),
    "5": (),
    "6": ("c_vae",),
    "7": ("c_vae",),
}
"""Prediction files that each figure reads."""

EXAMPLES = ("2", "4", "6")
"""Figures that read the examples."""

ARCHITECTURE = {"1": "cnn_syn", "5": "c_vae"}
"""Figures that read ``architecture.json``, and of which model."""

HPARAMS = {"6": "c_vae"}
"""Figures that read ``hparams.json``, and of which model."""

DIFFERENCE = LinearSegmentedColormap.from_list("difference", ["#0044aa", "white", "#cc2211"])


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
    hparams: Path | None = None,
) -> None:
    """Write one figure from our data.

    Parameters
    ----------
    name
        A key of ``FIGURES``.
    predictions
        Prediction files by model, the last part of what ``FIGURES`` calls them; models without one
        are left out and named in the caption.
    context
        ``scale``, ``dataset``, ``seed``, and ``source`` of the experiment: a key of ``STAND_IN``.
    svg, png, csv, run
        What to write: the figure twice, the plotted data, and the record.
    examples
        ``examples.parquet``, for the figures in ``EXAMPLES``.
    architecture, hparams
        Files of the models in ``ARCHITECTURE`` and ``HPARAMS``.

    Raises
    ------
    InputError
        If an input is not of the form described, the study has no such figure, or no model ran
        that the figure could show.
    """
    check_name(name, FIGURES, "figure", STUDY)
    models = [Path(file).name for file in FIGURES[name]]
    used = {model: predictions[model] for model in models if model in predictions}
    inputs = [*used.values(), *filter(None, [examples, architecture, hparams])]
    config, outputs = {**context, "figure": name}, [svg, png, csv]
    with recorded(run, "plot_ued", config, inputs, outputs, context["seed"]), figure_style():
        match name:
            case "1":
                path = _ran(architecture, name, "cnn_syn")
                title = "CNNSyn, its first residual layer opened"
                drawing = architecture_figure(path, "", True, title, "blocks.0")
            case "2":
                drawing = _figure_2(examples)
            case "3":
                drawing = _figure_3(_ran(used.get("cnn_syn"), name, "cnn_syn"))
            case "4":
                _ran(next(iter(used.values()), None), name, "cnn_syn")
                drawing = _figure_4(used, examples, STAND_IN[context["source"]])
            case "5":
                drawing = scheme_figure(_ran(architecture, name, "c_vae"))
            case "6":
                drawing = latent_figure(_ran(used.get("c_vae"), name, "c_vae"), hparams, examples)
            case _:
                drawing = tsne_figure(_ran(used.get("c_vae"), name, "c_vae"), context["seed"])
        write_drawing(drawing, context, svg, png, csv)


def _ran(path: Path | None, figure: str, model: str) -> Path:
    """Return the file of a model that a figure shows.

    Raises
    ------
    InputError
        If it is not given.
    """
    if path is None:
        raise InputError(f"figure {figure} shows {MODELS[model]}, which was not run: train it")
    return path


def _figure_2(path: Path | None) -> Drawing:
    shown = {example.kind: example for example in read_examples(path, "2")}
    shown = {kind: shown[kind] for kind in CLASSES if kind in shown}
    reference = read_examples(path, "reference")[0].image
    figure = Figure(figsize=(WIDTH, 2.6))
    axes = figure.subplots(2, len(CLASSES), gridspec_kw={
        "left": 0.03, "right": 0.997, "top": 0.91, "bottom": 0.075, "wspace": 0.06, "hspace": 0.06,
    })  # fmt: skip
    norm, data = raw_norm([*shown.values()]), []
    for ax in axes[:, len(shown) :].flat:
        ax.set_visible(False)
    for (raw, difference), (kind, example) in zip(axes.T, shown.items(), strict=False):
        if example.image.shape != reference.shape:
            raise InputError(f"{path} has an image of another size than the reference")
        raw.set_title(CLASSES[kind])
        draw_image(raw, shrunk(example.image), example, norm)
        change = difference_image(shrunk(example.image), shrunk(reference))
        draw_image(difference, change, example, Normalize(-1, 1), DIFFERENCE)
        data.append(
            {"kind": kind, "brightest": example.image.max(),
             "greatest_increase": (example.image - reference).max(),
             "greatest_decrease": (reference - example.image).max()}
        )  # fmt: skip
    for letter, ax in zip("ab", axes[:, 0], strict=True):
        letter_panel(ax, letter)
    draw_scale_bar(axes[1, 0], example)
    caption = (
        f"One test image of each class. a: as detected. {IMAGE_NOTE} b: difference to the "
        "noise-free image of pristine 2H at rest. Red: increase, blue: decrease, each divided by "
        "its own greatest value and drawn by the square root; white: no change. Data: greatest "
        "values, in units of the mean outside of the beam stop."
    )
    return Drawing(figure, "Images by class, and what differs", caption, pd.DataFrame(data))


def _figure_3(path: Path) -> Drawing:
    ours, theirs = read_confusion(path), published_confusion()
    figure = Figure(figsize=(WIDTH, 4.25))
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={
        "left": 0.13, "right": 0.995, "top": 0.93, "bottom": 0.18, "wspace": 0.04,
    })  # fmt: skip
    names, data = list(CLASSES.values()), []
    for ax, confusion, title in zip(axes, (ours, theirs), ("here", "published"), strict=True):
        fractions = row_normalized(confusion)
        ax.imshow(np.nan_to_num(fractions), vmin=0, vmax=1, cmap="Blues", interpolation="none")
        for true, named in np.ndindex(confusion.shape):
            fraction = fractions[true, named]
            if confusion[true, named] == 0:
                continue
            label = f"{confusion[true, named]:,}\n{100 * fraction:.1f} %"
            colour = "white" if fraction > 0.6 else INK
            ax.text(named, true, label, ha="center", va="center", fontsize=5.8, color=colour)
            data.append({"matrix": title, "true": names[true], "predicted": names[named],
                         "images": confusion[true, named], "percent": 100 * fraction})  # fmt: skip
        ax.set_title(f"{title.capitalize()}, {confusion.sum():,} images")
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        ax.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1)
        ax.tick_params(which="both", length=0)
        ax.set_axisbelow(False)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("Predicted")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylabel("True")
    caption = (
        "Classes that CNNSyn gives to test images (left), beside those of the paper's Figure 3 "
        "(right). Each cell: number of images, and percent of the true class (row); colour: the "
        "percent. Empty cells: none."
    )
    return Drawing(figure, "Confusion matrix of CNNSyn", caption, pd.DataFrame(data))


def _figure_4(used: Mapping[str, Path], path: Path | None, stand_in: str) -> Drawing:
    frames = sorted(read_examples(path, "4"), key=lambda example: example.time)
    figure = Figure(figsize=(WIDTH, 4.35))
    rows = figure.add_gridspec(2, 1, height_ratios=(1.4, 2), left=0.105, right=0.99, top=0.94,
                               bottom=0.1, hspace=0.3)  # fmt: skip
    images = rows[0].subgridspec(1, len(frames), wspace=0.06).subplots(squeeze=False)[0]
    _draw_frames(images, frames)
    axes = rows[1].subgridspec(1, len(used), wspace=0.05).subplots(sharey=True, squeeze=False)[0]
    data = []
    for ax, (model, file) in zip(axes, used.items(), strict=True):
        series = read_series(file)
        _draw_course(ax, series)
        ax.set_title(MODELS[model], loc="left", fontweight="bold")
        data.append(series.assign(model=MODELS[model]))
    axes[0].set_yticks(range(len(CLASSES)), CLASSES.values())
    axes[-1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    for letter, ax in (("a", images[0]), ("b", axes[0])):
        letter_panel(ax, letter)
    absent = [MODELS[model] for model in ("cnn_syn", "cnn_exp") if model not in used]
    not_run = f" Not run: {listed(absent)}." if absent else ""
    caption = (
        f"The test frames of the experiment. Stand-in: {stand_in}. a: frames with their times "
        f"after the pump. {IMAGE_NOTE} b: class of each frame against its time. Dashed: time zero. "
        "Grey line: the class that the frames are labelled with. Shaded: classes that no frame can "
        f"be of.{not_run}"
    )
    table = pd.concat(data)
    names = np.array([*CLASSES.values()])
    table = table.assign(true=names[table["kind"]], predicted=names[table["predicted"]])
    columns = ["model", "scan", "time", "true", "predicted"]
    return Drawing(figure, "Classes over time", caption, table[columns])


def _draw_frames(axes: Sequence[Axes], frames: Sequence[Example]) -> None:
    norm = raw_norm(frames)
    for ax, frame in zip(axes, frames, strict=True):
        draw_image(ax, shrunk(frame.image), frame, norm)
        ax.set_title(f"{frame.time:+.1f} ps".replace("-", "\N{MINUS SIGN}"))
    draw_scale_bar(axes[0], frames[0])


def _draw_course(ax: Axes, series: pd.DataFrame) -> None:
    for kind in IMPOSSIBLE:
        place = list(CLASSES).index(kind)
        ax.axhspan(place - 0.5, place + 0.5, color="#f3e3e0", linewidth=0, zorder=0)
    ax.axvline(0, color=MUTED, linestyle="--", linewidth=0.8)
    for k, (_, scan) in enumerate(series.groupby("scan")):
        ax.step(scan["time"], scan["kind"], where="post", color="#bbbbbb", linewidth=3,
                label=None if k else "Label")  # fmt: skip
        ax.plot(scan["time"], scan["predicted"], color="#0077bb", linewidth=0.6, marker="o",
                markersize=2.5, label=None if k else "Predicted")  # fmt: skip
    ax.set(ylim=(len(CLASSES) - 0.5, -0.5), xlabel="Time after the pump, ps")
    ax.tick_params(axis="y", length=0)
