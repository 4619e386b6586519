"""How every figure looks, and how it is written: the same bytes from the same data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from diffractory.store import atomic_file

WIDTH = 7.2
"""Width of a figure over both columns of a journal page, inch."""

SYSTEM_COLOURS = {
    "cubic": "#4477aa",
    "hexagonal": "#ee6677",
    "trigonal": "#228833",
    "tetragonal": "#ccbb44",
    "orthorhombic": "#66ccee",
    "monoclinic": "#aa3377",
    "triclinic": "#bbbbbb",
}
"""Paul Tol's bright scheme, which also colour-blind readers can tell apart."""

INK, MUTED = "#222222", "#666666"

SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, to be read aloud, found and edited
    "svg.hashsalt": "diffractory",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the style of this project, whatever the user's own matplotlib settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def write_figure(figure: Figure, title: str, caption: str, svg: Path, png: Path) -> None:
    """Write a figure as SVG, with title and caption inside, and as PNG at 200 dpi."""
    described = {"Title": title, "Description": caption, "Date": None}
    with atomic_file(svg) as partial:
        figure.savefig(partial, format="svg", metadata=described)
    with atomic_file(png) as partial:
        figure.savefig(partial, format="png", dpi=200)
