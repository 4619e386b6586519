"""Tables with a column of structures in CIF, such as the data sets of CDVAE."""

import csv
import logging
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import requests

from diffractory.store import InputError, track
from diffractory.store.files import room_for
from diffractory.store.provenance import sha256
from diffractory.structures.sources.base import RetrievedStructure, missing
from diffractory.structures.sources.web import TIMEOUT, patient_session

BLOCK = 2**16
"""Bytes that are written at a time, and lost at most where a connection breaks."""

logger = logging.getLogger(__name__)


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield one structure per row of the CSV or Parquet files ``settings["paths"]``.

    The source of each is this one, a colon and the path of its file, which may be a part of a
    published split. A row without identifier is named after its file and its number, counted from
    1.

    Parameters
    ----------
    settings
        ``paths``, ``id_column`` and ``structure_column``; optional are ``urls`` and ``sha256``, one
        of each per path, or None. A file that is not there is downloaded from its URL; whether it
        was there or not, it must have the SHA-256.
    data_folder, download_folder
        Where paths start, and where those of files that are downloaded start.

    Raises
    ------
    InputError
        If a file is missing, damaged or unreadable, or lacks one of the columns.
    """
    columns = (settings["id_column"], settings["structure_column"])
    for path, url, digest in _files(settings):
        file = data_folder / path
        if not file.is_file():
            if not url:
                raise missing(file, data_folder)
            file = download_folder / path
            if not file.is_file():
                _download(url, file)
        if digest and (found := sha256(file)) != digest.lower():
            raise InputError(
                f"{file} is not the file that sha256 of the data set means (its SHA-256 is "
                f"{found}): remove it to download it again, or correct sha256"
            )
        rows = _parquet_rows if file.suffix == ".parquet" else _csv_rows
        for number, (material_id, content) in enumerate(rows(file, columns), start=1):
            yield RetrievedStructure(
                material_id=material_id or f"{file.stem}_row_{number}",
                source=f"structure_table:{path}",
                format="cif",
                content=content,
            )


def _files(settings: Mapping[str, Any]) -> list[tuple[str, str | None, str | None]]:
    """Return path, URL and SHA-256 of each file."""
    paths = settings["paths"]
    lists = {key: settings.get(key, [None] * len(paths)) for key in ("urls", "sha256")}
    for key, values in lists.items():
        if len(values) != len(paths):
            raise InputError(
                f"{key} of a data set has {len(values)} entries and paths {len(paths)}: give one "
                "for each path, or null"
            )
    return list(zip(paths, lists["urls"], lists["sha256"], strict=True))


def _download(url: str, file: Path) -> None:
    """Make ``file`` from what is at ``url``, going on where an earlier run has stopped."""
    partial = file.with_name(f".{file.name}.partial")
    with room_for(partial), patient_session() as session:
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(session, url, partial)
        except requests.RequestException as error:
            raise InputError(
                f"{url} could not be downloaded ({error}): run again where there is a network, to "
                "go on after the last byte, or put the file where the path of the data set says"
            ) from error
        partial.replace(file)
    logger.info("%s: downloaded, its SHA-256 is %s", url, sha256(file))


def _fetch(session: requests.Session, url: str, partial: Path) -> None:
    """Complete ``partial``, or write all of it where the server sends no part."""
    # The last byte is asked for again: servers refuse to send nothing, if all is there.
    done = max(partial.stat().st_size - 1, 0) if partial.is_file() else 0
    # A part of a compressed file would be of no use.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            partial.unlink()
            raise InputError(f"{url} is shorter than it was: run again to download it anew")
        if not response.ok:
            raise InputError(
                f"{url} answered {response.status_code} {response.reason}: correct urls of the "
                "data set, or put the file where its path says"
            )
        if response.status_code != requests.codes.partial_content:
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        with partial.open("r+b" if partial.is_file() else "wb") as output:
            output.truncate(done)
            output.seek(done)
            blocks = response.iter_content(BLOCK)
            for block in track(blocks, "Downloading", total, "bytes", BLOCK):
                output.write(block)
            output.flush()
            os.fsync(output.fileno())


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
