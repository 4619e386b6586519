"""Networks of spot lists: what must not change their answer, and their parts by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import shortest_path

from diffractory.evaluation.published import published_column
from diffractory.models.mixture_of_experts import MixtureOfExperts
from diffractory.models.ours import LAST_GROUPS, Ours
from diffractory.models.pe_ag_gmoe import (
    PeAgGmoe,
    StructuralBias,
    edges_of,
    polar,
    shortest_paths,
)
from diffractory.store import CRYSTAL_SYSTEMS

SMALL_PE = {"input_dim": 64, "hidden_dim": 32, "n_layers": 2, "n_heads": 4}
SMALL_OURS = {"dim": 32, "n_layers": 2, "n_densities": 8, "n_harmonics": 6, "dropout": 0.1}
NETWORKS = {
    "PE-AG-GMoE as published": (PeAgGmoe, {}),
    "PE-AG-GMoE, small": (PeAgGmoe, SMALL_PE),
    "PE-AG-GMoE, relative edges": (
        PeAgGmoe,
        {**SMALL_PE, "edge_rule": "relative", "edge_threshold": 1.0},
    ),
    "PE-AG-GMoE, best edges": (
        PeAgGmoe,
        {**SMALL_PE, "edge_rule": "top_k", "edge_threshold": 3},
    ),
    "ours": (Ours, {}),
    "ours, small": (Ours, SMALL_OURS),
}


def build(kind, hparams):
    torch.manual_seed(1)
    network = kind(**hparams).eval()
    spots, mask = patterns([20, 5, 1])
    network.normalize_with(spots, mask)
    return network


def patterns(counts, seed=0):
    """Return random patterns with so many spots each, garbage in the padding."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(counts), max(1, *counts))
    spots = torch.rand(*shape, 3, generator=rng) * torch.tensor([2.0, 2.0, 0.1])
    spots[..., :2] -= 1
    mask = torch.arange(shape[1]) < torch.tensor(counts)[:, None]
    return torch.where(mask[:, :, None], spots, 7.0), mask


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=NETWORKS)
def network(request):
    return build(*NETWORKS[request.param])


def answer(network, spots, mask):
    with torch.inference_mode():
        said = network.opinions(network(spots, mask))
    return torch.cat([said.crystal_system, said.space_group], dim=-1)


def test_padding_and_the_rest_of_the_batch_do_not_matter(network):
    spots, mask = patterns([17, 3, 30, 1])
    together = answer(network, spots, mask)
    for b, n in enumerate([17, 3, 30, 1]):
        alone = answer(network, spots[b : b + 1, :n], mask[b : b + 1, :n])
        torch.testing.assert_close(alone[0], together[b], atol=2e-6, rtol=1e-4)
    changed = torch.where(mask[:, :, None], spots, -3.0)
    torch.testing.assert_close(answer(network, changed, mask), together, atol=2e-6, rtol=1e-4)


def test_the_order_of_spots_does_not_matter(network):
    spots, mask = patterns([25])
    order = torch.randperm(25, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        answer(network, spots[:, order], mask), answer(network, spots, mask), atol=2e-6, rtol=1e-4
    )


def test_a_pattern_without_spots_is_finite(network):
    spots, mask = patterns([0, 4])
    assert answer(network, spots, mask).isfinite().all()


def test_probabilities_sum_to_one(network):
    said = answer(network, *patterns([9, 12]))
    torch.testing.assert_close(said[:, :7].sum(dim=1), torch.ones(2))
    torch.testing.assert_close(said[:, 7:].sum(dim=1), torch.ones(2))


def test_a_network_is_rebuilt_from_hparams_and_state(network):
    again = type(network)(**network.hparams)
    again.load_state_dict(network.state_dict())
    spots, mask = patterns([9, 12])
    assert torch.equal(answer(again.eval(), spots, mask), answer(network, spots, mask))


def test_half_precision_is_finite_and_close(network):
    spots, mask = patterns([9, 30])
    with torch.autocast("cpu", torch.bfloat16):
        half = answer(network, spots, mask)
    torch.testing.assert_close(half.float(), answer(network, spots, mask), atol=0.1, rtol=0)


def test_every_weight_is_trained(network):
    network.train()
    spots, mask = patterns([20, 30, 25, 8])
    classes = torch.tensor([0, 2, 4, 6]), torch.tensor([1, 20, 80, 229])
    network.loss(network(spots, mask), *classes).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert not idle


@pytest.mark.parametrize(("name", "steps"), [("PE-AG-GMoE, small", 240), ("ours, small", 80)])
def test_networks_learn_two_lattices(name, steps):
    """Squares and hexagons of any orientation and size."""
    network = build(*NETWORKS[name])
    rng = np.random.default_rng(0)
    spots, labels = [], []
    for i in range(64):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.3)
        second = angle + (np.pi / 2 if i % 2 else np.pi / 3)
        a, b = ([length * np.cos(x), length * np.sin(x)] for x in (angle, second))
        grid = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(-1, 2)
        q = grid @ np.array([a, b])
        spots.append(np.column_stack([q, np.exp(-((q**2).sum(axis=1)))]))
        labels.append(6 if i % 2 else 5)
    spots, system = torch.tensor(np.array(spots), dtype=torch.float32), torch.tensor(labels)
    group = torch.where(system == 6, 200, 180)
    mask = torch.ones(spots.shape[:2], dtype=torch.bool)
    network.normalize_with(spots, mask)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        network.loss(network(spots, mask), system, group).backward()
        optimizer.step()
    network.eval()
    with torch.inference_mode():
        said = network.opinions(network(spots, mask)).crystal_system.argmax(dim=-1)
    assert (said == system).float().mean() > 0.95


@given(angle=st.floats(0, 2 * math.pi), mirrored=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_turning_and_mirroring_change_nothing_for_ours(angle, mirrored, seed):
    network = build(Ours, {})
    spots, mask = patterns([40, 11], seed)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, s], [-s, c]]) * torch.tensor([1.0, -1.0 if mirrored else 1.0])
    turned = torch.cat([spots[..., :2] @ turn, spots[..., 2:]], dim=-1)
    torch.testing.assert_close(
        answer(network, turned, mask), answer(network, spots, mask), atol=1e-5, rtol=1e-3
    )


def test_products_are_sums_over_pairs_of_spots():
    torch.manual_seed(0)
    network = Ours(n_densities=2, n_harmonics=3, n_products=1)
    spots, mask = patterns([6])
    spots[0, 0, :2] = 0.0  # the direct beam has no direction
    f = torch.randn(1, 6, 2)
    found = network.products(f, network.waves(spots, mask))[0]
    theta = torch.atan2(spots[0, :, 1], spots[0, :, 0])
    for n in range(4):
        u, v = (f[0] @ w[n, :, 0] for w in (network.products.first, network.products.second))
        expected = sum(
            u[s] * v[t] * torch.cos(n * (theta[s] - theta[t])) / 6
            for s in range(1, 6)
            for t in range(1, 6)
        )
        torch.testing.assert_close(found[n], expected)


def test_ours_tells_the_space_group_within_the_crystal_system():
    said = answer(build(Ours, {}), *patterns([20, 7]))
    starts = [0, *LAST_GROUPS[:-1]]
    for k, (start, stop) in enumerate(zip(starts, LAST_GROUPS, strict=True)):
        torch.testing.assert_close(said[:, 7:][:, start:stop].sum(dim=1), said[:, k])


def test_space_groups_end_where_crystal_systems_do():
    from pymatgen.symmetry.groups import SpaceGroup

    for number in range(1, 231):
        k = np.searchsorted(LAST_GROUPS, number)
        assert SpaceGroup.from_int_number(number).crystal_system == CRYSTAL_SYSTEMS[k]


def test_routing_is_the_sum_over_the_best_experts():
    torch.manual_seed(0)
    block = MixtureOfExperts(16, 24, n_experts=4, top_k=2)
    x = torch.randn(2, 7, 16)
    z, _ = block(x, torch.ones(2, 7, dtype=torch.bool))

    def expert(experts, e, token):
        w1, w3 = experts.inner[e].chunk(2, dim=-1)
        return (torch.nn.functional.silu(token @ w1) * (token @ w3)) @ experts.outer[e]

    for b in range(2):
        for n in range(7):
            token = x[b, n]
            probability = torch.softmax(block.gate(token), dim=-1)
            best = sorted(range(4), key=lambda e: -probability[e])[:2]
            expected = expert(block.shared, 0, token)
            for e in best:
                expected = expected + probability[e] * expert(block.local, e, token)
            torch.testing.assert_close(z[b, n], expected, atol=1e-5, rtol=1e-4)


def test_balance_by_hand():
    block = MixtureOfExperts(8, 8, n_experts=4, top_k=1)
    x = torch.eye(8)[:4].reshape(1, 4, 8)
    mask = torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        block.gate.weight.zero_()
        block.gate.weight[:, :4] = 50 * torch.eye(4)  # each token to an expert of its own
    assert block(x, mask)[1].item() == pytest.approx(1.0)
    one = x[:, :1].expand(1, 4, 8)
    assert block(one, mask)[1].item() == pytest.approx(4.0)  # all to one of four
    mask[0, 1:] = False
    assert block(x, mask)[1].item() == pytest.approx(4.0)  # padding does not count


def test_experts_without_tokens():
    block = MixtureOfExperts(8, 8, n_experts=4, top_k=1)
    with torch.no_grad():
        block.gate.weight.zero_()
        block.gate.weight[2] = 10
    z, _ = block(torch.ones(1, 3, 8), torch.ones(1, 3, dtype=torch.bool))
    z.square().sum().backward()
    assert z.isfinite().all()
    assert block.local.inner.grad[0].abs().max() == 0
    assert block.local.inner.grad[2].abs().max() > 0


def test_published_hyperparameters():
    published = published_column("symmetry", 6, "Value")
    said = PeAgGmoe().hparams
    assert said["input_dim"] == int(published["Input feature dimension"])
    assert said["hidden_dim"] == int(published["Hidden dimension"])
    assert said["n_layers"] == int(published["Number of encoder layers"])
    assert said["n_heads"] == int(published["Attention heads per layer"])
    assert said["dropout"] == float(published["Dropout rate"])
    assert said["top_k"] == int(published["Top-k experts in MoE layers"])
    assert said["n_experts_adjacency"] == int(published["Number of MoE experts (adjacency)"])
    assert said["n_experts_graphormer"] == int(published["Number of MoE experts (Graphomer)"])
    assert said["balance_weight"] == float(published["Load balancing weight (alpha)"])


def test_polar_coordinates():
    spots = torch.tensor([[3.0, 4.0, 0.1], [-1.0, 0.0, 0.2]])
    expected = torch.tensor([[5.0, math.atan2(4, 3), 0.1], [1.0, math.pi, 0.2]])
    torch.testing.assert_close(polar(spots), expected)


def test_normalized_channels_have_mean_zero_and_deviation_one():
    network = PeAgGmoe(**SMALL_PE)
    spots, mask = patterns([30, 50, 20])
    network.normalize_with(spots, mask)
    features = ((polar(spots) - network.mean) / network.deviation)[mask]
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(dim=0), torch.ones(3))


def test_printed_edges_make_every_graph_complete():
    network = build(PeAgGmoe, SMALL_PE)
    spots, mask = patterns([12, 5])
    with torch.inference_mode():
        h = network.encoder((polar(spots) - network.mean) / network.deviation)
        _, adjacency, _ = network.graph(h, mask)
    edges = edges_of(adjacency, mask, "positive", 0.0)
    assert torch.equal(edges, mask[:, :, None] & mask[:, None, :])
    assert edges.sum(dim=-1)[1].tolist() == [5] * 5 + [0] * 7
    assert shortest_paths(edges, 5)[0].max() == 1


def test_edge_rules_by_hand():
    adjacency = torch.tensor([[[0.6, 0.3, 0.1, 9.0], [0.2, 0.35, 0.45, 9.0],
                               [0.1, 0.1, 0.8, 9.0], [9.0, 9.0, 9.0, 9.0]]])  # fmt: skip
    mask = torch.tensor([[True, True, True, False]])
    relative = edges_of(adjacency, mask, "relative", 1.0)  # above a third
    best = edges_of(adjacency, mask, "top_k", 2)
    assert relative[0, :3, :3].tolist() == [
        [True, False, False], [False, True, True], [False, False, True]]  # fmt: skip
    assert best[0, :3, :3].sum(dim=-1).tolist() == [2, 2, 2]
    assert best[0, :2, :3].tolist() == [[True, True, False], [False, True, True]]
    for edges in (relative, best):
        assert not edges[0, 3].any()
        assert not edges[0, :, 3].any()
    with pytest.raises(ValueError, match="edge_rule is 'none'"):
        edges_of(adjacency, mask, "none", 0)


@given(seed=st.integers(0, 10_000), density=st.floats(0.02, 0.5), n=st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_shortest_paths_are_those_of_scipy(seed, density, n):
    edges = np.random.default_rng(seed).random((2, n, n)) < density
    found = shortest_paths(torch.from_numpy(edges), 4)
    for b in range(2):
        expected = shortest_path(edges[b].astype(float), unweighted=True)
        assert np.array_equal(found[b].numpy(), np.minimum(expected, 5))


def test_structural_bias_by_hand():
    bias = StructuralBias(n_heads=1, max_distance=3)
    with torch.no_grad():
        bias.spatial.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]))
        bias.path[0] = torch.tensor([[10.0], [20.0], [30.0]])  # P = 0
        bias.path[1] = torch.tensor([[100.0], [200.0], [300.0]])  # P = 1
        bias.to_token.fill_(-1.0)
    distance = torch.tensor([[[0, 2], [3, 4]]])
    expected = [
        [-1, -1, -1],
        [-1, 1, 3 + (10 + 200) / 2],
        [-1, 4 + (10 + 20 + 300) / 3, 5],
    ]
    torch.testing.assert_close(bias(distance)[0, 0], torch.tensor(expected, dtype=torch.float32))
