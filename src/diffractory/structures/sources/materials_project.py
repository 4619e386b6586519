"""Experimentally observed entries of the Materials Project (Jain et al., APL Mater. 1, 011002)."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffractory.store import InputError, track
from diffractory.structures.sources.base import RetrievedStructure, saved

CHUNK = 1000
"""Structures per query, and per file that a resumed run does not ask for again."""


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield the observed entries of at most ``settings["max_sites"]`` sites, sorted by identifier.

    The key is read from the environment variable MP_API_KEY, and the endpoint, where it is not the
    public one, from MP_API_ENDPOINT. A resumed run goes on within the same database version.

    Raises
    ------
    InputError
        If there is no key, or the Materials Project cannot be read.
    """
    key = os.environ.get("MP_API_KEY", "")
    if not (key.isascii() and key.isalnum()):
        raise InputError(
            "the environment variable MP_API_KEY does not hold a key of the Materials Project, "
            "a word of letters and digits; get one at https://next-gen.materialsproject.org/api"
        )
    try:
        parts = list(_download(key, settings["max_sites"], download_folder))
    except Exception as error:  # of whatever kind, it may quote the key
        message = " ".join(str(error).replace(key, "***").split())
        raise InputError(
            f"the Materials Project could not be read ({type(error).__name__}: {message}); "
            "run again to go on after the last finished part"
        ) from None
    for identifiers, file in parts:
        structures = json.loads(file.read_text(encoding="utf-8"))
        for material_id in identifiers:
            structure = structures.get(material_id)
            yield RetrievedStructure(
                material_id=material_id,
                source="materials_project",
                format="json",
                content=json.dumps(structure, sort_keys=True).encode() if structure else b"",
            )


def _download(
    key: str, max_sites: int, download_folder: Path
) -> Iterator[tuple[Sequence[str], Path]]:
    """Yield chunks of identifiers, each with the file of its structures."""
    from mp_api.client import MPRester

    with MPRester(
        key,
        endpoint=os.environ.get("MP_API_ENDPOINT"),
        use_document_model=False,
        mute_progress_bars=True,
    ) as rester:
        folder = download_folder / f"{rester.db_version}_{max_sites}_sites"
        identifiers = saved(folder / "identifiers.json", partial(_identifiers, rester, max_sites))
        chunks = [identifiers[i : i + CHUNK] for i in range(0, len(identifiers), CHUNK)]
        tracked = track(chunks, "Downloading", len(identifiers), "structures", CHUNK)
        for number, chunk in enumerate(tracked):
            file = folder / f"structures_{number:04d}.json"
            saved(file, partial(_structures, rester, chunk))
            yield chunk, file


def _identifiers(rester: Any, max_sites: int) -> list[str]:
    entries = rester.materials.summary.search(
        theoretical=False, deprecated=False, num_sites=(1, max_sites), fields=["material_id"]
    )
    return sorted({entry["material_id"] for entry in entries})


def _structures(rester: Any, identifiers: Sequence[str]) -> dict[str, Any]:
    entries = rester.materials.summary.search(
        material_ids=identifiers, fields=["material_id", "structure"], chunk_size=CHUNK
    )
    return {entry["material_id"]: entry.get("structure") for entry in entries}
