"""Encoders of crystals: what their features may and may not depend on."""

import numpy as np
import pytest
import torch
from scipy.special import spherical_jn

from diffractory.models.crystal_encoders import (
    AtomCountEncoder,
    BesselBasis,
    CrystalEncoder,
    DimeNetPlusPlus,
    Gine,
    GineLayer,
    bessel_roots,
    spherical_bessel,
)
from diffractory.models.periodic_graph import UnitCells, envelope, periodic_graph

SETTINGS = {"latent": 8, "hidden_dim": 16, "n_blocks": 2, "n_spherical": 5, "n_radial": 6,
            "cutoff": 6.0, "max_neighbours": 12, "gine_layers": 2}  # fmt: skip


@pytest.fixture(scope="module", params=["dimenet", "gine"])
def encode(request):
    """Features of crystals from one of the graph networks."""
    torch.manual_seed(0)
    if request.param == "dimenet":
        network = DimeNetPlusPlus(16, 2, 5, 6, 6.0, 8).double()
    else:
        network = Gine(16, 2, 6, 6.0, 8).double()

    def features(cells):
        return network(cells, periodic_graph(cells, 6.0, 12))

    features.network = network
    return features


def crystal(n_atoms=4, seed=0):
    rng = np.random.default_rng(seed)
    lattice = np.array([[4.1, 0, 0], [0.7, 4.6, 0], [-0.9, 0.5, 5.2]])
    return UnitCells(
        torch.tensor(rng.uniform(size=(n_atoms, 3))),
        torch.tensor(rng.integers(1, 101, n_atoms)),
        torch.tensor(lattice)[None],
        torch.tensor([n_atoms]),
    )


def supercell(cells):
    return UnitCells(
        torch.cat([cells.fractional, cells.fractional + torch.tensor([0, 1.0, 0])])
        / torch.tensor([1.0, 2, 1]),
        cells.numbers.repeat(2),
        cells.lattice * torch.tensor([1.0, 2, 1])[:, None],
        cells.counts * 2,
    )


def joined(crystals):
    return UnitCells(*(torch.cat(part) for part in zip(*crystals, strict=True)))


def same(one, other):
    return torch.allclose(one, other, atol=1e-9)


def test_features_do_not_depend_on_the_description(encode):
    cells = crystal()
    expected = encode(cells)
    turn = torch.tensor(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])
    change = torch.tensor([[1.0, 1, 0], [0, 1, -1], [0, 0, 1]], dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    described = {
        "turned": cells._replace(lattice=cells.lattice @ turn),
        "moved": cells._replace(fractional=cells.fractional + torch.tensor([0.3, -1.4, 7.0])),
        "other cell": cells._replace(
            lattice=change @ cells.lattice, fractional=cells.fractional @ torch.linalg.inv(change)
        ),
        "other order": cells._replace(
            fractional=cells.fractional[order], numbers=cells.numbers[order]
        ),
        "supercell": supercell(cells),
    }
    for name, other in described.items():
        assert same(encode(other), expected), name


def test_features_depend_on_positions_elements_and_lattice(encode):
    cells = crystal()
    expected = encode(cells)
    moved = cells.fractional.clone()
    moved[0] += 0.02
    changed = cells.numbers.clone()
    changed[0] = 1 if changed[0] > 1 else 2
    for other in (
        cells._replace(fractional=moved),
        cells._replace(numbers=changed),
        cells._replace(lattice=1.02 * cells.lattice),
    ):
        assert (encode(other) - expected).abs().max() > 1e-3


def test_features_of_one_atom_depend_on_its_lattice(encode):
    """All edges are to images of the atom itself."""
    cells = crystal(1)
    wider = cells._replace(lattice=cells.lattice * torch.tensor([1.0, 1.0, 1.1])[:, None])
    assert (encode(wider) - encode(cells)).abs().max() > 1e-3


def test_a_batch_gives_what_each_gives_alone(encode):
    several = [crystal(n, seed=n) for n in (1, 7, 3)]
    several.append(several[0]._replace(lattice=50 * several[0].lattice))
    expected = torch.cat([encode(one) for one in several])
    assert same(encode(joined(several)), expected)


def test_gradients_are_finite_also_where_atoms_coincide_or_are_alone(encode):
    cells = crystal()
    cells.fractional[1] = cells.fractional[0]
    for one in (cells, cells._replace(lattice=100 * cells.lattice)):
        encode.network.zero_grad()
        fractional = one.fractional.clone().requires_grad_()
        features = encode(one._replace(fractional=fractional))
        features.square().sum().backward()
        assert torch.isfinite(features).all()
        grads = [p.grad for p in encode.network.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in [fractional.grad, *grads])


def test_dimenet_tells_crystals_apart_that_differ_in_angles_alone():
    torch.manual_seed(0)
    network = DimeNetPlusPlus(16, 2, 5, 6, 6.0, 8).double()
    lattice = 30 * torch.eye(3, dtype=torch.float64)[None]
    found = []
    for third in ([0.0, 4.0, 0.0], [-4.0, 0.0, 0.0]):
        positions = torch.tensor([[0.0, 0, 0], [4.0, 0, 0], third], dtype=torch.float64)
        cells = UnitCells(positions / 30, torch.tensor([6, 8, 8]), lattice, torch.tensor([3]))
        found.append(network(cells, periodic_graph(cells, 5.5, 12)))
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_a_gine_layer_sums_what_is_positive_of_neighbour_and_edge():
    """By hand: h_i = MLP(x_i + sum_j max(0, x_j + W e_ji + b))."""
    torch.manual_seed(0)
    cells = crystal()
    graph = periodic_graph(cells, 6.0, 12)
    layer = GineLayer(16, 6).double()
    x, radial = torch.randn(4, 16).double(), torch.randn(len(graph.source), 6).double()
    summed = x.clone()
    for source, target, edge in zip(graph.source, graph.target, radial, strict=True):
        message = x[source] + layer.edge.weight @ edge + layer.edge.bias
        summed[target] += message.clamp(min=0)
    torch.testing.assert_close(layer(x, graph, radial), layer.perceptron(summed))


@pytest.mark.parametrize("n_sites", [False, True])
@pytest.mark.parametrize("gine", [False, True])
def test_the_encoder_has_the_parts_asked_for(gine, n_sites):
    torch.manual_seed(0)
    encoder = CrystalEncoder({**SETTINGS, "encode_gine": gine, "encode_n_sites": n_sites}).double()
    cells = joined([crystal(3), crystal(5, seed=1)])
    mu, log_variance = encoder(cells)
    assert mu.shape == log_variance.shape == (2, 8)
    (mu * torch.linspace(0, 1, 8) + log_variance).sum().backward()
    for weight in encoder.parameters():
        assert torch.isfinite(weight.grad).all()
        assert weight.grad.abs().max() > 0
    one = crystal(3)
    assert same(encoder(supercell(one))[0], encoder(one)[0]) == (not n_sites)
    names = {type(part) for part in encoder.parts}
    assert names == {DimeNetPlusPlus, *[Gine] * gine, *[AtomCountEncoder] * n_sites}


def test_crystals_differ_at_first():
    torch.manual_seed(0)
    settings = {**SETTINGS, "hidden_dim": 32, "latent": 32, "encode_gine": True}
    encoder = CrystalEncoder({**settings, "encode_n_sites": True}).double()
    mu, _ = encoder(joined([crystal(5, seed=seed) for seed in range(20)]))
    assert 0.03 < mu.std(dim=0).mean() < 3


def test_bessel_functions_and_their_roots():
    roots = bessel_roots(7, 6)
    assert roots[0] == pytest.approx(np.pi * np.arange(1, 7))
    x = np.linspace(0, 60, 500)
    for l in range(8):
        assert spherical_bessel(l, x) == pytest.approx(spherical_jn(l, x), abs=1e-12)
    for l in range(7):
        assert spherical_jn(l, roots[l]) == pytest.approx(0, abs=1e-12)
        signs = np.sign(spherical_jn(l, np.linspace(0.01, roots[l, -1] + 0.01, 4000)))
        assert (np.diff(signs) != 0).sum() == 6  # none left out


def test_radial_functions_in_float32_are_those_of_scipy():
    roots = bessel_roots(7, 6)
    x = torch.cat([torch.linspace(0, 1e-3, 20), torch.linspace(0, 1, 300)]).requires_grad_()
    values = BesselBasis(7, 6)(x)
    values.sum().backward()
    assert torch.isfinite(x.grad).all()
    at = x.detach().double().numpy()
    for l in range(7):
        for n in range(6):
            norm = np.sqrt(2) / spherical_jn(l + 1, roots[l, n])
            expected = norm * spherical_jn(l, roots[l, n] * at) * envelope(torch.tensor(at)).numpy()
            assert values[:, l, n].detach().numpy() == pytest.approx(expected, abs=1e-4)
