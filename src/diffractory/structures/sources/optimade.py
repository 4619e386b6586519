"""Any provider of structures that speaks OPTIMADE (Andersen et al., Sci. Data 8, 217 (2021))."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import numpy as np
import requests

from diffractory.store import InputError, track
from diffractory.structures.sources.base import RetrievedStructure, saved
from diffractory.structures.sources.web import TIMEOUT, patient_session

FIELDS = (
    "lattice_vectors",
    "dimension_types",
    "cartesian_site_positions",
    "species",
    "species_at_sites",
    "structure_features",
)


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield the structures of ``settings["base_url"]`` that match ``settings["filter"]``.

    Raises
    ------
    InputError
        If the provider cannot be reached or does not answer in the OPTIMADE format.
    """
    return query(
        settings["base_url"],
        settings["filter"],
        settings["max_structures"],
        settings["source"],
        download_folder,
    )


def query(
    base_url: str, condition: str, limit: int | None, source: str, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield at most ``limit`` structures that match ``condition``; empty and None stand for all.

    Raises
    ------
    InputError
        If the provider cannot be reached or does not answer in the OPTIMADE format.
    """
    pages = _pages(base_url, condition, download_folder)
    first = next(pages)
    available = first["available"] or limit or len(first["data"])
    total = min(available, limit or available)
    entries = (entry for page in chain([first], pages) for entry in page["data"])
    for entry in track(islice(entries, limit), "Downloading", total, "structures"):
        yield RetrievedStructure(
            material_id=str(entry["id"]),
            source=source,
            format="json",
            content=_content(entry["attributes"]),
        )


def _pages(base_url: str, condition: str, download_folder: Path) -> Iterator[dict[str, Any]]:
    """Yield page after page, each from its file where an earlier run has finished it."""
    key = hashlib.sha256(f"{base_url}\0{condition}".encode()).hexdigest()[:16]
    parameters = {"response_fields": ",".join(FIELDS)} | (
        {"filter": condition} if condition else {}
    )
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/structures?{urlencode(parameters)}"
    with patient_session() as session:
        for number in count():
            file = download_folder / key / f"page_{number:06d}.json"
            page = saved(file, partial(_download, session, url))
            yield page
            # some providers always name a next page, even after the last one
            if not page["data"] or page["next"] in (None, url):
                return
            url = page["next"]


def _download(session: requests.Session, url: str) -> dict[str, Any]:
    try:
        response = session.get(url, timeout=TIMEOUT)
        if not response.ok:
            raise InputError(
                f"{url} answered {response.status_code} {response.reason}: {response.text[:300]}"
            )
        answer = response.json()
        after = (answer.get("links") or {}).get("next")
        after = after.get("href") if isinstance(after, dict) else after
        available = (answer.get("meta") or {}).get("data_returned")
        return {
            "data": [
                {name: entry[name] for name in ("id", "attributes")} for entry in answer["data"]
            ],
            "next": urljoin(url, after) if after else None,
            "available": available if isinstance(available, int) else None,
        }
    except requests.RequestException as error:
        raise InputError(
            f"{url} could not be read ({error}); run again to go on after the last finished page"
        ) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{url} did not answer with OPTIMADE structures; check base_url"
        ) from error


def _content(attributes: Mapping[str, Any]) -> bytes:
    """Return the structure as JSON, or the attributes as they came where they do not give one.

    Of the features that OPTIMADE names, pymatgen knows only disorder: the sites of a structure with
    implicit atoms, say, are not the whole structure and must not be taken for it.
    """
    try:
        if set(attributes.get("structure_features") or ()) <= {"disorder"}:
            species = {kind["name"]: _occupancies(kind) for kind in attributes["species"] or ()}
            return structure_json(
                attributes["lattice_vectors"],
                attributes.get("dimension_types") or (1, 1, 1),
                [
                    species.get(name, [{"element": name, "occu": 1.0}])
                    for name in attributes["species_at_sites"]
                ],
                attributes["cartesian_site_positions"],
            )
    except (AttributeError, KeyError, TypeError, ValueError, np.linalg.LinAlgError):
        pass
    return json.dumps(attributes, sort_keys=True).encode()


def _occupancies(species: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"element": symbol, "occu": occupancy}
        for symbol, occupancy in zip(
            species["chemical_symbols"], species["concentration"], strict=True
        )
        if symbol != "vacancy"
    ]


def structure_json(
    lattice: Any, periodic: Sequence[Any], species: Sequence[Any], positions: Any
) -> bytes:
    """Return a structure in the dictionary form of pymatgen, as JSON.

    Parameters
    ----------
    lattice
        Lattice vectors as rows, angstrom, shape (3, 3).
    periodic
        Whether the structure repeats along each lattice vector, length 3.
    species
        Of each of N sites, its elements and their occupancies as pymatgen writes them.
    positions
        Cartesian positions, angstrom, shape (N, 3).

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        If the values are missing, not finite or of other shapes, or the lattice has no volume.
    """
    matrix = np.array(lattice, dtype=float).reshape(3, 3)
    cartesian = np.array(positions, dtype=float).reshape(len(species), 3)
    fractional = np.linalg.solve(matrix.T, cartesian.T).T
    structure = {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "lattice": {"matrix": matrix.tolist(), "pbc": [bool(axis) for axis in periodic]},
        "sites": [
            {"species": kinds, "abc": site}
            for kinds, site in zip(species, fractional.tolist(), strict=True)
        ],
    }
    return json.dumps(structure, allow_nan=False).encode()
