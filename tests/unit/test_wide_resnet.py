"""The residual network: what it sees, its shapes, and its fast form."""

import pytest
import torch
from torch import nn

from diffractory.models.wide_resnet import BatchNorm, WideResNet, difference_channels


def test_increases_and_decreases_are_apart_in_units_of_the_brightest_of_the_reference():
    reference = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    image = torch.tensor([[3.0, 1.0], [4.0, 0.0]])  # +2, -1, +1, -4
    channels = difference_channels(torch.stack([image, reference]), reference)
    assert channels[0].tolist() == [[[0.5, 0.0], [0.25, 0.0]], [[0.0, 0.25], [0.0, 1.0]]]
    assert not channels[1].any()


@pytest.mark.parametrize(("shape", "pool", "last"), [((261, 261), 9, 3), ((87, 60), 3, 9)])
def test_the_published_layout(shape, pool, last):
    """Sizes of a side: 261, 29 and 3 pixels; in each block 7 x 7 convolutions of these channels."""
    network = WideResNet(shape, 7, pool=pool).eval()
    with torch.inference_mode():
        features = network.blocks(network.stem(torch.rand(2, 2, *shape)))
        assert features.shape[:3] == (2, 128, last)
        assert network(torch.rand(2, *shape)).shape == (2, 7)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    channels = [(m.in_channels, m.out_channels) for m in convolutions if m.kernel_size == (7, 7)]
    layers = [(16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    assert channels == [(2, 16), *(c for a, b in layers for c in ((a, b), (b, b)))]
    shortcuts = [(m.in_channels, m.out_channels) for m in convolutions if m.kernel_size == (1, 1)]
    assert shortcuts == [(16, 32), (32, 64), (64, 128)]
    assert all(m.bias is None for m in convolutions)


def brightened(reference, kind):
    """Return noisy images (B, 30, 30), brighter than the reference in as many rows as `kind`."""
    rows = torch.arange(30) < 10 * kind[:, None]
    return reference + 0.1 * torch.rand(len(kind), 30, 30) + rows[:, :, None]


def trained_a_little():
    torch.manual_seed(0)
    network = WideResNet((30, 30), 3, (4, 8, 8), kernel=5, pool=3)
    network.normalize_with(torch.rand(30, 30))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(10):
        kind = torch.arange(6) % 3
        loss = network.loss(brightened(network.reference, kind), kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_the_fast_form_says_the_same(dtype, tolerance):
    network = trained_a_little()
    images = brightened(network.reference, torch.arange(9) % 3)
    with torch.inference_mode():
        fast = network.folded(dtype)
        expected, found = network.probabilities(images), fast.probabilities(images)
    assert expected.std(dim=0).max() > 0.02
    assert found.sum(dim=1) == pytest.approx(torch.ones(9).numpy(), abs=1e-5)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    assert fast.reference.dtype == torch.float32
    assert not any(isinstance(module, BatchNorm) for module in fast.modules())
    assert any(isinstance(module, BatchNorm) for module in network.modules())


def test_validation_sums_losses_and_what_is_right():
    network = trained_a_little()
    images, kind = torch.rand(5, 30, 30), torch.tensor([0, 1, 2, 0, 1])
    with torch.inference_mode():
        sums = network.measures(images, kind)
        p = network.probabilities(images)
    assert sums["validation_loss"].item() == pytest.approx(
        -sum(p[i, k].log().item() for i, k in enumerate(kind)), rel=1e-5
    )
    right = sum(int(p[i].argmax()) == k for i, k in enumerate(kind.tolist()))
    assert sums["accuracy"].item() == right
