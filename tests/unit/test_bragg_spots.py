"""Bragg spots of frames whose spots are known."""

import re

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from diffractory.experiment.bragg_spots import Detection, Probe, disk_probe, find_spots
from diffractory.simulate.images import Detector, render_images
from diffractory.store import InputError, Patterns

SIDE, RADIUS = 128, 1.6
"""Pixels of the detector, and of the disks."""

SHARP = disk_probe(RADIUS, 0.2)
ROWS, COLUMNS = np.indices((SIDE, SIDE))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Keep to one thread: those of Numba and PyTorch wait for each other where cores are few."""
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def drawn(spots, radius=RADIUS, side=SIDE):
    """Return the frames of lists of spots (row, column, intensity), shape (n, side, side)."""
    flat = np.concatenate([np.reshape(s, (-1, 3)) for s in spots]).astype(np.float32)
    n, middle = len(spots), (side - 1) / 2
    patterns = Patterns(
        offsets=np.cumsum([0, *map(len, spots)]),
        qy=(flat[:, 0] - middle) * 0.01,
        qx=(flat[:, 1] - middle) * 0.01,
        intensity=flat[:, 2],
        hkl=np.zeros((len(flat), 3), dtype=np.int16),
        material_id=np.full(n, "a", dtype=object),
        zone_axis=np.zeros((n, 3), dtype=np.int16),
        orientation=np.tile(np.eye(3), (n, 1, 1)),
        thickness=np.full(n, 100, dtype=np.float32),
        energy=np.full(n, 2e5, dtype=np.float32),
    )
    return render_images(patterns, Detector((side, side), 0.01, "disk", radius * 0.01))


def lattices(count, radius=RADIUS, side=SIDE, seed=0):
    """Return the spots of as many lattices, the direct beam first: most are below 1 %."""
    rng = np.random.default_rng(seed)
    spots = []
    for _ in range(count):
        length, angle = rng.uniform(6, 9, 2) * radius, rng.uniform(1.2, 1.9)
        turn = rng.uniform(0, np.pi)
        a, b = (
            r * np.array([np.sin(t), np.cos(t)])
            for r, t in zip(length, (turn, turn + angle), strict=True)
        )
        steps = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 2), axis=-1).reshape(-1, 2)
        steps = steps[steps.any(axis=1)]
        place = steps @ [a, b] + (side - 1) / 2
        place = place[(abs(place - side / 2) < side / 2 - 2 * radius - 2).all(axis=1)]
        weight = np.exp(rng.normal(0, 1.5, len(place)))
        direct = [[(side - 1) / 2, (side - 1) / 2, 0.4]]
        spots.append(np.vstack([direct, np.column_stack([place, 0.6 * weight / weight.sum()])]))
    return spots


def exposed(mean, dose, halo=0.1, seed=0):
    """Return what a counting camera reads, a share of the electrons in a halo."""
    q = np.hypot(*(np.indices(mean.shape[1:]) - (mean.shape[-1] - 1) / 2))
    smooth = np.exp(-q / 20) + 0.5 * np.exp(-(((q - 36) / 10) ** 2)) + 0.02
    mean = (1 - halo) * mean + halo * smooth / smooth.sum()
    return np.random.default_rng(seed).poisson(dose * mean).astype(np.float32)


def of_frame(found, i):
    """Return row, column and intensity of the spots of a frame, shape (S, 3)."""
    which = slice(found.offsets[i], found.offsets[i + 1])
    return np.column_stack([found.row[which], found.column[which], found.intensity[which]])


def compared(found, spots, least=0.01, radius=RADIUS):
    """Return recall of the spots above an intensity, precision, and errors, (matched, 2) pixels."""
    seen, wanted, right, errors = 0, 0, 0, []
    for i, true in enumerate(spots):
        said = of_frame(found, i)
        wanted += (true[:, 2] > least).sum()
        if len(said):
            distance, nearest = cKDTree(true[:, :2]).query(said[:, :2])
            good = distance < max(1.0, radius)
            right += good.sum()
            strong = good & (true[nearest, 2] > least)
            seen += len(set(nearest[strong]))
            errors.append((said[:, :2] - true[nearest, :2])[strong])
    return seen / wanted, right / max(1, len(found.row)), np.concatenate(errors)


@pytest.mark.parametrize(
    ("dose", "recall", "error"), [(1e3, 0.95, 0.2), (1e4, 0.99, 0.07), (1e5, 0.99, 0.03)]
)
def test_spots_of_known_places_are_found(dose, recall, error):
    spots = lattices(40)
    found = find_spots(exposed(drawn(spots), dose), SHARP, Detection())
    seen, precision, errors = compared(found, spots)
    assert seen >= recall
    assert precision >= 0.97
    assert np.sqrt((errors**2).mean()) <= error  # along an axis
    assert abs(errors.mean(axis=0)).max() <= 0.25 * error  # and on no side


def test_intensities_are_those_of_the_disks_without_what_is_under_them():
    spots = lattices(20)
    found = find_spots(exposed(drawn(spots), 1e6, halo=0.2), SHARP, Detection())
    ratios = []
    for i, true in enumerate(spots):
        said = of_frame(found, i)
        distance, nearest = cKDTree(said[:, :2]).query(true[:, :2])
        good = (true[:, 2] > 0.01) & (distance < 0.5)
        ratios.append(said[nearest[good], 2] / (0.8e6 * true[good, 2]))
    ratios = np.concatenate(ratios)
    assert len(ratios) > 100
    assert ratios.mean() == pytest.approx(1, abs=0.02)
    assert ratios.std() < 0.05


@pytest.mark.parametrize("gain", [1e-3, 37.0])
def test_the_unit_of_a_camera_changes_nothing(gain):
    frames = exposed(drawn(lattices(5)), 1e3)
    plain, scaled = (find_spots(f, SHARP, Detection()) for f in (frames, gain * frames))
    np.testing.assert_array_equal(scaled.offsets, plain.offsets)
    np.testing.assert_allclose(scaled.row, plain.row, atol=1e-2)
    np.testing.assert_allclose(scaled.column, plain.column, atol=1e-2)
    np.testing.assert_allclose(scaled.intensity, gain * plain.intensity, rtol=1e-3)


def test_noise_of_the_camera_makes_no_spots():
    spots, rng = lattices(20), np.random.default_rng(1)
    frames = exposed(drawn(spots), 1e4)
    frames += rng.normal(0, 0.3, frames.shape).astype(np.float32)
    seen, precision, _ = compared(find_spots(frames, SHARP, Detection()), spots)
    assert seen >= 0.97
    assert precision >= 0.95


def test_a_halo_without_spots_has_none():
    frames = exposed(np.zeros((20, SIDE, SIDE)), 1e4, halo=1.0)
    assert len(find_spots(frames, SHARP, Detection()).row) <= 10


def test_a_faint_disk_is_placed_better_than_by_its_centroid():
    radius, electrons, rng = 5.0, 20, np.random.default_rng(0)
    spots = [np.array([[*rng.uniform(30, 34, 2), 1.0]]) for _ in range(100)]
    frames = exposed(drawn(spots, radius, 64), electrons, halo=0.0)
    seen, _, errors = compared(
        find_spots(frames, disk_probe(radius), Detection()), spots, 0, radius
    )
    assert seen == 1
    centroid = radius / 2 / electrons**0.5  # deviation of a disk along an axis: radius / 2
    assert np.sqrt((errors**2).mean()) < 0.8 * centroid


@settings(max_examples=20, deadline=None)
@given(
    radius=st.floats(1, 10),
    shift=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_a_shifted_frame_has_shifted_spots(radius, shift):
    side = 160
    grid = np.array([(i, j) for i in (35, 78, 121) for j in (36, 80, 124)], dtype=float)
    spots = np.column_stack([grid, 0.01 * 1.5 ** np.arange(9)])
    frames = drawn([spots, spots + np.array([*shift, 0])], radius, side)
    found = find_spots(1e4 * frames, disk_probe(radius), Detection())
    first, second = of_frame(found, 0), of_frame(found, 1)
    assert len(first) == len(second) == 9
    np.testing.assert_allclose(first[:, :2], spots[::-1, :2], atol=0.1)
    np.testing.assert_allclose(second[:, :2], spots[::-1, :2] + np.array(shift), atol=0.1)
    np.testing.assert_allclose(second[:, 2], 1e4 * spots[::-1, 2], rtol=0.05)


def test_frames_do_not_change_each_other():
    frames = exposed(drawn(lattices(67)), 1e3)
    together = find_spots(frames, SHARP, Detection())
    for i in (0, 63, 64, 66):
        alone = of_frame(find_spots(frames[i : i + 1], SHARP, Detection()), 0)
        np.testing.assert_allclose(alone, of_frame(together, i), rtol=1e-4, atol=1e-3)


def test_threads_share_frames_and_change_nothing():
    frames = exposed(drawn(lattices(10)), 1e3)
    alone = find_spots(frames, SHARP, Detection())
    torch.set_num_threads(3)
    together = find_spots(frames, SHARP, Detection())
    after = torch.get_num_threads()
    torch.set_num_threads(1)
    assert after == 3
    for values, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-3)


def test_the_brightest_come_first_and_no_more_than_asked_for():
    frames = exposed(drawn(lattices(3)), 1e5)
    every = find_spots(frames, SHARP, Detection())
    few = find_spots(frames, SHARP, Detection(max_spots=5))
    np.testing.assert_array_equal(few.offsets, [0, 5, 10, 15])
    for i in range(3):
        np.testing.assert_array_equal(of_frame(few, i), of_frame(every, i)[:5])
        assert (np.diff(of_frame(every, i)[:, 2]) <= 0).all()


def test_the_least_intensity_is_of_the_total():
    frames = exposed(drawn(lattices(3)), 1e5)
    found = find_spots(frames, SHARP, Detection(min_intensity=0.01))
    for i, frame in enumerate(frames):
        assert 0 < of_frame(found, i)[-1, 2] / frame.sum() < 0.02
        assert of_frame(found, i)[-1, 2] >= 0.01 * frame.sum()


def test_masked_pixels_are_never_spots():
    spots = lattices(10)
    frames, rng = exposed(drawn(spots), 1e3), np.random.default_rng(2)
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[rng.integers(0, SIDE, 40), rng.integers(0, SIDE, 40)] = False
    clean = find_spots(frames, SHARP, Detection(), mask)
    hot = find_spots(np.where(mask, frames, 6e4).astype(np.float32), SHARP, Detection(), mask)
    bad = find_spots(np.where(mask, frames, np.nan).astype(np.float32), SHARP, Detection())
    infinite = find_spots(np.where(mask, frames, np.inf).astype(np.float32), SHARP, Detection())
    assert len(clean.row) > 50
    for other in (hot, bad, infinite):
        for values, expected in zip(other, clean, strict=True):
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-3)


def test_a_beam_stop_hides_the_direct_beam_and_makes_nothing():
    spots = lattices(20)
    frames = exposed(drawn(spots), 1e4)
    mask = np.hypot(ROWS - (SIDE - 1) / 2, COLUMNS - (SIDE - 1) / 2) > 7
    found = find_spots(frames * mask, SHARP, Detection(), mask)
    for i in range(20):
        distance = np.hypot(*(of_frame(found, i)[:, :2] - (SIDE - 1) / 2).T)
        assert (distance > 7 - RADIUS).all()
    outside = [s[np.hypot(*(s[:, :2] - (SIDE - 1) / 2).T) > 7 + RADIUS] for s in spots]
    seen, precision, _ = compared(found, outside)
    assert seen >= 0.97
    assert precision >= 0.9  # what is partly hidden is right too


@pytest.mark.parametrize(("first_hidden", "seen"), [(66, True), (65, True), (62, False)])
def test_a_spot_at_a_gap_counts_for_the_whole_or_not_at_all(first_hidden, seen):
    """Of a disk about row 64.2, with a radius of 4, 0.26, 0.40 and 0.80 are hidden."""
    frames = 2e4 * drawn([[(64.2, 40.3, 0.5), (20.0, 90.0, 0.5)]], 4.0)
    mask = first_hidden > ROWS
    found = of_frame(find_spots(frames * mask, disk_probe(4.0, 0.2), Detection(), mask), 0)
    near = np.hypot(found[:, 0] - 64.2, found[:, 1] - 40.3) < 4
    assert len(found) == 1 + seen
    assert near.any() == seen
    if seen:
        np.testing.assert_allclose(found[near, :2], [[64.2, 40.3]], atol=0.3)
        np.testing.assert_allclose(found[near, 2], 1e4, rtol=0.15)


def test_disks_that_overlap_are_told_apart():
    spots = np.array([(60, 60, 0.37), (60, 71, 0.33), (71, 60, 0.3)])
    probe = disk_probe(6.0, 0.2)
    found = of_frame(find_spots(exposed(drawn([spots], 6.0), 1e5, 0), probe, Detection()), 0)
    np.testing.assert_allclose(found[:, :2], spots[:, :2], atol=0.1)
    np.testing.assert_allclose(found[:, 2] / 1e5, spots[:, 2], rtol=0.03)


@pytest.mark.parametrize("dose", [1e3, 1e5, 1e7])
def test_the_tail_of_the_direct_beam_is_no_spot(dose):
    beam = drawn([[(63.3, 62.8, 1.0)]])[0]
    seen = 0.9 * ndimage.gaussian_filter(beam, 0.7) + 0.1 * ndimage.gaussian_filter(beam, 4)
    frames = exposed(np.stack([seen] * 5), dose, halo=0.05)
    found = find_spots(frames, disk_probe(RADIUS), Detection())
    assert len(found.row) <= 8  # 5 of them are the beam
    for i in range(5):
        np.testing.assert_allclose(of_frame(found, i)[0, :2], [63.3, 62.8], atol=0.15)


def test_counts_beyond_16_bit_add_up():
    frames = 4e6 * drawn([[(63.0, 63.0, 0.9), (30.0, 30.0, 0.1)]])
    assert frames.max() > 2**16
    found = of_frame(find_spots(np.rint(frames), SHARP, Detection()), 0)
    np.testing.assert_allclose(found[:, 2], [3.6e6, 4e5], rtol=0.01)


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0, np.nan])
def test_frames_without_anything_have_no_spots(value):
    frames = np.full((3, 40, 50), value, dtype=np.float32)
    found = find_spots(frames, SHARP, Detection())
    np.testing.assert_array_equal(found.offsets, 0)
    assert len(found.row) == len(found.column) == len(found.intensity) == 0
    nothing = find_spots(frames, SHARP, Detection(), np.zeros((40, 50), dtype=bool))
    assert len(nothing.row) == 0


def test_no_frames_have_no_spots():
    found = find_spots(np.zeros((0, 40, 50), dtype=np.float32), SHARP, Detection())
    np.testing.assert_array_equal(found.offsets, [0])
    assert found.row.dtype == found.intensity.dtype == np.float32
    assert found.offsets.dtype == np.int64


@pytest.mark.parametrize("radius", [1.0, 2.5, 10.0])
@pytest.mark.parametrize("blur", [0.0, 0.5, 2.0])
def test_a_synthesized_probe_is_centred_and_as_large_as_asked_for(radius, blur):
    probe = disk_probe(radius, blur)
    along = np.arange(len(probe.kernel)) - len(probe.kernel) // 2
    assert probe.kernel.sum() == pytest.approx(1, abs=1e-5)
    assert abs((probe.kernel * along).sum()) < 1e-3
    assert abs((probe.kernel.T * along).sum()) < 1e-3
    # The variance of a disk is radius**2 / 4, and that of a pixel is 1 / 12.
    variance = (probe.kernel * along**2).sum()
    assert variance == pytest.approx(radius**2 / 4 + blur**2 + 1 / 12, abs=0.1, rel=0.03)


def test_a_probe_may_have_any_shape():
    """Three small disks, as of an aperture with three holes."""
    holes = np.array([(0.0, 4.0), (-3.0, -2.0), (3.0, -2.0)])
    beam = drawn([[(63 + i, 63 + j, 1 / 3) for i, j in holes]], 1.5, 127)[0]
    probe = Probe(beam[54:73, 54:73] / beam.sum(), 5.0)
    places = np.array([(40.0, 40.0), (80.4, 60.7), (50.0, 95.3)])
    spots = [(*(place + hole), 1 / 9) for place in places for hole in holes]
    found = of_frame(find_spots(exposed(drawn([spots], 1.5), 1e4), probe, Detection()), 0)
    assert len(found) == 3
    np.testing.assert_allclose(found[np.argsort(found[:, 1]), :2], places, atol=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(InputError, match="no device 'cuda'"):
        find_spots(np.zeros((1, 8, 8), dtype=np.float32), SHARP, Detection(), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same():
    frames = exposed(drawn(lattices(20)), 1e4)
    for here, there in zip(
        find_spots(frames, SHARP, Detection()),
        find_spots(frames, SHARP, Detection(), device="cuda"),
        strict=True,
    ):
        np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-2)


def test_shapes_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match=re.escape("(8, 8)")):
        find_spots(np.zeros((8, 8), dtype=np.float32), SHARP, Detection())
    with pytest.raises(InputError, match="mask of 7 x 8"):
        find_spots(
            np.zeros((1, 8, 8), dtype=np.float32), SHARP, Detection(), np.ones((7, 8), dtype=bool)
        )
    for radius, blur in ((0, 0.5), (-1, 0), (2, -0.1), (np.nan, 0)):
        with pytest.raises(InputError, match="radius above 0"):
            disk_probe(radius, blur)
