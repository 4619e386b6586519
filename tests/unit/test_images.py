"""Images of spot lists: what falls where, and how much of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from diffractory.simulate.images import Detector, render_images
from diffractory.store import InputError, Patterns

SHAPE = (48, 65)
SPOTS = ["disk", "gaussian"]


def patterns_of(*spot_lists):
    """Return patterns from lists of (qx, qy, intensity)."""
    flat = np.array([s for spots in spot_lists for s in spots], dtype=np.float32).reshape(-1, 3)
    n = len(spot_lists)
    return Patterns(
        offsets=np.cumsum([0, *map(len, spot_lists)]),
        qx=flat[:, 0],
        qy=flat[:, 1],
        intensity=flat[:, 2],
        hkl=np.zeros((len(flat), 3), dtype=np.int16),
        material_id=np.full(n, "a", dtype=object),
        zone_axis=np.zeros((n, 3), dtype=np.int16),
        orientation=np.tile(np.eye(3), (n, 1, 1)),
        thickness=np.full(n, 100, dtype=np.float32),
        energy=np.full(n, 2e5, dtype=np.float32),
    )


@pytest.mark.parametrize("spot", SPOTS)
@settings(max_examples=60, deadline=None)
@given(
    qx=st.floats(-0.4, 0.4),
    qy=st.floats(-0.3, 0.3),
    radius=st.floats(0.001, 0.07),
    pixel=st.floats(0.03, 0.06),
)
def test_a_spot_keeps_its_intensity_and_place(spot, qx, qy, radius, pixel):
    image = render_images(patterns_of([(qx, qy, 0.25)]), Detector(SHAPE, pixel, spot, radius))[0]
    assert image.sum() == pytest.approx(0.25, rel=1e-4)
    rows, columns = np.indices(SHAPE)
    place = [(image * index).sum() / image.sum() for index in (rows, columns)]
    expected = [qy / pixel + (SHAPE[0] - 1) / 2, qx / pixel + (SHAPE[1] - 1) / 2]
    # The smaller a spot, the less its pixels tell where in them it is.
    tolerance = 0.05 if radius > 1.2 * pixel else 0.51
    np.testing.assert_allclose(place, expected, atol=tolerance)


@pytest.mark.parametrize("spot", SPOTS)
def test_columns_count_along_qx_and_rows_along_qy(spot):
    detector = Detector((41, 41), 0.05, spot, 0.06)
    right, up = render_images(patterns_of([(0.5, 0, 1)], [(0, 0.5, 1)]), detector)
    assert np.unravel_index(right.argmax(), right.shape) == (20, 30)
    assert np.unravel_index(up.argmax(), up.shape) == (30, 20)


def test_disk_covers_the_area_of_a_finely_sampled_one():
    radius, pixel, fine = 0.31, 0.05, 40
    image = render_images(
        patterns_of([(0.013, -0.021, 1.0)]), Detector((31, 31), pixel, "disk", radius)
    )
    axis = ((np.arange(31 * fine) + 0.5) / fine - 15.5) * pixel
    inside = np.hypot(axis[:, None] + 0.021, axis - 0.013) < radius
    expected = inside.reshape(31, fine, 31, fine).mean(axis=(1, 3))
    np.testing.assert_allclose(image[0], expected / expected.sum(), atol=3e-5)


@pytest.mark.parametrize("deviation", [0.004, 0.03, 0.1])
def test_gaussian_is_integrated_over_pixels(deviation):
    detector = Detector((31, 31), 0.05, "gaussian", deviation)
    image = render_images(patterns_of([(0.07, -0.11, 1.0)]), detector)[0]
    edges = (np.arange(32) - 15.5) * 0.05
    x, y = (np.diff(0.5 * (1 + erf((edges - q) / deviation / 2**0.5))) for q in (0.07, -0.11))
    np.testing.assert_allclose(image, y[:, None] * x, atol=1e-7)


@pytest.mark.parametrize("spot", SPOTS)
def test_images_add_up_and_do_not_depend_on_their_batch(spot):
    rng = np.random.default_rng(0)
    spots = [tuple(row) for row in rng.uniform(-1, 1, (30, 3)) * [1.2, 1.2, 0.5] + [0, 0, 0.5]]
    detector = Detector(SHAPE, 0.04, spot, 0.05)
    whole, none, part, rest = render_images(
        patterns_of(spots, [], spots[:11], spots[11:]), detector
    )
    assert not none.any()
    np.testing.assert_allclose(part + rest, whole, atol=1e-6)
    assert np.array_equal(render_images(patterns_of(spots), detector)[0], whole)
    shuffled = render_images(patterns_of(spots[::-1]), detector)[0]
    np.testing.assert_allclose(shuffled, whole, atol=1e-6)


@pytest.mark.parametrize("spot", SPOTS)
def test_spots_off_the_detector_leave_what_falls_on_it(spot):
    detector = Detector((21, 21), 0.1, spot, 0.3)
    edge, outside = render_images(patterns_of([(1.05, 0, 1)], [(9, -9, 1)]), detector)
    assert edge.sum() == pytest.approx(0.5, abs=1e-3)  # the last column ends at q_x = 1.05
    assert not outside.any()


def test_beam_stop_hides_the_middle_alone():
    spots = [(0, 0, 1.0), (0.5, 0.2, 0.5)]
    open_, stopped = (
        render_images(patterns_of(spots), Detector((61, 61), 0.03, "disk", 0.05, stop))[0]
        for stop in (0.0, 0.2)
    )
    distance = 0.03 * np.hypot(*(np.indices((61, 61)) - 30))
    assert not stopped[distance < 0.2].any()
    assert np.array_equal(stopped[distance >= 0.2], open_[distance >= 0.2])
    assert stopped.sum() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        ((0, 10), 0.1, "disk", 0.1),
        ((10, 10), 0.0, "disk", 0.1),
        ((10, 10), 0.1, "disk", -1.0),
        ((10, 10), 0.1, "disk", 0.1, -0.5),
        ((10, 10), 0.1, "square", 0.1),
    ],
)
def test_impossible_detectors_are_refused(wrong):
    with pytest.raises(InputError, match=r"detector needs|not as 'square'"):
        Detector(*wrong)
