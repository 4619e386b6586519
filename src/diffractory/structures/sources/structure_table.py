"""Tables with a column of structures in CIF, such as the data sets of CDVAE."""

import csv
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffractory.store import InputError
from diffractory.structures.sources.base import RetrievedStructure, missing


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield one structure per row of the CSV or Parquet files ``settings["paths"]``.

    A row without identifier is named after its file and its number, counted from 1.

    Raises
    ------
    InputError
        If a file is missing or unreadable, or lacks one of the columns.
    """
    columns = (settings["id_column"], settings["structure_column"])
    for path in settings["paths"]:
        file = data_folder / path
        if not file.is_file():
            raise missing(file, data_folder)
        rows = _parquet_rows if file.suffix == ".parquet" else _csv_rows
        for number, (material_id, content) in enumerate(rows(file, columns), start=1):
            yield RetrievedStructure(
                material_id=material_id or f"{file.stem}_row_{number}",
                source="structure_table",
                format="cif",
                content=content,
            )


def _csv_rows(file: Path, columns: tuple[str, str]) -> Iterator[tuple[str, bytes]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a large CIF
    # bytes that are not UTF-8 pass through, so that only their own row is rejected later
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        table = csv.DictReader(lines, restval="")
        _check(file, table.fieldnames or (), columns)
        for row in table:
            material_id, content = (row[column] for column in columns)
            yield material_id, content.encode("utf-8", "surrogateescape")


def _parquet_rows(file: Path, columns: tuple[str, str]) -> Iterator[tuple[str, bytes]]:
    try:
        _check(file, pq.read_schema(file).names, columns)
        table = pq.read_table(file, columns=list(columns))
    except pa.ArrowException as error:
        raise InputError(f"{file} is not a readable Parquet file: {error}") from error
    for material_id, content in zip(
        *(table[column].to_pylist() for column in columns), strict=True
    ):
        yield _text(material_id), content if isinstance(content, bytes) else _text(content).encode()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _check(file: Path, present: Sequence[str], columns: tuple[str, str]) -> None:
    for column in columns:
        if column not in present:
            names = textwrap.shorten(", ".join(map(repr, present)), 1000)
            nearest = (
                f"{_nearest(column, present)!r} of {names}" if present else "none, for it is empty"
            )
            raise InputError(f"{file} has no column {column!r}; the nearest is {nearest}")


def _nearest(name: str, names: Sequence[str]) -> str:
    return max(names, key=lambda n: SequenceMatcher(None, n.lower(), name.lower()).ratio())
