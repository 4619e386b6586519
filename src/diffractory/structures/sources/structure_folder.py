"""A folder of structure files."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from diffractory.store import InputError, track
from diffractory.structures.sources.base import RetrievedStructure, missing


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield every file below the folder ``settings["path"]``, hidden ones excepted.

    The identifier is the path within the folder, without suffix where that is unique.

    Raises
    ------
    InputError
        If the folder is missing or holds no files.
    """
    folder = data_folder / settings["path"]
    if not folder.is_dir():
        raise missing(folder, data_folder)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not paths:
        raise InputError(
            f"{folder} holds no structure files; relative paths of data sets start at "
            f"{data_folder}, which the environment variable DIFFRACTORY_DATA sets"
        )
    stems = Counter(path.with_suffix("") for path in paths)
    for path in track(paths, "Reading", len(paths), "files"):
        stem = path.with_suffix("")
        yield RetrievedStructure(
            material_id=(stem if stems[stem] == 1 else path).as_posix(),
            source="structure_folder",
            format=_format(path),
            content=(folder / path).read_bytes(),
        )


def _format(path: PurePath) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix == "cif":
        return "cif"
    if suffix in ("poscar", "vasp") or path.name.upper().startswith(("POSCAR", "CONTCAR")):
        return "poscar"
    return suffix or path.name.lower()
