"""Matches of pairs, uniqueness and novelty, against pymatgen and by hand."""

import numpy as np
import pytest
from pymatgen.core.structure_matcher import StructureMatcher
from test_crystal_metrics import ODD, SALT, cell
from test_fingerprints import PEROVSKITE

from diffractory.evaluation.crystal_scores import DEFAULT_TOLERANCES, TOLERANCES
from diffractory.evaluation.structure_matching import (
    _structure,
    comparers,
    match,
    match_by_two,
    originality,
    same_formula,
)
from diffractory.structures.reading import Cell

SECONDS = 5.0


@pytest.fixture(scope="module")
def pool():
    with comparers(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def single():
    with comparers(1) as pool:
        yield pool


def moved(one, scale, seed=0):
    noise = np.random.default_rng(seed).normal(scale=scale, size=one.positions.shape)
    return one._replace(positions=one.positions + noise)


def doubled(one):
    positions = np.concatenate([one.positions, one.positions + np.array([0, 0, 1])])
    return Cell(
        np.diag([1, 1, 2]) @ one.lattice,
        positions / np.array([1, 1, 2]),
        np.tile(one.numbers, 2),
    )


IMPROPER = [one for name, one in ODD.items() if name != "one place"]
NACL = cell([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17])


def test_distances_are_those_of_pymatgen(pool):
    firsts = [moved(PEROVSKITE, scale, seed) for seed, scale in enumerate((0, 0.01, 0.03, 0.1))]
    firsts.append(firsts[1]._replace(lattice=1.2 * firsts[1].lattice))
    firsts.append(doubled(firsts[1]))
    pairs = [(first, PEROVSKITE) for first in firsts] + [(SALT, NACL), (SALT, PEROVSKITE)]
    both = TOLERANCES, DEFAULT_TOLERANCES
    for tolerances, found in zip(both, match_by_two(pairs, *both, SECONDS, pool), strict=True):
        matcher = StructureMatcher(**tolerances)
        expected = [matcher.get_rms_dist(*map(_structure, pair)) for pair in pairs]
        rms = [np.nan if one is None else one[0] for one in expected]
        assert found.rms == pytest.approx(rms, abs=1e-9, nan_ok=True)
        assert not found.timed_out.any()
    assert found.rms[0] == pytest.approx(0, abs=1e-9)
    assert np.isnan(found.rms[-2:]).all()


def test_looser_tolerances_second_find_what_the_tighter_did_not(pool):
    pairs = [(moved(PEROVSKITE, 0.1), PEROVSKITE), (SALT, NACL)]
    tight, loose = match_by_two(pairs, {**TOLERANCES, "stol": 1e-3}, TOLERANCES, SECONDS, pool)
    assert np.isnan(tight.rms).all()
    assert np.isfinite(loose.rms).tolist() == [True, False]


def test_distance_by_hand(single):
    """One of two sites moved by 0.2 angstrom: each is 0.1 from the mean; V / N is 32."""
    other = SALT._replace(positions=SALT.positions + np.array([[0.05, 0, 0], [0, 0, 0]]))
    found = match([(other, SALT)], TOLERANCES, SECONDS, single)
    assert found.rms[0] == pytest.approx(0.1 / 32 ** (1 / 3))


def test_order_of_the_pairs_does_not_matter(pool, single):
    pairs = [(moved(PEROVSKITE, 0.02, seed), PEROVSKITE) for seed in range(6)] + [(SALT, NACL)]
    forward = match(pairs, TOLERANCES, SECONDS, pool)
    backward = match(pairs[::-1], TOLERANCES, 9, single)
    assert np.array_equal(forward.rms, backward.rms[::-1], equal_nan=True)


@pytest.mark.parametrize("odd", [*IMPROPER, SALT._replace(numbers=np.array([0, 119]))])
def test_odd_crystals_match_nothing(odd, single):
    assert np.isnan(match([(odd, SALT), (odd, odd)], TOLERANCES, SECONDS, single).rms).all()


def test_pairs_out_of_time_are_no_match(single):
    rng = np.random.default_rng(0)
    crowd = cell([6, 6, 6], rng.random((40, 3)), [6] * 40)
    found = match([(SALT, SALT), (crowd, moved(crowd, 0.01))], TOLERANCES, 0.02, single)
    assert found.timed_out.tolist()[1]
    assert np.isnan(found.rms[1])
    assert match([], TOLERANCES, 1.0, single).rms.shape == (0,)


def test_formulas_are_compared_by_ratio():
    assert same_formula(SALT, doubled(NACL))
    assert not same_formula(SALT, PEROVSKITE)


def test_unique_are_the_first_of_each_group(pool, single):
    cells = [SALT, PEROVSKITE, doubled(SALT), ODD["nan"], NACL, moved(PEROVSKITE, 0.01), SALT]
    found = originality(cells, [], DEFAULT_TOLERANCES, SECONDS, pool, 2).unique
    assert found.tolist() == [True, True, False, False, True, False, False]
    back = originality(cells[::-1], [], DEFAULT_TOLERANCES, SECONDS, single, 1).unique
    assert back.sum() == 3
    none = originality([], [SALT], DEFAULT_TOLERANCES, SECONDS, single, 1)
    assert none.unique.shape == none.novel.shape == (0,)


def test_novel_match_nothing_in_the_reference(pool, single):
    cells = [SALT, moved(PEROVSKITE, 0.01), NACL, *IMPROPER]
    reference = [doubled(SALT), PEROVSKITE, ODD["nan"], ODD["empty"]]

    def novel(cells, reference, pool, processes):
        return originality(cells, reference, DEFAULT_TOLERANCES, SECONDS, pool, processes).novel

    found = novel(cells, reference, pool, 2)
    assert found.tolist() == [False, False, True] + [False] * len(IMPROPER)
    assert novel(cells, [], single, 1).tolist()[:3] == [True] * 3
    assert novel(cells[:2], reference[::-1], single, 1).sum() == 0


def test_left_handed_cells_are_compared(single):
    mirror = SALT._replace(lattice=SALT.lattice * np.array([1, 1, -1]))
    found = originality([SALT, mirror], [], DEFAULT_TOLERANCES, SECONDS, single, 1)
    assert found.unique.tolist() == [True, False]
