"""The stand-in for a scan of gold nanoparticles: its waves against abTEM, its spots, its frames."""

import json
from dataclasses import replace

import abtem
import numpy as np
import pandas as pd
import pytest
import torch
from ase import Atoms
from scipy.spatial import cKDTree

from diffractory.experiment.geometry import Grid
from diffractory.experiment.gold_scan import (
    GOLD_SLICE,
    amorphous_carbon,
    blocks_of,
    carbon_slices,
    simulate_block,
    simulate_scan,
)
from diffractory.experiment.nanoparticles import LATTICE_CONSTANT, decahedron, sphere
from diffractory.experiment.narrow_probe import Optics, Slices, cut_slices, patterns
from diffractory.experiment.scan import open_scan
from diffractory.experiment.stand_in import on_detector
from diffractory.simulate.orientations import rotations_along
from diffractory.store.provenance import sha256

SETTINGS = {
    "positions": [2, 10],
    "step": 10.0,
    "particles": 2,
    "diameter": [20.0, 24.0],
    "decahedra": 0.5,
    "facets": 0.5,
    "overlapping": 0.0,
    "carbon": 20.0,
    "debye_waller": 0.6,
    "energy": 2.0e5,
    "convergence": 1.0,
    "shape": [64, 64],
    "pixel_size": 0.03,
    "point_spread": 0.015,
    "electrons": 1.0e4,
    "readout_noise": 0.2,
}
CLEAR = SETTINGS | {"electrons": 1e9, "readout_noise": 0.0, "debye_waller": 0.0, "pixel_size": 0.02}
CLEAR |= {"positions": [1, 1], "shape": [96, 96], "point_spread": 0.01}


def along(axis, angle=0.0):
    """Return the rotation that turns an axis of the crystal into the beam."""
    return rotations_along(np.array([axis], dtype=float), np.array([angle]))[0]


def before_film(particle, x=0.0, y=0.0):
    lowest = particle.positions[:, 2].max() + 1
    return replace(particle, positions=particle.positions + np.array([x, y, -lowest]))


def vacuum(optics):
    return Slices(torch.ones(1, optics.points, optics.points, dtype=torch.complex64), 1.0)


def frames(particles, **changes):
    """Return the frames of a block of positions without film, fraction of the incident beam."""
    settings = CLEAR | changes
    optics = Optics.of(settings)
    block = next(blocks_of(settings, [before_film(p) for p in particles], optics, 7))
    return simulate_block(block, vacuum(optics), optics, settings, 7) / settings["electrons"]


def in_disk(frame, places, radius=0.04):
    """Return the intensity within a radius of places q_x, q_y, all in 1/angstrom."""
    rows, columns = Grid((96, 96), 0.02, 0.0).q
    near = [np.hypot(rows[:, None] - y, columns - x) < radius for x, y in places]
    return np.array([frame[disk].sum() for disk in near])


def around(q, count, first=0.0):
    angles = np.radians(first) + 2 * np.pi / count * np.arange(count)
    return q * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def abtem_patterns(atoms, side, points, probes, thickness):
    """Return what abTEM's own multislice makes of its own probes, shape (probes, q_y, q_x)."""
    with abtem.config.set({"fft": "numpy", "dask.lazy": False}):
        potential = abtem.Potential(
            Atoms(atoms, cell=[side, side, thickness]), gpts=points, slice_thickness=GOLD_SLICE
        )
        probe = abtem.Probe(energy=2e5, semiangle_cutoff=1.0, gpts=points, extent=side)
        incident = probe.build(lazy=False).array
        waves = probe.multislice(potential, scan=abtem.CustomScan(probes), lazy=False).array
    norm = (abs(np.fft.fft2(incident)) ** 2).sum()
    return abs(np.fft.fft2(waves).transpose(0, 2, 1)) ** 2 / norm


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Keep torch to a thread, as the stage does: the waves are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def turned_sphere():
    return before_film(sphere(36.0, along([1.1, 1.0, 0.05], 0.4)))


def test_in_one_box_the_patterns_are_those_of_abtem(turned_sphere):
    optics = Optics.of(CLEAR)
    atoms = Atoms(f"Au{len(turned_sphere.positions)}", turned_sphere.positions)
    atoms.positions += [optics.points // 2 * optics.sampling + 9, optics.width / 2, 40]
    atoms.cell = [optics.width, optics.width, 40]
    (ours,) = patterns([cut_slices(atoms, optics, GOLD_SLICE)], (1, 1), optics)
    middle = optics.points // 2 * optics.sampling
    theirs = abtem_patterns(atoms, optics.width, optics.points, [(middle, middle)], 40)
    _, q = optics.frequencies()
    assert theirs[0, q > 0.1].sum() > 0.2
    assert abs(ours - theirs).sum() < 0.01


def test_windows_show_what_probes_in_a_wide_box_show(turned_sphere):
    settings = CLEAR | {"positions": [1, 3], "step": 16.0}
    optics = Optics.of(settings)
    block = next(blocks_of(settings, [turned_sphere], optics, 7))
    ours = simulate_block(block, vacuum(optics), optics, settings, 7)[0] / 1e9
    points = 2 * optics.points
    side = points * optics.sampling
    atoms = Atoms(f"Au{len(turned_sphere.positions)}", turned_sphere.positions)
    atoms.positions += [side / 2 - 16, side / 2, 40]
    probes = [(side / 2 + x, side / 2) for x in (-16, 0, 16)]
    theirs = abtem_patterns(atoms, side, points, probes, 40)
    q = np.fft.fftfreq(points, optics.sampling)
    grid = Grid((96, 96), 0.02, 0.0)
    theirs = on_detector((theirs, q, q), grid, 0.01)
    diffracted = np.hypot(grid.q[0][:, None], grid.q[1]) > 0.1
    for mine, their in zip(ours, theirs, strict=True):
        # The last probe is beside the sphere, and meets it with its rings alone.
        assert abs(mine - their)[diffracted].sum() < 0.05 * their[diffracted].sum() + 0.002


def test_a_sphere_along_111_shows_the_hexagon_of_its_220_spots():
    frame = frames([sphere(40.0, along([1, 1, 1]))])[0, 0]
    q = np.sqrt(8) / LATTICE_CONSTANT
    found = [in_disk(frame, around(q, 6, first)) for first in np.arange(0, 60, 5)]
    best = int(np.argmax([spots.min() for spots in found]))
    assert found[best].min() > 20 * found[(best + 6) % 12].max()
    # None nearer to the beam, where a primitive hexagonal crystal would have them.
    inner = in_disk(frame, around(q / np.sqrt(3), 36))
    assert inner.max() < 0.05 * found[best].min()


def test_a_sphere_along_100_shows_the_square_of_its_200_spots_at_their_place():
    frame = frames([sphere(40.0, along([0, 0, 1], np.radians(20)))])[0, 0]
    q = 2 / LATTICE_CONSTANT
    assert in_disk(frame, around(q, 4, 20)).min() > 50 * in_disk(frame, around(q, 4, 65)).max()
    rows, columns = Grid((96, 96), 0.02, 0.0).q
    for x, y in around(q, 4, 20):
        part = np.where(np.hypot(rows[:, None] - y, columns - x) < 0.08, frame, 0)
        centre = (part * columns).sum() / part.sum(), (part * rows[:, None]).sum() / part.sum()
        assert np.hypot(centre[0] - x, centre[1] - y) < 0.005


def test_columns_of_the_detector_are_along_x_and_rows_along_y():
    # Of an axis turned by 20 degree about the beam the spots lie at +20, from +q_x to +q_y.
    turned = along([0, 0, 1], np.radians(20)) @ np.array([1, 0, 0])
    frame = frames([sphere(40.0, along([0, 0, 1], np.radians(20)))])[0, 0]
    there, mirrored = 2 / LATTICE_CONSTANT * np.array([turned[:2], turned[:2] * [1, -1]])
    assert in_disk(frame, [there])[0] > 50 * in_disk(frame, [mirrored])[0]


def test_a_decahedron_along_its_axis_shows_the_spots_of_five_twins():
    q = np.sqrt(3) / LATTICE_CONSTANT
    rotation = along([1, 1, 0])
    normal = (rotation @ np.array([1, -1, 1]))[:2]
    first = np.degrees(np.arctan2(normal[1], normal[0]))
    twinned = frames([decahedron(50.0, rotation)])[0, 0]
    single = frames([sphere(50.0, rotation)])[0, 0]
    # Neighbours share a plane: ten spots for five grains, four for one.
    assert in_disk(twinned, around(q, 10, first)).min() > 3e-3
    assert (in_disk(single, around(q, 10, first)) > 3e-3).sum() == 4


def test_the_film_repeats_and_keeps_its_atoms_apart():
    film = amorphous_carbon(40.0, 20.0, np.random.default_rng(3))
    grams = len(film) * 12.011 * 1.66054e-24
    assert grams / (40**2 * 20 * 1e-24) == pytest.approx(2.0, rel=1e-3)
    repeated = film.repeat((2, 2, 1)).positions
    distance, _ = cKDTree(repeated).query(repeated, k=2)
    assert distance[:, 1].min() >= 1.4


def test_matter_that_repeats_is_moved_as_a_whole():
    optics = Optics.of(SETTINGS)
    film = carbon_slices(SETTINGS, optics, 7)
    moved = film.moved(np.array([-5, 3]), (optics.points + 40, optics.points)).transmission
    rolled = film.transmission.roll((5, -3), (1, 2))
    assert torch.equal(moved[:, : optics.points], rolled)
    assert torch.equal(moved[:, optics.points :], rolled[:, :40])


def test_a_frame_does_not_depend_on_the_block_that_it_is_made_in():
    ball = sphere(30.0, along([3, 2, 1]))
    wide = {"convergence": 2.0, "point_spread": 0.02}  # its windows are small
    whole = frames([ball], positions=[2, 2], **wide)
    for row, column in np.ndindex(2, 2):
        moved = replace(ball, positions=ball.positions - [10.0 * column, 10.0 * row, 0])
        alone = frames([moved], **wide)[0, 0]
        assert abs(whole[row, column] - alone).sum() < 0.005


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Return the files of a small scan, by one process and by two."""
    made = []
    for threads in (1, 2):
        folder = tmp_path_factory.mktemp(f"threads_{threads}")
        paths = folder / "gold.zarr", folder / "gold.truth.parquet", folder / "gold.run.json"
        simulate_scan(*paths, SETTINGS, 7, threads)
        made.append(paths)
    return made


def test_the_stage_writes_the_same_bytes_with_one_and_with_two_processes(scans):
    one, two = scans
    assert [sha256(path) for path in one[:2]] == [sha256(path) for path in two[:2]]


def test_the_scan_says_how_it_was_taken(scans):
    scan = open_scan(scans[0][0])
    assert scan.shape == (2, 10, 64, 64)
    assert (scan.pixel_size, scan.energy, scan.step) == (0.03, 2e5, 10.0)
    assert json.loads(scans[0][2].read_text())["facts"] == {
        "particles": {"decahedron": 1, "sphere": 1},
        "positions": 20,
        "electrons_per_frame": 1e4,
        "stand_in": True,
    }


def test_the_truth_has_a_row_for_each_position_in_order(scans):
    table = pd.read_parquet(scans[0][1])
    assert list(table) == [
        "position", "row", "column", "particle", "kind", "overlap", "twinned", "zone_axis",
        "angle_111", "angle_100", "angle_110", "thickness",
    ]  # fmt: skip
    assert list(table["position"]) == list(range(20))
    np.testing.assert_array_equal(table["position"], table["row"] * 10 + table["column"])


def test_gold_scatters_where_the_truth_has_it(scans):
    table = pd.read_parquet(scans[0][1])
    images = open_scan(scans[0][0]).read(np.arange(20))
    q = (np.arange(64) - 31.5) * 0.03
    dark_field = images[:, np.hypot(q[:, None], q) > 0.1].sum(axis=1)
    gold, film = table["thickness"] > 5, table["thickness"] < 0.5
    assert gold.any()
    assert film.any()
    assert dark_field[gold].min() > 2 * dark_field[film].max()
    assert np.corrcoef(dark_field, table["thickness"])[0, 1] > 0.7


def test_noise_is_that_of_the_electrons_and_of_the_read_out():
    noisy = {"positions": [8, 8], "electrons": 2e4, "readout_noise": 3.0}
    noisy |= {"shape": [48, 48]}
    ball = sphere(20.0, np.eye(3))
    far = replace(ball, positions=ball.positions + np.array([500, 500, 0]))
    images = frames([far], **noisy).reshape(64, 48, 48) * 2e4
    assert images.sum(axis=(1, 2)).mean() == pytest.approx(2e4, rel=0.01)
    mean, variance = images.mean(axis=0), images.var(axis=0, ddof=1)
    disk = mean > 50
    # Whole numbers add a twelfth.
    assert variance[~disk].mean() == pytest.approx(9 + 1 / 12, rel=0.03)
    assert (variance[disk] / (mean[disk] + 9)).mean() == pytest.approx(1, abs=0.15)
