"""Map folders: what a model says of each position of a scan, in a Zarr v3 group."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from diffractory.errors import InputError
from diffractory.store.columns import CRYSTAL_SYSTEMS

MAP = "map.zarr"

CLASSIFIED, TOO_FEW, NOT_CONFIDENT, UNUSABLE, NOT_LOOKED_AT = range(5)
"""States of a position."""

ABSTAINED = {
    TOO_FEW: "too few spots",
    NOT_CONFIDENT: "not confident",
    UNUSABLE: "unusable frame",
    NOT_LOOKED_AT: "not looked at",
}
"""Why a position has no crystal system."""


@dataclass(frozen=True)
class ScanMap:
    """What a model says of a scan of R rows and C columns of positions.

    Attributes
    ----------
    n_spots
        Diffracted spots found, shape (R, C), int32.
    dark_field
        Counts outside of the direct beam as a fraction of those of the frame; NaN where there is no
        frame, shape (R, C), float32.
    probability
        Of each crystal system in the order of ``CRYSTAL_SYSTEMS``, before the median filter; NaN
        where there are too few spots, shape (R, C, 7), float32.
    crystal_system_raw
        The most probable of these, -1 where there is none, shape (R, C), int8.
    crystal_system
        The same after the median filter, -1 where the model abstains, shape (R, C), int8.
    confidence
        Difference of the two largest probabilities after the filter, NaN where there are too few
        spots, shape (R, C), float32.
    space_group
        The three most probable, 0 for none, shape (R, C, 3), int16.
    space_group_probability
        Their probabilities, shape (R, C, 3), float32.
    state
        `CLASSIFIED`, or why not, shape (R, C), int8.
    attributes
        ``model`` (kind), ``model_folder``, ``scan``, ``step`` (angstrom between positions, or
        None), ``every`` (only so manieth row and column was looked at), ``settings``,
        ``crystal_systems``, ``warnings``.
    """

    n_spots: NDArray[np.int32]
    dark_field: NDArray[np.float32]
    probability: NDArray[np.float32]
    crystal_system_raw: NDArray[np.int8]
    crystal_system: NDArray[np.int8]
    confidence: NDArray[np.float32]
    space_group: NDArray[np.int16]
    space_group_probability: NDArray[np.float32]
    state: NDArray[np.int8]
    attributes: dict[str, Any]


ARRAYS = tuple(field.name for field in fields(ScanMap) if field.name != "attributes")


def write_map(folder: Path, scan_map: ScanMap) -> None:
    """Write a map into its folder, which the caller replaces as a whole."""
    group = zarr.open_group(folder / MAP, mode="w", zarr_format=3)
    group.attrs.update(scan_map.attributes)
    for name in ARRAYS:
        group.create_array(name, data=getattr(scan_map, name))


def read_map(folder: Path) -> ScanMap:
    """Read the map in a folder.

    Raises
    ------
    InputError
        If there is none, or it is not whole.
    """
    try:
        group: Any = zarr.open_group(folder / MAP, mode="r")
        arrays = {name: group[name][:] for name in ARRAYS}
        return ScanMap(**arrays, attributes=dict(group.attrs))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{folder} does not hold the map of a scan: map it again") from error


def is_map(folder: Path) -> bool:
    """Return whether a folder is one that was written with a map."""
    return (folder / MAP / "zarr.json").is_file() and (folder / "run.json").is_file()


def fractions(scan_map: ScanMap) -> pd.DataFrame:
    """Return how many positions have each crystal system, and how many abstain, and why.

    Returns
    -------
    Columns ``crystal_system``, ``positions`` and ``fraction`` of the classified ones; it is missing
    in the rows of those that abstain, named as in `ABSTAINED`, and where nothing is classified.
    """
    classified = scan_map.crystal_system[scan_map.state == CLASSIFIED]
    counts = np.bincount(classified, minlength=len(CRYSTAL_SYSTEMS))
    abstained = [np.count_nonzero(scan_map.state == state) for state in ABSTAINED]
    shares = counts / len(classified) if len(classified) else np.full(len(counts), np.nan)
    return pd.DataFrame(
        {
            "crystal_system": [*CRYSTAL_SYSTEMS, *ABSTAINED.values()],
            "positions": [*counts, *abstained],
            "fraction": [*shares, *[np.nan] * len(abstained)],
        }
    )
