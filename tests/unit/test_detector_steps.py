"""What a detector does to images, step by step."""

import numpy as np
import pytest
from scipy import stats

from diffractory.augment.images import (
    STEPS,
    Image,
    add_background,
    add_readout_noise,
    add_relative_noise,
    bin_pixels,
    blur,
    count_electrons,
    detect,
    distort,
    kill_pixels,
    saturate,
    shift_beam,
    without_noise,
)
from diffractory.store import InputError

PIXEL = 0.02  # 1/angstrom


def rng(seed=0):
    return np.random.default_rng(seed)


def point(row, column, n=61):
    values = np.zeros((n, n), dtype=np.float32)
    values[row, column] = 1.0
    return Image(values, PIXEL)


def moments(values):
    """Return the sum, the mean place and the covariance of an image, in pixels."""
    rows, columns = np.indices(values.shape)
    place = np.stack([rows.ravel(), columns.ravel()])
    weight = values.ravel().astype(float)
    total = weight.sum()
    return total, (place * weight).sum(1) / total, np.cov(place, aweights=weight, ddof=0)


def test_blur_spreads_a_point_as_a_gaussian():
    total, place, covariance = moments(blur(point(30, 25), 0.06, rng()).pixels)
    assert total == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(place, [30, 25], atol=1e-4)
    # 0.06 1/angstrom are 3 pixels; a pixel itself has the variance 1/12
    np.testing.assert_allclose(covariance, np.diag([9 + 1 / 12] * 2), atol=1e-3)


def test_blur_loses_what_falls_off_the_edge():
    assert blur(point(0, 30), 0.06, rng()).pixels.sum() == pytest.approx(0.5664, abs=1e-3)


def test_bins_keep_the_sum_and_the_middle():
    image = Image(rng().random((87, 87)).astype(np.float32), PIXEL)
    binned = bin_pixels(image, 3, rng())
    assert binned.pixels.shape == (29, 29)
    assert binned.pixel_size == pytest.approx(3 * PIXEL)
    assert binned.pixels[14, 14] == pytest.approx(image.pixels[42:45, 42:45].sum())
    assert binned.pixels.sum() == pytest.approx(image.pixels.sum(), rel=1e-5)


def test_bins_that_do_not_fill_the_image_are_refused():
    with pytest.raises(InputError, match="61 x 61 pixels has no whole number of squares of 2 x 2"):
        bin_pixels(point(30, 30), 2, rng())


def test_beam_shift_moves_all_by_draws_of_the_deviation():
    moved = np.array([
        moments(shift_beam(point(30, 30), 0.02, rng(seed)).pixels)[1] for seed in range(300)
    ]) - 30  # fmt: skip
    assert np.abs(moved.mean(axis=0)).max() < 0.25
    np.testing.assert_allclose(moved.std(axis=0), 1.0, atol=0.12)  # a pixel is 0.02


def test_ellipse_stretches_one_axis_and_shrinks_the_other():
    rows, columns = np.indices((201, 201)) - 100
    ring = np.exp(-((np.hypot(rows, columns) - 50) ** 2) / 18).astype(np.float32)
    seed = next(s for s in range(99) if abs(rng(s).normal(0, 0.1)) > 0.15)
    ratio = np.exp(abs(rng(seed).normal(0, 0.1)))
    _, _, covariance = moments(distort(Image(ring, PIXEL), 0.1, rng(seed)).pixels)
    axes = np.sqrt(np.linalg.eigvalsh(covariance))
    assert axes[1] / axes[0] == pytest.approx(ratio, rel=0.01)
    assert axes[0] * axes[1] == pytest.approx(moments(ring)[2][0, 0], rel=0.01)


@pytest.mark.parametrize("mean", [0.3, 20.0, 99.0, 101.0, 300.0, 5000.0])
def test_counts_follow_poisson_at_the_dose(mean):
    n = 400
    image = Image(np.full((n, n), 7.0, dtype=np.float32), PIXEL)
    counted = count_electrons(image, mean * n * n, rng(5))
    counts = counted.pixels.ravel().astype(int)
    assert counted.counted
    assert (counted.pixels == counts.reshape(n, n)).all()
    # the sum is Poisson too
    assert abs(counts.sum() - mean * n * n) < 4 * np.sqrt(mean * n * n)
    bins = np.unique(stats.poisson.ppf(np.linspace(0, 1, 40)[1:-1], mean).astype(int))
    edges = np.concatenate([[-1], bins, [10 * int(mean) + 99]])
    expected = np.diff(stats.poisson.cdf(edges, mean)) * n * n
    found = np.histogram(counts, edges + 0.5)[0]
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-4


def test_dose_is_shared_by_brightness():
    values = np.full((100, 100), 1.0, dtype=np.float32)
    values[:50] = 3.0
    values[0, 0] = -5.0  # counts as nothing
    counts = count_electrons(Image(values, PIXEL), 4e6, rng()).pixels
    assert counts[0, 0] == 0
    assert counts[:50].sum() / counts[50:].sum() == pytest.approx(3, rel=0.01)


def test_readout_and_relative_noise_have_their_deviations():
    image = Image(np.full((200, 200), 10.0, dtype=np.float32), PIXEL, counted=True)
    assert add_readout_noise(image, 2.5, rng()).pixels.std() == pytest.approx(2.5, rel=0.02)
    assert add_relative_noise(image, 0.5, rng()).pixels.std() == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize("name", ["readout", "saturate"])
def test_electrons_need_counts(name):
    with pytest.raises(InputError, match="put poisson before it"):
        STEPS[name](point(30, 30), 2.0, rng())


def test_saturation_clips():
    image = Image(np.array([[5.0, 50.0]], dtype=np.float32), PIXEL, counted=True)
    assert saturate(image, 20, rng()).pixels.tolist() == [[5.0, 20.0]]
    assert saturate(image, 0, rng()).pixels.tolist() == [[5.0, 50.0]]


def test_dead_pixels_are_as_many_as_asked():
    image = Image(np.ones((200, 200), dtype=np.float32), PIXEL)
    assert (kill_pixels(image, 0.1, rng()).pixels == 0).mean() == pytest.approx(0.1, abs=0.01)


def test_background_adds_its_share_about_the_beam():
    image = Image(np.ones((101, 101), dtype=np.float32), PIXEL)
    added = add_background(image, 0.5, 0.2, rng()).pixels - 1
    assert added.sum() == pytest.approx(0.5 * image.pixels.sum(), rel=1e-4)
    assert added[50, 60] / added[50, 50] == pytest.approx(np.exp(-0.5), rel=1e-4)  # 0.2 1/angstrom


STEPS_OF_ALL_KINDS = [
    {"centre_shift": 0.01},
    {"ellipse": 0.02},
    {"point_spread": 0.04},
    {"bin": 3},
    {"background": {"share": [0.0, 0.3], "width": 0.4}},
    {"relative_noise": [0.0, 0.5]},
    {"poisson": [1e5, 1e7]},
    {"readout": 2.0},
    {"saturate": 60000},
    {"dead_pixels": 0.001},
]


def test_list_draws_by_name_of_the_image():
    image = Image(rng().random((87, 87)).astype(np.float32), PIXEL)
    first, drawn = detect(image, STEPS_OF_ALL_KINDS, 7, "test/a/0")
    again, _ = detect(image, STEPS_OF_ALL_KINDS, 7, "test/a/0")
    other, _ = detect(image, STEPS_OF_ALL_KINDS, 7, "test/a/1")
    reseeded, _ = detect(image, STEPS_OF_ALL_KINDS, 8, "test/a/0")
    assert (first.pixels == again.pixels).all()
    assert (first.pixels != other.pixels).mean() > 0.9
    assert (first.pixels != reseeded.pixels).mean() > 0.9
    assert first.pixels.dtype == np.float32
    assert set(drawn) == {"background", "relative_noise", "poisson"}
    assert 0 <= drawn["relative_noise"] <= 0.5
    assert 1e5 <= drawn["poisson"] <= 1e7


def test_dose_is_drawn_by_its_logarithm():
    image = point(30, 30)
    doses = [detect(image, [{"poisson": [1e2, 1e6]}], 1, str(k))[1]["poisson"] for k in range(400)]
    assert np.median(np.log10(doses)) == pytest.approx(4, abs=0.25)


def test_parameter_zero_changes_nothing():
    image = Image(rng().random((21, 21)).astype(np.float32), PIXEL, counted=True)
    for name, step in STEPS.items():
        if name != "poisson":
            np.testing.assert_allclose(step(image, 0, rng()).pixels, image.pixels, atol=1e-6)


def test_reference_has_the_point_spread_and_bins_alone():
    assert without_noise(STEPS_OF_ALL_KINDS) == [{"point_spread": 0.04}, {"bin": 3}]
