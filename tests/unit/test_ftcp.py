"""FTCP: crystals are read back from their matrices, and the network learns them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Element

from diffractory.models.ftcp import Ftcp, element_properties, reciprocal_points
from diffractory.models.periodic_graph import UnitCells, lattice_matrix

SMALL = {"max_sites": 8, "max_elements": 4, "channels": 32, "hidden": 64, "latent": 16}


def cells_of(counts, seed=0, elements=4):
    """Return random crystals with up to some elements, in the order of atomic number."""
    rng = np.random.default_rng(seed)
    n = len(counts)
    lengths, angles = rng.uniform(3, 9, (n, 3)), np.radians(rng.uniform(75, 105, (n, 3)))
    kinds = [rng.choice(np.arange(1, 101), elements, replace=False) for _ in counts]
    numbers = np.concatenate(
        [np.sort(rng.choice(some, k)) for some, k in zip(kinds, counts, strict=True)]
    )
    return UnitCells(
        torch.from_numpy(rng.random((sum(counts), 3))).float(),
        torch.from_numpy(numbers),
        lattice_matrix(torch.from_numpy(lengths), torch.from_numpy(angles)).float(),
        torch.tensor(counts),
    )


def network_for(cells, **settings):
    torch.manual_seed(0)
    network = Ftcp(**SMALL | settings)
    network.fit_scalers(cells.lattice, cells.counts)
    return network.eval()


def part(cells, k):
    end = cells.counts.cumsum(0)[k]
    atoms = slice(end - cells.counts[k], end)
    return UnitCells(
        cells.fractional[atoms],
        cells.numbers[atoms],
        cells.lattice[k : k + 1],
        cells.counts[k : k + 1],
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(0, 10**6), st.integers(1, 4)
)
def test_crystals_are_read_back_from_their_matrices(counts, seed, elements):
    cells = cells_of(counts, seed, elements)
    network = network_for(cells)
    features = network.features(cells)
    assert features.min() >= 0
    assert features.max() <= 1 + 1e-5
    found = network.crystals(features)
    assert torch.equal(found.counts, cells.counts)
    assert torch.equal(found.numbers, cells.numbers)
    difference = found.fractional - cells.fractional
    assert (difference - difference.round()).abs().max() < 1e-6
    torch.testing.assert_close(found.lattice, cells.lattice, atol=1e-3, rtol=1e-4)


def test_the_reciprocal_part_is_the_fourier_transform_of_properties():
    """By hand: the distance of a plane, and a sum over atoms."""
    cells = cells_of([3, 5])
    network = network_for(cells)
    features = network.features(cells)
    hkl = reciprocal_points().numpy()
    assert len(hkl) == 31
    opposites = {tuple(point) for point in -hkl}
    assert not opposites & {tuple(point) for point in hkl}
    k = 20
    reciprocal = np.linalg.inv(cells.lattice[1].numpy()).T
    row = network.rows - 26
    expected = np.linalg.norm(hkl[k] @ reciprocal) / network.high[2].item()
    assert features[1, 4 + k, row] == pytest.approx(expected, rel=1e-5)
    waves = np.exp(2j * np.pi * cells.fractional[3:].numpy() @ hkl[k])
    expected = np.abs(waves @ element_properties()[cells.numbers[3:]].numpy()) / 5
    assert features[1, 4 + k, row + 1 :].numpy() == pytest.approx(expected, abs=1e-5)


def test_period_and_group_are_those_of_the_periodic_table():
    properties = element_properties()
    for z in range(1, 101):
        element = Element.from_Z(z)
        rare_earth = element.is_rare_earth or element.is_actinoid
        period, group = properties[z, :7].argmax() + 1, properties[z, 7:].argmax() + 1
        assert properties[z].sum() == 2
        assert group == (3 if rare_earth else element.group), element
        assert period == element.row, element


def test_the_reciprocal_part_does_not_depend_on_the_origin_nor_on_the_batch():
    cells = cells_of([4, 2, 8])
    network = network_for(cells)
    features = network.features(cells)
    moved = network.features(cells._replace(fractional=(cells.fractional + 0.3) % 1))
    torch.testing.assert_close(moved[:, 4:], features[:, 4:], atol=1e-5, rtol=0)
    for k in range(3):
        torch.testing.assert_close(network.features(part(cells, k)), features[k : k + 1])


@pytest.mark.parametrize("max_sites", [5, 6, 7, 8])
def test_any_number_of_rows_is_decoded(max_sites):
    cells = cells_of([5, 1, 3])
    network = network_for(cells, max_sites=max_sites)
    assert network(cells).shape == network.features(cells).shape


def test_it_learns_crystals_by_heart():
    cells = cells_of([5, 2, 8, 6, 1, 7, 4, 5])
    network = network_for(cells, kl_weight=1e-4).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = network.loss(cells)
        assert loss["loss"] == loss["features"] + 1e-4 * loss["kl"]
        loss["loss"].backward()
        optimizer.step()
    found = network.eval().reconstruct(cells, torch.Generator().manual_seed(0))
    assert torch.equal(found.counts, cells.counts)
    assert torch.equal(found.numbers, cells.numbers)
    difference = found.fractional - cells.fractional
    assert (difference - difference.round()).square().mean().sqrt() < 0.1
    torch.testing.assert_close(found.lattice, cells.lattice, atol=1.0, rtol=0)


def test_the_loss_is_a_mean_over_crystals():
    cells = cells_of([4, 2, 8])
    network = network_for(cells)
    with torch.no_grad():
        network.encoder[-1].bias[16:] = -30  # no noise
        whole = network.loss(cells)
        parts = [network.loss(part(cells, k)) for k in range(3)]
    for name, value in whole.items():
        assert value.item() == pytest.approx(np.mean([p[name].item() for p in parts]), rel=1e-4)


def test_generation_can_be_repeated_and_each_crystal_has_an_atom():
    network = network_for(cells_of([4, 2, 8]))
    first, again = (network.generate(20, torch.Generator().manual_seed(3)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert first.counts.min() >= 1
    assert len(first.numbers) == first.counts.sum()
    assert first.numbers.min() >= 1
    assert first.fractional.min() >= 0
    assert first.fractional.max() < 1


def test_a_network_that_is_not_finite_makes_crystals_that_are_not():
    network = network_for(cells_of([4, 2, 8]))
    with torch.no_grad():
        network.decoder[0].bias.fill_(torch.nan)
    made = network.generate(3)
    assert made.counts.tolist() == [1, 1, 1]
    assert made.lattice.isnan().any((1, 2)).all()
    assert made.fractional.isnan().all()
