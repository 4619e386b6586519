"""What every source of structures yields, and what several of them need."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffractory.store import InputError, write_text


@dataclass(frozen=True)
class RetrievedStructure:
    """One structure as its source gave it, not yet parsed or checked.

    Attributes
    ----------
    material_id
        Identifier within the data set.
    source
        Name of the source; of tables, with a colon and the path of the file.
    format
        How to read ``content``: ``"cif"``, ``"poscar"``, ``"json"`` (pymatgen's dictionary form of
        a ``Structure``), or the file extension by which ASE knows the format.
    content
        The bytes of the structure file.
    """

    material_id: str
    source: str
    format: str
    content: bytes


def missing(path: Path, data_folder: Path) -> InputError:
    """Return the error for a file or folder of a data set that is not there."""
    return InputError(
        f"{path} is not there; relative paths of data sets start at {data_folder}, "
        "which the environment variable DIFFRACTORY_DATA sets"
    )


def saved(path: Path, download: Callable[[], Any]) -> Any:
    """Return the JSON of ``path``, downloaded unless an earlier run has saved it."""
    if not path.is_file():
        write_text(path, json.dumps(download()))
    return json.loads(path.read_text(encoding="utf-8"))
