"""The embedded source: AFLOW prototypes and charge-balanced, size-matched substitutions of them.

The prototypes are those of M. J. Mehl et al., Comput. Mater. Sci. 136, S1 (2017), as pymatgen hands
them out. A substitution replaces each element by one that can play its role:

- In a prototype with a charge balance, an ion by an ion of the same sign and similar Shannon radius
  (R. D. Shannon, Acta Cryst. A 32, 751 (1976)); the charges add up to zero and every anion is more
  electronegative than every cation.
- In any other (alloys, elements, borides, covalent crystals), a metal by a metal that is near on
  D. G. Pettifor's chemical scale (Solid State Commun. 51, 31 (1984)) and of similar metallic
  radius, and any other element by one of its group.

Candidates of a prototype are ranked by their distance on the chemical scale, summed over the
elements, in which a unit of charge counts as `species.CHARGE_STEP`. The cell is scaled
isotropically so that its tightest contact, the sum of the two radii over their distance, is as
tight as in the prototype.
"""

import heapq
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core.structure import Structure

from diffractory.store import InputError
from diffractory.structures.labels import LAST_SPACE_GROUP
from diffractory.structures.sources.base import RetrievedStructure
from diffractory.structures.sources.species import (
    SHORTEST_DISTANCE,
    balanced,
    chemical_distance,
    species_table,
    volatile,
)

ION_TOLERANCE = 0.2
"""Largest relative difference of the radii of an ion or nonmetal and what replaces it."""
METAL_TOLERANCE = 0.15
"""The same for the metals of an alloy (Hume-Rothery's rule)."""
METAL_WINDOW = 12
"""Largest distance of these metals on the chemical scale."""
SHORTEST_CONTACT = 0.8
"""Least distance over sum of radii in a sound contact; some cells of the library are misprinted."""
LONGEST_CONTACT = 1.12
"""Least distance, over the same sum, that is too long for the shortest one of a sound cell."""
MAX_SITES = 40
"""Most sites in a cell that is substituted, so that the patterns stay cheap."""
MAX_COMBINATIONS = 50_000
"""Most combinations of elements that are looked at for one prototype."""
SYMPREC = 0.01
"""Tolerance of the symmetry search, angstrom."""
CUTOFF = 6.0
"""Distance within which contacts are looked for, angstrom."""

ALWAYS_IONIC = 3.0
"""Electronegativity (Pauling) above which an element is put in only where charges balance."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prototype:
    """A sound structure of the library with k elements.

    Attributes
    ----------
    label
        AFLOW's name for it.
    structure, space_group, crystal_system
        The cell as the library gives it, and its symmetry.
    element_of_site
        Index of the element on each site.
    contacts
        Shortest distance of each pair of elements in angstrom, shape (k, k).
    species
        Index of each element's species in `species_table()`, shape (k,).
    """

    label: str
    structure: Structure
    space_group: int
    crystal_system: str
    element_of_site: NDArray[np.int64]
    contacts: NDArray[np.float64]
    species: NDArray[np.int64]


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield the prototypes and substitutions of them, balanced over the crystal systems.

    The first n structures do not depend on ``count``: a larger one only adds materials.

    Parameters
    ----------
    settings
        ``count``, the number of structures to make, and ``crystal_systems``, the relative share of
        each crystal system (0 where it is missing).
    data_folder, download_folder
        Not used.

    Raises
    ------
    InputError
        If no crystal system has a share above zero.
    """
    shares = {system: s for system, s in settings["crystal_systems"].items() if s > 0}
    if not shares:
        raise InputError(
            "No crystal system has a share above zero in `crystal_systems` of the prototypes; "
            "give at least one of them a positive number."
        )
    streams = _streams()
    asked: Counter[str] = Counter()
    made: Counter[str] = Counter()
    # Handing out places one by one (Jefferson's method) takes none back when the count grows.
    queue = [(1 / share, system) for system, share in shares.items()]
    heapq.heapify(queue)
    for _ in range(settings["count"]):
        _, system = queue[0]
        asked[system] += 1
        heapq.heapreplace(queue, ((asked[system] + 1) / shares[system], system))
        material = next(streams[system], None)
        if material is not None:
            made[system] += 1
            yield material
    if made != asked:
        numbers = ", ".join(f"{s} {made[s]} of {n}" for s, n in sorted(asked.items()))
        logger.warning("Fewer prototype structures were made than asked for: %s", numbers)


def _streams() -> dict[str, Iterator[RetrievedStructure]]:
    """Return the materials of each crystal system: prototypes first, then round by round."""
    prototypes = defaultdict(list)
    for prototype in _prototypes():
        prototypes[prototype.crystal_system].append(prototype)
    return {system: _stream(members) for system, members in prototypes.items()}


def _stream(prototypes: list[Prototype]) -> Iterator[RetrievedStructure]:
    # One prototype of each space group comes first, so that even a short stream holds them all.
    seen_groups: Counter[int] = Counter()
    ranks = []
    for index, prototype in enumerate(prototypes):
        ranks.append((seen_groups[prototype.space_group], prototype.space_group, index))
        seen_groups[prototype.space_group] += 1
    ordered = [prototypes[index] for _, _, index in sorted(ranks)]
    originals = (_material(prototype, prototype.species, 1.0) for prototype in ordered)
    rounds = zip_longest(*(_substitutions(prototype) for prototype in ordered))
    seen = set()
    for material in chain(originals, chain.from_iterable(rounds)):
        if material is not None and material.material_id not in seen:
            seen.add(material.material_id)
            yield material


def _substitutions(prototype: Prototype) -> Iterator[RetrievedStructure]:
    """Yield the materials that a prototype gives, chemically nearest first, itself included."""
    if len(prototype.structure) > MAX_SITES:
        return
    species = _candidates(prototype)
    scales = _tightness(prototype.contacts, species) / _tightness(
        prototype.contacts, prototype.species
    )
    slater = species_table().slater[species]
    distances = scales[:, None, None] * prototype.contacts
    apart = distances > SHORTEST_DISTANCE * (slater[:, :, None] + slater[:, None, :])
    for row in np.flatnonzero(apart.all(axis=(1, 2))):
        if not volatile(species[row]):
            material = _material(prototype, species[row], scales[row])
            if material is not None:
                yield material


def _candidates(prototype: Prototype) -> NDArray[np.int64]:
    """Return the species on each element's sites in order of preference, shape (candidates, k)."""
    table = species_table()
    options = [_options(original) for original in prototype.species]
    longest = max(len(o) for o in options)
    while np.prod([len(o[:longest]) for o in options]) > MAX_COMBINATIONS:
        longest -= 1
    grid = np.meshgrid(*(o[:longest] for o in options), indexing="ij")
    species = np.stack([axis.ravel() for axis in grid], axis=1)

    symbols = np.sort(table.symbol[species], axis=1)
    allowed = (symbols[:, 1:] != symbols[:, :-1]).all(axis=1)
    if table.charge[prototype.species].any():
        allowed &= balanced(np.bincount(prototype.element_of_site), species)
    else:
        allowed &= (table.electronegativity[species] < ALWAYS_IONIC).all(axis=1)
    species = species[allowed]
    distance = chemical_distance(species, prototype.species).sum(axis=1)
    species = species[np.argsort(distance, kind="stable")]
    # The same elements may balance in several ways; their numbers on the scale are unique.
    _, nearest = np.unique(table.mendeleev[species], axis=0, return_index=True)
    return species[np.sort(nearest)]


def _options(original: np.int64) -> NDArray[np.int64]:
    """Return the species that can play the role of another, nearest on the chemical scale first."""
    table = species_table()
    everything = np.arange(len(table.symbol))
    distance = chemical_distance(everything, np.full_like(everything, original))
    tolerance = ION_TOLERANCE
    if table.charge[original]:
        role = table.charge * table.charge[original] > 0
    elif table.metal[original]:
        role = (table.charge == 0) & table.metal & (distance <= METAL_WINDOW)
        tolerance = METAL_TOLERANCE
    else:
        role = (table.charge == 0) & (table.group == table.group[original])
    similar = np.abs(table.radius / table.radius[original] - 1) <= tolerance
    options = np.flatnonzero((table.put_in & role & similar) | (everything == original))
    return options[np.argsort(distance[options], kind="stable")]


def _tightness(contacts: NDArray[np.float64], species: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of radii over distance of the tightest contact, shape (...) for (..., k).

    Contacts are those of cation and anion, and all of atoms.
    """
    table = species_table()
    radius, charge = table.radius[species], table.charge[species]
    sums = radius[..., :, None] + radius[..., None, :]
    products = charge[..., :, None] * charge[..., None, :]
    counts = (products < 0) | (charge[..., :, None] == 0)
    tightness: NDArray[np.float64] = np.where(counts, sums / contacts, 0.0).max(axis=(-2, -1))
    return tightness


def _material(
    prototype: Prototype, species: NDArray[np.int64], scale: float
) -> RetrievedStructure | None:
    """Return the prototype with these species, or None where that changes the space group."""
    structure = Structure(
        prototype.structure.lattice.matrix * scale,
        species_table().symbol[species][prototype.element_of_site].tolist(),
        prototype.structure.frac_coords,
    )
    if _space_group(structure) != prototype.space_group:
        return None
    formula = structure.composition.reduced_formula
    content = json.dumps(
        structure.as_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return RetrievedStructure(
        f"{prototype.label}-{formula}", "prototypes", "json", content.encode()
    )


def _space_group(structure: Structure) -> int:
    """Return the number of the space group, 0 where spglib finds none."""
    cell: Any = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    return 0 if dataset is None else dataset.number


@cache
def _prototypes() -> tuple[Prototype, ...]:
    """Return the sound structures of the library in its order."""
    # Importing this parses the whole library, which takes seconds.
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY  # type: ignore[attr-defined]

    found = (
        _prototype(entry["tags"]["aflow"], entry["snl"].structure)
        for entry in AFLOW_PROTOTYPE_LIBRARY
    )
    return tuple(prototype for prototype in found if prototype is not None)


def _prototype(label: str, structure: Structure) -> Prototype | None:
    """Return what substitutions need to know, or None if it is unsound, volatile or radioactive."""
    table = species_table()
    symbols, element_of_site = np.unique([s.specie.symbol for s in structure], return_inverse=True)
    if not np.isin(symbols, table.symbol).all():
        return None
    first, second, _, distance = structure.get_neighbor_list(CUTOFF)
    contacts = np.full((len(symbols), len(symbols)), np.inf)
    np.minimum.at(contacts, (element_of_site[first], element_of_site[second]), distance)

    amounts = np.bincount(element_of_site)
    ions = [np.flatnonzero((table.symbol == s) & (table.charge != 0)) for s in symbols]
    atoms = [np.flatnonzero((table.symbol == s) & (table.charge == 0)) for s in symbols]
    species = np.array(list(product(*ions)), dtype=int).reshape(-1, len(symbols))
    species = species[balanced(amounts, species)]
    if not len(species):
        species = np.array(list(product(*atoms)))
    tightness = _tightness(contacts, species)
    best = np.abs(np.log(tightness)).argmin()
    slater = table.slater[species[best]]
    shortest = (contacts / (slater[:, None] + slater)).min()
    sound = 1 / tightness[best] > SHORTEST_CONTACT
    sound &= SHORTEST_DISTANCE < shortest < LONGEST_CONTACT
    if not sound or volatile(species[best]):
        return None
    number = _space_group(structure)
    system = next(name for name, last in LAST_SPACE_GROUP.items() if number <= last)
    return Prototype(label, structure, number, system, element_of_site, contacts, species[best])
