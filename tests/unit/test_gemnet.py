"""GemNet-T: vectors that turn with the crystal, and features that depend on the crystal alone."""

import numpy as np
import pytest
import torch

from diffractory.models.gemnet import GemNetT
from diffractory.models.periodic_graph import UnitCells, periodic_graph

SETTINGS = {"in_dim": 6, "hidden_dim": 16, "n_blocks": 2, "n_spherical": 5, "n_radial": 12,
            "cutoff": 6.0, "max_neighbours": 12}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return GemNetT(SETTINGS).double()


def crystal(n_atoms=4, seed=0):
    """Return a triclinic crystal and features of its atoms."""
    rng = np.random.default_rng(seed)
    lattice = np.array([[4.1, 0, 0], [0.7, 4.6, 0], [-0.9, 0.5, 5.2]])
    cells = UnitCells(
        torch.tensor(rng.uniform(size=(n_atoms, 3))),
        torch.tensor(rng.integers(1, 90, n_atoms)),
        torch.tensor(lattice)[None],
        torch.tensor([n_atoms]),
    )
    return cells, torch.tensor(rng.normal(size=(n_atoms, 6)))


def turn(seed=0, improper=False):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return torch.tensor(q * np.linalg.det(q) * (-1 if improper else 1))


def same(one, other):
    return all(torch.allclose(a, b, atol=1e-9) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("improper", [False, True])
def test_vectors_turn_with_the_crystal(network, improper):
    cells, features = crystal()
    vectors, h = network(cells, features)
    assert vectors.abs().max() > 0.01
    q = turn(1, improper)
    turned = network(cells._replace(lattice=cells.lattice @ q.T), features)
    assert same(turned, (vectors @ q.T, h))


def test_the_origin_and_wrapping_do_not_matter(network):
    cells, features = crystal()
    moved = cells.fractional + torch.tensor([0.31, -0.77, 2.5])
    expected = network(cells, features)
    assert same(network(cells._replace(fractional=moved), features), expected)
    assert same(network(cells._replace(fractional=moved % 1), features), expected)


def test_the_order_of_atoms_does_not_matter(network):
    cells, features = crystal()
    order = torch.tensor([2, 0, 3, 1])
    vectors, h = network(cells, features)
    permuted = cells._replace(fractional=cells.fractional[order], numbers=cells.numbers[order])
    assert same(network(permuted, features[order]), (vectors[order], h[order]))


def test_the_choice_of_the_cell_does_not_matter(network):
    cells, features = crystal()
    change = torch.tensor([[1.0, 1, 0], [0, 1, -1], [0, 0, 1]], dtype=torch.float64)
    other = cells._replace(
        lattice=change @ cells.lattice, fractional=cells.fractional @ torch.linalg.inv(change)
    )
    assert same(network(other, features), network(cells, features))


def test_a_supercell_has_the_vectors_of_its_cell_again(network):
    cells, features = crystal()
    vectors, h = network(cells, features)
    large = UnitCells(
        torch.cat([cells.fractional, cells.fractional + torch.tensor([1.0, 0, 0])])
        / torch.tensor([2.0, 1, 1]),
        cells.numbers.repeat(2),
        cells.lattice * torch.tensor([2.0, 1, 1])[:, None],
        cells.counts * 2,
    )
    assert same(network(large, features.repeat(2, 1)), (vectors.repeat(2, 1), h.repeat(2, 1)))


def test_a_batch_gives_what_each_gives_alone(network):
    several = [crystal(n, seed=n) for n in (1, 7, 3)]
    several.append((several[0][0]._replace(lattice=50 * several[0][0].lattice), several[0][1]))
    together = UnitCells(*(torch.cat(part) for part in zip(*(c for c, _ in several), strict=True)))
    alone = [network(*one) for one in several]
    expected = tuple(torch.cat(part) for part in zip(*alone, strict=True))
    assert same(network(together, torch.cat([f for _, f in several])), expected)


def test_sites_with_inversion_have_no_vector(network):
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    features = torch.eye(6, dtype=torch.float64)[[0, 1, 2, 2, 2]]
    cells = UnitCells(
        torch.tensor(sites, dtype=torch.float64),
        torch.tensor([38, 22, 8, 8, 8]),
        3.9 * turn(4)[None],
        torch.tensor([5]),
    )
    vectors, h = network(cells, features)
    assert vectors.abs().max() < 1e-9
    assert torch.allclose(h[2:], h[2].expand(3, -1))
    moved = cells._replace(fractional=cells.fractional + 0.03 * torch.eye(5, 3))
    assert network(moved, features)[0].abs().max() > 1e-3


def test_angles_matter(network):
    """Two neighbours of an atom, at a right angle and in a line, all beyond each other's reach."""
    lattice = 30 * torch.eye(3, dtype=torch.float64)[None]
    found = []
    for third in ([0.0, 4.0, 0.0], [-4.0, 0.0, 0.0]):
        positions = torch.tensor([[0.0, 0, 0], [4.0, 0, 0], third], dtype=torch.float64)
        cells = UnitCells(positions / 30, torch.tensor([6, 8, 8]), lattice, torch.tensor([3]))
        graph = periodic_graph(cells, 5.5, 12)
        assert len(graph.source) == 4
        found.append(network(cells, torch.ones(3, 6, dtype=torch.float64), graph)[1])
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_gradients_are_finite_also_where_atoms_coincide_or_are_alone(network):
    cells, features = crystal()
    cells.fractional[1] = cells.fractional[0]
    lonely = cells._replace(lattice=100 * cells.lattice)
    for one in (cells, lonely, cells._replace(lattice=torch.zeros(1, 3, 3, dtype=torch.float64))):
        network.zero_grad()
        fractional = one.fractional.clone().requires_grad_()
        vectors, h = network(one._replace(fractional=fractional), features)
        (vectors.square().sum() + h.square().sum()).backward()
        assert torch.isfinite(vectors).all()
        assert torch.isfinite(fractional.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_every_weight_is_used(network):
    cells, features = crystal()
    network.zero_grad()
    vectors, h = network(cells, features)
    weight = torch.linspace(0, 1, h.numel(), dtype=h.dtype).view(h.shape)
    (vectors.square().sum() + (weight * h).sum()).backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


def test_numbers_stay_about_one_at_first():
    torch.manual_seed(1)
    for hidden in (32, 128):
        net = GemNetT({**SETTINGS, "hidden_dim": hidden, "n_blocks": 3, "n_radial": hidden})
        cells, features = crystal(8)
        cells = cells._replace(fractional=cells.fractional.float(), lattice=cells.lattice.float())
        vectors, h = net(cells, features.float())
        assert 0.1 < vectors.std() < 5
        assert 0.5 < h.std() < 2
