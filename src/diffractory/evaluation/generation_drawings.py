"""Small drawings of crystals: balls in a cell, seen from its front and a little from above."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from numpy.typing import NDArray

from diffractory.evaluation.style import INK, MUTED

TO_VIEWER = (0.3, -1.0, 0.26)
"""From a crystal to who looks at it, for a along x and b in the xy plane."""

SHRUNK = 0.5
"""Radius of a drawn atom in its covalent radius."""

ON_FACE = 0.03
"""Distance from a face of the cell, as a fraction, below which an atom is drawn on both sides."""

LARGEST = 1000.0
"""Length of a lattice vector above which a crystal is not drawn, angstrom."""

PALE = 0.35
"""Share of white in the colour of an atom at the back of the cell."""

CORNERS = np.indices((2, 2, 2)).reshape(3, -1).T
"""Of a cell, in lattice vectors, shape (8, 3)."""

EDGES = np.array([(i, i | bit) for bit in (4, 2, 1) for i in range(8) if not i & bit])
"""Pairs of corners, shape (12, 2)."""

KEY_COLUMNS = 20
"""Elements in a row of a key."""


class ShownCell(NamedTuple):
    """A crystal to draw.

    Attributes
    ----------
    lattice
        Lattice vectors as rows, angstrom, shape (3, 3).
    positions
        Fractional coordinates, shape (N, 3).
    numbers
        Atomic numbers, shape (N,).
    """

    lattice: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]


def shown_cell(row: Mapping[Any, Any]) -> ShownCell:
    """Return the crystal in a row with ``lattice``, ``positions`` and ``numbers``.

    Raises
    ------
    ValueError, KeyError, TypeError
        If these are missing or of other lengths.
    """
    numbers = np.array(row["numbers"], dtype=np.int64)
    return ShownCell(
        np.array(row["lattice"], dtype=np.float64).reshape(3, 3),
        np.array(row["positions"], dtype=np.float64).reshape(len(numbers), 3),
        numbers,
    )


def obstacle(cell: ShownCell) -> str:
    """Return why a crystal cannot be drawn; empty where it can."""
    if not (np.isfinite(cell.lattice).all() and np.isfinite(cell.positions).all()):
        return "not finite"
    return "too large to draw" if np.abs(cell.lattice).max() > LARGEST else ""


def project(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far to the right, up and to the viewer Cartesian points are, shape (..., 3)."""
    near = np.array(TO_VIEWER) / np.linalg.norm(TO_VIEWER)
    up = np.array([0, 0, 1]) - near[2] * near
    up /= np.linalg.norm(up)
    return points @ np.stack([np.cross(up, near), up, near]).T


def bounds(lattice: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where a projected cell begins and ends, in three directions, angstrom."""
    corners = project(CORNERS @ lattice)
    return corners.min(axis=0), corners.max(axis=0)


def radii(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the radii of drawn atoms, angstrom."""
    return SHRUNK * np.asarray(covalent_radii)[np.clip(numbers, 0, len(covalent_radii) - 1)]


def colours(numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the colours of elements, shape (N, 3)."""
    return np.asarray(jmol_colors)[np.clip(numbers, 0, len(jmol_colors) - 1)]


def draw_crystal(ax: Axes, cell: ShownCell) -> None:
    """Draw a crystal that has no obstacle, as large as the axes allow.

    Atoms on a face of the cell are drawn on the opposite face too.
    """
    atom, fractional = _with_copies(cell.positions)
    numbers = cell.numbers[atom]
    front = (project(cell.lattice)[:, 2] > 0).astype(np.int64)  # the corner next to the viewer
    before = (np.abs(fractional - front) < ON_FACE).any(axis=1)
    places = project(fractional @ cell.lattice)
    at_front = (CORNERS[EDGES] == front).all(axis=2).any(axis=1)
    draw_edges(ax, cell.lattice, ~at_front, zorder=1)
    draw_atoms(ax, places[~before], numbers[~before], cell.lattice, zorder=2)
    draw_edges(ax, cell.lattice, at_front, zorder=3)
    draw_atoms(ax, places[before], numbers[before], cell.lattice, zorder=4)
    low, high = bounds(cell.lattice)
    reach = radii(numbers)[:, None]
    low = np.minimum(low, (places - reach).min(axis=0, initial=np.inf))[:2]
    high = np.maximum(high, (places + reach).max(axis=0, initial=-np.inf))[:2]
    frame(ax, (low + high) / 2, 1.04 * max((high - low).max(), 1.0))


def frame(ax: Axes, middle: NDArray[np.float64], side: float) -> None:
    """Let axes without ticks show a square, angstrom."""
    (x, y), half = middle, side / 2
    ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal", xticks=[],
           yticks=[])  # fmt: skip
    ax.spines[:].set_visible(False)


def draw_edges(
    ax: Axes, lattice: NDArray[np.float64], chosen: NDArray[np.bool_], **look: Any
) -> None:
    """Draw those edges of a cell that are chosen, of 12."""
    ends = list(project(CORNERS @ lattice)[EDGES[chosen], :2])
    ax.add_collection(LineCollection(ends, **{"color": MUTED, "linewidth": 0.6, **look}))


def draw_atoms(
    ax: Axes,
    places: NDArray[np.float64],
    numbers: NDArray[np.int64],
    lattice: NDArray[np.float64],
    **look: Any,
) -> None:
    """Draw atoms at projected places, near ones over far ones, those at the back of a cell pale."""
    order = np.argsort(places[:, 2], kind="stable")
    places, numbers = places[order], numbers[order]
    back, front = (bound[2] for bound in bounds(lattice))
    depth = np.clip((front - places[:, 2:]) / max(front - back, 1e-9), 0, 1)
    size = 2 * radii(numbers)
    ax.add_collection(EllipseCollection(size, size, np.zeros(len(size)), **{
        "units": "xy", "offsets": places[:, :2], "offset_transform": ax.transData,
        "edgecolor": INK, "linewidth": 0.4,
        "facecolor": (1 - PALE * depth) * colours(numbers) + PALE * depth, **look,
    }))  # fmt: skip


def _with_copies(
    fractional: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return atoms, and copies of those on faces on the opposite ones: which, and where."""
    places = fractional - np.floor(fractional)
    step = np.where(places < ON_FACE, 1, np.where(places > 1 - ON_FACE, -1, 0))
    moved = CORNERS[None] * step[:, None]  # (N, 8, 3)
    # A copy along an axis is one only where the atom lies on a face there.
    real = ((CORNERS[None] == 0) | (step[:, None] != 0)).all(axis=2)
    atom, corner = np.nonzero(real)
    return atom, places[atom] + moved[atom, corner]


def key_rows(numbers: Collection[int]) -> int:
    """Return how many rows the key of elements has."""
    return -(-len(numbers) // KEY_COLUMNS)


def draw_key(ax: Axes, numbers: Collection[int]) -> None:
    """Draw a ball of each element with its symbol, in rows; the axes are only for this."""
    known = np.array(sorted(numbers), dtype=np.int64)
    place = np.arange(len(known))
    x, y = place % KEY_COLUMNS, -(place // KEY_COLUMNS)
    ax.scatter(x, y, 34, color=colours(known), edgecolor=INK, linewidth=0.4)
    for column, row, number in zip(x, y, known, strict=True):
        symbol = chemical_symbols[min(max(number, 0), len(chemical_symbols) - 1)]
        ax.annotate(symbol, (column, row), (5, 0), fontsize=6.5,
                    textcoords="offset points", va="center")  # fmt: skip
    ax.set(xlim=(-0.3, KEY_COLUMNS - 0.2), ylim=(0.5 - key_rows(known), 0.5))
    ax.axis("off")
