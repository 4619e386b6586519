"""Graphs of crystals: the same edges that pymatgen finds, whatever the batch, cell or order."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from torch.nn import functional

from diffractory.models.periodic_graph import (
    TIE,
    UnitCells,
    lattice_matrix,
    lattice_parameters,
    periodic_graph,
    spacings,
    triplets,
    with_counter_edges,
)

ALL = 10**6


def batch(*crystals):
    """Return a batch of (lattice, fractional coordinates), in float64."""
    counts = [len(fractional) for _, fractional in crystals]
    return UnitCells(
        torch.tensor(np.concatenate([fractional for _, fractional in crystals])),
        torch.ones(sum(counts), dtype=torch.int64),
        torch.tensor(np.stack([lattice for lattice, _ in crystals])),
        torch.tensor(counts),
    )


def random_crystal(seed, n_atoms=None):
    """Return a skewed cell and up to 20 atoms in it and beside it."""
    rng = np.random.default_rng(seed)
    while True:
        lattice = rng.normal(scale=rng.uniform(1.5, 5), size=(3, 3))
        if spacings(torch.tensor(lattice)[None]).min() > 1:
            n = n_atoms or rng.integers(1, 21)
            return lattice, rng.uniform(-1, 2, (n, 3))


def perovskite(a=4.0):
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return np.eye(3) * a, np.array(sites, dtype=float)


def as_set(graph, first=0, last=ALL):
    """Return the edges of the atoms from `first` to before `last`, numbered from 0."""
    return {
        (t - first, s - first, *image)
        for t, s, image in zip(
            graph.target.tolist(), graph.source.tolist(), graph.image.tolist(), strict=True
        )
        if first <= t < last
    }


def distances(graph, atom):
    return graph.distance[graph.target == atom].sort().values


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(2, 5))
def test_edges_are_those_of_pymatgen(seed, cutoff):
    lattice, fractional = random_crystal(seed)
    graph = periodic_graph(batch((lattice, fractional)), cutoff, ALL)
    structure = Structure(Lattice(lattice), ["H"] * len(fractional), fractional)
    target, source, image, distance = structure.get_neighbor_list(cutoff)
    assume(len(distance) == 0 or distance.min() > 1e-6)
    assert as_set(graph) == {
        (int(t), int(s), *map(int, i)) for t, s, i in zip(target, source, image, strict=True)
    }
    assert np.sort(graph.distance) == pytest.approx(np.sort(distance))
    vectors = (fractional[graph.source] + graph.image.numpy() - fractional[graph.target]) @ lattice
    assert graph.vector.numpy() == pytest.approx(vectors)
    assert (graph.target.diff() >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_the_nearest_are_kept(seed, most):
    cells = batch(random_crystal(seed))
    every, nearest = periodic_graph(cells, 6.0, ALL), periodic_graph(cells, 6.0, most)
    for atom in range(len(cells.fractional)):
        expected = distances(every, atom)
        if len(expected) > most:
            expected = expected[expected <= expected[most - 1] * (1 + TIE)]
        assert torch.allclose(distances(nearest, atom), expected)


def test_equal_neighbours_are_all_kept():
    sites = {"cubic": ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 6), "fcc": (1 - np.eye(3), 12)}
    for lattice, n_nearest in sites.values():
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
        cells = batch((3 * np.array(lattice, dtype=float) @ turn, np.zeros((1, 3))))
        cells = cells._replace(fractional=cells.fractional.float(), lattice=cells.lattice.float())
        for most in (1, n_nearest - 1, n_nearest):
            assert len(periodic_graph(cells, 7.0, most).source) == n_nearest


def test_a_batch_gives_the_edges_of_each_alone():
    crystals = [random_crystal(seed) for seed in range(6)]
    crystals += [(np.eye(3) * 30, np.zeros((1, 3))), perovskite(), (np.eye(3), np.zeros((1, 3)))]
    together = periodic_graph(batch(*crystals), 6.0, 20)
    first = 0
    for crystal in crystals:
        last = first + len(crystal[1])
        assert as_set(together, first, last) == as_set(periodic_graph(batch(crystal), 6.0, 20))
        first = last


def test_edges_do_not_depend_on_the_order_of_atoms_nor_on_wrapping():
    lattice, fractional = random_crystal(5, 9)
    order = np.random.default_rng(0).permutation(9)
    one = periodic_graph(batch((lattice, fractional)), 6.0, 20)
    other = periodic_graph(batch((lattice, fractional[order] % 1)), 6.0, 20)
    for new, old in enumerate(order):
        assert torch.allclose(distances(one, old), distances(other, new))


@pytest.mark.parametrize(
    "lattice",
    [
        np.full((3, 3), np.nan),
        np.zeros((3, 3)),
        np.ones((3, 3)),
        np.eye(3) * 1e-20,
        np.eye(3) * 1e30,
        np.diag([0.01, 0.01, 50.0]),
        np.diag([np.inf, 5.0, 5.0]),
    ],
)
def test_lattices_that_none_has_give_finite_graphs_and_disturb_no_other(lattice):
    rng = np.random.default_rng(2)
    good = perovskite()
    cells = batch((lattice, rng.uniform(size=(20, 3))), good)
    cells = cells._replace(fractional=cells.fractional.float(), lattice=cells.lattice.float())
    graph = periodic_graph(cells, 7.0, 20)
    assert torch.isfinite(graph.vector).all()
    assert (graph.distance <= 7.001).all()
    assert as_set(graph, 20) == as_set(periodic_graph(batch(good), 7.0, 20))
    both, _ = with_counter_edges(graph, 25)
    assert torch.isfinite(triplets(both, 25, 3).harmonics).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20, -5000.0])
def test_coordinates_that_are_not_finite_or_far_away_have_no_edges_to_others(value):
    lattice, fractional = random_crystal(3, 4)
    fractional[2] = value
    graph = periodic_graph(batch((lattice, fractional)), 6.0, 20)
    assert {0, 1, 3} <= set(graph.target.tolist())
    assert ((graph.source == 2) == (graph.target == 2)).all()
    assert torch.isfinite(graph.vector).all()
    both, reverse = with_counter_edges(graph, 4)
    assert torch.equal(both.image[reverse], -both.image)


def test_thin_cells_need_few_images_for_the_nearest():
    fractional = np.random.default_rng(0).uniform(size=(20, 3))
    for size in (0.3, 1.0):  # a cutoff of 7 would reach 23 and 7 cells far
        nearest = periodic_graph(batch((np.eye(3) * size, fractional)), 7.0, 20)
        every = periodic_graph(batch((np.eye(3) * size, fractional)), 2.5 * size, ALL)
        for atom in range(20):
            k = len(distances(nearest, atom))
            assert torch.allclose(distances(nearest, atom), distances(every, atom)[:k])


def test_gradients_reach_coordinates_and_lattice():
    cells = batch(random_crystal(3))
    fractional, lattice = cells.fractional.requires_grad_(), cells.lattice.requires_grad_()
    graph = periodic_graph(cells._replace(fractional=fractional, lattice=lattice), 5.0, 20)
    graph.distance.sum().backward()
    assert torch.isfinite(fractional.grad).all()
    assert fractional.grad.abs().max() > 0.1
    assert lattice.grad.abs().max() > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_each_edge_gets_its_reverse(seed):
    cells = batch(random_crystal(seed), random_crystal(seed + 9, 3), perovskite())
    n_atoms = len(cells.fractional)
    graph = periodic_graph(cells, 5.0, 7)
    both, reverse = with_counter_edges(graph, n_atoms)
    swapped = {(s, t, -a, -b, -c) for t, s, a, b, c in as_set(graph)}
    assert as_set(both) == as_set(graph) | swapped
    assert len(as_set(both)) == len(both.source)
    assert torch.equal(both.source[reverse], both.target)
    assert torch.equal(both.target[reverse], both.source)
    assert torch.equal(both.image[reverse], -both.image)
    assert torch.allclose(both.vector[reverse], -both.vector)
    assert (both.target.diff() >= 0).all()


def test_triplets_are_all_pairs_of_edges_into_an_atom():
    cells = batch(random_crystal(1, 4), (np.eye(3) * 30, np.zeros((1, 3))), perovskite())
    graph, _ = with_counter_edges(periodic_graph(cells, 5.0, 8), 10)
    pairs = triplets(graph, 10, 4)
    vectors = functional.normalize(graph.vector, dim=1)
    edges = pairs.table(torch.arange(1, len(vectors) + 1))
    assert torch.equal(pairs.edges(edges), torch.arange(1, len(vectors) + 1))
    assert pairs.degree.tolist() == [(graph.target == atom).sum() for atom in range(10)]
    assert pairs.degree[4] == 0
    width = range(edges.shape[1])
    for atom, i, j in itertools.product(range(10), width, width):
        e, f = edges[atom, i] - 1, edges[atom, j] - 1
        values = pairs.harmonics[atom, i, :, j]
        if min(e, f) < 0 or e == f:
            assert (values == 0).all()
        else:
            x = (vectors[e] @ vectors[f]).item()
            expected = [np.sqrt(2 * l + 1) * np.polynomial.Legendre.basis(l)(x) for l in range(4)]
            assert values.tolist() == pytest.approx(expected, abs=1e-9)
            assert graph.target[e] == graph.target[f] == atom


def test_sums_over_edges():
    graph, _ = with_counter_edges(periodic_graph(batch(random_crystal(1, 4)), 5.0, 8), 4)
    pairs = triplets(graph, 4, 2)
    x = torch.randn(len(graph.source), 5, dtype=torch.float64)
    for atom in range(4):
        mine = x[graph.target == atom]
        assert torch.allclose(pairs.total(x)[atom], mine.sum(dim=0) / len(mine) ** 0.5)


def test_no_atoms_have_no_edges():
    empty = UnitCells(
        torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, 3),
        torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip
    graph, reverse = with_counter_edges(periodic_graph(empty, 7.0, 20), 0)
    assert len(graph.source) == len(reverse) == len(triplets(graph, 0, 3).degree) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_lattices_from_their_parameters(seed):
    lattice, _ = random_crystal(seed)
    lengths, angles = lattice_parameters(torch.tensor(lattice)[None])
    expected = Lattice(lattice)
    assert lengths[0].tolist() == pytest.approx(expected.abc)
    assert angles[0].rad2deg().tolist() == pytest.approx(expected.angles)
    built = lattice_matrix(lengths, angles)[0].numpy()
    assert np.triu(built, 1) == pytest.approx(0)  # a along x, b in the plane of x and y
    assert (np.diag(built) > 0).all()
    assert built @ built.T == pytest.approx(lattice @ lattice.T)


def test_angles_that_no_lattice_has_give_a_finite_lattice_and_slope():
    angles = torch.tensor([[0.3, 0.3, 2.8], [0.0, 0.0, 0.0], [np.pi / 2] * 3]).requires_grad_()
    lattice = lattice_matrix(torch.full((3, 3), 4.0), angles)
    lattice.sum().backward()
    assert torch.isfinite(lattice).all()
    assert torch.isfinite(angles.grad).all()
