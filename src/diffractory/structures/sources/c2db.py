"""The Computational 2D Materials Database (Gjerding et al., 2D Mater. 8, 044002 (2021))."""

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffractory.store import InputError, track
from diffractory.structures.sources import optimade
from diffractory.structures.sources.base import RetrievedStructure, missing


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield the materials of the ASE database ``path`` or of the OPTIMADE provider ``base_url``.

    Raises
    ------
    InputError
        If the file is missing or not an ASE database, or the provider cannot be read.
    """
    if "base_url" in settings:
        return optimade.query(settings["base_url"], "", None, "c2db", download_folder)
    file = data_folder / settings["path"]
    if not file.is_file():
        raise missing(file, data_folder)
    return _rows(file)


def _rows(file: Path) -> Iterator[RetrievedStructure]:
    from ase.db import connect

    try:
        # ASE would turn a file without its tables into an empty database
        database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        total = database.execute("SELECT COUNT(*) FROM systems").fetchone()[0]
        database.close()
        rows = connect(file, type="db").select(include_data=False)  # type: ignore[no-untyped-call]
        for row in track(rows, "Reading", total, "materials"):
            yield RetrievedStructure(
                material_id=str(row.get("uid") or row.unique_id),
                source="c2db",
                format="json",
                content=_content(row),
            )
    except (sqlite3.Error, OSError, ValueError, LookupError) as error:
        raise InputError(f"{file} is not a readable ASE database: {error}") from error


def _content(row: Any) -> bytes:
    species = [[{"element": symbol, "occu": 1.0}] for symbol in row.symbols]
    try:
        return optimade.structure_json(row.cell, row.pbc, species, row.positions)
    except (ValueError, np.linalg.LinAlgError):
        return b""
