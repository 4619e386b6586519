"""The generator of crystals: symmetries, its terms, and eight crystals learnt by heart."""

import copy

import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from diffractory.models.crystal_vae import CrystalVae, fourier_features, lattice_features
from diffractory.models.diffusion import wrap
from diffractory.models.periodic_graph import UnitCells, lattice_matrix

SETTINGS = {
    "process": "ddpm",
    "fourier": [0, 5],
    "encode_n_sites": False,
    "encode_gine": False,
    "latent": 32,
    "encoder": {
        "hidden_dim": 32,
        "n_blocks": 1,
        "n_spherical": 3,
        "n_radial": 6,
        "gine_layers": 1,
    },
    "decoder": {"hidden_dim": 64, "n_layers": 1},
    "denoiser": {"hidden_dim": 32, "n_blocks": 1, "n_spherical": 3, "n_radial": 16},
    "cutoff": 6.0,
    "max_neighbours": 12,
    "max_sites": 8,
    "diffusion": {
        "steps": 200,
        "beta_min": 1e-10,
        "beta_max": 0.01,
        "type_sigma_min": 0.01,
        "type_sigma_max": 5.0,
        "langevin": {
            "sigma_min": 0.01,
            "sigma_max": 10.0,
            "levels": 10,
            "steps_per_level": 10,
            "step_size": 1e-4,
        },
        "flow_steps": 50,
    },
    "loss_weights": {
        "coordinates": 1.0,
        "types": 1.0,
        "lattice": 1.0,
        "n_sites": 0.1,
        "composition": 1.0,
        "kl": 0.001,
    },
}

GENERATORS = {
    "dp_cdvae": {},
    "dp_cdvae_na_gine": {"encode_n_sites": True, "encode_gine": True},
    "cdvae": {"process": "score_matching", "fourier": None},
    "ours": {"process": "flow", "fourier": None},
}


def structures():
    """Return five perovskites, rock salt, caesium chloride and rutile."""
    corner, centre = [0, 0, 0], [0.5, 0.5, 0.5]
    faces = [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    result = [
        Structure(Lattice.cubic(a), [A, B, *[X] * 3], [corner, centre, *faces])
        for A, B, X, a in (
            ("Sr", "Ti", "O", 3.91),
            ("Ba", "Zr", "O", 4.19),
            ("Cs", "Pb", "Br", 5.87),
            ("K", "Mg", "F", 3.99),
            ("La", "Al", "O", 3.79),
        )
    ]
    rocksalt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [corner, centre]
    )
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [corner, [0.305, 0.305, 0]]
    )
    caesium = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [corner, centre])
    return [*result, rocksalt.get_primitive_structure(), rutile, caesium]


def as_cells(crystals):
    counts = torch.tensor([len(s) for s in crystals])
    parameters = torch.tensor([s.lattice.parameters for s in crystals])
    return UnitCells(
        torch.cat([torch.tensor(s.frac_coords) for s in crystals]).float(),
        torch.cat([torch.tensor(s.atomic_numbers) for s in crystals]),
        lattice_matrix(parameters[:, :3], parameters[:, 3:].deg2rad()),
        counts,
    )


def as_structures(cells):
    split = [x.split(cells.counts.tolist()) for x in (cells.numbers, cells.fractional)]
    return [
        Structure(lattice.numpy(), numbers.tolist(), fractional.numpy())
        for lattice, numbers, fractional in zip(cells.lattice, *split, strict=True)
    ]


def build(generator="dp_cdvae", **changes):
    torch.manual_seed(0)
    network = CrystalVae(copy.deepcopy(SETTINGS) | GENERATORS[generator] | changes)
    cells = as_cells(structures())
    network.fit_scalers(cells.lattice, cells.counts)
    return network


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def cells():
    return as_cells(structures())


def permuted(cells, seed=3):
    """Return the cells with the atoms of each in another order, and that order."""
    order = torch.randperm(len(cells.numbers), generator=seeded(seed))
    order = order[torch.argsort(cells.crystal[order], stable=True)]
    return cells._replace(fractional=cells.fractional[order], numbers=cells.numbers[order]), order


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_loss_is_the_weighted_sum_of_finite_terms_that_reach_every_weight(generator, cells):
    network = build(generator)
    terms = network.loss(cells, seeded())
    total = terms.pop("loss")
    assert set(terms) == set(SETTINGS["loss_weights"])
    expected = sum(SETTINGS["loss_weights"][name] * terms[name] for name in terms)
    torch.testing.assert_close(total, expected)
    total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert network.loss(cells, seeded())["loss"] == total
    assert network.loss(cells, seeded(1))["loss"] != total


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_network_follows_permutations_and_rotations(generator, cells):
    network = build(generator).eval()
    z, time = torch.randn(8, 32, generator=seeded()), torch.rand(8, generator=seeded(1))
    noisy = cells._replace(fractional=torch.rand(len(cells.numbers), 3, generator=seeded(2)))
    other, order = permuted(noisy)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(4))).Q
    with torch.inference_mode():
        vectors, scores = network.denoise(noisy, z, time)
        moved, named = network.denoise(other._replace(lattice=other.lattice @ turn), z, time)
        mean, log_variance = network.encode(cells)
        again = network.encode(permuted(cells)[0]._replace(lattice=cells.lattice @ turn))
    torch.testing.assert_close(moved, vectors[order] @ turn, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(named, scores[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again[0], mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again[1], log_variance, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("generator", "invariant"), [("cdvae", True), ("ours", True), ("dp_cdvae", False)]
)
def test_only_fourier_features_know_the_origin(generator, invariant, cells):
    network = build(generator).eval()
    z, time = torch.randn(8, 32, generator=seeded()), torch.rand(8, generator=seeded(1))
    noisy = cells._replace(fractional=torch.rand(len(cells.numbers), 3, generator=seeded(2)))
    shift = torch.rand(8, 3, generator=seeded(3))[cells.crystal]
    moved = noisy._replace(fractional=wrap(noisy.fractional + shift))
    with torch.inference_mode():
        vectors = network.denoise(noisy, z, time)[0]
        again = network.denoise(moved, z, time)[0]
    assert torch.allclose(vectors, again, atol=1e-4, rtol=1e-3) == invariant


def test_crystals_do_not_see_the_batch_that_they_are_in(cells):
    network = build("dp_cdvae_na_gine").eval()
    z, time = torch.randn(8, 32, generator=seeded()), torch.rand(8, generator=seeded(1))
    first = torch.arange(int(cells.counts[:3].sum()))
    few = UnitCells(
        cells.fractional[first], cells.numbers[first], cells.lattice[:3], cells.counts[:3]
    )
    with torch.inference_mode():
        whole, part = network.encode(cells), network.encode(few)
        vectors, scores = network.denoise(cells, z, time)
        some, named = network.denoise(few, z[:3], time[:3])
    torch.testing.assert_close(part[0], whole[0][:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some, vectors[first], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(named, scores[first], atol=1e-5, rtol=1e-4)


def test_fourier_features_do_not_see_whole_cells():
    r = torch.rand(7, 3, generator=seeded())
    features = fourier_features(r, range(3, 9))
    assert features.shape == (7, 36)
    torch.testing.assert_close(fourier_features(r + 2, range(3, 9)), features, atol=1e-3, rtol=0)
    torch.testing.assert_close(features[:, 0], (2 * torch.pi * 8 * r[:, 0]).sin())


def test_lattices_are_scaled_by_the_training_set_and_constant_angles_are_left_alone(cells):
    network = build()
    features = lattice_features(cells.lattice, cells.counts)
    scaled = (features - network.lattice_mean) / network.lattice_spread
    torch.testing.assert_close(scaled.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    cubic = cells.lattice[:5]
    network.fit_scalers(cubic, cells.counts[:5])
    assert (network.lattice_spread[3:] == 0.01).all()


@pytest.mark.parametrize("generator", GENERATORS)
def test_samples_are_whole_finite_and_the_same_again(generator):
    network = build(generator)
    a = network.generate(9, 12, generator=seeded())
    b = network.generate(9, 12, generator=seeded())
    c = network.generate(9, 12, generator=seeded(1))
    assert len(a.counts) == 9
    assert len(a.numbers) == len(a.fractional) == int(a.counts.sum())
    assert ((a.counts >= 1) & (a.counts <= 8)).all()
    assert ((a.numbers >= 1) & (a.numbers <= 100)).all()
    assert ((a.fractional >= 0) & (a.fractional < 1)).all()
    assert a.lattice.isfinite().all()
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a.lattice, c.lattice)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("broken", ["lattice_decoder", "types", "encoder", "denoiser"])
def test_a_network_that_went_astray_gives_nan_and_no_crash(generator, broken, cells):
    network = build(generator)
    with torch.no_grad():
        for parameter in getattr(network, broken).parameters():
            parameter.fill_(torch.nan)
    result = network.reconstruct(cells, 3, generator=seeded())
    assert len(result.counts) == 8
    assert len(result.fractional) == len(result.numbers) == int(result.counts.sum())
    assert not network.loss(cells, seeded())["loss"].isfinite()


def test_lattices_that_cannot_be_do_not_crash():
    """Angles whose sum is more than a circle, lengths below zero, and lengths beyond measure."""
    network = build("ours")
    for mean in ([3.0] * 3 + [2.5] * 3, [-5.0] * 3 + [1.5] * 3, [1e12] * 3 + [1.5] * 3):
        network.lattice_mean.copy_(torch.tensor(mean))
        assert len(network.generate(4, 5, generator=seeded()).counts) == 4


def test_a_trace_is_what_reconstruct_ends_with(cells):
    network = build()
    z = network.latent(cells, seeded())
    states = list(network.trace(z, 10, generator=seeded(1)))
    assert [state.step for state in states] == list(range(10, -1, -1))
    assert states[-1].time == 0
    last = network.generate(z, 10, generator=seeded(1))
    assert torch.equal(states[-1].cells.fractional, last.fractional)
    with pytest.raises(ValueError, match="can take 1 to 200"):
        network.generate(z, 201)


def learnt(generator, cells, steps):
    """Return a network that has learnt eight crystals by heart."""
    network = build(generator)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    twice = UnitCells(
        cells.fractional.repeat(2, 1),
        cells.numbers.repeat(2),
        cells.lattice.repeat(2, 1, 1),
        cells.counts.repeat(2),
    )
    draws = seeded()
    for _ in range(steps):
        optimizer.zero_grad()
        network.loss(twice, draws)["loss"].backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    return network


@pytest.mark.parametrize(("generator", "steps"), [("dp_cdvae", 900), ("ours", 400)])
def test_eight_crystals_are_learnt_by_heart(generator, steps, cells):
    """All are found again, by the tolerances of the paper; everything is decoded."""
    network = learnt(generator, cells, steps)
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    truth = structures()
    distances = [
        [matcher.get_rms_dist(a, b) for a, b in zip(truth, as_structures(found), strict=True)]
        for found in (network.reconstruct(cells, generator=seeded(k)) for k in range(3))
    ]
    for crystal in zip(*distances, strict=True):
        assert min(rms for rms, _ in filter(None, crystal)) < 0.1
    assert sum(d is not None for draw in distances for d in draw) >= 20
