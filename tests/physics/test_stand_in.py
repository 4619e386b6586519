"""The stand-in for the experiment: its phonons, its spots and its course in time."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import phonopy
import pytest
from ase import Atoms
from ase.build import mx2
from ase.neighborlist import neighbor_list
from phonopy.structure.atoms import PhonopyAtoms
from scipy import constants

from diffractory.experiment.geometry import Grid
from diffractory.experiment.hot_phonons import displacements, read_supercell
from diffractory.experiment.stage import simulate_experiment
from diffractory.experiment.stand_in import (
    frames,
    multislice,
    on_detector,
    reference_image,
    simulate_frame,
)
from diffractory.store import InputError
from diffractory.store.images import ImageReader
from diffractory.store.provenance import sha256

A, REACH, STIFFNESS = 3.55, 4.0, 2.0  # angstrom, angstrom, eV/angstrom^2
SETTINGS = {
    "energy": 3e6,
    "cells": [6, 2],
    "configurations": 2,
    "frames": 5,
    "delays": [-2.0, 6.0],
    "temperature": [300.0, 400.0],
    "heating_time": 2.0,
    "amplitude": 0.2,
    "rise_time": 1.0,
    "decay_time": 30.0,
    "point_spread": 0.04,
    "drift": 0.002,
    "background": 0.3,
    "background_width": 0.5,
    "electrons": 1e7,
    "readout_noise": 2.0,
}
QUIET = SETTINGS | {
    "cells": [12, 6],
    "point_spread": 0.006,
    "background": 0.0,
    "electrons": 1e15,
    "readout_noise": 0.0,
}
GRID = Grid((261, 261), 0.01, 0.15)
SMALL = {"shape": [41, 41], "pixel_size": 0.065, "beam_stop": 0.15}


def bonds(atoms):
    """Return first and second atom and the direction of each spring."""
    first, second, vector = neighbor_list("ijD", atoms, REACH)
    return first, second, vector / np.linalg.norm(vector, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def phonons(tmp_path_factory):
    """Return phonopy's file of a layer whose neighbours are held by springs of one stiffness."""
    layer = mx2("MoTe2", kind="2H", a=A, thickness=3.6, vacuum=10)
    cell = PhonopyAtoms(
        layer.symbols, cell=layer.cell[:], scaled_positions=layer.get_scaled_positions()
    )
    model = phonopy.Phonopy(cell, np.diag([4, 4, 1]), primitive_matrix=np.eye(3), log_level=0)
    big = model.supercell
    atoms = Atoms(big.symbols, big.positions, cell=big.cell, pbc=True)
    springs = np.zeros((len(atoms), len(atoms), 3, 3))
    for i, j, direction in zip(*bonds(atoms), strict=True):
        spring = STIFFNESS * np.outer(direction, direction)
        springs[i, j] -= spring
        springs[i, i] += spring
    model.force_constants = springs
    path = tmp_path_factory.mktemp("phonons") / "2h.yaml"
    model.save(path, settings={"force_constants": True})
    return path


@cache
def sheet(phonons):
    return read_supercell(phonons, (12, 6))


def frame(**changes):
    """Return a frame of an almost still layer, without drift and background."""
    still = {"temperature": 1.0, "amplitude": 0.0, "beam": (0.0, 0.0), "background": 0.0}
    return replace(next(iter(frames(SETTINGS, 7))), **(still | changes))


def at(image, places, reach=2):
    """Return the sum of an image over squares about places q_x, q_y."""
    columns, rows = np.rint(places.T / GRID.pixel_size + 130).astype(int)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return image[rows[:, None, None] + y, columns[:, None, None] + x].sum(dtype=float)


def points(*fractions, least=0.35, most=1.1):
    """Return Bragg spots plus offsets in units of the orthogonal reciprocal cell, 1/angstrom."""
    h, k = np.mgrid[-4:5, -7:8].reshape(2, -1)
    bragg = np.column_stack([h, k])[(h + k) % 2 == 0]
    all_points = np.concatenate([bragg + f for f in np.array(fractions)]) / [A, np.sqrt(3) * A]
    q = np.hypot(*all_points.T)
    return all_points[(q > least) & (q < most)]


M = [(0.5, 0.5), (0, 1), (0.5, -0.5)]
K = [(2 / 3, 0), (-2 / 3, 0)]
ELSEWHERE = [(1 / 4, 1 / 3), (-1 / 4, 1 / 3)]  # no sum of vectors M and K


def test_the_sheet_has_the_crystal_s_neighbours_and_all_its_modes(phonons):
    found = sheet(phonons)
    assert found.atoms.get_chemical_formula() == "Mo144Te288"
    first, _, _ = bonds(found.atoms)
    # Of each Mo 6 Te and 6 Mo, of each Te 3 Mo, 6 Te beside and 1 Te across the layer.
    counts = np.bincount(first, minlength=432)
    assert set(counts[found.atoms.symbols == "Mo"]) == {12}
    assert set(counts[found.atoms.symbols == "Te"]) == {10}
    assert len(found.frequencies) == 3 * 432 - 3  # all but uniform motion
    assert found.hot.sum() == 5 * 9


def test_each_mode_has_half_k_t_of_energy_in_the_springs(phonons):
    found = sheet(phonons)
    first, second, direction = bonds(found.atoms)
    rng, temperature, energy = np.random.default_rng(3), 3000.0, []
    for _ in range(40):
        u = displacements(found, temperature, 0.0, rng)
        stretch = np.einsum("bi,bi->b", u[second] - u[first], direction)
        energy.append(0.5 * STIFFNESS * (stretch**2).sum() / 2)  # each spring is met twice
    expected = len(found.frequencies) * constants.k * temperature / constants.e / 2
    assert np.mean(energy) == pytest.approx(expected, rel=0.02)


def test_the_amplitude_is_the_rms_displacement_that_m_and_k_add(phonons):
    found = sheet(phonons)
    with_hot, without = (
        [displacements(found, 1.0, a, np.random.default_rng(n)) for n in range(60)]
        for a in (0.2, 0.0)
    )
    added = np.array(with_hot) - np.array(without)
    assert np.sqrt((added**2).sum(axis=2).mean()) == pytest.approx(0.2, rel=0.05)


def test_bragg_spots_are_where_the_lattice_puts_them(phonons):
    image = reference_image(phonons, QUIET | {"point_spread": 0.02}, GRID)
    for qx, qy in points((0, 0), least=0.2, most=1.0):
        row, column = qy / 0.01 + 130, qx / 0.01 + 130
        r, c = round(row), round(column)
        part = image[r - 6 : r + 7, c - 6 : c + 7].astype(float)
        y, x = np.mgrid[r - 6 : r + 7, c - 6 : c + 7]
        assert (part * y).sum() / part.sum() == pytest.approx(row, abs=0.5)
        assert (part * x).sum() / part.sum() == pytest.approx(column, abs=0.5)
    on_spots = at(image, points((0, 0), least=0.2, most=1.2), reach=6)
    assert on_spots > 0.7 * image.sum()


def pairs(atoms):
    """Return the largest difference of the spots q and -q, relative to the brightest spot."""
    intensity, _, _ = multislice(atoms, 3e6, 1.84)
    intensity[0, 0] = 0
    opposite = np.roll(intensity[::-1, ::-1], (1, 1), axis=(0, 1))
    return abs(intensity - opposite).max() / intensity.max()


def test_friedel_s_law_holds_but_for_what_is_scattered_twice(phonons):
    # Boron nitride has no inversion either, and scatters weakly.
    light = Atoms("BNBN", cell=[2.5, 2.5 * np.sqrt(3), 4], pbc=True)
    light.set_scaled_positions([(0, 0, 0.5), (0, 1 / 3, 0.5), (0.5, 0.5, 0.5), (0.5, 5 / 6, 0.5)])
    assert pairs(light) < 0.03
    assert 0.1 < pairs(sheet(phonons).atoms) < 0.5


def test_the_image_of_atoms_at_rest_has_the_mirror_plane_of_the_layer(phonons):
    image = reference_image(phonons, QUIET, GRID)
    assert image[130, 130] == 0
    assert abs(image - image[:, ::-1]).max() < 1e-3 * image.max()
    assert image[GRID.lit].mean() == pytest.approx(1, abs=1e-5)


def test_almost_all_of_the_beam_goes_through_a_layer(phonons):
    intensity, qx, qy = multislice(sheet(phonons).atoms, 3e6, 1.84)
    assert intensity[0, 0] == pytest.approx(0.985, abs=0.01)
    assert intensity.sum() == pytest.approx(1, abs=2e-3)
    seen = on_detector((intensity, qx, qy), GRID, 0.04).sum()
    assert 0.3 * (1 - intensity[0, 0]) < seen < 1 - intensity[0, 0]


def test_spots_at_m_and_k_come_after_the_pump_and_no_others(phonons):
    before, after = (
        simulate_frame(frame(amplitude=a), phonons, QUIET, GRID, 7) for a in (0.0, 0.15)
    )
    for star in (M, K):
        assert at(after, points(*star)) > 8 * at(before, points(*star))
    elsewhere = points(*ELSEWHERE)
    assert at(after, elsewhere, 1) == pytest.approx(at(before, elsewhere, 1), rel=0.3)
    assert at(after, points((0, 0))) < at(before, points((0, 0)))


def test_heat_weakens_bragg_spots_the_more_the_farther_out(phonons):
    cold, hot = (
        simulate_frame(frame(temperature=t), phonons, QUIET, GRID, 7) for t in (100.0, 600.0)
    )
    inner, outer = (
        at(hot, points((0, 0), least=low, most=high))
        / at(cold, points((0, 0), least=low, most=high))
        for low, high in ((0.2, 0.4), (0.8, 1.2))
    )
    assert outer < 0.95 * inner
    assert at(hot, points(*ELSEWHERE)) > 1.5 * at(cold, points(*ELSEWHERE))


def test_a_moved_beam_moves_the_spots_but_not_the_beam_stop(phonons):
    image = simulate_frame(frame(beam=(0.06, -0.05)), phonons, QUIET, GRID, 7)
    moved = points((0, 0)) + np.array([0.06, -0.05])
    assert at(image, moved) > 20 * at(image, points((0, 0)))
    assert not image[~GRID.lit].any()


def test_the_course_of_a_scan():
    series = [f for f in frames(SETTINGS | {"frames": 9}, 7) if f.scan == 0]
    assert [f.time for f in series] == [-2, -1, 0, 1, 2, 3, 4, 5, 6]
    assert [f.kind for f in series] == ["pristine_2h"] * 3 + ["phonons_2h"] * 6
    assert [f.split for f in series] == ["train"] * 4 + ["validation"] + ["train"] * 4
    assert all(f.temperature == 300 and f.amplitude == 0 for f in series[:3])
    assert series[4].temperature == pytest.approx(300 + 100 * (1 - np.exp(-1)))
    assert series[3].amplitude == pytest.approx(0.2 * (1 - np.exp(-1)) * np.exp(-1 / 30))
    assert series[8].amplitude == pytest.approx(0.2 * (1 - np.exp(-6)) * np.exp(-6 / 30))
    assert {f.split for f in frames(SETTINGS, 7) if f.scan == 1} == {"test"}


def make(folder, phonons, threads, **changes):
    store, samples, run = (
        folder / f"experiment{end}" for end in ("", ".samples.parquet", ".run.json")
    )
    simulate_experiment(phonons, store, samples, run, SETTINGS | changes, SMALL, 7, threads)
    return store, samples, run


def test_the_stage_writes_the_same_bytes_with_one_and_with_two_processes(tmp_path, phonons):
    one, two = (make(tmp_path / str(n), phonons, n) for n in (1, 2))
    assert [sha256(path) for path in one[:2]] == [sha256(path) for path in two[:2]]
    reader, table = ImageReader(one[0]), pd.read_parquet(one[1])
    images = reader.read(np.arange(10))
    assert images.shape == (10, 41, 41)
    assert (reader.pixel_size, reader.beam_stop) == (0.065, 0.15)
    lit = Grid((41, 41), 0.065, 0.15).lit
    np.testing.assert_allclose(images[:, lit].mean(axis=1), 1, atol=1e-3)
    assert not images[:, ~lit].any()
    assert not np.array_equal(images[1], images[6])  # the same delay of the other scan
    assert list(table["time"]) == [-2, 0, 2, 4, 6] * 2
    assert list(table["scan"]) == [0] * 5 + [1] * 5
    assert table["sample"].is_unique
    assert table["sample"][9] == "test/phonons_2h/9"
    drawn = [json.loads(text) for text in table["drawn"]]
    assert all(d["stand_in"] and len(d["beam"]) == 2 for d in drawn)
    assert json.loads(one[2].read_text())["facts"] == {"frames": 10, "stand_in": True}


def test_noise_is_that_of_the_electrons(phonons):
    clear, noisy = (
        simulate_frame(frame(), phonons, SETTINGS | {"electrons": n, "readout_noise": 0.0}, GRID, 7)
        for n in (1e14, 1e6)
    )
    expected = clear[GRID.lit].astype(float)
    scale = 1e6 / GRID.lit.sum()  # electrons in a pixel of value 1
    residual = (noisy[GRID.lit] - expected) * np.sqrt(scale)
    bright = expected > 0.5
    assert (residual[bright] ** 2 / expected[bright]).mean() == pytest.approx(1, abs=0.05)


def test_frames_that_differ_in_name_alone_have_other_atoms_and_other_noise(phonons):
    moved = {"temperature": 300.0, "amplitude": 0.1}
    for settings in (SETTINGS, SETTINGS | {"electrons": 1e15, "readout_noise": 0.0}):
        one, other, same = (
            simulate_frame(frame(sample=name, **moved), phonons, settings, GRID, 7)
            for name in ("a", "b", "a")
        )
        np.testing.assert_array_equal(one, same)
        assert abs(one - other).max() > 0.05


@pytest.mark.parametrize("cells", [(10, 6), (12, 5)])
def test_cells_that_m_and_k_do_not_fit_into_are_refused(phonons, cells):
    with pytest.raises(InputError, match="multiples of 6 and of 2"):
        read_supercell(phonons, cells)


def test_files_that_are_no_phonons_of_a_hexagonal_layer_are_refused(tmp_path, phonons):
    broken = tmp_path / "broken.yaml"
    broken.write_text("nonsense: 1\n")
    with pytest.raises(InputError, match="not a file of phonopy"):
        read_supercell(broken, (12, 6))
    with pytest.raises(InputError, match="not a file of phonopy"):
        read_supercell(tmp_path / "missing.yaml", (12, 6))
    cell = PhonopyAtoms(["Mo", "Te"], cell=np.diag([4, 5, 20]), positions=[[0, 0, 0], [2, 2, 2]])
    model = phonopy.Phonopy(cell, np.eye(3, dtype=int), primitive_matrix=np.eye(3), log_level=0)
    model.save(tmp_path / "bare.yaml")
    with pytest.raises(InputError, match="not a file of phonopy with force constants"):
        read_supercell(tmp_path / "bare.yaml", (12, 6))
    model.force_constants = np.zeros((2, 2, 3, 3))
    model.save(tmp_path / "square.yaml", settings={"force_constants": True})
    with pytest.raises(InputError, match="hexagonal"):
        read_supercell(tmp_path / "square.yaml", (12, 6))
