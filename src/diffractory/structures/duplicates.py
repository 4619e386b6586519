"""Groups of structures that pymatgen's StructureMatcher takes for the same crystal.

Structures are compared within the same composition and number of atoms per primitive cell, and not
within a space group: a little disorder lowers the symmetry that is found, and must not let twins
end on two sides of a split (in carbon_24, 1,474 groups within space groups, 1,113 without). A group
is whatever a chain of matches connects, so that the order of the structures is immaterial.
`candidates` repeats the matcher's steps (Ong et al., Comput. Mater. Sci. 68, 314 (2013)) in
compiled code, and the matcher itself is asked only for pairs that pass and that earlier matches do
not connect already. It loses none: in carbon_24 (validation and test file, 4,062 structures), of
the 344,867 pairs within space groups 44,453 pass, among them all of the 44,451 that the matcher
accepts when it is asked for every pair.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.core.structure_matcher import StructureMatcher

from diffractory.store import track
from diffractory.structures.reading import Cell

BATCH = 8
"""Pairs that a worker compares at a time."""

FAR = 1e6
"""Squared distance of sites that cannot be paired, in the units of `_similar_crystals`."""

Pair = tuple[int, int]


def duplicate_groups(
    material_ids: Sequence[str],
    cells: Sequence[Cell],
    tolerances: Mapping[str, float],
    executor: Executor,
    workers: int,
) -> list[str]:
    """Return for each structure the smallest ``material_id`` of its group of duplicates.

    Parameters
    ----------
    material_ids
        Unique names of the M structures.
    cells
        Their Niggli-reduced primitive cells, sites sorted by atomic number; only those with the
        same atoms are compared.
    tolerances
        ``ltol`` and ``stol`` (fractions) and ``angle_tol`` (degree) of the StructureMatcher.
    executor
        Where the comparisons run.
    workers
        How many it runs at a time.
    """
    order = sorted(range(len(material_ids)), key=material_ids.__getitem__)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for rank, index in enumerate(order):
        groups[cells[index].numbers.tobytes()].append(rank)
    cells = [cells[index] for index in order]
    found = np.arange(len(order))  # the group of each structure so far: the first of its members
    pairs = (
        pair
        for group in track(groups.values(), "Finding duplicates", len(groups), "groups")
        for pair in candidates(group, cells, tolerances, found)
        if found[pair[0]] != found[pair[1]]
    )
    for pair in matching_pairs(pairs, cells, tolerances, executor, workers):
        low, high = sorted(found[list(pair)])
        found[found == high] = low
    groups_in_order = dict(zip(order, found.tolist(), strict=True))
    return [material_ids[order[groups_in_order[index]]] for index in range(len(order))]


def matching_pairs(
    pairs: Iterator[Pair],
    cells: Sequence[Cell],
    tolerances: Mapping[str, float],
    executor: Executor,
    workers: int,
) -> Iterator[Pair]:
    """Yield those of the pairs, in any order, that the StructureMatcher takes for the same crystal.

    Parameters
    ----------
    pairs
        Indices of cells, taken a few ahead of the results.
    cells, tolerances, executor, workers
        As for `duplicate_groups`.
    """
    running: set[Future[list[Pair]]] = set()
    while (batch := list(islice(pairs, BATCH))) or running:
        if batch:
            involved = {index: cells[index] for pair in batch for index in pair}
            running.add(executor.submit(_matches, involved, batch, tolerances))
        if not batch or len(running) > 2 * workers:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()


def candidates(
    group: Sequence[int],
    cells: Sequence[Cell],
    tolerances: Mapping[str, float],
    found: NDArray[np.int64],
) -> Iterator[Pair]:
    """Yield pairs of the group, each in its order, that are worth asking the matcher for."""
    if len(group) == 1:
        return
    lattices = np.array([cells[index].lattice for index in group])
    lattices /= np.cbrt(np.linalg.det(lattices))[:, None, None]
    positions = np.array([cells[index].positions for index in group])
    numbers = cells[group[0]].numbers
    _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    rarest = np.argmin(counts)
    anchors = (int(first[rarest]), int(first[rarest] + counts[rarest]))
    # Wider by more than rounding errors, so that no pair is lost on the edge.
    limits = (
        1 + tolerances["ltol"] + 1e-9,
        tolerances["stol"] * (1 + 1e-6),
        np.radians(tolerances["angle_tol"] + 1e-5),
    )
    longest = np.linalg.norm(lattices, axis=2).max(axis=1) * limits[0]
    for row in range(len(group) - 1):
        rest = slice(row + 1, None)
        wanted = found[group[rest]] != found[group[row]]
        vectors, norms = _lattice_vectors(lattices[row], longest[rest].max())
        sites = positions[row] @ lattices[row]
        similar = _similar_crystals(
            vectors, norms, sites, lattices[rest], positions[rest], wanted, numbers, anchors, limits
        )
        for column in np.flatnonzero(similar).tolist():
            yield group[row], group[row + 1 + column]


def _lattice_vectors(
    lattice: NDArray[np.float64], longest: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lattice vectors (V, 3) up to ``longest`` and their lengths (V,), sorted."""
    most = (longest * np.linalg.norm(np.linalg.inv(lattice), axis=0)).astype(int)
    steps = np.indices(2 * most + 1).reshape(3, -1).T - most
    vectors = steps @ lattice
    norms = np.linalg.norm(vectors, axis=1)
    order = np.argsort(norms, kind="stable")[1 : np.count_nonzero(norms <= longest)]
    return vectors[order], norms[order]


@njit(cache=True)
def _similar_crystals(
    vectors: NDArray[np.float64],
    norms: NDArray[np.float64],
    sites: NDArray[np.float64],
    lattices: NDArray[np.float64],
    positions: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    numbers: NDArray[np.intc],
    anchors: tuple[int, int],
    limits: tuple[float, float, float],
) -> NDArray[np.bool_]:
    """Tell which of M crystals resemble a given one of the same composition.

    Parameters
    ----------
    vectors, norms
        Lattice vectors of the given crystal (V, 3), scaled to unit volume, and their lengths (V,),
        sorted.
    sites
        Its sites in Cartesian coordinates of the same scale, shape (N, 3).
    lattices, positions
        Reduced bases (M, 3, 3) of unit volume and fractional coordinates (M, N, 3) of the others.
    wanted
        Which of the others to look at, shape (M,).
    numbers
        Atomic numbers of the sites, shape (N,).
    anchors
        Range of the sites of the rarest element.
    limits
        Ratio of lengths, distance of sites (in units of the cube root of the volume per site), and
        difference of angles (radian).
    """
    similar = np.zeros(len(lattices), dtype=np.bool_)
    directions = vectors / norms[:, None]
    for m in range(len(lattices)):
        if not wanted[m]:
            continue
        a, b, c = lattices[m]
        abc = np.array([_norm(a), _norm(b), _norm(c)])
        alpha, beta, gamma = _angle(b, c), _angle(a, c), _angle(a, b)
        start = np.searchsorted(norms, abc / limits[0])
        stop = np.searchsorted(norms, abc * limits[0])
        # Cosines between which angles are alike: most triples of vectors end here.
        alpha_range, beta_range, gamma_range = (
            _cosines(alpha, limits[2]),
            _cosines(beta, limits[2]),
            _cosines(gamma, limits[2]),
        )
        for i in range(start[0], stop[0]):
            for j in range(start[1], stop[1]):
                if similar[m] or not _within(_cosine(directions[i], directions[j]), gamma_range):
                    continue
                for k in range(start[2], stop[2]):
                    if not (
                        _within(_cosine(directions[i], directions[k]), beta_range)
                        and _within(_cosine(directions[j], directions[k]), alpha_range)
                    ):
                        continue
                    u, v, w = vectors[i], vectors[j], vectors[k]
                    basis = np.stack((u, v, w))
                    if abs(abs(np.linalg.det(basis)) - 1) > 0.5:
                        continue
                    mean = np.empty((3, 3))  # metric of the lattice with mean lengths and angles
                    la, lb, lc = (
                        (abc[0] + norms[i]) / 2,
                        (abc[1] + norms[j]) / 2,
                        (abc[2] + norms[k]) / 2,
                    )
                    mean[0, 0], mean[1, 1], mean[2, 2] = la * la, lb * lb, lc * lc
                    mean[1, 2] = mean[2, 1] = lb * lc * np.cos((alpha + _angle(v, w)) / 2)
                    mean[0, 2] = mean[2, 0] = la * lc * np.cos((beta + _angle(u, w)) / 2)
                    mean[0, 1] = mean[1, 0] = la * lb * np.cos((gamma + _angle(u, v)) / 2)
                    mapped = sites @ np.linalg.inv(basis)
                    if _similar_sites(mapped, positions[m], mean, numbers, anchors, limits[1]):
                        similar[m] = True
                        break
    return similar


@njit(cache=True)
def _norm(u: NDArray[np.float64]) -> float:
    return float(np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2))


@njit(cache=True)
def _cosine(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    return float(u[0] * v[0] + u[1] * v[1] + u[2] * v[2])


@njit(cache=True)
def _angle(u: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    cosine = _cosine(u, v) / (_norm(u) * _norm(v))
    return float(np.arccos(min(1.0, max(-1.0, cosine))))


@njit(cache=True)
def _cosines(angle: float, tolerance: float) -> tuple[float, float]:
    return float(np.cos(min(angle + tolerance, np.pi))), float(np.cos(max(angle - tolerance, 0.0)))


@njit(cache=True)
def _within(cosine: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= cosine <= limits[1]


@njit(cache=True)
def _similar_sites(
    given: NDArray[np.float64],
    other: NDArray[np.float64],
    metric: NDArray[np.float64],
    numbers: NDArray[np.intc],
    anchors: tuple[int, int],
    stol: float,
) -> bool:
    """Tell whether some translation brings all sites of two crystals close to each other.

    ``given`` and ``other`` are fractional coordinates (N, 3) in bases of nearly equal metric. Like
    the matcher, put one anchor on each of the others, pair the sites such that the sum of squared
    distances is least, take away the mean displacement and look at the largest one left.
    """
    n_sites = len(given)
    reach = stol * (np.sqrt(np.linalg.det(metric)) / n_sites) ** (1 / 3)
    limits = 2 * reach * np.sqrt(np.diag(np.linalg.inv(metric)))
    squared = np.empty((n_sites, n_sites))
    steps = np.empty((n_sites, n_sites, 3))
    for anchor in range(anchors[0], anchors[1]):
        shift = given[anchor] - other[anchors[0]]
        for q in range(n_sites):
            for p in range(n_sites):
                squared[q, p] = FAR
                if numbers[p] != numbers[q]:
                    continue
                for axis in range(3):
                    step = given[p, axis] - other[q, axis] - shift[axis]
                    steps[q, p, axis] = step - np.round(step)
                    if abs(steps[q, p, axis]) >= limits[axis]:
                        break
                else:
                    squared[q, p] = _squared(metric, steps[q, p])
            if squared[q].min() == FAR:
                break
        else:
            pairing = _assignment(squared)
            mean = np.zeros(3)
            for q in range(n_sites):
                mean += steps[q, pairing[q]] / n_sites
            largest = 0.0
            for q in range(n_sites):
                if squared[q, pairing[q]] == FAR:
                    largest = np.inf
                largest = max(largest, _squared(metric, steps[q, pairing[q]] - mean))
            if largest <= reach**2:
                return True
    return False


@njit(cache=True)
def _squared(metric: NDArray[np.float64], step: NDArray[np.float64]) -> float:
    total = 0.0
    for i in range(3):
        for j in range(3):
            total += step[i] * metric[i, j] * step[j]
    return total


@njit(cache=True)
def _assignment(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the column of each row such that the sum of costs is least, shape (N,).

    Shortest augmenting paths with dual variables (Jonker & Volgenant, Computing 38, 325 (1987)).
    Index 0 of columns stands for the row that is being added; rows and columns count from 1.
    """
    n = len(cost)
    row_price, column_price = np.zeros(n + 1), np.zeros(n + 1)
    row_of, previous = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
    for row in range(1, n + 1):
        row_of[0] = row
        column = 0
        slack = np.full(n + 1, np.inf)
        reached = np.zeros(n + 1, dtype=np.bool_)
        while row_of[column] != 0:
            reached[column] = True
            best, least, i = 0, np.inf, row_of[column]
            for j in range(1, n + 1):
                if reached[j]:
                    continue
                reduced = cost[i - 1, j - 1] - row_price[i] - column_price[j]
                if reduced < slack[j]:
                    slack[j], previous[j] = reduced, column
                if slack[j] < least:
                    least, best = slack[j], j
            for j in range(n + 1):
                if reached[j]:
                    row_price[row_of[j]] += least
                    column_price[j] -= least
                else:
                    slack[j] -= least
            column = best
        while column:
            row_of[column] = row_of[previous[column]]
            column = previous[column]
    columns = np.empty(n, dtype=np.int64)
    for j in range(1, n + 1):
        columns[row_of[j] - 1] = j - 1
    return columns


def _matches(
    cells: Mapping[int, Cell], pairs: Sequence[Pair], tolerances: Mapping[str, float]
) -> list[Pair]:
    """Return those of the pairs that the StructureMatcher takes for the same crystal."""
    matcher = StructureMatcher(
        ltol=tolerances["ltol"], stol=tolerances["stol"], angle_tol=tolerances["angle_tol"]
    )
    structures = {
        index: Structure(Lattice(cell.lattice), cell.numbers.tolist(), cell.positions)
        for index, cell in cells.items()
    }
    return [
        (first, second)
        for first, second in pairs
        if matcher.fit(structures[first], structures[second], skip_structure_reduction=True)
    ]
