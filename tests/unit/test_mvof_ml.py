"""MVOF-ML: what its images show, what its loss measures, that it learns, and how opinions fuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import erf
from scipy.stats import beta
from torch.distributions import Dirichlet, kl_divergence

from diffractory.evaluation.fusion import fuse_opinions
from diffractory.models.mvof_ml import MvofMl, divergence_from_uniform

K = 7
HPARAMS = {
    "image_size": 32,
    "spot_sigma": 0.04,
    "width": 8,
    "annealing_steps": 4,
}


@pytest.fixture
def patterns():
    """Return 5 patterns of 12 spots, of which some are padding, others out of sight."""
    random = torch.Generator().manual_seed(2)
    spots = torch.rand(5, 12, 3, generator=random) * torch.tensor([2.6, 2.6, 0.2])
    spots -= torch.tensor([1.3, 1.3, 0.0])
    spots[:, 0] = torch.tensor([1e-4, 0.0, 0.9])  # the direct beam
    counts = torch.tensor([12, 9, 5, 2, 1])
    return spots, torch.arange(12) < counts[:, None]


@pytest.fixture
def network(patterns):
    torch.manual_seed(1)
    return MvofMl(**HPARAMS).eval()


# --- images ---


def test_an_image_is_the_sum_of_its_spots(network, patterns):
    spots, mask = patterns
    n, sigma = HPARAMS["image_size"], HPARAMS["spot_sigma"]
    pixel = 2 / n  # the edges are at 1/angstrom before any normalization
    centre = (np.arange(n) - (n - 1) / 2) * pixel

    def profile(q):
        upper, lower = (erf((centre + s * pixel / 2 - q) / sigma / np.sqrt(2)) for s in (1, -1))
        return (upper - lower) / 2

    images = network.render(spots, mask)
    for image, own, there in zip(images, spots.double().numpy(), mask.numpy(), strict=True):
        seen = own[there & (np.hypot(own[:, 0], own[:, 1]) > pixel / 2)]
        expected = sum(i**0.25 * np.outer(profile(qy), profile(qx)) for qx, qy, i in seen)
        expected = expected / expected.max() if len(seen) else np.zeros((n, n))
        np.testing.assert_allclose(image, expected, atol=2e-6)


def test_a_pattern_without_spots_is_dark(network, patterns):
    spots, mask = patterns
    assert not network.render(spots, torch.zeros_like(mask)).any()
    assert not network.render(spots[:, :0], mask[:, :0]).any()
    assert not network.render(spots[:, :1], mask[:, :1]).any()  # the direct beam alone


def test_exposure_leaves_no_trace(network, patterns):
    spots, mask = patterns
    brighter = spots * torch.tensor([1, 1, 50.0])
    torch.testing.assert_close(network.render(brighter, mask), network.render(spots, mask))


# --- predictions ---


@torch.no_grad()
def test_order_and_company_do_not_matter(network, patterns):
    spots, mask = patterns
    alpha = network(spots, mask)
    assert alpha.std(0).min() > 1e-4  # else all patterns would look alike
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    longer = torch.cat([spots[:, order], torch.zeros(5, 30, 3)], dim=1)
    padded = torch.cat([mask[:, order], torch.zeros(5, 30, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(network(longer, padded), alpha, rtol=0, atol=1e-6)
    rows = zip(spots, mask, strict=True)
    alone = [network(own[there][None], there[there][None]) for own, there in rows]
    torch.testing.assert_close(torch.cat(alone), alpha, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("garbage", [0.3, -7.0, 1e30, -1e30])
def test_padding_may_hold_anything(network, patterns, garbage):
    spots, mask = patterns
    dirty = torch.where(mask[..., None], spots, garbage)
    torch.testing.assert_close(network(dirty, mask), network(spots, mask), rtol=0, atol=0)


@torch.no_grad()
def test_beliefs_and_uncertainty_sum_to_1(network, patterns):
    alpha = network(*patterns)
    said = network.opinions(alpha)
    assert said.space_group is None
    beliefs = said.crystal_system - said.uncertainty[:, None] / K
    torch.testing.assert_close(beliefs, (alpha - 1) / alpha.sum(1, keepdim=True))
    assert beliefs.min() > 0
    torch.testing.assert_close(beliefs.sum(1) + said.uncertainty, torch.ones(5))


@torch.no_grad()
def test_hparams_and_state_rebuild_the_network(network, patterns):
    network.train()
    network.loss(network(*patterns), torch.arange(5), torch.arange(5))
    rebuilt = MvofMl(**network.hparams)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(*patterns), network.eval()(*patterns))
    assert rebuilt.step == 1
    assert network.hparams == HPARAMS


def test_bfloat16_gives_finite_values_and_gradients(network, patterns):
    with torch.autocast("cpu", torch.bfloat16):
        images = network.render(*patterns)
        alpha = network(*patterns)
        loss = network.loss(alpha, torch.arange(5), torch.arange(5))
    loss.backward()
    assert torch.equal(images, network.render(*patterns))
    assert alpha.dtype == torch.float32
    assert torch.isfinite(alpha).all()
    torch.testing.assert_close(alpha, network(*patterns), rtol=0.05, atol=0)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# --- loss ---

ALPHA = torch.tensor(
    [[1.0, 1, 1, 1, 1, 1, 1], [1, 30, 1, 1, 1, 1, 1], [1.5, 2, 9, 1.01, 4, 1, 300]],
    dtype=torch.float64,
)
TRUTH = torch.tensor([0, 1, 2])


def test_divergence_agrees_with_that_of_torch():
    expected = kl_divergence(Dirichlet(ALPHA), Dirichlet(torch.ones_like(ALPHA)))
    torch.testing.assert_close(divergence_from_uniform(ALPHA), expected)


def expected_cross_entropy():
    rest = ALPHA.sum(1) - ALPHA.diagonal()
    marginals = [beta(float(a), float(b)) for a, b in zip(ALPHA.diagonal(), rest, strict=True)]
    return np.mean([m.expect(lambda p: -np.log(p)) for m in marginals])


def test_loss_is_cross_entropy_and_what_speaks_for_wrong_classes(network):
    wrong = ALPHA.clone()
    wrong[range(3), TRUTH] = 1
    misled = kl_divergence(Dirichlet(wrong), Dirichlet(torch.ones_like(ALPHA))).mean()
    loss = network.loss(ALPHA, TRUTH, TRUTH)
    assert float(loss) == pytest.approx(expected_cross_entropy() + float(misled), rel=1e-6)
    assert network.step == 0


def test_weight_rises_over_training_batches_and_survives_a_restart(network):
    whole = float(network.loss(ALPHA, TRUTH, TRUTH))
    part = whole - expected_cross_entropy()
    network.train()
    for step in range(7):
        if step == 2:
            state, network = network.state_dict(), MvofMl(**HPARAMS).train()
            network.load_state_dict(state)
        missing = part * (1 - min(1, step / HPARAMS["annealing_steps"]))
        assert float(network.loss(ALPHA, TRUTH, TRUTH)) == pytest.approx(whole - missing, rel=1e-6)


# --- learning ---


def lattices(count, seed):
    """Return square and hexagonal nets, turned and scaled at random, of 25 spots each."""
    random = np.random.default_rng(seed)
    kind = np.arange(count) % 2
    h, k = (np.indices((5, 5)) - 2).reshape(2, -1)
    net = h + k * np.where(kind, np.exp(1j * np.pi / 3), 1j)[:, None]
    net *= (random.uniform(0.25, 0.35, count) * np.exp(2j * np.pi * random.random(count)))[:, None]
    intensity = random.uniform(0.01, 1, net.shape)
    spots = torch.tensor(np.stack([net.real, net.imag, intensity], -1), dtype=torch.float32)
    return spots, torch.ones(spots.shape[:2], dtype=torch.bool), torch.tensor(kind * 2 + 3)


def test_it_learns_to_tell_lattices(network):
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for step in range(150):
        spots, mask, system = lattices(48, seed=step)
        optimizer.zero_grad()
        loss = network.loss(network(spots, mask), system, system)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.3 * losses[0]
    network.eval()
    spots, mask, system = lattices(200, seed=1000)
    with torch.no_grad():
        said = network.opinions(network(spots, mask))
    assert (said.crystal_system.argmax(1) == system).float().mean() > 0.95
    assert said.uncertainty.mean() < 0.6


# --- fusion ---

VACUOUS = np.full(K, 1 / K), 1.0


def opinion(*beliefs):
    """Return probability and uncertainty from the beliefs in the first classes."""
    b = np.array([*beliefs, *[0.0] * (K - len(beliefs))])
    return b + (1 - b.sum()) / K, 1 - b.sum()


def fuse(*opinions):
    p, u = (np.array(column) for column in zip(*opinions, strict=True))
    probability, uncertainty = fuse_opinions(p, u, np.zeros(len(u), dtype=int), 1)
    return probability[0], uncertainty[0]


def assert_same(one, other, atol=1e-12):
    np.testing.assert_allclose(one[0], other[0], atol=atol)
    np.testing.assert_allclose(one[1], other[1], atol=atol)


opinions = arrays(np.float64, K + 1, elements=st.floats(0.001, 1)).map(
    lambda masses: opinion(*(masses / masses.sum())[:-1])
)


def test_two_views_by_hand():
    # C = 0.6 * 0.3 + 0.1 * 0.2 = 0.2; b_0 = (0.6 * 0.2 + 0.6 * 0.5 + 0.2 * 0.3) / 0.8 = 0.6,
    # b_1 = (0.1 * 0.3 + 0.1 * 0.5 + 0.3 * 0.3) / 0.8 = 0.2125 and u = 0.3 * 0.5 / 0.8 = 0.1875.
    assert_same(fuse(opinion(0.6, 0.1), opinion(0.2, 0.3)), opinion(0.6, 0.2125))


@given(opinions, opinions, opinions)
def test_views_fuse_in_any_order_and_in_any_portions(a, b, c):
    together = fuse(a, b, c)
    assert_same(fuse(c, a, b), together)
    assert_same(fuse(fuse(a, b), c), together)
    assert_same(fuse(a, fuse(b, c)), together)


@given(opinions, opinions)
def test_fusing_lowers_uncertainty_and_ignorance_changes_nothing(a, b):
    fused = fuse(a, b)
    assert fused[1] <= min(a[1], b[1]) + 1e-12
    assert fused[0].sum() == pytest.approx(1)
    assert (fused[0] >= fused[1] / K - 1e-12).all()
    assert_same(fuse(a, VACUOUS), a)


@settings(max_examples=30)
@given(arrays(np.int64, 40, elements=st.integers(0, 5)), st.integers(0, 2**32))
def test_groups_are_fused_apart(group, seed):
    random = np.random.default_rng(seed)
    masses = random.dirichlet(np.full(K + 1, 0.7), len(group))
    views = [opinion(*m[:-1]) for m in masses]
    p, u = (np.array(column) for column in zip(*views, strict=True))
    probability, uncertainty = fuse_opinions(p, u, np.sort(group), 7)
    for g in range(7):
        own = [v for v, at in zip(views, np.sort(group), strict=True) if at == g]
        expected = fuse(*own) if own else VACUOUS
        assert_same((probability[g], uncertainty[g]), expected)


@pytest.mark.filterwarnings("error")
def test_many_confident_views_stay_finite():
    confident = opinion(0.6, 0.399999)
    p, u = fuse(*[confident] * 5000)
    assert p[0] == pytest.approx(1)
    assert u == pytest.approx(0, abs=1e-12)
    assert_same(fuse(*[opinion(0.4999995, 0.4999995)] * 5000), opinion(0.5, 0.5), atol=1e-9)


@pytest.mark.filterwarnings("error")
def test_certain_views():
    assert_same(fuse(opinion(1.0), opinion(0.5, 0.3)), opinion(1.0))
    assert_same(fuse(opinion(1.0), opinion(0, 1.0), opinion(0.5)), VACUOUS)  # total conflict


def test_single_precision_is_no_less_exact():
    views = [opinion(b, 0.2) for b in np.linspace(0, 0.8, 50)]
    p, u = (np.array(column, dtype=np.float32) for column in zip(*views, strict=True))
    group = np.arange(50)
    probability, uncertainty = fuse_opinions(p, u, group, 50)
    assert (probability - uncertainty[:, None] / K).min() > -1e-15  # rounding leaves p below u / K
    exact = fuse_opinions(p.astype(np.float64), u.astype(np.float64), group, 50)
    assert_same((probability, uncertainty), exact, atol=0)


def test_the_image_reaches_to_the_outermost_spot():
    network = MvofMl(**HPARAMS)
    spots = torch.tensor([[[0.3, 0.4, 1.0], [9.0, 9.0, 1.0]]])
    network.normalize_with(spots, torch.tensor([[True, False]]))
    assert network.edges[0].item() == pytest.approx(-0.5)
    assert network.edges[-1].item() == pytest.approx(0.5)
