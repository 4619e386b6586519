"""Where structures come from: one module per source, and the stage that runs the chosen one."""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from diffractory.config import local_paths
from diffractory.store import InputError, recorded, write_parquet
from diffractory.structures.sources.base import RetrievedStructure

Retrieve = Callable[[Mapping[str, Any], Path, Path], Iterator[RetrievedStructure]]


def _lazy(name: str) -> Retrieve:
    def retrieve(
        settings: Mapping[str, Any], data_folder: Path, download_folder: Path
    ) -> Iterator[RetrievedStructure]:
        source: Retrieve = importlib.import_module(f"{__name__}.{name}").retrieve
        return source(settings, data_folder, download_folder)

    return retrieve


SOURCES: Mapping[str, Retrieve] = {
    name: _lazy(name)
    for name in (
        "prototypes",
        "layers",
        "perovskites",
        "materials_project",
        "c2db",
        "optimade",
        "structure_table",
        "structure_folder",
    )
}
"""The ``retrieve`` function of every source; its module is imported when it is called."""


def retrieve_structures(
    settings: Mapping[str, Any],
    dataset: str,
    data_folder: Path,
    download_folder: Path,
    retrieved: Path,
    run: Path,
    seed: int,
) -> None:
    """Write every structure of a data set, unparsed and in the order of its source, to a table.

    Parameters
    ----------
    settings
        Entry of the data set in the configuration.
    dataset
        Name of that entry.
    data_folder
        Where relative paths start.
    download_folder
        Where a download keeps its finished parts, so that a killed run can go on.
    retrieved
        Parquet file to write: ``material_id``, ``source``, ``format`` and ``content`` (bytes).
    run
        ``run.json`` to write.
    seed
        Global seed.

    Raises
    ------
    InputError
        If the source cannot be read or gives nothing.
    """
    files = [data_folder / path for path in local_paths(settings)]
    downloadable = (data_folder / path for path in settings.get("paths", ()))
    files += [file for file in downloadable if file not in files and file.is_file()]
    config = {"datasets": {dataset: dict(settings)}}
    with recorded(run, "retrieve_structures", config, files, [retrieved], seed) as facts:
        try:
            structures = list(SOURCES[settings["source"]](settings, data_folder, download_folder))
        except OSError as error:
            raise InputError(f"data set {dataset!r} could not be retrieved: {error}") from error
        if not structures:
            raise InputError(
                f"data set {dataset!r} gave no structures; check its entry: {settings}"
            )
        table = pd.DataFrame([vars(structure) for structure in structures])
        table["material_id"] = table["material_id"].map(_valid_text)
        facts["retrieved"] = len(table)
        facts["snapshot_sha256"] = _snapshot(table)
        write_parquet(retrieved, table)


def _valid_text(text: str) -> str:
    """Replace what stands for bytes that are not UTF-8: Parquet refuses it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _snapshot(table: pd.DataFrame) -> str:
    """Return the SHA-256 over identifiers, formats and contents."""
    digest = hashlib.sha256()
    for material_id, form, content in zip(
        table["material_id"], table["format"], table["content"], strict=True
    ):
        for part in (material_id.encode(), form.encode(), content):
            digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()
