"""Preparing a scan: what a survey finds of it, and calibrated spots."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from diffractory.experiment.bragg_spots import Detection, FoundSpots, disk_probe, find_spots
from diffractory.experiment.preparing import Preparation, survey, to_spot_lists
from diffractory.experiment.scan import open_scan
from diffractory.simulate.images import Detector, render_images
from diffractory.store import InputError, Patterns

SIDE, PIXEL = 128, 0.02
"""Pixels of the detector, and 1/angstrom."""

DETECTION = Detection()


class Frames(NamedTuple):
    """Mean frames of sum 1, shape (n, SIDE, SIDE), and where their direct beams are, (n, 2)."""

    mean: np.ndarray
    centre: np.ndarray


def gold(rng):
    """Return spots of two grains of gold of any orientation: q_y, q_x (1/angstrom), height."""
    hkl = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3), axis=-1).reshape(-1, 3)
    hkl = hkl[(hkl % 2 == hkl[:, :1] % 2).all(axis=1) & hkl.any(axis=1)]
    turns = Rotation.random(2, random_state=rng.integers(2**31))
    g = np.concatenate([turn.apply(hkl / 4.078) for turn in turns])
    g = g[(abs(g[:, 2]) < 0.03) & (np.hypot(g[:, 0], g[:, 1]) < 1.1)]
    height = np.exp(-2 * (g**2).sum(axis=1) - (g[:, 2] / 0.02) ** 2)
    return np.column_stack([g[:, :2], height * rng.uniform(0.5, 1.5, len(g))])


def simulated(shape, radius=3.0, descan=0.0, ellipse=(0.0, 0.0), diffracted=0.3):
    """Return the frames of a scan, a tenth of the electrons in a halo.

    The direct beam drifts by about `descan` pixels from the middle of the scan to its edges.
    """
    rng = np.random.default_rng(0)
    v, u = (
        2 * i.ravel() / max(n - 1, 1) - 1 for i, n in zip(np.indices(shape), shape, strict=True)
    )
    shift = descan * np.stack([u + 0.2 * v * v, 0.7 * v - 0.4 * u], axis=1) + [1.3, -2.6]
    a, b = ellipse
    lists = []
    for row, column in shift:
        spots = gold(rng)
        spots[:, 2] *= diffracted / spots[:, 2].sum()
        spots = np.vstack([[0, 0, 1 - diffracted], spots])
        spots[:, :2] = spots[:, :2] @ [[1 - a, b], [b, 1 + a]] + PIXEL * np.array([row, column])
        lists.append(spots)
    qy, qx, intensity = np.concatenate(lists).astype(np.float32).T
    none = np.zeros(len(lists))
    offsets = np.cumsum([0, *map(len, lists)])
    patterns = Patterns(offsets, qx, qy, intensity, none, none, none, none, none, none)
    images = render_images(patterns, Detector((SIDE, SIDE), PIXEL, "disk", radius * PIXEL))
    centre = shift + (SIDE - 1) / 2
    y, x = np.indices((SIDE, SIDE))
    halo = np.exp(-np.hypot(y - centre[:, :1, None], x - centre[:, 1:, None]) / 25)
    images /= images.sum(axis=(1, 2), keepdims=True)
    return Frames(0.9 * images + 0.1 * halo / halo.sum(axis=(1, 2), keepdims=True), centre)


def counts(mean, electrons, seed=1):
    return np.random.default_rng(seed).poisson(electrons * mean).astype(np.float32)


def scan_of(folder, frames, shape):
    np.save(folder / "scan.npy", frames.reshape(*shape, SIDE, SIDE))
    return open_scan(folder / "scan.npy", pixel_size=PIXEL)


def misses(preparation, centre):
    """Return how far the drift model is from where direct beams are, pixels."""
    positions = np.arange(len(centre))
    return np.linalg.norm(preparation.centre(positions) - centre, axis=1)


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for each other are slow where other programs run."""
    simulated((1, 1))  # Numba sets the threads of all OpenMP programs when it starts
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("radius", "descan", "ellipse", "diffracted"),
    [(3.0, 12.0, (0.03, -0.02), 0.3), (1.5, 0.0, (0.0, 0.0), 0.3), (5.0, 5.0, (0.0, 0.0), 0.6)],
)
def test_a_survey_tells_how_a_scan_was_made(tmp_path, radius, descan, ellipse, diffracted):
    made = simulated((9, 10), radius, descan, ellipse, diffracted)
    frames = counts(made.mean, 3000)
    hot = np.array([[3, 100], [30, 110], [90, 20]])
    frames[:, hot[:, 0], hot[:, 1]] += np.random.default_rng(2).poisson(30, (len(frames), 3))
    found = survey(scan_of(tmp_path, frames, (9, 10)), DETECTION, rotation=7.0)
    assert found.probe.radius == pytest.approx(radius, abs=0.1)
    assert misses(found, made.centre).max() < 0.2
    assert sorted(map(tuple, np.argwhere(~found.mask))) == sorted(map(tuple, hot))
    a, b = ellipse
    rest = found.distortion @ [[1 - a, b], [b, 1 + a]]
    np.testing.assert_allclose(rest / np.sqrt(np.linalg.det(rest)), np.eye(2), atol=2e-3)
    assert (found.rotation, found.pixel_size, found.dark) == (7.0, PIXEL, 0.0)
    assert (found.saturated, found.beam_stop) == (False, False)


@pytest.mark.parametrize("descan", [0.0, 3.0])
def test_a_beam_stop_is_masked_and_the_direct_beam_found_behind_it(tmp_path, descan):
    made = simulated((7, 8), descan=descan)
    y, x = np.indices((SIDE, SIDE))
    stop = (np.hypot(y - 63, x - 63) < 11) | ((abs(x - 63) < 4) & (y > 63))
    scan = scan_of(tmp_path, counts(made.mean * ~stop, 10_000), (7, 8))
    found = survey(scan, DETECTION)
    assert found.beam_stop
    assert not found.mask[stop & (y < 90)].any()
    assert found.mask[(np.hypot(y - 63, x - 63) > 16) & (y < 63)].all()
    assert misses(found, made.centre).max() < 0.5
    assert found.probe.radius == pytest.approx(3, abs=0.2)


def test_a_clipped_direct_beam_is_told_and_still_centred(tmp_path):
    made = simulated((5, 6))
    frames = np.minimum(counts(made.mean, 10_000), 63)
    found = survey(scan_of(tmp_path, frames, (5, 6)), DETECTION)
    assert found.saturated
    assert misses(found, made.centre).max() < 0.15


def test_a_camera_with_gain_offset_and_noise_is_no_obstacle(tmp_path):
    made = simulated((5, 6))
    noise = np.random.default_rng(3).normal(200, 5, made.mean.shape)
    frames = (80 * counts(made.mean, 3000) + noise).astype(np.float32)
    found = survey(scan_of(tmp_path, frames, (5, 6)), DETECTION)
    assert found.dark == pytest.approx(200, abs=5)
    assert misses(found, made.centre).max() < 0.15
    assert found.mask.mean() > 0.999
    assert not found.saturated


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1)])
def test_a_single_frame_and_a_line_of_them_are_scans(tmp_path, shape):
    made = simulated(shape)
    found = survey(scan_of(tmp_path, counts(made.mean, 3000), shape), DETECTION)
    assert found.scan_shape == shape
    assert misses(found, made.centre).max() < 0.15
    assert found.mask.all()


def test_frames_that_are_empty_or_broken_are_passed_over(tmp_path):
    made = simulated((5, 6))
    frames = counts(made.mean, 3000)
    frames[::3] = 0
    frames[1] = np.nan
    frames[4, 100, 100] = np.inf
    found = survey(scan_of(tmp_path, frames, (5, 6)), DETECTION)
    assert misses(found, made.centre).max() < 0.15
    assert np.argwhere(~found.mask).tolist() == [[100, 100]]


def test_frames_without_a_specimen_show_the_probe(tmp_path):
    made = simulated((5, 6), radius=4.0)
    frames = counts(made.mean, 3000)
    vacuum = simulated((5, 6), radius=4.0, diffracted=0.0).mean[:6]
    frames[:6] = counts(vacuum, 3000)
    scan = scan_of(tmp_path, frames, (5, 6))
    probe = survey(scan, DETECTION, vacuum=np.arange(6)).probe
    assert probe.radius == pytest.approx(4, abs=0.1)
    assert probe.kernel.sum() == pytest.approx(1)
    for along in np.indices(probe.kernel.shape) - len(probe.kernel) // 2:
        assert (probe.kernel * along).sum() == pytest.approx(0, abs=0.05)
    drawn = disk_probe(4.0, 0.0).kernel
    edge = (len(probe.kernel) - len(drawn)) // 2
    assert (probe.kernel * np.pad(drawn, edge)).sum() > 0.9 * (drawn**2).sum()
    frames[:6] = 0
    scan = scan_of(tmp_path, frames, (5, 6))
    with pytest.raises(InputError, match="given as vacuum show no direct beam"):
        survey(scan, DETECTION, vacuum=np.arange(6))


def test_a_users_mask_is_joined_to_what_is_found(tmp_path):
    scan = scan_of(tmp_path, counts(simulated((3, 4)).mean, 3000), (3, 4))
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:, 100:] = False
    np.testing.assert_array_equal(survey(scan, DETECTION, mask=mask).mask, mask)


def test_what_cannot_be_prepared_is_said_in_a_sentence(tmp_path):
    scan = scan_of(tmp_path, np.zeros((6, SIDE, SIDE), dtype=np.float32), (2, 3))
    with pytest.raises(InputError, match=r"all of 6 frames looked at of .* are empty"):
        survey(scan, DETECTION)
    with pytest.raises(InputError, match="has no calibration"):
        survey(replace(scan, pixel_size=None), DETECTION)
    with pytest.raises(InputError, match=r"mask has shape \(3, 4\)"):
        survey(scan, DETECTION, mask=np.ones((3, 4), dtype=bool))
    scan = scan_of(tmp_path, np.ones((6, SIDE, SIDE), dtype=np.float32), (2, 3))
    with pytest.raises(InputError, match="found no spot in any of 6 frames"):
        survey(scan, DETECTION)


def prepared(distortion=(0.0, 0.0), rotation=0.0, **other):
    a, b = distortion
    values = {
        "scan_shape": (2, 3),
        "probe": disk_probe(2.0),
        "mask": np.ones((SIDE, SIDE), dtype=bool),
        "dark": 0.0,
        "drift": np.array([[64.0, 60.0], [2, 0], [0, 3], [0, 0], [0, 0], [0, 0]]),
        "distortion": np.array([[1 + a, b], [b, 1 - a]]),
        "rotation": rotation,
        "pixel_size": PIXEL,
        "saturated": False,
        "beam_stop": False,
    }
    return Preparation(**values | other)


def found_of(*frames):
    """Return found spots from lists of (row, column, intensity)."""
    flat = np.array([spot for spots in frames for spot in spots], dtype=np.float32).reshape(-1, 3)
    return FoundSpots(np.cumsum([0, *map(len, frames)]), *flat.T)


def test_spots_are_counted_from_the_direct_beam_of_their_frame():
    # By the model, direct beams are at rows 62 and 66, columns 57, 60 and 63.
    found = found_of(
        [(63, 56.5, 600), (63, 66.5, 50), (53, 56.5, 40)],
        [(70, 60, 30), (62, 65, 20)],  # the direct beam is not among them
        [],
        [(90, 90, 700), (66, 57.5, 500), (66.5, 58, 100)],
    )
    total = np.array([1000, 500, 0, 2000])
    spots = to_spot_lists(found, total, np.array([0, 1, 2, 3]), prepared())
    assert spots.offsets.tolist() == [0, 3, 5, 5, 8]
    np.testing.assert_allclose(spots.qx[:5], [0, 10 * PIXEL, 0, 0, 5 * PIXEL], atol=1e-7)
    np.testing.assert_allclose(spots.qy[:5], [0, 0, -10 * PIXEL, 8 * PIXEL, 0], atol=1e-7)
    np.testing.assert_allclose(spots.intensity[:5], [0.6, 0.05, 0.04, 0.06, 0.04])
    assert (spots.qx[6], spots.qy[6]) == (0, 0)
    assert all(values.dtype == np.float32 for values in spots[1:])


def test_a_hidden_direct_beam_is_where_the_model_has_it():
    found = found_of([(63, 57, 10), (72, 57, 30)])
    spots = to_spot_lists(found, np.array([100]), np.array([0]), prepared(beam_stop=True))
    np.testing.assert_allclose(spots.qy, [PIXEL, 10 * PIXEL], rtol=1e-6)


def test_frames_without_electrons_have_no_spots_and_the_camera_adds_none():
    found = found_of([(62, 57, 10)], [(62, 60, 10), (40, 40, -3)], [(62, 63, 10)])
    preparation = prepared(dark=2.0)
    total = 2.0 * SIDE**2 + np.array([0, 100, -5])
    spots = to_spot_lists(found, total, np.arange(3), preparation)
    assert spots.offsets.tolist() == [0, 0, 1, 1]
    assert spots.intensity.tolist() == pytest.approx([0.1])


@settings(max_examples=60, deadline=None)
@given(
    strain=st.tuples(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05)),
    rotation=st.floats(-180, 180),
    q=st.lists(st.tuples(*[st.floats(-0.8, 0.8)] * 2).filter(lambda q: np.hypot(*q) > 0.1)),
    position=st.integers(0, 5),
)
def test_spots_come_back_from_a_distorted_and_turned_detector(strain, rotation, q, position):
    preparation = prepared(strain, rotation)
    q = np.array([(0.0, 0.0), *q])  # of the map
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    x, y = cos * q[:, 0] + sin * q[:, 1], -sin * q[:, 0] + cos * q[:, 1]  # of the detector
    measured = np.linalg.solve(preparation.distortion, np.stack([y, x])) / PIXEL
    places = measured.T + preparation.centre(np.array([position])) + [0.4, -0.7]
    found = found_of([(*place, 1.0) for place in places])
    spots = to_spot_lists(found, np.array([10]), np.array([position]), preparation)
    np.testing.assert_allclose(np.stack([spots.qx, spots.qy], axis=1), q, atol=1e-5)


@pytest.mark.parametrize(("rotation", "qx", "qy"), [(0, 1, 0), (90, 0, 1), (180, -1, 0)])
def test_the_rotation_is_from_the_map_to_the_detector(rotation, qx, qy):
    found = found_of([(62, 57, 1), (62, 107, 1)])  # the second is along the columns
    spots = to_spot_lists(found, np.array([2]), np.array([0]), prepared(rotation=rotation))
    np.testing.assert_allclose([spots.qx[1], spots.qy[1]], [qx, qy], atol=1e-6)


def test_spots_of_a_whole_scan_are_those_of_gold(tmp_path):
    made = simulated((9, 10), 3.0, 8.0, (0.03, 0.0))
    scan = scan_of(tmp_path, counts(made.mean, 10_000), (9, 10))
    found = survey(scan, DETECTION)
    positions, frames = next(iter(scan.blocks()))
    spots = to_spot_lists(
        find_spots(frames, found.probe, DETECTION, found.mask),
        frames[:, found.mask].sum(axis=1),
        positions,
        found,
    )
    q = np.hypot(spots.qx, spots.qy)
    direct = q == 0
    assert np.count_nonzero(direct) == len(frames)
    assert spots.intensity[direct].mean() == pytest.approx(0.9 * 0.7, abs=0.03)
    ring = np.sqrt([3, 4, 8, 11, 12, 16, 19, 20]) / 4.078
    off = abs(q[~direct, None] - ring).min(axis=1)
    # Tilted grains have their spots nearer to the direct beam, by the cosine.
    assert np.median(off) < 0.15 * PIXEL
