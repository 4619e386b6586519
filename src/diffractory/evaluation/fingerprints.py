"""Fingerprints by which crystals are compared: CrystalNN of structures, Magpie of compositions.

They are those of T. Xie et al., ICLR 2022: matminer's ``CrystalNNFingerprint`` with the preset
``ops``, averaged over the sites, and its ``ElementProperty`` with the preset ``magpie``, scaled.
Both are worked out here in compiled or vectorized code. Of 400 crystals of Perov-5 and Carbon-24,
398 agree with matminer's to 1e-6; the other two differ by less than 1e-3 in the body-centred cubic
motif of neighbours with equal weights, which matminer's leaves to rounding errors (see
`order_parameters`).
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numba
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core.molecule_structure_comparator import CovalentRadius
from pymatgen.core.periodic_table import Element

from diffractory.evaluation.crystal_geometry import (
    Packed,
    dot,
    neighbours,
    pack,
    reduced_basis,
    voronoi_faces,
    wrapped,
)
from diffractory.evaluation.order_parameters import MOST_NEIGHBOURS, START, motifs
from diffractory.store import track
from diffractory.structures.reading import Cell

MAX_ATOMIC_NUMBER = 118

REACH = 7.0
"""Where neighbours are looked for first, angstrom."""

MOST_CANDIDATES = 20_000
"""Atoms in reach of a site beyond which a crystal has no fingerprint: it is far too dense."""

SMALLEST_FACE = 1e-10
"""A Voronoi face of less solid angle is due to rounding errors, sr."""

EQUAL = 1e-9
"""Weights of two bonds are equal if they differ by less."""

BLOCK = 32
"""Crystals that a thread takes at a time."""

MAGPIE = (
    "Number MendeleevNumber AtomicWeight MeltingT Column Row CovalentRadius Electronegativity "
    "NsValence NpValence NdValence NfValence NValence NsUnfilled NpUnfilled NdUnfilled NfUnfilled "
    "NUnfilled GSvolume_pa GSbandgap GSmagmom SpaceGroupNumber"
).split()
"""Properties of elements, in the order of matminer's preset."""


class Fingerprints(NamedTuple):
    """Fingerprints of M crystals; a crystal without has rows of NaN.

    Attributes
    ----------
    structure
        Weights of the coordination numbers 1 to 24, each followed by its motifs, shape (M, 61).
    composition
        Minimum, maximum, range, mean, mean absolute deviation and mode of each property of
        `MAGPIE`, scaled, shape (M, 132).
    """

    structure: NDArray[np.float64]
    composition: NDArray[np.float64]


def fingerprints(cells: Sequence[Cell], threads: int) -> Fingerprints:
    """Return the fingerprints of crystals, as CDVAE has them.

    A crystal has none if it has no proper cell, holds what is no element or one without a radius
    (from Bk on), has two atoms at one place, or one whose Voronoi cell is not closed.

    Parameters
    ----------
    threads
        How many work at a time.
    """
    packed = pack(cells)
    structure = np.full((len(cells), int(START[-1])), np.nan)
    composition = np.full((len(cells), 6 * len(MAGPIE)), np.nan)
    structure[packed.usable] = _structure_fingerprints(packed, threads)
    found = np.isfinite(structure).all(axis=1)
    composition[found] = _composition_fingerprints(
        [cells[m].numbers for m in np.flatnonzero(found).tolist()]
    )
    return Fingerprints(structure, composition)


@cache
def _elements() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return covalent radius (angstrom) and electronegativity (Pauling) by atomic number.

    NaN stands for none. Radii: B. Cordero et al., Dalton Trans. 2008, 2832.
    """
    radius = np.full(MAX_ATOMIC_NUMBER + 1, np.nan)
    negativity = np.full(MAX_ATOMIC_NUMBER + 1, np.nan)
    for z in range(1, MAX_ATOMIC_NUMBER + 1):
        element = Element.from_Z(z)
        radius[z] = CovalentRadius.radius.get(element.symbol, np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some have none
            negativity[z] = element.X
    return radius, negativity


def _structure_fingerprints(packed: Packed, threads: int) -> NDArray[np.float64]:
    """Return the fingerprints of the U crystals, shape (U, 61)."""
    offsets, total = packed.offsets, len(packed.lattices)
    radius, negativity = _elements()

    def of_block(start: int) -> NDArray[np.float64]:
        stop = min(start + BLOCK, total)
        some = slice(offsets[start], offsets[stop])
        return _mean_fingerprints(
            packed.lattices[start:stop],
            packed.positions[some],
            packed.numbers[some],
            offsets[start : stop + 1] - offsets[start],
            radius,
            negativity,
        )

    with ThreadPoolExecutor(threads) as pool:
        blocks = pool.map(of_block, range(0, total, BLOCK))
        found = list(track(blocks, "Fingerprints", total, "crystals", weight=BLOCK))
    return np.concatenate([np.empty((0, int(START[-1]))), *found])


@numba.njit(cache=True, nogil=True)
def _mean_fingerprints(
    lattices: NDArray[np.float64],
    positions: NDArray[np.float64],
    numbers: NDArray[np.int64],
    offsets: NDArray[np.int64],
    radius: NDArray[np.float64],
    negativity: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the mean over the sites of each crystal, NaN if one site has none, shape (U, 61)."""
    result = np.zeros((len(lattices), START[-1]))
    for u in range(len(lattices)):
        some = slice(offsets[u], offsets[u + 1])
        elements = numbers[some]
        proper = elements.min() >= 1 and elements.max() < len(radius)
        if not proper or np.isnan(radius[elements]).any():
            result[u] = np.nan
            continue
        basis = reduced_basis(lattices[u])
        sites = wrapped(positions[some], lattices[u], basis)
        farthest = _longest_diagonal(lattices[u])
        for site in range(len(sites)):
            result[u] += _site_fingerprint(
                sites, basis, site, farthest, radius[elements], negativity[elements]
            ) / len(sites)
            if np.isnan(result[u, 0]):
                break
    return result


@numba.njit(cache=True)
def _longest_diagonal(lattice: NDArray[np.float64]) -> float:
    """Return the longest diagonal of the cell, angstrom: neighbours are looked for up to it."""
    longest = 0.0
    for a, b, c in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        diagonal = a * lattice[0] + b * lattice[1] + c * lattice[2]
        longest = max(longest, np.sqrt(dot(diagonal, diagonal)))
    return float(longest + 0.01)


@numba.njit(cache=True)
def _site_fingerprint(
    sites: NDArray[np.float64],
    basis: NDArray[np.float64],
    site: int,
    farthest: float,
    radius: NDArray[np.float64],
    negativity: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the fingerprint of a site, shape (61,); ``radius`` and ``negativity`` are of sites."""
    reach = REACH
    while True:
        vectors, distances, which = neighbours(sites, basis, site, reach, MOST_CANDIDATES)
        faces = voronoi_faces(vectors, distances)
        if len(vectors) and not np.isnan(faces[0, 0]):
            break
        # As matminer, look farther as long as the Voronoi cell is not closed.
        if reach >= farthest or (len(vectors) and np.isnan(distances[0])):
            return np.full(START[-1], np.nan)
        reach = min(2 * reach, farthest + 0.001)
    contrast = np.abs(negativity[which] - negativity[site])
    weights = _bond_weights(faces, distances, contrast, radius[which] + radius[site])
    order = np.argsort(-weights, kind="mergesort")
    bonds = order[: np.count_nonzero(weights >= 0.0005)]
    directions = vectors[bonds] / distances[bonds].reshape(-1, 1)
    return _of_bonds(directions, weights[bonds])


@numba.njit(cache=True)
def _bond_weights(
    faces: NDArray[np.float64],
    distances: NDArray[np.float64],
    contrast: NDArray[np.float64],
    bond: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return how likely each neighbour is bonded (H. Pan et al., Inorg. Chem. 60, 1590 (2021)).

    Parameters
    ----------
    faces
        Solid angle and area of the Voronoi faces, shape (n, 2).
    distances, bond
        From the neighbours, and sums of the two radii, angstrom, shape (n,).
    contrast
        Differences of the electronegativities, NaN if one has none, shape (n,).
    """
    weights = np.zeros(len(faces))
    for k in range(len(faces)):
        if faces[k, 0] > SMALLEST_FACE:
            weights[k] = faces[k, 0] ** 2 / faces[k, 1]  # by the area: for porous crystals
            if not np.isnan(contrast[k]):
                weights[k] *= 1 + 3 * np.sqrt(contrast[k] / 3.3)
    weights /= weights.max()
    # All of the weight up to 0.5 angstrom beyond the sum of the radii, none from 1 angstrom on.
    beyond = np.clip((distances - bond - 0.5) / 0.5, 0.0, 1.0)
    return weights * (np.cos(np.pi * beyond) + 1) / 2


@numba.njit(cache=True)
def _of_bonds(directions: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the fingerprint of n bonds, directions (n, 3), the greatest weight first."""
    result = np.zeros(START[-1])
    ranks = np.zeros(len(weights), dtype=np.int64)
    for n in range(1, len(weights)):
        ranks[n] = ranks[n - 1] + (weights[n] < weights[n - 1] - EQUAL)
    weights = np.floor(1000 * weights + 0.5) / 1000
    for n in range(1, min(len(weights), MOST_NEIGHBOURS) + 1):
        following = weights[n] if n < len(weights) else 0.0
        if following == weights[n - 1]:
            continue  # both are bonded, or neither
        weight = _quadrant(weights[n - 1]) - _quadrant(following)
        result[START[n - 1]] = weight
        result[START[n - 1] + 1 : START[n]] = weight * motifs(directions[:n], ranks[:n])
    return result


@numba.njit(cache=True)
def _quadrant(x: float) -> float:
    """Return the share of the area of a quadrant of the unit circle that is nearer than x."""
    return float((x * np.sqrt(1 - x * x) + np.arcsin(x)) / (np.pi / 2))


def _composition_fingerprints(numbers: Sequence[NDArray[np.intc]]) -> NDArray[np.float64]:
    """Return the scaled Magpie fingerprints of crystals, shape (M, 132)."""
    if not numbers:
        return np.empty((0, 6 * len(MAGPIE)))
    of = np.repeat(np.arange(len(numbers)), [len(some) for some in numbers])
    pairs, counts = np.unique(
        np.column_stack([of, np.concatenate(list(numbers))]), axis=0, return_counts=True
    )
    starts = np.searchsorted(pairs[:, 0], np.arange(len(numbers)))
    values = _magpie_table()[pairs[:, 1]]
    fraction = (counts / np.add.reduceat(counts, starts)[pairs[:, 0]])[:, None]
    least = np.minimum.reduceat(values, starts)
    greatest = np.maximum.reduceat(values, starts)
    mean = np.add.reduceat(fraction * values, starts)
    deviation = np.add.reduceat(fraction * np.abs(values - mean[pairs[:, 0]]), starts)
    # Of several elements that are the most frequent, the least value.
    most = counts == np.maximum.reduceat(counts, starts)[pairs[:, 0]]
    mode = np.minimum.reduceat(np.where(most[:, None], values, np.inf), starts)
    statistics = np.stack([least, greatest, greatest - least, mean, deviation, mode], axis=2)
    scale = _magpie_scale()
    scaled = (statistics.reshape(len(numbers), -1) - scale[0]) / scale[1]
    return np.nan_to_num(scaled, nan=0.0)


@cache
def _magpie_table() -> NDArray[np.float64]:
    """Return the properties of each element by atomic number, NaN where unknown, shape (119, 22).

    L. Ward et al., npj Comput. Mater. 2, 16028 (2016).
    """
    from matminer.utils.data import MagpieData  # takes a while

    known = MagpieData(impute_nan=False).all_elemental_props
    table = np.full((MAX_ATOMIC_NUMBER + 1, len(MAGPIE)), np.nan)
    for z in range(1, MAX_ATOMIC_NUMBER + 1):
        table[z] = [known[name][Element.from_Z(z).symbol] for name in MAGPIE]
    return table


@cache
def _magpie_scale() -> NDArray[np.float64]:
    """Return mean and standard deviation of each feature, shape (2, 132)."""
    with (files("diffractory.evaluation") / "data" / "magpie_scale.csv").open() as file:
        table = pd.read_csv(file, comment="#")
    return table[["mean", "deviation"]].to_numpy().T
