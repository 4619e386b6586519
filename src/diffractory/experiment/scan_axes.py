"""Which axes of an array are the scan and which the detector, and their calibration."""

import re
from collections.abc import Iterable
from pathlib import Path

from diffractory.errors import InputError
from diffractory.experiment.scan_contents import Axis
from diffractory.experiment.scan_units import in_angstrom, in_per_angstrom

AXES = ("ry", "rx", "qy", "qx")
"""Rows and columns of the scan, rows and columns of the detector."""

LEAST_SIDE = 16
"""Pixels along a side of a detector; what has fewer is more likely the scan."""

SQUARE = 0.01
"""Relative difference of width and height of a pixel that is taken for square."""

AXES_HELP = (
    "ry, rx (rows and columns of the scan), qy and qx (of the detector) in the order of the file, "
    "as in --axes qy,qx,ry,rx, and for a stack of frames with the lengths of the scan, as in "
    "--axes ry=32,rx=48,qy,qx"
)

AXIS = re.compile(r"\s*(r[yx]|q[yx])(?:=([1-9]\d*))?\s*")

ANY_ENERGY = 2e5
"""In eV: to ask of a unit whether it is of reciprocal space, angles included."""


def told_order(
    axes: tuple[Axis, ...], shape: tuple[int, ...]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return names of an array's axes as the file has them, or the usual ones, and their lengths.

    Units say more than names: what is in nm is the scan, and what is in 1/nm the detector.
    """
    names = tuple(axis.name for axis in axes) if all(axis.name for axis in axes) else ()
    names = names or AXES[4 - len(shape) :]
    if len(axes) == 4:
        reciprocal = all(in_per_angstrom(1.0, axis.unit, ANY_ENERGY) for axis in axes[:2])
        if reciprocal and all(in_angstrom(1.0, axis.unit) for axis in axes[2:]):
            names = ("qy", "qx", "ry", "rx")
    return names, dict(zip(names, shape, strict=True))


def given_order(
    path: Path, shape: tuple[int, ...], axes: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of axes that a user gives, and their lengths; ``n`` is a stack of frames.

    Raises
    ------
    InputError
        If the names cannot be understood or do not fit the shape.
    """
    parts = [AXIS.fullmatch(part) for part in axes.split(",")]
    found = [part for part in parts if part]
    names = tuple(part[1] for part in found)
    if len(found) < len(parts) or len(set(names)) < len(names) or not {"qy", "qx"} <= set(names):
        raise InputError(f"the axes cannot be {axes!r}: give {AXES_HELP}")
    lengths = {part[1]: int(part[2]) for part in found if part[2]}
    if len(names) == len(shape):
        actual = dict(zip(names, shape, strict=True))
        if all(actual[name] == length for name, length in lengths.items()):
            return names, actual
    elif len(names) == len(shape) + 1 and {"ry", "rx"} <= set(lengths):
        at = names.index("ry")
        if names[at + 1 : at + 2] == ("rx",) and shape[at] == lengths["ry"] * lengths["rx"]:
            order = (*names[:at], "n", *names[at + 2 :])
            return order, dict(zip(order, shape, strict=True)) | lengths
    raise InputError(f"the axes {axes} do not fit {path}, of {by(shape)}: give {AXES_HELP}")


def size_of_pixel(path: Path, scales: dict[str, Axis], energy: float | None) -> float | None:
    """Return the size of a pixel in 1/angstrom, or None if the file does not tell it.

    Raises
    ------
    InputError
        If it is not square.
    """
    height, width = (
        in_per_angstrom(abs(scales[name].scale), scales[name].unit, energy)
        if name in scales
        else None
        for name in ("qy", "qx")
    )
    if not height or not width:
        return None
    if abs(height - width) > SQUARE * width:
        raise InputError(
            f"the pixels of {path} are {height:.4g} by {width:.4g} 1/angstrom, not square: give "
            "one size with --pixel-size"
        )
    return (height + width) / 2


def step_of_scan(scales: dict[str, Axis]) -> float | None:
    """Return the step of the scan in angstrom, or None if the file does not tell it."""
    for name in ("rx", "ry", "n"):
        if name in scales:
            return in_angstrom(abs(scales[name].scale), scales[name].unit) or None
    return None


def by(lengths: Iterable[int]) -> str:
    """Return lengths of axes in words."""
    return " x ".join(str(length) for length in lengths)
