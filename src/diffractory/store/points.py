r"""Patterns of layers as clouds of points on a grid, in the file format of the DD2D study.

A file is JSON: ``X`` has grid row, grid column and log intensity of each point; ``seq`` has the
layer as text: a, b, c (angstrom), alpha, beta, gamma (degree), then x, y, z (angstrom) and atomic
number of each atom, padded with empty texts.

The grid has n = 2 q_max / q_step cells a side, and the direct beam in the middle, n / 2. All points
of the released ``example.json`` lie at floor(q / q_step + n / 2 + 1/2), with q_max = 2.5/angstrom
and n = 201. There, points past the end are wrapped to the other side; here, they are put into the
last cell.

The logarithm is the natural one of the intensity relative to the brightest point, without the
direct beam. The released files have it, direct beam included, of the modulus of a Fourier transform
with a scale of its own. In ``example.json`` that is rounding error alone: every \|F\|^2 is a whole
multiple of 2^-140 / 25, h k and -h -k differ, and Eqs. 1 and 2 of the paper explain none of it.

R. Fu et al., Commun. Phys. 8, 221 (2025); the files are at https://github.com/SuthPhy2Ai/DD2D.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffractory.errors import InputError
from diffractory.store.files import write_text

MAX_ATOMS = 40
SEQUENCE_LENGTH = 6 + 4 * MAX_ATOMS
"""Texts in ``seq``, padding included."""

ROUNDING = 1e-4
"""Of q, in cells: a spot at q = 0 is always in the same one."""


def grid_size(q_max: float, q_step: float) -> int:
    """Return the number of cells along a side of the grid."""
    return round(2 * q_max / q_step)


def to_points(
    qx: ArrayLike, qy: ArrayLike, intensity: ArrayLike, q_max: float, q_step: float
) -> NDArray[np.float64]:
    """Return grid row (of q_x), grid column (of q_y) and log intensity of a pattern, shape (3, N).

    Parameters
    ----------
    qx, qy
        Positions of N spots, 1/angstrom, none beyond q_max.
    intensity
        Of any unit, positive.
    q_max, q_step
        Half side of the grid and side of a cell, 1/angstrom.
    """
    n = grid_size(q_max, q_step)
    cells = np.floor(np.array([qx, qy], dtype=float) / q_step + (n + 1) / 2 + ROUNDING)
    relative = np.asarray(intensity, dtype=float) / np.max(intensity)
    return np.stack([*cells.clip(0, n - 1), np.log(relative)])


def from_points(
    points: NDArray[np.float64], q_max: float, q_step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return q_x, q_y, 1/angstrom, and intensity relative to the brightest, shape (N,) each.

    Positions are those of the middles of the cells, at most q_step / 2 off.
    """
    row, column, log_intensity = points
    middle = grid_size(q_max, q_step) / 2
    relative = np.exp(log_intensity - log_intensity.max())
    return (row - middle) * q_step, (column - middle) * q_step, relative


def sequence(
    lattice: ArrayLike, positions: NDArray[np.float64], numbers: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return a layer in the published order, shape (6 + 4 N,), as `from_sequence` reads it.

    Atoms ascend in atomic number, then in distance from the origin, then in x, y, z.

    Parameters
    ----------
    lattice
        a, b, c (angstrom), alpha, beta, gamma (degree).
    positions
        Cartesian, angstrom, shape (N, 3).
    numbers
        Atomic numbers, shape (N,).
    """
    # What rounding tells apart must not change the order.
    x, y, z = positions.T.round(6)
    distance = np.linalg.norm(positions, axis=1).round(6)
    order = np.lexsort((z, y, x, distance, numbers))
    atoms = np.column_stack([positions, numbers])[order]
    return np.concatenate([np.asarray(lattice, dtype=float), atoms.ravel()])


def from_sequence(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return lattice, positions and atomic numbers as `sequence` takes them."""
    atoms = values[6:].reshape(-1, 4)
    return values[:6], atoms[:, :3], atoms[:, 3].astype(np.int64)


def read_points(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points, shape (3, N), and sequence, shape (6 + 4 M,), of a file.

    The sequence is empty where the layer is not known.

    Raises
    ------
    InputError
        If the file is not of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        points = np.array(content["X"], dtype=float)
        values = np.array([float(text) for text in content.get("seq", []) if text != ""])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(path, f"cannot be read ({error!r})", "give a file of the DD2D format") from error
    if points.ndim != 2 or len(points) != 3:
        raise _bad(path, "has no three lists in X", "give row, column and log intensity of points")
    if len(values) and (len(values) < 10 or len(values) % 4 != 2):
        advice = "give a, b, c, alpha, beta, gamma, then x, y, z and atomic number of each atom"
        raise _bad(path, f"has {len(values)} numbers in seq", advice)
    return points, values


def write_points(path: Path, points: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Write points, shape (3, N), and the `sequence` of a layer.

    Raises
    ------
    InputError
        If the layer has more atoms than the format has room for.
    """
    if len(values) > SEQUENCE_LENGTH:
        atoms = len(values) // 4 - 1
        raise _bad(path, f"has room for {MAX_ATOMS} atoms, not {atoms}", "leave this layer out")
    texts = [str(float(value)) for value in values]
    texts += [""] * (SEQUENCE_LENGTH - len(texts))
    write_text(path, json.dumps({"X": points.tolist(), "seq": texts}))


def check_points(
    path: Path, points: NDArray[np.float64], cells: int, minimum: int, maximum: int
) -> None:
    """Refuse points that no model can answer for.

    Parameters
    ----------
    path
        Where they are from, for the error.
    points
        Shape (3, N).
    cells
        Along a side of the grid.
    minimum, maximum
        Number of points that the model was made for.

    Raises
    ------
    InputError
        If there are too few or too many, or one is not a number or outside of the grid.
    """
    count = points.shape[1]
    if count < max(minimum, 2):
        raise _bad(
            path,
            f"has {count or 'no'} point{'s' * (count != 1)}, fewer than {max(minimum, 2)}",
            "give more of the pattern",
        )
    if count > maximum:
        raise _bad(path, f"has {count} points, more than {maximum}", "give the brightest alone")
    if not np.isfinite(points).all():
        place = int(np.argmin(np.isfinite(points).all(axis=0)))
        raise _bad(path, f"has NaN or infinity at point {place}", "leave such points out")
    outside = ((points[:2] < 0) | (points[:2] > cells - 1)).any(axis=0)
    if outside.any():
        raise _bad(
            path,
            f"has point {int(outside.argmax())} outside of the grid of {cells} x {cells} cells",
            "leave such points out, or make the grid of the points that of the model",
        )


def _bad(path: Path, what: str, advice: str) -> InputError:
    return InputError(f"{path} {what}: {advice}")
