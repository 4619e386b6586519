"""Noise and its way back: against closed forms, and with a network that knows the answer."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from diffractory.models.diffusion import (
    N_ELEMENTS,
    Ddpm,
    Flow,
    ScoreMatching,
    build_process,
    likeliest_numbers,
    nearest,
    noisy_numbers,
    shortest,
    spacing,
    strided,
    transformed,
    volume_root,
    wrap,
)
from diffractory.models.periodic_graph import UnitCells, lattice_matrix

PROCESSES = [Ddpm(100), ScoreMatching(), Flow(50)]


def crystals(n=6, seed=0):
    """Return crystals of 1 to 8 atoms in oblique cells."""
    random = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 9, (n,), generator=random)
    lengths = 3 + 5 * torch.rand(n, 3, generator=random)
    angles = 1.2 + 0.7 * torch.rand(n, 3, generator=random)
    total = int(counts.sum())
    numbers = torch.randint(1, 90, (total,), generator=random)
    fractional = torch.rand(total, 3, generator=random)
    return UnitCells(fractional, numbers, lattice_matrix(lengths, angles), counts)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def off_by(cells, truth):
    """Return the distance of each atom from its place, up to a shift of the crystal, angstrom."""
    difference = cells.fractional - truth.fractional
    first = truth.counts.cumsum(0) - truth.counts
    difference = difference - difference[first][truth.crystal]
    return shortest(difference, truth).norm(dim=1)


def last(states):
    return list(states)[-1]


@given(st.floats(-1e4, 1e4, width=32))
def test_wrapped_coordinates_are_in_the_cell_and_congruent(r):
    wrapped = float(wrap(torch.tensor([r]))[0])
    assert 0 <= wrapped < 1
    assert abs(math.remainder(wrapped - r, 1)) <= 1e-7 + 1e-6 * abs(r)


@pytest.mark.parametrize("steps", [1000, 100, 37])
def test_forward_diffusion_ends_uniform_on_the_torus(steps):
    process = Ddpm(steps)
    r_0 = torch.rand(20000, generator=seeded()) * 0.2
    end = process.alpha_bar[-1]
    assert float(end) == pytest.approx(float(Ddpm(1000).alpha_bar[-1]), rel=1e-9)
    r = end.sqrt() * r_0 + (1 - end).sqrt() * torch.randn(20000, generator=seeded(1))
    assert kstest(wrap(r).numpy(), "uniform").pvalue > 0.01


def test_published_schedule():
    """A mean sigmoid of 0.376 over 1,000 betas up to 0.01: alpha_bar_T is about exp(-3.77)."""
    alpha_bar = Ddpm(1000, 1e-10, 0.01).alpha_bar
    assert float(alpha_bar[0]) == 1
    assert float(alpha_bar[-1]) == pytest.approx(math.exp(-3.768), rel=1e-3)
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert float(beta[0]) == pytest.approx(0.01 / (1 + math.exp(10)), rel=1e-3)
    assert float(beta[-1]) == pytest.approx(0.01 / (1 + math.exp(-6)), rel=1e-3)
    assert (beta[1:] > beta[:-1]).all()


def test_steps_of_eq_1_in_a_row_are_eq_2():
    alpha_bar = Ddpm(50).alpha_bar
    r = torch.full((200000,), 0.7, dtype=torch.float64)
    random = seeded()
    for alpha in alpha_bar[1:31] / alpha_bar[:30]:
        noise = torch.randn(r.shape, dtype=torch.float64, generator=random)
        r = alpha.sqrt() * r + (1 - alpha).sqrt() * noise
    expected = torch.distributions.Normal(0.7 * alpha_bar[30].sqrt(), (1 - alpha_bar[30]).sqrt())
    assert kstest(r.numpy(), lambda x: expected.cdf(torch.as_tensor(x)).numpy()).pvalue > 0.01


def test_noisy_coordinates_are_those_of_eq_2_wrapped():
    cells, process = crystals(), Ddpm(100)
    noised = process.noise(cells, seeded())
    step = (noised.time * 100).round().long()
    assert ((step >= 1) & (step <= 100)).all()
    kept = process.alpha_bar[step][cells.crystal, None].float()
    r = kept.sqrt() * cells.fractional + (1 - kept).sqrt() * noised.target
    assert nearest(r - noised.cells.fractional).abs().max() < 1e-5


def test_epsilon_is_fractional_and_turns_with_the_crystal():
    cells, process = crystals(), Ddpm(100)
    epsilon = torch.randn(cells.fractional.shape, generator=seeded())
    lattice = cells.lattice / volume_root(cells)[:, None, None]
    vectors = transformed(epsilon, lattice, cells)
    torch.testing.assert_close(process.predicted(vectors, cells), epsilon, atol=1e-4, rtol=1e-4)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(1))).Q
    turned = cells._replace(lattice=cells.lattice @ turn)
    predicted = process.predicted(vectors @ turn, turned)
    torch.testing.assert_close(predicted, epsilon, atol=1e-4, rtol=1e-4)


def oracle(process, truth):
    """Return a network that says what brings every crystal to the truth."""

    def denoise(cells, time):
        scores = torch.nn.functional.one_hot(truth.numbers - 1, N_ELEMENTS).float()
        if isinstance(process, Ddpm):
            kept = process.alpha_bar[(time * process.steps).round().long()][truth.crystal, None]
            shrunk = kept.sqrt() * truth.fractional
            epsilon = nearest(cells.fractional - shrunk) / (1 - kept).sqrt()
            lattice = truth.lattice / volume_root(truth)[:, None, None]
            return transformed(epsilon.float(), lattice, truth), scores
        way = truth.fractional - cells.fractional
        if isinstance(process, Flow):
            first = (truth.counts.cumsum(0) - truth.counts)[truth.crystal]
            lattice = truth.lattice / spacing(truth)[:, None, None]
            way = transformed(nearest(way - way[first]), lattice, truth)
            return way / time[truth.crystal, None], scores
        return shortest(way, truth) / oracle_sigma(process, denoise), scores

    denoise.calls = 0
    return denoise


def oracle_sigma(process, denoise):
    """Return the noise of the level at which this call comes."""
    per_level = process.steps // len(process.sigma)
    sigma = process.sigma[denoise.calls // per_level]
    denoise.calls += 1
    return sigma


@pytest.mark.parametrize(
    ("process", "steps", "eq_6", "within"),
    [
        (Ddpm(1000), None, False, 1e-3),
        (Ddpm(1000), 100, False, 1e-3),
        (Ddpm(1000), 20, False, 1e-3),
        (Ddpm(60), None, False, 1e-3),
        (Ddpm(1000), None, True, 1e-3),
        (Ddpm(1000), 50, True, 5e-3),
        (ScoreMatching(levels=10, steps_per_level=5), None, False, 0.15),
        (Flow(50), None, False, 1e-3),
        (Flow(50), 20, False, 1e-3),
        (Flow(50), 1, False, 1e-3),
        (Flow(50), 70, False, 1e-3),
    ],
)
def test_samplers_recover_crystals_with_a_perfect_network(process, steps, eq_6, within):
    """The nearest image is taken for noise: any start that wraps is brought to the truth."""
    truth = crystals()
    states = list(
        process.sample(
            oracle(process, truth),
            truth if isinstance(process, Flow) else truth._replace(numbers=truth.numbers // 2 + 1),
            steps,
            seeded(),
            eq_6,
        )
    )
    n = steps or process.steps
    assert [state.step for state in states] == list(range(n, -1, -1))
    assert states[0].time == 1
    assert states[-1].time == pytest.approx(0)
    torch.testing.assert_close(wrap(states[n // 2].unwrapped), states[n // 2].cells.fractional)
    assert torch.equal(states[-1].cells.numbers, truth.numbers)
    assert off_by(states[-1].cells, truth).max() < within


def test_eq_7_and_eq_6_by_hand():
    """Two steps of one atom with a network that always says 0.1 along x, in a cell of 1 cubed."""
    process, random = Ddpm(2), seeded()
    cells = UnitCells(torch.zeros(1, 3), torch.ones(1).long(), torch.eye(3)[None], torch.ones(1))
    cells = cells._replace(counts=cells.counts.long())
    epsilon = torch.tensor([[0.1, 0.0, 0.0]])
    _, bar_1, bar_2 = process.alpha_bar.tolist()
    r_2, noise = (torch.randn(1, 3, generator=random) for _ in range(2))
    alpha = bar_2 / bar_1
    sigma = math.sqrt((1 - bar_1) * (1 - alpha) / (1 - bar_2))
    eq_7 = (wrap(r_2) - math.sqrt(1 - bar_2) * epsilon) / math.sqrt(bar_2) + sigma * noise
    eq_6 = (r_2 - (1 - alpha) / math.sqrt(1 - bar_2) * epsilon) / math.sqrt(alpha) + sigma * noise
    for chosen, expected in ((False, eq_7), (True, eq_6)):
        states = list(
            process.sample(
                lambda cells, time: (epsilon, torch.zeros(1, 100)), cells, None, seeded(), chosen
            )
        )
        torch.testing.assert_close(states[0].unwrapped, r_2)
        torch.testing.assert_close(states[1].unwrapped, expected)


def test_only_ddpm_has_eq_6():
    for process in PROCESSES[1:]:
        with pytest.raises(ValueError, match=r"Eq\. 6 is a sampler of DDPM"):
            last(process.sample(None, crystals(), eq_6=True))


def test_strides_begin_and_end_with_the_process():
    assert strided(1000, 4) == [1000, 750, 500, 250, 0]
    assert strided(3, None) == [3, 2, 1, 0]
    for steps in (0, 1001, -3):
        with pytest.raises(ValueError, match="can take 1 to 1000"):
            strided(1000, steps)


def test_cartesian_noise_and_the_way_back():
    cells, process = crystals(2000), ScoreMatching()
    noised = process.noise(cells, seeded())
    sigma = process.sigma[torch.randint(50, (2000,), generator=seeded())][cells.crystal, None]
    back = transformed(noised.target * sigma, torch.linalg.inv(cells.lattice), cells)
    difference = nearest(noised.cells.fractional + back - cells.fractional)
    assert difference.abs().max() < 1e-4
    small = sigma[:, 0] < 0.3  # where no image is nearer
    assert kstest(noised.target[small].flatten().numpy(), "norm").pvalue > 0.01
    assert (noised.time == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_shortest_vectors_are_those_of_all_images(seed):
    cells = crystals(3, seed)
    difference = 4 * torch.rand(cells.fractional.shape, generator=seeded(seed)) - 2
    images = torch.tensor(list(product(range(-4, 5), repeat=3))).float()
    vectors = (difference[:, None] + images) @ cells.lattice[cells.crystal]
    expected = vectors.norm(dim=2).amin(1)
    torch.testing.assert_close(shortest(difference, cells).norm(dim=1), expected)


def test_the_flow_leads_from_noise_to_the_crystal_and_keeps_its_centre():
    cells, process = crystals(), Flow()
    noised = process.noise(cells, seeded())
    lattice = torch.linalg.inv(cells.lattice) * spacing(cells)[:, None, None]
    step = noised.time[cells.crystal, None] * transformed(noised.target, lattice, cells)
    assert nearest(noised.cells.fractional + step - cells.fractional).abs().max() < 1e-5
    total = torch.zeros(6, 3).index_add_(0, cells.crystal, step)
    assert total.abs().max() < 1e-5


def test_the_flow_begins_uniform():
    """Whatever the crystal: also one whose atoms are all in the corner."""
    n = 500
    cells = UnitCells(
        0.1 * torch.rand(4 * n, 3, generator=seeded()),
        torch.ones(4 * n).long(),
        5 * torch.eye(3).expand(n, 3, 3),
        torch.full((n,), 4),
    )
    noised = Flow().noise(cells, seeded())
    step = (1 - noised.time)[cells.crystal, None] * noised.target * (spacing(cells)[0] / 5)
    start = wrap(noised.cells.fractional - step)
    first = torch.arange(0, 4 * n, 4)
    relative = wrap(start[first] - start[first + 1])
    assert kstest(relative.flatten().numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("process", PROCESSES[1:])
def test_noise_does_not_depend_on_the_origin(process):
    cells = crystals()
    shift = torch.rand(6, 3, generator=seeded(2))
    moved = cells._replace(fractional=wrap(cells.fractional + shift[cells.crystal]))
    a, b = (process.noise(c, seeded()) for c in (cells, moved))
    if isinstance(process, ScoreMatching):
        torch.testing.assert_close(a.target, b.target, atol=2e-2, rtol=1e-4)
        difference = b.cells.fractional - a.cells.fractional - shift[cells.crystal]
        assert nearest(difference).abs().max() < 1e-5
    else:  # the same start, as seen from a crystal that has moved
        assert torch.equal(a.time, b.time)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_loss_follows_a_permutation_of_atoms(process):
    cells = crystals()
    noised = process.noise(cells, seeded())
    vectors = torch.randn(cells.fractional.shape, generator=seeded(1))
    order = torch.randperm(len(vectors), generator=seeded(2))
    order = order[torch.argsort(cells.crystal[order], stable=True)]
    turned = noised._replace(
        cells=noised.cells._replace(fractional=noised.cells.fractional[order]),
        target=noised.target[order],
    )
    loss = process.loss(vectors, noised)
    torch.testing.assert_close(process.loss(vectors[order], turned), loss[order])
    assert loss.shape == (len(vectors),)


def test_noise_of_elements_goes_from_the_truth_to_the_composition():
    """Eq. 9: sigma' of 0 keeps every element; of infinity, the composition; of 1, half and half."""
    numbers = torch.full((20000,), 26)
    scores = torch.full((20000, N_ELEMENTS), -50.0)
    scores[:, 7], scores[:, 21] = math.log(0.75), math.log(0.25)  # O and Ti
    drawn = {
        sigma: noisy_numbers(numbers, scores, torch.full((20000,), sigma), seeded())
        for sigma in (0.0, 1.0, 1e6)
    }
    assert (drawn[0.0] == 26).all()
    share = {s: (d == 8).float().mean().item() for s, d in drawn.items()}
    assert share[1e6] == pytest.approx(0.75, abs=0.015)
    assert share[1.0] == pytest.approx(0.375, abs=0.015)
    assert (drawn[1.0] == 26).float().mean().item() == pytest.approx(0.5, abs=0.015)


def test_elements_of_a_lost_network_do_not_stop_the_run():
    scores = torch.full((3, N_ELEMENTS), torch.nan)
    numbers = torch.tensor([1, 8, 100])
    assert torch.equal(noisy_numbers(numbers, scores, torch.ones(3), seeded()), numbers)
    assert likeliest_numbers(scores, torch.tensor([1, 5, 20])).shape == (26,)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 10**6))
def test_the_likeliest_elements_are_the_composition_where_it_is_whole(counts, seed):
    random = torch.Generator().manual_seed(seed)
    counts = torch.tensor(counts)
    numbers = torch.randint(1, N_ELEMENTS + 1, (int(counts.sum()),), generator=random)
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    one_hot = torch.nn.functional.one_hot(numbers - 1, N_ELEMENTS).float()
    share = torch.zeros(len(counts), N_ELEMENTS).index_add_(0, owner, one_hot)
    found = likeliest_numbers((share / counts[:, None]).log(), counts)
    expected = torch.cat([numbers[owner == i].sort().values for i in range(len(counts))])
    assert torch.equal(found, expected)
    anything = likeliest_numbers(torch.randn(len(counts), N_ELEMENTS, generator=random), counts)
    assert len(anything) == len(numbers)


def test_processes_by_name():
    published = {
        "steps": 30,
        "beta_min": 1e-10,
        "beta_max": 0.01,
        "langevin": {
            "sigma_min": 0.01,
            "sigma_max": 10.0,
            "levels": 5,
            "steps_per_level": 7,
            "step_size": 1e-4,
        },
        "flow_steps": 9,
    }
    names = ("ddpm", "score_matching", "flow")
    assert [build_process(name, published).steps for name in names] == [30, 35, 9]
    with pytest.raises(ValueError, match="no process 'sde'"):
        build_process("sde", published)
