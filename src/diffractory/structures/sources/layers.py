"""The embedded source of 2D crystals: known layers, substitutions of them, and stacks of two.

Each prototype is one known crystal, its geometry rounded from C2DB (M. N. Gjerding et al., 2D
Mater. 8, 044002 (2021)) or from the bulk crystal that the layer is exfoliated from. A substitution
replaces its elements:

- In a salt, ions by ions of the same sign, so that the charges still add up to zero, every anion is
  more electronegative than every cation (a metal may exceed it by `EXCESS`), and the sizes of the
  ions relative to each other are alike (Pauling's first rule): the logarithms of new over old
  radius differ by `SIZE_TOLERANCE` at most.
- In any other prototype, elements by those of a list that belongs to it.

Every bond becomes longer or shorter by what the sum of the two radii does. Lattice and positions
follow by distance least squares (W. M. Meier & H. Villiger, Z. Kristallogr. 129, 411 (1969)) within
the symmetry of the prototype, whose shape they keep where bond lengths leave it free. Radii of ions
are crystal radii after Shannon; those of atoms, and in `covalent` salts, are covalent ones (Cordero
et al., Dalton Trans. 2008, 2832), which come nearer to known lattice constants there.

Stacks are of two layers with the same kind of lattice, both strained to the mean of their cells, at
the distance where the first two atoms touch with their van der Waals radii. In registry `aa` the
upper layer is turned by 180 degrees, as in 2H crystals, in registry `ab` it is shifted, as in 3R;
on square lattices `aa` is one atop the other.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import islice, product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from ase.data import covalent_radii
from numpy.typing import NDArray
from pymatgen.core.composition import Composition
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from diffractory.structures.sources.base import RetrievedStructure
from diffractory.structures.sources.species import (
    SHORTEST_DISTANCE,
    balanced,
    chemical_distance,
    species_table,
    volatile,
)

VACUUM = 15.0
"""Distance between a layer and its next image along z, angstrom."""
SIZE_TOLERANCE = 0.45
"""Largest difference of ln(new radius / old radius) between the ions of a salt."""
EXCESS = 0.3
"""A metal's electronegativity (Pauling) may exceed an anion's by less: that of W is Te's + 0.26."""
BOND_SPREAD = 1.25
"""Distances up to so many times the shortest one between two elements are their bonds."""
BOND_MISFIT = 0.1
"""Largest relative difference of a bond from its target."""
STEPS = 30
"""Steps of the least squares."""
DAMPING = 0.05
"""Added to the diagonal of the normal equations (Levenberg), so that no step is wild."""
LATTICE_MISMATCH = 0.03
"""Largest relative difference of the lattice constants of two layers that are stacked."""
STACKED_SITES = 5
"""Most atoms in the cell of a layer that is stacked."""
STACKED_ALIKE = ("2h", "1t")
"""Prototypes of which two layers are stacked; other stacks are of two different ones."""
SYMPREC = 0.01
"""Tolerance of the symmetry search, angstrom."""
CHUNK = 64
"""Substitutions that are worked out at a time."""
DECIMALS = 8
"""Of lattice vectors (angstrom) and fractional coordinates."""

STRAINS = np.array([[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 0.5**0.5], [0.5**0.5, 0]]])
"""Orthonormal basis of the strains in the plane."""
LETTERS = {
    "A": (0.0, 0.0),
    "B": (1 / 3, 2 / 3),
    "C": (2 / 3, 1 / 3),
    "D": (0.5, 0.5),
    "E": (0.5, 0.0),
    "F": (0.0, 0.5),
}
"""Places in the plane by which prototypes name their sites, fractions of a and b."""
REGISTRIES = {
    "hex": {"aa": (-1, LETTERS["B"]), "ab": (1, LETTERS["B"])},
    "square": {"aa": (1, LETTERS["A"]), "ab": (1, LETTERS["D"])},
}
"""Factor and then shift of the upper layer of a stack, in fractions of a and b."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prototype:
    """A known layer.

    Attributes
    ----------
    name
        Its name, the first part of identifiers.
    cell
        Lattice and its constants in angstrom: ``hex a``, ``square a`` or ``rectangular a b``.
    sites
        Species, each followed by its sites: a letter of `LETTERS` and the height, or ``x,y,height``
        (fractions of a and b; angstrom). After a ``±``, the inverse (-x, -y, -height) is one too.
    bonds
        Pairs of species with bonds; in a salt, by default, each anion with each cation.
    choices
        What may stand in for each species; those that are not named stay. None: it is a salt.
    covalent
        Whether radii are those of atoms, though charges balance as in a salt.
    """

    name: str
    cell: str
    sites: str
    bonds: str = ""
    choices: Mapping[str, str] | None = None
    covalent: bool = False


@dataclass(frozen=True)
class Layer:
    """A layer of N atoms.

    Attributes
    ----------
    name
        Prototype and formula.
    lattice
        Rows are the lattice vectors in the plane, angstrom, shape (2, 2).
    positions
        Angstrom, shape (N, 3).
    symbols
        Elements, shape (N,).
    """

    name: str
    lattice: NDArray[np.float64]
    positions: NDArray[np.float64]
    symbols: NDArray[np.str_]


@dataclass(frozen=True)
class Reference:
    """A prototype in numbers: k species, N atoms, M bonds.

    Attributes
    ----------
    lattice, positions
        As in `Layer`.
    names, species
        Each species, and its index in `species_table()`, shape (k,).
    species_of_site
        Which of the k is on each site, shape (N,).
    first, second
        Sites that are bonded, shape (M,).
    image
        Lattice translation of the second in fractions, shape (M, 2).
    moves
        Basis of the moves that keep the symmetry, shape (3 + 3 N, moves): strain in the basis of
        `STRAINS`, and displacements of the atoms in angstrom.
    """

    lattice: NDArray[np.float64]
    positions: NDArray[np.float64]
    names: Sequence[str]
    species: NDArray[np.int64]
    species_of_site: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    image: NDArray[np.float64]
    moves: NDArray[np.float64]


TRANSITION = "Ti Sc Y V Nb Ta Zr Hf Cr Mo W Mn"
PNICTOGENS, CHALCOGENS, HALOGENS = "N P As Sb Bi", "O S Se Te", "F Cl Br I"
DIVALENT = "Mn Mg Ca Sr Ba Ti V Cr Fe Co Ni Cu Zn Cd Hg Pd Pt Ge Sn Pb Eu Yb"
ALL_M = f"{TRANSITION} Fe Co Ni Cu Zn Ru Rh Pd Ag Cd Os Ir Pt Au Hg"
TERMINATIONS = "O F S Cl Se Br Te I"

PROTOTYPES = (
    Prototype("graphene", "hex 2.46", "C A0 B0", "C/C", {"C": "C Si Ge Sn Pb B Al Ga In"}),
    Prototype("2h", "hex 3.18", "Mo+4 A0 S-2 B1.565 B-1.565"),
    Prototype("1t", "hex 3.68", "Zr+4 A0 S-2 B1.445 C-1.445"),
    Prototype("bn", "hex 2.51", "B+3 A0 N-3 B0", covalent=True),
    Prototype(
        "1t_prime",
        "rectangular 3.50 6.29",
        "W+4 ±.25,.1798,.1065 Te-2 ±-.25,.0780,2.071 ±.25,-.4267,1.4505",
    ),
    Prototype("silicene", "hex 3.87", "Si A.225 B-.225", "Si/Si", {"Si": "Si C Ge Sn Pb"}),
    Prototype("arsenene", "hex 3.61", "As A.70 B-.70", "As/As", {"As": PNICTOGENS}),
    Prototype(
        "phosphorene",
        "rectangular 3.31 4.58",
        "P ±0,.0806,1.066 ±1/2,.4194,1.066",
        "P/P",
        {"P": PNICTOGENS},
    ),
    Prototype("gaas", "hex 4.05", "Ga+3 A.29 As-3 B-.29", covalent=True),
    Prototype(
        "graphane",
        "hex 2.54",
        "C ±B.23 H ±B1.34",
        "C/C C/H",
        {"C": "C Si Ge Sn", "H": f"H {HALOGENS}"},
    ),
    Prototype(
        "bc3",
        "hex 5.17",
        "B B0 C0 C 1/6,1/3,0 1/6,5/6,0 2/3,5/6,0 1/3,1/6,0 5/6,1/6,0 5/6,2/3,0",
        "B/C C/C",
        {"B": "B N Al Si P Ge As Ga", "C": "C Si Ge"},
    ),
    Prototype("mb2", "hex 3.06", "Ti A1.26 B B0 C0", "Ti/B B/B", {"Ti": f"{ALL_M} Mg Al Be"}),
    Prototype(
        "pentagonal",
        "rectangular 5.74 5.92",
        "Pd 1/2,0,0 0,1/2,0 Se ±.1114,.118,-.7176 ±.3886,.618,-.7176",
        "Pd/Se Se/Se",
        {"Pd": f"Pd Pt Ni {ALL_M} Mg Sn Pb Ge", "Se": "Se S Te P As Sb"},
    ),
    Prototype("ges2", "square 3.45", "Ge+4 A0 S-2 E1.36 F-1.36"),
    Prototype("anti_1t", "hex 3.52", "Tl+1 B1.48 C-1.48 O-2 A0"),
    Prototype(
        "gase",
        "hex 3.82",
        "Ga A1.23 A-1.23 Se B2.41 B-2.41",
        "Ga/Ga Ga/Se",
        {"Ga": "Ga In Al Tl B", "Se": CHALCOGENS},
    ),
    Prototype(
        "gase_1t",
        "hex 3.82",
        "Ga A1.23 A-1.23 Se B2.41 C-2.41",
        "Ga/Ga Ga/Se",
        {"Ga": "Ga In Al Tl B", "Se": CHALCOGENS},
    ),
    Prototype(
        "sip",
        "hex 3.53",
        "Si A1.18 A-1.18 P B2.21 B-2.21",
        "Si/Si Si/P",
        {"Si": "Si Ge Sn Pb C", "P": PNICTOGENS},
    ),
    Prototype(
        "janus_gase",
        "hex 3.74",
        "Ga A1.23 A-1.23 Se B2.41 S B-2.28",
        "Ga/Ga Ga/Se Ga/S",
        {"Ga": "Ga In Al Tl B", "Se": CHALCOGENS, "S": CHALCOGENS},
    ),
    Prototype("pbs", "square 4.18", "Pb+2 A-1.42 D1.42 S-2 D-1.42 A1.42"),
    Prototype("fese", "square 3.77", "Fe+2 A0 D0 Se-2 F1.46 E-1.46"),
    Prototype(
        "gese",
        "rectangular 3.97 4.26",
        "Ge 1/4,.1061,-1.393 3/4,.6061,1.393 Se 3/4,.498,-1.116 1/4,.998,1.116",
        "Ge/Se",
        {"Ge": "Ge Sn Pb Si", "Se": CHALCOGENS},
    ),
    Prototype("cri3", "hex 6.87", "Cr+3 B0 C0 I-1 ±.35,0,1.56 ±0,.35,1.56 ±-.35,-.35,1.56"),
    Prototype(
        "tis3",
        "rectangular 4.97 3.40",
        "Ti ±.2503,1/4,1.3226 S ±.7514,1/4,.463 ±.048,3/4,2.834 ±.4508,3/4,2.88",
        "Ti/S S/S",
        {"Ti": "Ti Zr Hf Nb Ta V Th U W Mo", "S": "S Se Te"},
    ),
    Prototype("bi2te3", "hex 4.38", "Bi+3 B2.033 C-2.033 Te-2 A0 C3.776 B-3.776"),
    Prototype("bi2te2s", "hex 4.28", "Bi+3 B1.93 C-1.93 S-2 A0 Te-2 C3.75 B-3.75"),
    Prototype("in2se3", "hex 4.10", "In+3 C-2.05 B2.03 Se-2 A-3.38 B-.50 A3.11"),
    Prototype("mnbi2te4", "hex 4.33", "Mn+2 A0 Bi+3 C3.56 B-3.56 Te-2 B1.57 C-1.57 A5.34 A-5.34"),
    Prototype("mosi2n4", "hex 2.91", "Mo+4 A0 Si+4 B3.0 B-3.0 N-3 B1.255 B-1.255 A3.51 A-3.51"),
    Prototype("janus_2h", "hex 3.25", "Mo+4 A0 S-2 B-1.53 Se-2 B1.70"),
    Prototype("janus_1t", "hex 3.74", "Zr+4 A0 S-2 C-1.41 Se-2 B1.60"),
    Prototype("m2c", "hex 3.04", "C A0 Ti ±B1.15", "Ti/C", {"C": "C N", "Ti": TRANSITION}),
    Prototype("m3c2", "hex 3.07", "Ti A0 ±C2.36 C ±B1.29", "Ti/C", {"C": "C N", "Ti": TRANSITION}),
    Prototype(
        "m4c3",
        "hex 3.09",
        "C A0 ±C2.44 Ti ±B1.20 ±A3.52",
        "Ti/C",
        {"C": "C N", "Ti": TRANSITION},
    ),
    Prototype(
        "m2ct2",
        "hex 3.03",
        "C A0 Ti ±B1.318 O ±C2.246",
        "Ti/C Ti/O",
        {"C": "C N", "Ti": TRANSITION, "O": TERMINATIONS},
    ),
    Prototype(
        "m3c2t2",
        "hex 3.04",
        "Ti A0 ±C2.52 C ±B1.32 O ±A3.47",
        "Ti/C Ti/O",
        {"C": "C N", "Ti": TRANSITION, "O": TERMINATIONS},
    ),
    Prototype(
        "m4c3t2",
        "hex 3.06",
        "C A0 ±C2.52 Ti ±B1.22 ±A3.74 O ±B4.69",
        "Ti/C Ti/O",
        {"C": "C N", "Ti": TRANSITION, "O": TERMINATIONS},
    ),
    Prototype(
        "m2c_oh",
        "hex 3.07",
        "C A0 Ti ±B1.19 O ±C2.44 H ±C3.41",
        "Ti/C Ti/O O/H",
        {"C": "C N", "Ti": TRANSITION},
    ),
    Prototype(
        "m3c2_oh",
        "hex 3.08",
        "Ti A0 ±C2.40 C ±B1.31 O ±A3.64 H ±A4.61",
        "Ti/C Ti/O O/H",
        {"C": "C N", "Ti": TRANSITION},
    ),
    Prototype(
        "feocl", "rectangular 3.78 3.30", "Fe+3 ±1/4,3/4,.916 O-2 ±1/4,1/4,-.38 Cl-1 ±1/4,1/4,2.61"
    ),
    Prototype("biocl", "square 3.89", "Bi+3 F1.26 E-1.26 O-2 A0 D0 Cl-1 E2.62 F-2.62"),
    Prototype("zrncl", "hex 3.60", "Zr+4 ±B1.32 N-3 ±C.86 Cl-1 A3.13 A-3.13"),
    Prototype(
        "zrcl",
        "hex 3.42",
        "Zr ±B1.12 Cl ±C2.88",
        "Zr/Zr Zr/Cl",
        {"Zr": "Zr Hf Ti Sc Y La Gd Tb Lu Nb Ta", "Cl": f"{HALOGENS} S Se Te O"},
    ),
    Prototype(
        "mnps3",
        "hex 6.08",
        "Mn B0 C0 P A1.11 A-1.11 S ±.322,0,1.63 ±0,.322,1.63 ±-.322,-.322,1.63",
        "Mn/S P/S P/P",
        {"Mn": DIVALENT, "P": "P As Sb", "S": "S Se Te"},
    ),
    Prototype(
        "crgete3",
        "hex 6.84",
        "Cr B0 C0 Ge A1.21 A-1.21 Te ±.335,0,1.69 ±0,.335,1.69 ±-.335,-.335,1.69",
        "Cr/Te Ge/Te Ge/Ge",
        {"Cr": "Cr Sc Ti V Mn Fe Y In Al Ga Sb Bi", "Ge": "Ge Si Sn", "Te": "Te Se S"},
    ),
    Prototype(
        "aginp2s6",
        "hex 6.18",
        "Ag B0 In C0 P A1.11 A-1.11 S ±.322,0,1.67 ±0,.322,1.67 ±-.322,-.322,1.67",
        "Ag/S In/S P/S P/P",
        {
            "Ag": "Ag Cu Li Na K Tl",
            "In": "In Cr Sc V Fe Al Ga Bi Sb Y",
            "P": "P As",
            "S": "S Se Te",
        },
    ),
    Prototype(
        "hydroxide",
        "hex 3.59",
        "Ca+2 A0 O-2 ±B1.15 H ±B2.12",
        "Ca+2/O-2 O-2/H",
        {"Ca+2": "Ca+2 Mg+2 Mn+2 Fe+2 Co+2 Ni+2 Cu+2 Zn+2 Cd+2 Ti+2 V+2 Cr+2 Pd+2 Pt+2 Sr+2"},
    ),
    Prototype("k2nif4", "square 4.00", "Ni+2 A0 K+1 D1.934 D-1.934 F-1 E0 F0 A1.99 A-1.99"),
    Prototype("snf4", "square 4.04", "Sn+4 A0 F-1 E0 F0 A1.88 A-1.88"),
    Prototype(
        "fe3gete2",
        "hex 3.95",
        "Fe A1.29 A-1.29 C0 Ge B0 Te C2.61 C-2.61",
        "Fe/Fe Fe/Ge Fe/Te",
        {"Fe": "Fe Co Ni Mn Cr", "Ge": "Ge Si Sn Ga As Al", "Te": "Te Se S"},
    ),
)
"""The known layers; the text says where their geometry is from."""


def retrieve(
    settings: Mapping[str, Any], data_folder: Path, download_folder: Path
) -> Iterator[RetrievedStructure]:
    """Yield layers and stacks of two, one of each prototype and registry in turn.

    The first n structures do not depend on ``count``: a larger one only adds materials.

    Parameters
    ----------
    settings
        ``count``, the number of structures to make.
    data_folder, download_folder
        Not used.
    """
    pools = [[p for p in PROTOTYPES if p.cell.startswith(kind)] for kind in REGISTRIES]
    pools += [[p] for p in PROTOTYPES if p.name in STACKED_ALIKE]
    streams = [_layers(prototype) for prototype in PROTOTYPES]
    streams += [_stacks(pool, registry) for pool in pools for registry in ("aa", "ab")]
    made = 0
    for layer in islice(_in_turn(streams), settings["count"]):
        made += 1
        yield _retrieved(layer)
    if made < settings["count"]:
        logger.warning("Fewer layers were made than asked for: %d of %d", made, settings["count"])


def _in_turn(streams: Sequence[Iterator[Layer]]) -> Iterator[Layer]:
    return (layer for turn in zip_longest(*streams) for layer in turn if layer is not None)


def _retrieved(layer: Layer) -> RetrievedStructure:
    lattice, positions = _cell(layer)
    structure = Structure(lattice, layer.symbols.tolist(), positions)
    content = json.dumps(
        structure.as_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return RetrievedStructure(layer.name, "layers", "json", content.encode())


def _cell(layer: Layer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return lattice vectors (3, 3) in angstrom and fractional coordinates (N, 3)."""
    heights = layer.positions[:, 2]
    lattice = np.zeros((3, 3))
    lattice[:2, :2] = layer.lattice
    lattice[2, 2] = np.ptp(heights) + VACUUM
    positions = layer.positions @ np.linalg.inv(lattice)
    positions[:, 2] += 0.5 - (heights.min() + heights.max()) / 2 / lattice[2, 2]
    return lattice.round(DECIMALS), positions.round(DECIMALS) % 1.0


def _layers(prototype: Prototype) -> Iterator[Layer]:
    """Yield the layers that a prototype gives, chemically nearest first, itself included."""
    table = species_table()
    reference = _reference(prototype)
    radius = _radii(prototype)
    candidates = _candidates(prototype, reference, radius)
    seen = set()
    for start in range(0, len(candidates), CHUNK):
        chunk = candidates[start : start + CHUNK]
        lattices, positions, sound = _fitted(reference, radius[chunk], radius[reference.species])
        sound &= _apart(lattices, positions, table.slater[chunk[:, reference.species_of_site]])
        for row in np.flatnonzero(sound):
            symbols = table.symbol[chunk[row]][reference.species_of_site]
            name = f"{prototype.name}-{Composition(''.join(symbols)).reduced_formula}"
            if name not in seen:
                seen.add(name)
                yield Layer(name, lattices[row], positions[row], symbols)


def _radii(prototype: Prototype) -> NDArray[np.float64]:
    """Return the radius of each species in angstrom, shape (species,)."""
    table = species_table()
    covalent = covalent_radii[[Element(symbol).Z for symbol in table.symbol]]
    return covalent if prototype.covalent else np.where(table.charge, table.radius, covalent)


def _candidates(
    prototype: Prototype, reference: Reference, radius: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the species of the substitutions in order of preference, shape (candidates, k)."""
    table = species_table()
    original = reference.species
    if prototype.choices is None:
        sign = np.sign(table.charge)
        options = [np.flatnonzero(table.put_in & (sign == sign[index])) for index in original]
    else:
        options = [
            np.unique([_indices()[choice] for choice in prototype.choices.get(name, name).split()])
            for name in reference.names
        ]
    species = np.stack([axis.ravel() for axis in np.meshgrid(*options, indexing="ij")], axis=1)
    symbols = np.sort(table.symbol[species], axis=1)
    allowed = (symbols[:, 1:] != symbols[:, :-1]).all(axis=1)
    if prototype.choices is None:
        growth = np.log(radius[species] / radius[original])
        allowed &= np.ptp(growth, axis=1) <= SIZE_TOLERANCE
        allowed &= balanced(np.bincount(reference.species_of_site), species, EXCESS)
        allowed[allowed] = [not volatile(row) for row in species[allowed]]
    species = species[allowed]
    order = chemical_distance(species, original).sum(axis=1).argsort(kind="stable")
    return species[order]


@cache
def _indices() -> Mapping[str, int]:
    """Return the row of `species_table()` of each atom (``Mo``) and ion (``Mo+4``)."""
    table = species_table()
    names = (
        f"{symbol}{charge:+d}" if charge else str(symbol)
        for symbol, charge in zip(table.symbol, table.charge, strict=True)
    )
    return {name: index for index, name in enumerate(names)}


def _reference(prototype: Prototype) -> Reference:
    """Return what the text of a prototype says, and its bonds."""
    lattice = _lattice(prototype.cell)
    names: list[str] = []
    rows = []
    for token in prototype.sites.split():
        if token in _indices():
            names.append(token)
            continue
        *in_plane, height = _site(token.removeprefix("±"))
        position = np.array([*(np.array(in_plane) @ lattice), height])
        rows.append((len(names) - 1, position))
        if token.startswith("±"):
            rows.append((len(names) - 1, -position))
    species_of_site = np.array([kind for kind, _ in rows])
    positions = np.array([position for _, position in rows])
    species = np.array([_indices()[name] for name in names])
    if prototype.bonds:
        pairs = {frozenset(bond.split("/")) for bond in prototype.bonds.split()}
        bonded = np.array([[frozenset({one, other}) in pairs for one in names] for other in names])
    else:
        charge = species_table().charge[species]
        bonded = charge[:, None] * charge < 0
    return Reference(
        lattice,
        positions,
        names,
        species,
        species_of_site,
        *_find_bonds(lattice, positions, species_of_site, bonded),
        _moves(Layer("", lattice, positions, species_table().symbol[species][species_of_site])),
    )


def _find_bonds(
    lattice: NDArray[np.float64],
    positions: NDArray[np.float64],
    species_of_site: NDArray[np.int64],
    bonded: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return `Reference`'s ``first``, ``second`` and ``image``, from which species bond (k, k)."""
    vectors, images = _vectors(lattice[None], positions[None])
    distance = np.linalg.norm(vectors[0], axis=-1)
    pair = np.ix_(species_of_site, species_of_site)
    shortest = np.full(bonded.shape, np.inf)
    np.minimum.at(shortest, np.broadcast_arrays(*pair), distance.min(axis=-1))
    close = bonded[pair][..., None] & (distance <= BOND_SPREAD * shortest[pair][..., None])
    first, second, image = np.nonzero(close)
    once = first < second
    return first[once], second[once], images[image[once]]


def _moves(layer: Layer) -> NDArray[np.float64]:
    """Return `Reference.moves`: what the mean over all symmetry operations leaves as it is."""
    lattice, positions = _cell(layer)
    numbers = [Element(symbol).Z for symbol in layer.symbols]
    cell: Any = (lattice, positions, numbers)
    operations: Any = spglib.get_symmetry(cell, symprec=SYMPREC)
    mean = np.zeros(2 * [3 + 3 * len(positions)])
    rotations, translations = operations["rotations"], operations["translations"]
    for fractional, translation in zip(rotations, translations, strict=True):
        rotation = lattice.T @ fractional @ np.linalg.inv(lattice.T)
        plane = rotation[:2, :2]
        mean[:3, :3] += np.einsum("aij,ik,bkl,jl->ab", STRAINS, plane, STRAINS, plane)
        apart = positions[:, None] - (positions @ fractional.T + translation)
        image = np.abs(apart - apart.round()).sum(axis=-1).argmin(axis=0)
        permutation = np.eye(len(positions))[image].T
        mean[3:, 3:] += np.kron(permutation, rotation)
    values, vectors = np.linalg.eigh(mean / len(rotations))
    return vectors[:, values > 0.5]


def _lattice(cell: str) -> NDArray[np.float64]:
    kind, *constants = cell.split()
    a, b = float(constants[0]), float(constants[-1])
    gamma = np.radians(120.0 if kind == "hex" else 90.0)
    return np.array([[a, 0.0], [b * np.cos(gamma), b * np.sin(gamma)]]).round(14)


def _site(token: str) -> list[float]:
    """Return x, y (fractions) and height (angstrom)."""
    if token[0] in LETTERS:
        return [*LETTERS[token[0]], float(token[1:])]
    return [float(Fraction(number)) for number in token.split(",")]


def _vectors(
    lattices: NDArray[np.float64], positions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return vectors (angstrom) from each atom to each image of another, and the images' cells.

    Shapes are (layers, 2, 2) and (layers, N, 3) to (layers, N, N, 25, 3) and (25, 2); from an atom
    to itself the vector is infinite.
    """
    images = np.array(list(product(range(-2, 3), repeat=2)), dtype=float)
    vectors = positions[:, None, :, None, :] - positions[:, :, None, None, :]
    vectors = np.repeat(vectors, len(images), axis=3)
    vectors[..., :2] += (images @ lattices)[:, None, None]
    atoms = np.arange(positions.shape[1])
    vectors[:, atoms, atoms, len(images) // 2] = np.inf
    return vectors, images


def _apart(
    lattices: NDArray[np.float64], positions: NDArray[np.float64], slater: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return whether no two atoms of a layer are too close, shape (layers,)."""
    vectors, _ = _vectors(lattices, positions)
    shortest = np.linalg.norm(vectors, axis=-1).min(axis=-1)
    sums = slater[:, :, None] + slater[:, None, :]
    apart: NDArray[np.bool_] = (shortest > SHORTEST_DISTANCE * sums).all(axis=(1, 2))
    return apart


def _fitted(
    reference: Reference, radii: NDArray[np.float64], original: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Fit a layer to its bond lengths by distance least squares (Gauss-Newton steps).

    Steps keep the symmetry, and are the smallest ones that do, so that they leave alone what the
    bonds do not fix.

    Parameters
    ----------
    reference
        Where to start from.
    radii
        Of the species of each layer, angstrom, shape (layers, k).
    original
        Of the species of the reference, angstrom, shape (k,).

    Returns
    -------
    lattices, positions
        Angstrom, shapes (layers, 2, 2) and (layers, N, 3).
    sound
        Whether the bonds have the lengths asked for within `BOND_MISFIT`, shape (layers,).
    """
    ends = reference.species_of_site[[reference.first, reference.second]]
    ratios = radii[:, ends].sum(axis=1) / original[ends].sum(axis=0)
    unchanged = _bonds(reference, reference.lattice, reference.positions)
    target = np.linalg.norm(unchanged, axis=-1) * ratios
    scale = ratios.mean(axis=1)[:, None, None]
    lattices, positions = reference.lattice * scale, reference.positions * scale
    for _ in range(STEPS):
        vectors = _bonds(reference, lattices, positions)
        length = np.linalg.norm(vectors, axis=-1)
        jacobian = _lengthening(reference, vectors / length[..., None], vectors) @ reference.moves
        transposed = jacobian.swapaxes(-1, -2)
        normal = transposed @ jacobian + DAMPING * np.eye(jacobian.shape[-1])
        step = np.linalg.solve(normal, transposed @ (target - length)[..., None])[..., 0]
        step = step @ reference.moves.T
        strain = np.einsum("la,aij->lij", step[:, :3], STRAINS)
        lattices = lattices + lattices @ strain
        positions[..., :2] += positions[..., :2] @ strain
        positions += step[:, 3:].reshape(positions.shape)
    length = np.linalg.norm(_bonds(reference, lattices, positions), axis=-1)
    return lattices, positions, (np.abs(length / target - 1) <= BOND_MISFIT).all(axis=1)


def _lengthening(
    reference: Reference, directions: NDArray[np.float64], vectors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how bonds lengthen with strain and displacements, shape (layers, M, 3 + 3 N)."""
    strained = np.einsum("lmi,aij,lmj->lma", directions[..., :2], STRAINS, vectors[..., :2])
    atoms = np.arange(len(reference.positions))
    ends = (reference.second[:, None] == atoms) * 1.0 - (reference.first[:, None] == atoms)
    displaced = ends[:, :, None] * directions[:, :, None, :]
    return np.concatenate([strained, displaced.reshape(*strained.shape[:2], -1)], axis=-1)


def _bonds(
    reference: Reference, lattices: NDArray[np.float64], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the vectors along all bonds in angstrom, shape (..., M, 3)."""
    vectors = positions[..., reference.second, :] - positions[..., reference.first, :]
    vectors[..., :2] += reference.image @ lattices
    return vectors


def _stacks(prototypes: Sequence[Prototype], registry: str) -> Iterator[Layer]:
    """Yield stacks of two layers that match: of different prototypes, or of the only one."""
    transformation = REGISTRIES[prototypes[0].cell.split()[0]][registry]
    pool: list[Layer] = []
    for upper in _in_turn([_layers(prototype) for prototype in prototypes]):
        if len(upper.symbols) > STACKED_SITES:
            continue
        for lower in pool:
            alike = lower.name.split("-")[0] == upper.name.split("-")[0]
            lengths = lower.lattice[0, 0], upper.lattice[0, 0]
            matched = max(lengths) / min(lengths) - 1 <= LATTICE_MISMATCH
            if matched and alike == (len(prototypes) == 1):
                yield _stack(lower, upper, registry, *transformation)
        pool.append(upper)


def _stack(
    lower: Layer, upper: Layer, registry: str, factor: int, shift: tuple[float, float]
) -> Layer:
    """Return two layers, strained to the mean of their cells, as one."""
    lattice = (lower.lattice + upper.lattice) / 2
    below, above = (
        np.column_stack([x.positions[:, :2] @ np.linalg.inv(x.lattice), x.positions[:, 2]])
        for x in (lower, upper)
    )
    above[:, :2] = factor * above[:, :2] + shift
    positions = np.concatenate([below, above])
    positions[:, :2] = positions[:, :2] @ lattice
    n = len(below)
    vectors, _ = _vectors(lattice[None], positions[None])
    offset = vectors[0, :n, n:]
    radius = np.array([Element(s).van_der_waals_radius for s in (*lower.symbols, *upper.symbols)])
    touch = (radius[:n, None] + radius[n:])[..., None] ** 2 - (offset[..., :2] ** 2).sum(axis=-1)
    positions[n:, 2] += (np.sqrt(np.maximum(touch, 0)) - offset[..., 2]).max()
    symbols = np.concatenate([lower.symbols, upper.symbols])
    return Layer(f"stack_{registry}-{lower.name}-{upper.name}", lattice, positions, symbols)
