"""Which crystals are the same by pymatgen's StructureMatcher, within a time limit, on all cores.

A pair is only compared if both have the same reduced formula: the matcher asks for the same atoms
in the primitive cells. Volumes exclude nothing, for it scales them, nor does the number of sites,
for one of the cells may be a supercell. The time is the processor's, so that other programs on the
same cores change no result.
"""

import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.core.structure_matcher import StructureMatcher

from diffractory.evaluation.crystal_geometry import elongation, pack
from diffractory.store import one_thread, track, worker_pool
from diffractory.structures.cleaning import quiet
from diffractory.structures.duplicates import candidates, duplicate_groups, matching_pairs
from diffractory.structures.reading import Cell

CHUNK = 8
"""Pairs or cells that a worker takes at a time."""

MOST_ELONGATED = 12.0
"""Longest lattice vector, over the cube root of the volume, of a cell that is compared: beyond, too
many vectors of a lattice are as long."""

ADVICE = "use fewer processes."
"""Where a worker process is killed."""


@contextmanager
def comparers(processes: int) -> Iterator[Executor]:
    """Yield worker processes for all that is asked about crystals.

    They import the main module, so that a script must use this under
    ``if __name__ == "__main__"``.
    """
    with worker_pool(processes, __name__, _prepare, ADVICE) as pool:
        yield pool


class Matches(NamedTuple):
    """How P pairs compare.

    Attributes
    ----------
    rms
        Root of the mean squared distance of paired sites over (V / N)^(1/3); NaN if the two do not
        match; shape (P,).
    timed_out
        Which were given up, and count as no match: out of time or more elongated than
        `MOST_ELONGATED`, shape (P,).
    """

    rms: NDArray[np.float64]
    timed_out: NDArray[np.bool_]


def _proper(cells: Sequence[Cell]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which cells are proper ones, and which of those are compact enough, shape (M,) each."""
    packed = pack(cells)
    compact = packed.usable.copy()
    compact[packed.usable] = elongation(packed) <= MOST_ELONGATED
    return packed.usable, compact


class _OutOfTime(BaseException):
    """Not an `Exception`, which a library might swallow."""


def match(
    pairs: Sequence[tuple[Cell, Cell]],
    tolerances: Mapping[str, float],
    seconds_per_pair: float,
    pool: Executor,
) -> Matches:
    """Compare P pairs of crystals, such as a reconstructed and a true one.

    Parameters
    ----------
    pairs
        A crystal without a proper cell matches nothing.
    tolerances
        ``ltol`` and ``stol`` (fractions) and ``angle_tol`` (degree) of the StructureMatcher.
    seconds_per_pair
        Time of the processor after which a pair is given up.
    pool
        As of `comparers`.
    """
    rms, timed_out = np.full(len(pairs), np.nan), np.zeros(len(pairs), dtype=np.bool_)
    cells = [cell for pair in pairs for cell in pair]
    proper, compact = (flags[0::2] & flags[1::2] for flags in _proper(cells))
    same = [p for p in np.flatnonzero(proper).tolist() if same_formula(*pairs[p])]
    timed_out[same] = ~compact[same]
    wanted = [p for p in same if compact[p]]
    compare = partial(_rms, tolerances, seconds_per_pair)
    found = pool.map(compare, [pairs[p] for p in wanted], chunksize=CHUNK)
    for p, distance in zip(wanted, track(found, "Matching", len(wanted), "pairs"), strict=True):
        timed_out[p] = distance is None
        rms[p] = np.nan if distance is None else distance
    return Matches(rms, timed_out)


def match_by_two(
    pairs: Sequence[tuple[Cell, Cell]],
    first: Mapping[str, float],
    second: Mapping[str, float],
    seconds_per_pair: float,
    pool: Executor,
) -> tuple[Matches, Matches]:
    """Compare P pairs as `match` does, by two tolerances.

    If none of the first is tighter, the second is not tried where the first finds no match.
    """
    found = match(pairs, first, seconds_per_pair, pool)
    asked = np.full(len(pairs), any(first[name] < second[name] for name in second))
    asked |= ~np.isnan(found.rms) | found.timed_out
    some = [pairs[p] for p in np.flatnonzero(asked).tolist()]
    again = Matches(np.full(len(pairs), np.nan), np.zeros(len(pairs), dtype=np.bool_))
    again.rms[asked], again.timed_out[asked] = match(some, second, seconds_per_pair, pool)
    return found, again


def same_formula(first: Cell, second: Cell) -> bool:
    """Tell whether two crystals have the same elements in the same ratio."""
    return _formula(first) == _formula(second)


def _formula(cell: Cell) -> bytes:
    elements, counts = np.unique(cell.numbers, return_counts=True)
    return np.array([elements, counts // max(np.gcd.reduce(counts), 1)]).tobytes()


def _prepare() -> None:
    one_thread()
    quiet()


def _rms(tolerances: Mapping[str, float], seconds: float, pair: tuple[Cell, Cell]) -> float | None:
    """Return the normalized RMS distance, NaN if there is no match, None if time was up."""
    matcher: Any = StructureMatcher(
        ltol=tolerances["ltol"], stol=tolerances["stol"], angle_tol=tolerances["angle_tol"]
    )
    try:
        with _time_limit(seconds):
            found = matcher.get_rms_dist(*map(_structure, pair))
    except _OutOfTime:
        return None
    except Exception:  # whatever it has against odd crystals
        return np.nan
    return np.nan if found is None else float(found[0])


def _structure(cell: Cell) -> Structure:
    return Structure(Lattice(cell.lattice), cell.numbers.tolist(), cell.positions)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTime` when the processor has worked so long; compiled code ends first."""
    signal.signal(signal.SIGVTALRM, _give_up)
    # It goes on ringing, since a callback of a library may swallow the first exception.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise _OutOfTime


class Originality(NamedTuple):
    """How M crystals compare with each other and with a reference set such as the training set.

    What cannot be compared (see `comparable`) is neither unique nor novel.

    Attributes
    ----------
    unique
        The first of its group of duplicates, shape (M,). A group is what a chain of matches
        connects, so that the number of groups does not depend on the order.
    novel
        No match in the reference set, shape (M,).
    """

    unique: NDArray[np.bool_]
    novel: NDArray[np.bool_]


def originality(
    cells: Sequence[Cell],
    reference: Sequence[Cell],
    tolerances: Mapping[str, float],
    seconds: float,
    pool: Executor,
    processes: int,
) -> Originality:
    """Tell which of M crystals are unique, and which are novel.

    Parameters
    ----------
    cells, tolerances, pool
        As for `match`.
    seconds
        Time of the processor after which the reduction of a cell is given up.
    processes
        How many work in the pool.
    """
    formulas = {_formula(cell) for cell in cells}
    others = [cell for cell in reference if _formula(cell) in formulas]
    primitive = comparable([*cells, *others], seconds, pool)
    limits = tolerances, pool, processes
    ours, theirs = primitive[: len(cells)], primitive[len(cells) :]
    return Originality(_unique(ours, *limits), _novel(ours, theirs, *limits))


def _unique(
    primitive: Sequence[Cell | None],
    tolerances: Mapping[str, float],
    pool: Executor,
    processes: int,
) -> NDArray[np.bool_]:
    known = {f"{m:012d}": cell for m, cell in enumerate(primitive) if cell is not None}
    groups = duplicate_groups(list(known), list(known.values()), tolerances, pool, processes)
    result = np.zeros(len(primitive), dtype=np.bool_)
    result[[int(group) for group in groups]] = True
    return result


def _novel(
    primitive: Sequence[Cell | None],
    reference: Sequence[Cell | None],
    tolerances: Mapping[str, float],
    pool: Executor,
    processes: int,
) -> NDArray[np.bool_]:
    everything = [*primitive, *reference]
    kept = [m for m, cell in enumerate(everything) if cell is not None]
    known = [cell for cell in everything if cell is not None]
    groups: dict[bytes, list[int]] = defaultdict(list)
    for k, cell in enumerate(known):
        groups[cell.numbers.tobytes()].append(k)
    # Each stands as 0 if it is not known, 1 if it is; those of the reference set come last.
    found = (np.array(kept, dtype=np.int64) >= len(primitive)).astype(np.int64)
    pairs = (
        pair
        for group in track(groups.values(), "Looking for known ones", len(groups), "groups")
        for pair in candidates(group, known, tolerances, found)
        if found[pair[0]] != found[pair[1]]
    )
    for pair in matching_pairs(pairs, known, tolerances, pool, processes):
        found[list(pair)] = 1
    result = np.zeros(len(everything), dtype=np.bool_)
    result[kept] = found == 0
    return result[: len(primitive)]


def comparable(cells: Sequence[Cell], seconds: float, pool: Executor) -> list[Cell | None]:
    """Return the cells that the StructureMatcher compares, None where there is none.

    They are primitive, Niggli-reduced, right-handed and sorted by atomic number. There is none of a
    crystal without a proper cell, of one that is more elongated than `MOST_ELONGATED`, and of one
    whose reduction takes too long, or fails.

    Parameters
    ----------
    seconds
        Time of the processor after which a reduction is given up.
    """
    result: list[Cell | None] = [None] * len(cells)
    proper = np.flatnonzero(_proper(cells)[1]).tolist()
    reduced = pool.map(partial(_reduced, seconds), [cells[m] for m in proper], chunksize=CHUNK)
    for m, cell in zip(proper, track(reduced, "Reducing", len(proper), "cells"), strict=True):
        result[m] = cell
    return result


def _reduced(seconds: float, cell: Cell) -> Cell | None:
    try:
        with _time_limit(seconds):
            structure: Any = _structure(cell).get_reduced_structure("niggli")
            structure = structure.get_primitive_structure()
    except (_OutOfTime, Exception):  # whatever it has against odd crystals
        return None
    numbers = np.array([site.specie.Z for site in structure], dtype=np.intc)
    order = np.argsort(numbers, kind="stable")
    lattice, positions = structure.lattice.matrix, structure.frac_coords[order]
    volume = np.linalg.det(lattice)
    # A left-handed basis is replaced by its inverse: the atoms stay where they are.
    sign = np.sign(volume)
    return Cell(sign * lattice, sign * positions, numbers[order])
