"""A series of images in a folder: one file for each image, and a table of their times."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from diffractory.errors import InputError
from diffractory.experiment.geometry import BadImageError, Geometry, Grid, to_grid
from diffractory.store import track

TIMES = "times.csv"

GRAY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's names of images with one value for each pixel."""


@dataclass(frozen=True)
class Series:
    """Images in order of time.

    Attributes
    ----------
    images
        As `to_grid` returns them, shape (P, rows, columns).
    files
        Names, P of them.
    times
        After the pump, ps, shape (P,).
    rejected
        A row for each file that cannot be used: ``file``, ``reason``, ``detail``.
    """

    images: NDArray[np.float32]
    files: list[str]
    times: NDArray[np.floating]
    rejected: pd.DataFrame


def read_image(path: Path) -> NDArray[np.float32]:
    """Return the image in a PNG, TIFF (8, 16 or 32 bit) or .npy file, shape (rows, columns).

    Raises
    ------
    BadImageError
        If it cannot be read or is not one image of one value for each pixel.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise BadImageError("unreadable", f"not one of {', '.join(READERS)}")
    try:
        values = read(path)
    except BadImageError:
        raise
    except Exception as error:  # a broken file can make a reader raise nearly anything
        raise BadImageError("unreadable", str(error) or type(error).__name__) from error
    if values.ndim != 2 or min(values.shape) < 2 or values.dtype.kind not in "uif":
        raise BadImageError("shape", f"an array of shape {values.shape} and type {values.dtype}")
    return values.astype(np.float32)


def _read_array(path: Path) -> NDArray[np.generic]:
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_picture(path: Path) -> NDArray[np.generic]:
    with Image.open(path) as picture:
        if (count := getattr(picture, "n_frames", 1)) > 1:
            raise BadImageError("shape", f"{count} images in one file")
        if picture.mode not in GRAY:
            raise BadImageError("shape", f"colours ({picture.mode}) in place of one value a pixel")
        return np.asarray(picture)


READERS: dict[str, Callable[[Path], NDArray[np.generic]]] = {
    ".npy": _read_array,
    ".png": _read_picture,
    ".tif": _read_picture,
    ".tiff": _read_picture,
}
"""By the end of a file's name."""


def read_series(folder: Path, geometry: Geometry, grid: Grid) -> Series:
    """Read the images that ``times.csv`` in a folder gives the times of.

    Its columns are ``file`` and ``time``, in ps after the pump. All images must have the shape that
    most have.

    Raises
    ------
    InputError
        If the table is missing or has other columns, names a file twice, or no image is left.
    """
    times = _read_times(folder)
    names = sorted({path.name for path in image_files(folder)} | set(times.index))
    made: dict[str, tuple[tuple[int, ...], NDArray[np.float32]]] = {}
    rejected: list[tuple[str, str, str]] = []
    for name in track(names, "Reading", len(names), "images"):
        try:
            _check_time(name, times)
            image = read_image(folder / name)
            made[name] = image.shape, to_grid(image, geometry, grid)
        except BadImageError as error:
            rejected.append((name, error.reason, error.detail))
    usual = Counter(shape for shape, _ in made.values()).most_common(1)
    images = {}
    for name in sorted(made, key=lambda name: (times[name], name)):
        shape, image = made[name]
        if shape == usual[0][0]:
            images[name] = image
        else:
            rejected.append((name, "shape", f"{shape}, not {usual[0][0]} as most"))
    if not images:
        why = f": {rejected[0][0]}: {rejected[0][2]}" if rejected else ""
        raise InputError(
            f"none of {len(names)} images in {folder} can be used{why}; see to the files, to "
            f"{TIMES} and to the pixel size and centre in ued.experiment"
        )
    return Series(
        np.stack(list(images.values())),
        list(images),
        times[list(images)].to_numpy(dtype=float),
        pd.DataFrame(sorted(rejected), columns=["file", "reason", "detail"]),
    )


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder in order of name; hidden files are half-written ones.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"the folder of images {folder}: {error.strerror}") from error
    return [path for path in entries if path.suffix.lower() in READERS and path.name[0] != "."]


def _read_times(folder: Path) -> "pd.Series[float]":
    """Return the times by file, NaN where there is no number."""
    path = folder / TIMES
    wanted = "it needs the columns file and time (ps after the pump), a row for each image"
    try:
        table = pd.read_csv(path, skipinitialspace=True, dtype={"file": str})
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): {wanted}") from error
    if not {"file", "time"} <= set(table.columns):
        raise InputError(f"{path} has the columns {', '.join(table.columns)}: {wanted}")
    table = table.dropna(subset=["file"])
    if twice := table["file"][table["file"].duplicated()].tolist():
        raise InputError(f"{path} has two times of {twice[0]}: keep one")
    return pd.to_numeric(table.set_index("file")["time"], errors="coerce").astype(float)


def _check_time(name: str, times: "pd.Series[float]") -> None:
    if name not in times.index:
        raise BadImageError("no_time", f"{TIMES} does not name it")
    if not np.isfinite(times[name]):
        raise BadImageError("no_time", f"its time in {TIMES} is not a number")
