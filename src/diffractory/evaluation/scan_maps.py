"""Pictures of the map of a scan: crystal systems, confidence, space groups, numbers of spots."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import spglib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from diffractory.evaluation.style import INK, MUTED, SYSTEM_COLOURS, figure_style, write_figure
from diffractory.store import CRYSTAL_SYSTEMS
from diffractory.store.scan_maps import (
    ABSTAINED,
    CLASSIFIED,
    NOT_CONFIDENT,
    TOO_FEW,
    UNUSABLE,
    ScanMap,
)

BACKGROUND = "#f2f2f2"
"""Of positions without a value."""

LOOKS = {TOO_FEW: BACKGROUND, NOT_CONFIDENT: "#8a8a8a", UNUSABLE: INK}
"""Colours of positions that abstain; those that are not confident are striped."""

GROUP_COLOURS = ("#cc6677", "#332288", "#ddcc77", "#117733", "#88ccee", "#882255", "#44aa99",
                 "#999933")  # fmt: skip
"""Paul Tol's muted scheme, which also colour-blind readers can tell apart."""

OTHERS = "#dddddd"

WIDTH, HEIGHT = 5.6, 3.7
"""Of a picture, inch."""

PLACES = ((0.01, 0.6), (0.64, 0.35))
"""Left end and width of the map in a picture, and of what explains it."""

STRIPED = 640
"""Pixels along the longer side of a map of classes, about, so that stripes can be seen."""

FLATTEST = 8
"""A map whose sides differ more than so manifold is drawn stretched."""


def draw_maps(scan_map: ScanMap, folder: Path) -> None:
    """Write the pictures of a map, each as SVG and PNG."""
    looked = scan_map.state[:: scan_map.attributes["every"], :: scan_map.attributes["every"]]
    caption = (
        f"{looked.shape[0]} by {looked.shape[1]} positions, model {scan_map.attributes['model']}."
    )
    usable = scan_map.state < UNUSABLE
    with figure_style():
        pictures = {
            "crystal_system": _systems(scan_map),
            "confidence": _values(
                scan_map, scan_map.confidence, "confidence: difference of two largest probabilities"
            ),
            "n_spots": _values(
                scan_map, np.where(usable, scan_map.n_spots, np.nan), "diffracted spots found"
            ),
        }
        if (scan_map.space_group > 0).any():
            pictures["space_group"] = _groups(scan_map)
        for name, figure in pictures.items():
            title = name.replace("n_spots", "number of spots").replace("_", " ").capitalize()
            write_figure(figure, title, caption, folder / f"{name}.svg", folder / f"{name}.png")


def draw_classes(
    axes: Axes,
    scan_map: ScanMap,
    classes: NDArray[np.integer],
    colours: Sequence[str],
) -> None:
    """Draw the class of each position in its colour, and positions that abstain as in `LOOKS`.

    Parameters
    ----------
    classes
        Index into ``colours`` of the classified positions, shape (R, C).
    """
    every = scan_map.attributes["every"]
    classes, state = classes[::every, ::every], scan_map.state[::every, ::every]
    palette = np.array([to_rgb(colour) for colour in [*colours, *LOOKS.values(), BACKGROUND]])
    index = np.where(state == CLASSIFIED, classes, len(colours) + len(LOOKS))
    for place, abstained in enumerate(LOOKS):
        index[state == abstained] = len(colours) + place
    sides = state.shape if _flat(state.shape) else 2 * [max(state.shape)]
    fine = np.ones([max(1, STRIPED // side) for side in sides], dtype=int)
    index, unsure = np.kron(index, fine), np.kron(state == NOT_CONFIDENT, fine) > 0
    rows, columns = np.ogrid[: index.shape[0], : index.shape[1]]
    period = 6 if min(fine.shape) > 2 else 2
    index[unsure & ((rows + columns) % period < period // 2)] = len(palette) - 1
    _show(axes, palette[index], state.shape)


def class_handles(
    names: Sequence[str], colours: Sequence[str], counts: NDArray[np.integer], state: NDArray[Any]
) -> list[Patch]:
    """Return the entries of a legend: classes with their share, and how many abstain.

    Parameters
    ----------
    counts
        Positions of each class.
    state
        Of all positions.
    """
    total = max(1, int(counts.sum()))
    shown = [
        Patch(color=colour, label=f"{name}  {100 * count / total:.1f} %")
        for name, colour, count in zip(names, colours, counts, strict=True)
        if count
    ]
    for abstained, colour in LOOKS.items():
        if count := np.count_nonzero(state == abstained):
            hatch = "////" if abstained == NOT_CONFIDENT else None
            patch = Patch(
                facecolor=BACKGROUND if hatch else colour,
                edgecolor=LOOKS[NOT_CONFIDENT],
                linewidth=0.4,
                hatch=hatch,
                label=f"{ABSTAINED[abstained]}: {count:,}",
            )
            shown.append(patch)
    return shown


def scale_bar(axes: Axes, columns: int, step: float | None) -> None:
    """Draw a bar of a round length under a map of so many columns, of about a quarter of its width.

    Parameters
    ----------
    step
        Distance of neighbouring positions, angstrom; None for a bar in positions.
    """
    unit, name = (1.0, "positions") if step is None else (1 / step, "Å")
    length = _round_down(columns / unit / 4) if columns / unit > 4 else 1.0
    text = f"{length:g} {name}"
    if step is not None and length >= 10:
        text = f"{length / 10:g} nm" if length < 1e4 else f"{length / 1e4:g} µm"
    transform = axes.get_xaxis_transform()
    left, right = -0.5, -0.5 + length * unit
    axes.plot(
        [left, right], [-0.045, -0.045], color=INK, linewidth=2, solid_capstyle="butt",
        transform=transform, clip_on=False,
    )  # fmt: skip
    axes.text(right + 0.02 * columns, -0.045, text, transform=transform, va="center", fontsize=7.5)


def _round_down(length: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above a length."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(power * max(digit for digit in (1, 2, 5) if digit * power <= length))


def _systems(scan_map: ScanMap) -> Figure:
    colours = [SYSTEM_COLOURS[name] for name in CRYSTAL_SYSTEMS]
    return _classes(scan_map, scan_map.crystal_system, CRYSTAL_SYSTEMS, colours, "crystal system")


def _groups(scan_map: ScanMap) -> Figure:
    first = np.where(scan_map.state == CLASSIFIED, scan_map.space_group[..., 0], 0)
    numbers, counts = np.unique(first[first > 0], return_counts=True)
    frequent = numbers[np.argsort(-counts, kind="stable")][: len(GROUP_COLOURS)]
    classes = np.full(first.shape, len(frequent))
    for place, number in enumerate(frequent):
        classes[first == number] = place
    names = [f"{symbol(int(number))} ({number})" for number in frequent]
    colours = [*GROUP_COLOURS[: len(frequent)], OTHERS]
    return _classes(scan_map, classes, [*names, "others"], colours, "space group")


def _classes(
    scan_map: ScanMap,
    classes: NDArray[np.integer],
    names: Sequence[str],
    colours: Sequence[str],
    title: str,
) -> Figure:
    figure, axes, beside = _canvas(scan_map)
    draw_classes(axes, scan_map, classes, colours)
    _scale(axes, scan_map)
    counts = np.bincount(classes[scan_map.state == CLASSIFIED], minlength=len(colours))
    handles = class_handles(names, colours, counts, scan_map.state)
    legend = beside.legend(handles=handles, loc="upper left", title=title, borderaxespad=0)
    legend._legend_box.align = "left"  # type: ignore[attr-defined]
    return figure


def _values(scan_map: ScanMap, values: NDArray[np.floating], label: str) -> Figure:
    every = scan_map.attributes["every"]
    figure, axes, beside = _canvas(scan_map)
    colours = mpl.colormaps["cividis"].with_extremes(bad=BACKGROUND)
    shown = values[::every, ::every]
    top = np.nanmax(shown) if np.isfinite(shown).any() else 1
    _show(axes, shown, shown.shape, cmap=colours, vmin=0, vmax=max(top, 1e-3))
    _scale(axes, scan_map)
    box = beside.inset_axes((0, 0.1, 0.09, 0.8))
    figure.colorbar(axes.images[0], cax=box, label=label).outline.set_linewidth(0.6)
    return figure


def _canvas(scan_map: ScanMap) -> tuple[Figure, Axes, Axes]:
    """Return a figure, the place of the map in it, and that of what explains it."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes, beside = (figure.add_axes((left, 0.09, width, 0.89)) for left, width in PLACES)
    beside.axis("off")
    return figure, axes, beside


def _show(axes: Axes, image: NDArray[Any], shape: tuple[int, ...], **how: Any) -> None:
    """Draw an image over positions, of which each is a unit wide."""
    rows, columns = shape
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(image, extent=extent, interpolation="none", **how)
    axes.set_aspect("auto" if _flat(shape) else "equal", anchor="N")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(MUTED)


def _flat(shape: tuple[int, ...]) -> bool:
    return max(shape) > FLATTEST * min(shape)


def _scale(axes: Axes, scan_map: ScanMap) -> None:
    every, step = scan_map.attributes["every"], scan_map.attributes["step"]
    columns = scan_map.state[::every, ::every].shape[1]
    if step is not None or columns > 1:
        scale_bar(axes, columns, None if step is None else step * every)


@cache
def symbol(number: int) -> str:
    """Return the short Hermann-Mauguin symbol of a space group in its first setting."""
    types = (spglib.get_spacegroup_type(hall) for hall in range(1, 531))
    return next(t.international_short for t in types if t is not None and t.number == number)
