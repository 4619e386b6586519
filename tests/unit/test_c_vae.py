"""The autoencoder: its loss against closed forms, its scale, and distances in latent space."""

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_divergence

from diffractory.models.c_vae import CVae, distance_to_line, kl_divergence


def test_the_divergence_is_that_of_normal_distributions():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 4), torch.randn(5, 4)
    one = Normal(torch.zeros(()), torch.ones(()))
    expected = reference_divergence(Normal(mean, (0.5 * log_variance).exp()), one).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_distances_to_a_segment_by_hand():
    """From (0, 0) to (4, 0): beside it, on it, and beyond either end (3-4-5 triangles)."""
    z = torch.tensor([[1.0, 2.0], [3.0, 0.0], [7.0, 4.0], [-3.0, -4.0]])
    distance = distance_to_line(z, torch.zeros(2), torch.tensor([4.0, 0.0]))
    assert distance.tolist() == [2.0, 0.0, 5.0, 5.0]


def test_a_segment_without_length_is_a_point():
    a = torch.tensor([1.0, 1.0])
    assert distance_to_line(torch.tensor([[4.0, 5.0]]), a, a).tolist() == [5.0]


@pytest.mark.parametrize(
    ("size", "channels", "side"), [(256, (32, 64, 128, 256), 16), (64, (4, 8), 16)]
)
def test_shapes(size, channels, side):
    network = CVae(size, channels, latent=4).eval()
    with torch.inference_mode():
        assert network.scaled(torch.rand(2, 261, 261)).shape == (2, 1, size, size)
        features = network.encoder[:-2](torch.rand(2, 1, size, size))
        assert features.shape == (2, channels[-1], side, side)
        assert network.latent(torch.rand(2, 261, 261)).shape == (2, 4)
        output = network(torch.rand(2, 261, 261))
    assert output.shape == (2, 1, size, size)
    assert output.min() > 0
    assert output.max() < 1


def test_images_are_divided_by_a_fifth_of_the_brightest_of_the_reference_and_cut():
    network = CVae(8, (2,))
    network.normalize_with(torch.tensor([[0.0, 20.0], [1.0, 2.0]]))
    images = torch.stack([torch.full((8, 8), value) for value in (-1.0, 1.0, 4.0, 9.0)])
    assert network.scaled(images).amax((1, 2, 3)).tolist() == [0.0, 0.25, 1.0, 1.0]


def test_the_output_begins_about_as_dark_as_the_reference():
    torch.manual_seed(0)
    reference = torch.zeros(32, 32)
    reference[4:8, 4:8] = 3.0
    network = CVae(32, (4, 8))
    network.normalize_with(reference)
    with torch.inference_mode():
        assert network(reference[None]).mean().item() == pytest.approx(16 / 1024, rel=0.2)


def test_the_loss_is_the_evidence_lower_bound_of_pixels_with_unit_variance():
    """Without spread, so that the expectation over latent vectors is one term."""
    torch.manual_seed(0)
    network = CVae(16, (4, 8), latent=2, kl_weight=1.0).eval()
    with torch.no_grad():
        network.encoder[-1].weight[2:] = 0
        network.encoder[-1].bias[2:] = -60.0  # logarithms of the variances
    images = torch.rand(3, 16, 16)
    with torch.inference_mode():
        scaled, output = network.scaled(images), network(images)
        evidence = Normal(output, 1.0).log_prob(scaled) - Normal(scaled, 1.0).log_prob(scaled)
        mean = network.latent(images)
        kl = 0.5 * (mean.square() - 1 + 60.0).sum(1)
        expected = (kl - evidence.sum((1, 2, 3))).mean()
        torch.testing.assert_close(network.loss(images, torch.zeros(3)), expected)
        sums = network.measures(images, torch.zeros(3))
    torch.testing.assert_close(sums["validation_loss"], 3 * expected)
    torch.testing.assert_close(sums["kl_divergence"], kl.sum())
    squares = (output - scaled).square()
    torch.testing.assert_close(sums["reconstruction_error"], 3 * squares.mean())


def test_latent_vectors_are_drawn_with_their_variance():
    """The mean loss over many draws is that of the formula of a linear decoder."""
    torch.manual_seed(0)
    network = CVae(4, (1,), latent=1, kl_weight=0.0)
    network.decoder = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Unflatten(1, (1, 4, 4)))
    torch.nn.init.ones_(network.decoder[0].weight)
    torch.nn.init.zeros_(network.decoder[0].bias)
    with torch.no_grad():
        network.encoder[-1].weight.zero_()
        mean, variance = 3.0, torch.tensor(2.0)
        network.encoder[-1].bias.copy_(torch.stack([torch.tensor(mean), variance.log()]))
        loss = network.loss(torch.zeros(40_000, 4, 4), torch.zeros(40_000))
    assert loss.item() == pytest.approx(0.5 * 16 * (9 + 2), rel=0.03)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_the_fast_form_scores_the_same(dtype, tolerance):
    torch.manual_seed(0)
    network = CVae(32, (4, 8)).eval()
    network.ends.copy_(torch.randn(2, 4))
    images = torch.rand(6, 40, 40)
    with torch.inference_mode():
        expected, found = network.score(images), network.folded(dtype).score(images)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
