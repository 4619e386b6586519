"""What is in the file of a scan: an array of frames, and its calibration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffractory.errors import InputError


class Axis(NamedTuple):
    """Of an array.

    Attributes
    ----------
    name
        ``ry``, ``rx`` (rows and columns of the scan), ``qy`` or ``qx`` (of the detector); empty
        where the file does not say.
    scale
        Between neighbours, in ``unit``.
    """

    name: str
    scale: float
    unit: str


@dataclass(frozen=True)
class Contents:
    """An array in a file.

    Attributes
    ----------
    array
        What slices are read of.
    axes
        One for each of the array's; empty where the file tells nothing of them.
    energy
        Of the electrons, eV.
    complete
        Whether all of a Zarr array was written, so that what is missing now is lost.
    """

    array: Any
    axes: tuple[Axis, ...] = ()
    energy: float | None = None
    complete: bool = False


def damaged(path: Path, error: Exception) -> InputError:
    """Return what to say of a file that cannot be read."""
    lines = str(error).strip().splitlines()
    why = lines[0].rstrip(".") if lines else type(error).__name__
    return InputError(
        f"{path} cannot be read, it may be cut, damaged or of another kind than its name says "
        f"({why}): copy or convert it again"
    )
