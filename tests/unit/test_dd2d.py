"""The towers of both retrieval networks: what their embeddings may and may not depend on."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from diffractory.models.dd2d import DD2D, Crystals, TwoTowers
from diffractory.models.invariant_2d import Invariant2D
from diffractory.training.crystals import Layers

Q_MAX = 2.5


def random_network(name, n_layers=2):
    """Return a network whose every weight matters, also those that begin as zero."""
    torch.manual_seed(3)
    result = DD2D(32, n_layers, 4) if name == "dd2d" else Invariant2D(16, 16, 8, 3, 8, 32)
    for weight in result.parameters():
        weight.requires_grad_(False)
        weight += 0.03 * torch.randn(weight.shape)
    return result.eval()


@pytest.fixture(params=["dd2d", "invariant"])
def network(request):
    return random_network(request.param)


@pytest.fixture
def dd2d():
    return random_network("dd2d")


@pytest.fixture
def invariant():
    return random_network("invariant")


def layer(cell, fractional, numbers):
    """Return one layer, whose atoms stay in this order."""
    cell = np.array(cell, dtype=float)
    numbers = np.array(numbers)
    return Layers(
        np.array(["layer"], dtype=object),
        np.array([0, len(numbers)]),
        cell[None],
        np.array(fractional, dtype=float) @ cell,
        numbers,
    )


def mx2(a=3.16, metal=42, anion=16):
    cell = [[a, 0, 0], [-a / 2, a * math.sqrt(3) / 2, 0], [0, 0, 20.0]]
    return cell, [[0, 0, 0.5], [1 / 3, 2 / 3, 0.58], [1 / 3, 2 / 3, 0.42]], [metal, anion, anion]


def oblique():
    cell = [[3.3, 0, 0], [-0.9, 4.4, 0], [0, 0, 20.0]]
    return cell, [[0.1, 0.2, 0.45], [0.5, 0.9, 0.5], [0.7, 0.3, 0.57]], [22, 8, 53]


def read(*layers):
    return [one.batch(np.array([0]), Q_MAX) for one in layers]


def batch(*crystals):
    """Join batches of one, padded to the largest."""

    def widened(parts):
        width = max(part.shape[1] for part in parts)
        return torch.cat(
            [functional.pad(p, [0, 0] * (p.ndim - 2) + [0, width - p.shape[1]]) for p in parts]
        )

    return Crystals(*(widened(parts) for parts in zip(*crystals, strict=True)))


def spots(n=30, seed=0):
    rng = np.random.default_rng(seed)
    half = np.concatenate([rng.uniform(-1.4, 1.4, (n, 2)), rng.uniform(0.05, 1, (n, 1))], axis=1)
    whole = np.concatenate([half, half * [-1, -1, 1]])
    return torch.tensor(whole, dtype=torch.float32)[None], torch.ones(1, 2 * n, dtype=torch.bool)


def difference(a, b):
    return (a - b).abs().max().item()


def turned(points, angle):
    """Return points (..., 3) turned about z."""
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def test_crystals_do_not_depend_on_padding_nor_on_their_batch(network):
    large = [[2.0 * i, 1.0 * i, 10.0] for i in range(9)], list(range(20, 29))
    cell = np.diag([9.0, 8.0, 20.0])
    others = read(
        layer(*mx2()), layer(*oblique()), layer(cell, large[0] @ np.linalg.inv(cell), large[1])
    )
    together = network.structures(batch(*others))
    for i, one in enumerate(others):
        assert difference(network.structures(one)[0], together[i]) < 1e-5
    assert difference(together[0], together[1]) > 1e-4
    assert torch.linalg.vector_norm(together, dim=1).tolist() == pytest.approx([1, 1, 1])


def test_patterns_do_not_depend_on_padding_nor_on_their_batch(network):
    (few, _), (many, _) = spots(5), spots(40, seed=1)
    padded = torch.full_like(many, 7.0)
    padded[:, :10] = few
    mask = torch.ones(2, 80, dtype=torch.bool)
    mask[0, 10:] = False
    together = network.patterns(torch.cat([padded, many]), mask)
    assert difference(together[0], network.patterns(few, mask[:1, :10])[0]) < 1e-5
    assert difference(together[1], network.patterns(many, mask[1:])[0]) < 1e-5
    assert difference(together[0], together[1]) > 1e-4


def test_patterns_depend_neither_on_the_order_of_spots_nor_on_the_unit_of_intensity(network):
    points, mask = spots()
    expected = network.patterns(points, mask)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert difference(network.patterns(points[:, order], mask), expected) < 1e-5
    brighter = points * torch.tensor([1, 1, 1e-7])
    assert difference(network.patterns(brighter, mask), expected) < 1e-5
    fainter = points.clone()
    fainter[0, ::7, 2] *= 0.2
    assert difference(network.patterns(fainter, mask), expected) > 1e-4


@pytest.mark.parametrize("angle", [0.3, 1.9, 4.4])
@pytest.mark.parametrize("mirror", [1, -1])
def test_the_invariant_pattern_may_be_turned_and_mirrored(invariant, angle, mirror):
    points, mask = spots()
    other = torch.from_numpy(turned(points.numpy() * [1, mirror, 1], angle)).float()
    expected = invariant.patterns(points, mask)
    assert difference(invariant.patterns(other, mask), expected) < 1e-5
    sheared = points + 0.2 * points[..., [1]] * torch.tensor([1.0, 0, 0])
    assert difference(invariant.patterns(sheared, mask), expected) > 1e-4


@pytest.mark.parametrize("crystal", [mx2, oblique])
def test_the_invariant_crystal_may_be_given_in_any_way(invariant, crystal):
    cell, where, numbers = crystal()
    cell, where = np.array(cell), np.array(where)
    expected = invariant.structures(*read(layer(cell, where, numbers)))

    def check(*other):
        assert difference(invariant.structures(*read(layer(*other))), expected) < 1e-5

    for angle in (0.7, 2.0, 5.0):
        check(turned(cell, angle), where, numbers)
    check(cell, where[::-1], numbers[::-1])
    check(cell, where + np.array([0.21, 0.43, 0.05]), numbers)
    check(cell, where * [1, 1, -1], numbers)
    check(cell, -where, numbers)
    change = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    check(change @ cell, where @ np.linalg.inv(change), numbers)
    for n, m in ((2, 1), (2, 3)):
        parts = [(where + np.array([i, j, 0])) / [n, m, 1] for i in range(n) for j in range(m)]
        check(cell * [[n], [m], [1]], np.concatenate(parts), numbers * (n * m))


def test_the_invariant_crystal_is_told_from_others(invariant):
    cell, where, numbers = mx2()
    expected = invariant.structures(*read(layer(cell, where, numbers)))
    one_t = [where[0], where[1], [2 / 3, 1 / 3, 0.42]]
    for other in (mx2(3.22), mx2(metal=74), mx2(anion=34), (cell, one_t, numbers)):
        assert difference(invariant.structures(*read(layer(*other))), expected) > 1e-4


def test_a_crystal_is_read_as_the_pattern_that_it_makes(invariant):
    """With the form factors of the network as the true ones both towers must agree."""
    (crystal,) = read(layer(*oblique()))
    q, intensity = crystal.reflections[0], invariant.form_factors(crystal)[0]
    half = torch.cat([q, intensity[:, None]], dim=1)
    pattern = torch.cat([half, half * torch.tensor([-1.0, -1, 1])])[None]
    mask = torch.ones(pattern.shape[:2], dtype=torch.bool)
    assert difference(invariant.patterns(pattern, mask), invariant.structures(crystal)) < 1e-5


def test_structure_factors_against_a_sum_by_hand(invariant):
    cell, where, numbers = oblique()
    (crystal,) = read(layer(cell, where, numbers))
    form = invariant.form_factors
    form.envelope.weight.zero_()
    form.envelope.bias.zero_()
    q = crystal.reflections[0].double().numpy()
    common, own = form.common.numpy(), form.own.weight.numpy()
    total = 0
    for z, position in zip(numbers, np.array(where) @ cell, strict=True):
        gaussians = np.exp(-np.outer((q**2).sum(1), form.widths.numpy()))
        factor = z * gaussians @ (common * (1 + own[z]))
        total = total + factor * np.exp(-2j * np.pi * q @ position[:2])
    found = form(crystal)[0].numpy()
    assert found == pytest.approx(abs(total) ** 2, rel=1e-3, abs=1e-4 * float(found.max()))


def test_sequences_have_the_published_order():
    """Two atoms and one: places and kinds of tokens, told by tables that give their own number."""
    network = DD2D(32, 1, 4)
    encoder = network.geometry
    with torch.no_grad():
        for weight in encoder.number.parameters():
            weight.zero_()
        encoder.element.weight[:] = 1000 * torch.arange(104)[:, None]
        encoder.place.weight[:] = torch.arange(180)[:, None]
        encoder.kind.weight[:] = torch.arange(12)[:, None] * 1e6
    cell = np.diag([3.0, 4.0, 20.0])
    two, one = read(
        layer(cell, [[0, 0, 0.5], [0.5, 0.5, 0.5]], [6, 8]), layer(cell, [[0, 0, 0.5]], [7])
    )
    x, sees = encoder.tokens(batch(two, one))
    x = x[:, :, 0].round().int()
    place, element, kind = x % 1000, x // 1000 % 1000, x // 1000000
    lattice = [0, 1, 2, 3, 4, 5, 6]
    assert kind[0].tolist() == [*lattice, 7, 8, 9, 7, 8, 9, 10, 10, 11]
    assert place[0].tolist() == list(range(16))
    assert element[0].tolist() == [0] * 13 + [6, 8, 0]
    seen = sees[1, 0, 1]
    assert kind[1][seen].tolist() == [*lattice, 7, 8, 9, 10, 11]
    assert place[1][seen].tolist() == list(range(12))
    assert element[1][seen].tolist() == [0] * 10 + [7, 0]
    assert sees[:, 0, 0].sum(dim=1).tolist() == [7, 7]
    assert sees[0, 0, 0, :7].all()
    assert (sees[1, 0, 1:] == seen).all()


def test_each_number_of_a_crystal_matters_to_the_published_network():
    """With one layer the end token alone sees the atoms."""
    dd2d = random_network("dd2d", n_layers=1)
    cell, where, numbers = oblique()
    (crystal,) = read(layer(cell, where, numbers))
    expected = dd2d.structures(crystal)
    for k in range(6):
        lattice = crystal.lattice.clone()
        lattice[0, k] *= 1.05
        assert difference(dd2d.structures(crystal._replace(lattice=lattice)), expected) > 1e-4
    for j in range(3):
        positions, other = crystal.positions.clone(), crystal.numbers.clone()
        positions[0, j, j] += 0.3
        other[0, j] += 1
        moved = dd2d.structures(crystal._replace(positions=positions))
        assert difference(moved, expected) > 1e-4
        assert difference(dd2d.structures(crystal._replace(numbers=other)), expected) > 1e-4


def test_the_published_network_reads_points_of_a_grid(dd2d):
    points, mask = spots()
    on_grid = points.clone()
    on_grid[..., :2] = (points[..., :2] / dd2d.q_step).round() * dd2d.q_step
    expected = dd2d.patterns(points, mask)
    assert difference(dd2d.patterns(on_grid, mask), expected) < 1e-5
    on_grid[0, 0, 0] += dd2d.q_step
    assert difference(dd2d.patterns(on_grid, mask), expected) > 1e-6


def test_attention_of_the_first_and_the_last_layer(dd2d):
    (crystal,) = read(layer(*oblique()))
    before = dd2d.structures(crystal)
    weights = dd2d.attention(crystal)
    assert weights.shape == (2, 4, 20, 20)
    assert weights.sum(dim=-1).numpy() == pytest.approx(1, abs=1e-5)
    assert torch.equal(dd2d.structures(crystal), before)
    assert (weights[:, :, 0, 7:] == 0).all()
    assert (weights[:, :, 1:] > 0).all()
    # Of the first layer by hand, as Eq. 3 has it.
    x, _ = dd2d.geometry.tokens(crystal)
    first = dd2d.geometry.transformer.layers[0]
    q, k, _ = first.project_in(first.norm_1(x))[0].split(32, dim=-1)
    scores = q[5, 8:16] @ k[:, 8:16].T / math.sqrt(8)
    assert difference(weights[0, 1, 5], scores.softmax(dim=-1)) < 1e-5


def test_the_loss_of_three_pairs_worked_out_by_hand():
    """Unit vectors at 0, 60 and 90 degrees against 0, 90 and 90 degrees, at temperature 1."""
    network = TwoTowers()
    with torch.no_grad():
        network.log_scale.zero_()
    root = math.sqrt(3) / 2
    patterns = torch.tensor([[1.0, 0], [0.5, root], [0, 1]])
    structures = torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    similarity = [[1, 0, 0], [0.5, root, root], [0, 1, 1]]
    found = network.similarities(structures, patterns)
    assert found.detach().numpy() == pytest.approx(np.array(similarity))
    e = math.e
    by_pattern = [
        math.log(e + 2) - 1,
        math.log(math.exp(0.5) + 2 * math.exp(root)) - root,
        math.log(1 + 2 * e) - 1,
    ]
    by_structure = [
        math.log(e + math.exp(0.5) + 1) - 1,
        math.log(1 + math.exp(root) + e) - root,
        math.log(1 + math.exp(root) + e) - 1,
    ]
    expected = sum(by_pattern + by_structure) / 6
    assert network.loss(structures, patterns).item() == pytest.approx(expected, rel=1e-6)


def test_the_temperature_stays_above_a_hundredth():
    network = TwoTowers()
    with torch.no_grad():
        network.log_scale.fill_(50.0)
    one = torch.ones(1, 1)
    assert network.similarities(one, one).item() == pytest.approx(100)
