"""Bragg vectors that py4DSTEM found: lists of spots in place of frames.

The layout of its files (EMD 1.0, py4DSTEM 0.14) and the meaning of its calibrations are those of
its classes ``BraggVectors`` and ``Calibration``.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from diffractory.errors import InputError
from diffractory.experiment.preparing import SpotLists
from diffractory.experiment.scan_contents import damaged
from diffractory.experiment.scan_files import HDF5
from diffractory.experiment.scan_units import in_per_angstrom

VECTORS = "_v_uncal/data"
"""Of a group of Bragg vectors: a list of spots for each position, in pixels."""

ROWS = 16
"""Rows of the scan that are read at a time."""


def holds_bragg_vectors(path: Path) -> bool:
    """Return whether a file is of py4DSTEM and has Bragg vectors, but no frames to find spots in.

    A file that cannot be read has none.
    """
    if path.suffix.lower() not in HDF5 or not path.is_file():
        return False
    try:
        with h5py.File(path, "r") as file:
            return bool(_groups(file)) and not _has_frames(file)
    except OSError:
        return False


def read_bragg_vectors(
    path: Path, pixel_size: float | None = None, energy: float | None = None
) -> tuple[tuple[int, int], SpotLists]:
    """Read the Bragg vectors of py4DSTEM, calibrated as it would: centre, ellipse, size, rotation.

    Its q_x is along the rows of the detector and ours along the columns. Its intensities are values
    of a correlation; they are taken for fractions of their sum in each pattern, as there are no
    frames to count the beam in.

    Parameters
    ----------
    path
        HDF5 with one set of Bragg vectors.
    pixel_size, energy
        In 1/angstrom and eV, in place of what the file says.

    Returns
    -------
    shape
        Scan rows and columns.
    spots
        Of all positions in order of rows.

    Raises
    ------
    InputError
        If the file is damaged, has more than one set, or its centre or pixel size is missing.
    """
    shape, lists, calibration = _contents(path)
    size = _pixel_size(path, calibration, energy) if pixel_size is None else pixel_size
    offsets = np.concatenate([[0], np.cumsum([len(spots) for spots in lists])])
    spots = np.concatenate(lists)
    position = np.repeat(np.arange(len(lists)), np.diff(offsets))
    centres = _centres(path, calibration, shape, position)
    q = np.stack([spots["qx"], spots["qy"]]) - centres
    q = size * (_turned(calibration) @ _rounded(calibration) @ q)
    sums = np.bincount(position, spots["intensity"], len(lists))[position]
    intensity = np.divide(spots["intensity"], sums, out=np.zeros_like(sums), where=sums > 0)
    return shape, SpotLists(
        offsets.astype(np.int64),
        q[1].astype(np.float32),
        q[0].astype(np.float32),
        intensity.astype(np.float32),
    )


def _contents(path: Path) -> tuple[tuple[int, int], list[NDArray[Any]], dict[str, Any]]:
    """Return the shape of the scan, the spots of each position, and what py4DSTEM measured."""
    try:
        with h5py.File(path, "r") as file:
            groups = _groups(file)
            if len(groups) == 1:
                vectors = groups[0][VECTORS]
                tops = range(0, len(vectors), ROWS)
                lists = [spots for top in tops for spots in vectors[top : top + ROWS].flat]
                return vectors.shape, lists, _calibration(groups[0])
    except Exception as error:  # a broken file can make the reader raise nearly anything
        raise damaged(path, error) from error
    raise InputError(
        f"{path} holds {len(groups)} sets of Bragg vectors, not one: save the one to use to a file "
        "of its own"
    )


def _groups(file: Any) -> list[Any]:
    """Return the groups of Bragg vectors in a file."""
    found: list[Any] = []
    file.visititems(
        lambda _, item: (
            found.append(item) if isinstance(item, h5py.Group) and VECTORS in item else None
        )
    )
    return found


def _has_frames(file: Any) -> bool:
    return bool(
        file.visititems(
            lambda _, item: True if isinstance(item, h5py.Dataset) and item.ndim == 4 else None
        )
    )


def _calibration(group: Any) -> dict[str, Any]:
    """Return what py4DSTEM measured, of the tree that Bragg vectors belong to."""
    bundle = group.file[group.name.split("/")[1]].get("metadatabundle/calibration", {})
    return {name: item[()] for name, item in bundle.items() if isinstance(item, h5py.Dataset)}


def _pixel_size(path: Path, calibration: dict[str, Any], energy: float | None) -> float:
    unit = calibration.get("Q_pixel_units", b"pixels").decode()
    size = in_per_angstrom(float(calibration.get("Q_pixel_size", 1)), unit, energy)
    if size is None:
        raise InputError(
            f"the size of a pixel of {path} is in {unit}, not in 1/angstrom: give it with "
            "--pixel-size"
        )
    return size


def _centres(
    path: Path, calibration: dict[str, Any], shape: tuple[int, int], position: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return row and column of the direct beam for each spot, shape (2, N), pixels."""
    found = []
    for name in ("qx0", "qy0"):
        value = calibration.get(name, calibration.get(f"{name}_mean"))
        if value is None:
            raise InputError(
                f"{path} has no centres of its patterns: measure them in py4DSTEM, with "
                "measure_origin and fit_origin, and save again"
            )
        found.append(np.broadcast_to(value, shape).ravel()[position])
    return np.stack(found)


def _rounded(calibration: dict[str, Any]) -> NDArray[np.float64]:
    """Return what makes a circle of the ellipse: its long axis a, at an angle, shrinks to b."""
    if "theta" not in calibration:
        return np.eye(2)
    long = np.array([np.cos(calibration["theta"]), np.sin(calibration["theta"])])
    return np.eye(2) - (1 - calibration["b"] / calibration["a"]) * np.outer(long, long)


def _turned(calibration: dict[str, Any]) -> NDArray[np.float64]:
    """Return what turns patterns to the axes of the scan, after a flip of rows and columns."""
    angle = float(calibration.get("QR_rotation", 0))  # radian
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn[:, ::-1] if calibration.get("QR_flip", False) else turn
