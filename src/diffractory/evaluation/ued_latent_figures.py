"""Figures of the C-VAE: its layers, and where images lie in its latent space."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from numpy.typing import NDArray
from scipy.spatial import KDTree
from threadpoolctl import threadpool_limits

from diffractory.evaluation.architecture import Block, read_architecture
from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.style import INK, MUTED, WIDTH
from diffractory.evaluation.tables import listed
from diffractory.evaluation.ued import (
    EXPECTED,
    KINDS,
    Latent,
    kind_name,
    read_examples,
    read_latent,
    read_means,
)
from diffractory.evaluation.ued_images import (
    IMAGE_NOTE,
    draw_image,
    draw_scale_bar,
    letter_panel,
    raw_norm,
    shrunk,
)
from diffractory.store import InputError

LOOKS = {
    "2h": ("#0077bb", "o"),
    "1t": ("#cc3311", "s"),
    "interpolated": ("#999999", "D"),
    "transforming": ("#009988", "^"),
    "molten": ("#ee7733", "X"),
}
"""Colour and marker of each kind; colours of Paul Tol's vibrant scheme."""

MOST_DOTS = 16
"""Length up to which Figure 5 shows the entries of a vector."""

FILL, EDGE = "#e3ecf4", "#4d7ea8"
"""Of the sheets and bars of Figure 5."""

OTHER_LOOK = ("#ee3377", "P")
"""Of kinds that the study does not have by default."""

MOST_POINTS = 3000
"""Images of a t-SNE, which grows slow with more."""

NEIGHBOUR, SHARE = 5, 0.95
"""The corridor of Figure 7 reaches as far as this share of its images have so many neighbours."""

ELLIPSE = 5.991**0.5
"""Radius, in standard deviations, that holds 95 % of a normal distribution of two dimensions."""


def scheme_figure(path: Path) -> Drawing:
    """Draw the layers of the C-VAE, given its ``architecture.json``.

    Raises
    ------
    InputError
        If the file does not describe an encoder and a decoder.
    """
    encoder, decoder = _layers(path)
    ends = [encoder[0].inputs[0], *(layer.outputs[0] for layer in encoder)]
    starts = [decoder[0].inputs[0], *(layer.outputs[0] for layer in decoder)]
    figure = Figure(figsize=(WIDTH, 1.85))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(-1.12, 0.73))  # inch
    ax.axis("off")
    shapes = [*ends, *starts]
    places = (np.arange(len(shapes)) + 0.5) * WIDTH / len(shapes)
    tallest = max(shape[-1] for shape in shapes if len(shape) == 3)
    for x, shape in zip(places, shapes, strict=True):
        _draw_tensor(ax, x, shape, tallest)
    steps = [*(layer.kind for layer in encoder), "draw", *(layer.kind for layer in decoder)]
    for x, step in zip((places[1:] + places[:-1]) / 2, steps, strict=True):
        ax.annotate("", (x + 0.07, 0), (x - 0.07, 0), arrowprops={
            "arrowstyle": "-|>", "mutation_scale": 6, "color": MUTED,
        })  # fmt: skip
        ax.text(x, 0.46, step.replace("Transpose", "\nTranspose"), ha="center", va="bottom",
                fontsize=5.8, color=MUTED)  # fmt: skip
    groups = (("Encoder", 0, len(ends) - 1), ("Latent space", len(ends), len(ends)),
              ("Decoder", len(ends) + 1, len(shapes) - 1))  # fmt: skip
    for name, first, last in groups:
        low, high = places[first] - 0.24, places[last] + 0.24
        ax.plot([low, high], [-0.88, -0.88], color=MUTED, linewidth=0.8)
        ax.text((low + high) / 2, -0.93, name, ha="center", va="top", fontweight="bold")
    caption = (
        "The C-VAE, from the built network. Sheets: channels with their rows and columns (sizes on "
        "a logarithmic scale); bars and dots: vectors, with their lengths. Above: the layers "
        "between them; activations are not shown. The encoder gives the means and the logarithms "
        "of the variances of the latent vector, which is drawn from them in training, and is the "
        "means afterwards."
    )
    data = pd.DataFrame(
        {
            "name": layer.name,
            "kind": layer.kind,
            "inputs": _printed(layer.inputs[0]),
            "outputs": _printed(layer.outputs[0]),
            "parameters": layer.parameters,
        }
        for layer in (*encoder, *decoder)
    )
    return Drawing(figure, "Scheme of the C-VAE", caption, data)


def _layers(path: Path) -> tuple[list[Block], list[Block]]:
    """Return the layers with parameters of the encoder and of the decoder."""
    blocks = read_architecture(path)
    parents = {block.parent for block in blocks}
    layers = [block for block in blocks if block.name not in parents and block.parameters]
    encoder, decoder = (
        [layer for layer in layers if layer.name.split(".")[0] == part]
        for part in ("encoder", "decoder")
    )
    if not encoder or not decoder:
        raise InputError(f"{path} has no encoder and decoder: train the C-VAE again")
    return encoder, decoder


def _printed(shape: Sequence[int]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape))


def _draw_tensor(ax: Axes, x: float, shape: Sequence[int], tallest: int) -> None:
    """Draw feature maps, a long vector or a short one around (x, 0), inch, with its size below."""
    if len(shape) == 3:
        side = 0.42 * np.log2(shape[-1] + 1) / np.log2(tallest + 1) + 0.02
        sheets = 1 + round(np.log2(shape[0]) / 2)
        for k in range(sheets):
            shift = 0.03 * ((sheets - 1) / 2 - k)
            corner = (x - side / 2 + shift, shift - side / 2)
            ax.add_patch(Rectangle(corner, side, side, facecolor=FILL, edgecolor=EDGE,
                                   linewidth=0.6))  # fmt: skip
        label = f"{shape[0]}\n{_printed(shape[1:])}"
    elif shape[0] > MOST_DOTS:
        ax.add_patch(Rectangle((x - 0.03, -0.36), 0.06, 0.72, facecolor=FILL, edgecolor=EDGE,
                               linewidth=0.6))  # fmt: skip
        label = f"{shape[0]:,}"
    else:
        heights = 0.08 * (np.arange(shape[0]) - (shape[0] - 1) / 2)
        ax.plot(np.full(shape[0], x), heights, linestyle="none", marker="o", markersize=4.5,
                color="#fde6cf", markeredgecolor="#d9822b", markeredgewidth=0.8)  # fmt: skip
        label = f"{shape[0]:,}"
    ax.text(x, -0.5, label, ha="center", va="top", fontsize=6.2)


def latent_figure(path: Path, hparams: Path | None, examples: Path | None) -> Drawing:
    """Draw an image of each kind, and where the kinds lie in latent space.

    Parameters
    ----------
    path
        Prediction file of the C-VAE.
    hparams, examples
        ``hparams.json`` of the C-VAE, and ``examples.parquet``.

    Raises
    ------
    InputError
        If an input is not given or not of its form.
    """
    latent, ends = read_latent(path), read_means(hparams)
    shown = read_examples(examples, "6")
    shown.sort(key=lambda example: [*KINDS, example.kind].index(example.kind))
    figure = Figure(figsize=(WIDTH, 4.9))
    rows = figure.add_gridspec(2, 1, height_ratios=(1.35, 2.6), left=0.085, right=0.99, top=0.95,
                               bottom=0.09, hspace=0.22)  # fmt: skip
    norm = raw_norm(shown)
    images = rows[0].subgridspec(1, len(shown), wspace=0.05).subplots(squeeze=False)[0]
    for ax, example in zip(images, shown, strict=True):
        draw_image(ax, shrunk(example.image), example, norm)
        ax.set_title(kind_name(example.kind), color=look(example.kind)[0], fontweight="bold")
    draw_scale_bar(images[0], shown[0])
    plane, line = rows[1].subgridspec(1, 2, wspace=0.32).subplots(squeeze=False)[0]
    coordinates, length = _plane(latent, ends)
    _draw_plane(plane, latent, coordinates, length)
    _draw_distances(line, latent)
    for letter, ax in (("a", images[0]), ("b", plane), ("c", line)):
        letter_panel(ax, letter)
    caption = (
        "Types of images in the latent space of the C-VAE, test images. a: one image of each. "
        f"{IMAGE_NOTE} b: latent means, along the line from 2H to 1T' (black, between the mean "
        "vectors of the training images) and along the direction across it in which they spread "
        "most; ellipses hold 95 % of a normal distribution with the mean and covariance of a kind. "
        "c: distance to the line in all dimensions, by kind; black: median. Interpolated: mixtures "
        "of an image of 2H and one of 1T'. Transforming: atoms between 2H and 1T'. Molten: most "
        "of the atoms missing."
    )
    data = pd.DataFrame({"kind": latent.kind, "along": coordinates[:, 0],
                         "across": coordinates[:, 1], "distance": latent.distance})  # fmt: skip
    return Drawing(figure, "Types of images in latent space", caption, data)


def look(kind: str) -> tuple[str, str]:
    """Return colour and marker of a kind."""
    return LOOKS.get(kind, OTHER_LOOK)


def _plane(latent: Latent, ends: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return places along and across the line between its ends, (N, 2), and its length."""
    line = ends[1] - ends[0]
    length = float(np.linalg.norm(line))
    along = line / max(length, 1e-12)
    rest = latent.mean - ends[0]
    x = rest @ along
    rest = rest - np.outer(x, along)
    _, vectors = np.linalg.eigh(np.cov(rest, rowvar=False, bias=True))
    across = vectors[:, -1] * np.sign(vectors[np.abs(vectors[:, -1]).argmax(), -1])
    return np.column_stack([x, rest @ across]), length


def _draw_plane(ax: Axes, latent: Latent, coordinates: NDArray[np.float64], length: float) -> None:
    for kind in latent.kinds:
        colour, marker = look(kind)
        points = coordinates[latent.kind == kind]
        ax.plot(*points.T, linestyle="none", marker=marker, markersize=2.6, color=colour,
                alpha=0.55, markeredgewidth=0)  # fmt: skip
        if len(points) > 2:
            values, vectors = np.linalg.eigh(np.cov(points, rowvar=False))
            width, height = 2 * ELLIPSE * np.sqrt(np.maximum(values, 0))
            angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
            ax.add_patch(Ellipse(points.mean(axis=0), width, height, angle=angle, fill=False,
                                 edgecolor=colour, linewidth=1))  # fmt: skip
    ax.plot([0, length], [0, 0], color=INK, linewidth=1.2, marker="o", markersize=4,
            markerfacecolor="white")  # fmt: skip
    for x, name in ((0, "2H"), (length, "1T'")):
        ax.annotate(name, (x, 0), (0, 7), textcoords="offset points", ha="center",
                    fontweight="bold", bbox={"pad": 0.5, "color": "#ffffffc0"})  # fmt: skip
    ax.set(xlabel="Along the line from 2H to 1T'", ylabel="Across the line")
    ax.margins(0.04)
    ax.grid()


def _draw_distances(ax: Axes, latent: Latent) -> None:
    names = latent.kinds
    for place, kind in enumerate(names):
        colour, marker = look(kind)
        values = np.sort(latent.distance[latent.kind == kind])
        # Spread evenly, so that the picture does not hang on a random draw.
        height = place + 0.5 * ((np.arange(len(values)) * 0.618) % 1 - 0.5)
        ax.plot(values, height, linestyle="none", marker=marker, markersize=2.6, color=colour,
                alpha=0.55, markeredgewidth=0)  # fmt: skip
        ax.plot([np.median(values)] * 2, [place - 0.35, place + 0.35], color=INK, linewidth=1.5)
    ax.set_yticks(range(len(names)), [kind_name(kind) for kind in names])
    ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, None), xlabel="Distance to the line")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def tsne_figure(path: Path, seed: int) -> Drawing:
    """Draw a t-SNE of the latent means, and the corridor of expected images.

    Parameters
    ----------
    path
        Prediction file of the C-VAE.
    seed
        Global seed.

    Raises
    ------
    InputError
        If the file is not of its form, or has fewer than four images.
    """
    from sklearn.manifold import TSNE  # slow to import, and no other figure needs it

    latent = read_latent(path)
    most = MOST_POINTS // len(latent.kinds)
    kept = [np.flatnonzero(latent.kind == kind)[:most] for kind in latent.kinds]
    chosen = np.sort(np.concatenate(kept))
    if len(chosen) < 4:
        raise InputError(f"{path} has {len(chosen)} images, too few for a t-SNE: use more")
    kind = latent.kind[chosen]
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    # One thread: the sums of several would not always be the same.
    with threadpool_limits(1):
        points = TSNE(
            perplexity=perplexity, init="pca", random_state=seed % 2**32, n_jobs=1
        ).fit_transform(latent.mean[chosen])
    figure = Figure(figsize=(0.75 * WIDTH, 4.2))
    ax = figure.add_axes((0.015, 0.02, 0.73, 0.96))
    _draw_corridor(ax, points, points[np.isin(kind, EXPECTED)])
    for name in latent.kinds:
        colour, marker = look(name)
        ax.plot(*points[kind == name].T, linestyle="none", marker=marker, markersize=3,
                color=colour, alpha=0.7, markeredgewidth=0, label=kind_name(name))  # fmt: skip
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), markerscale=1.6, handletextpad=0.3)
    caption = (
        f"t-SNE of the latent means of {len(chosen):,} test images, perplexity {perplexity:.3g}, "
        "by kind. Shaded: the corridor of expected images, which is all places no farther from the "
        f"points of {listed([kind_name(k) for k in EXPECTED])} than {100 * SHARE:g} % of these are "
        f"from their {NEIGHBOUR}th nearest neighbour among them, in this plane. A t-SNE keeps "
        "neighbours, not distances: it is for the picture alone; scores are in the table of "
        "steering."
    )
    data = pd.DataFrame({"kind": kind, "x": points[:, 0], "y": points[:, 1]})
    return Drawing(figure, "Expected and unexpected images", caption, data)


def _draw_corridor(ax: Axes, points: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Shade what is near the expected points, and set limits around all points."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.06 * (high - low).max()
    (left, bottom), (right, top) = low - margin, high + margin
    ax.set(xlim=(left, right), ylim=(bottom, top))
    if len(expected) <= NEIGHBOUR:
        return
    tree = KDTree(expected)
    reach = np.quantile(tree.query(expected, NEIGHBOUR + 1)[0][:, -1], SHARE)
    x, y = np.linspace(left, right, 300), np.linspace(bottom, top, 300)
    distance = tree.query(np.stack(np.meshgrid(x, y), axis=-1))[0]
    ax.contourf(x, y, distance, levels=[0, reach], colors=["#e8edf2"])
    ax.contour(x, y, distance, levels=[reach], colors=[MUTED], linewidths=0.8)
