"""Clouds of points: the grid, the file format of the DD2D study, and points that are refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.layers import layer_patterns
from diffractory.store import InputError
from diffractory.store.points import (
    check_points,
    from_points,
    from_sequence,
    grid_size,
    read_points,
    sequence,
    to_points,
    write_points,
)

Q_MAX, Q_STEP = 2.5, 5 / 201
needs_example = pytest.mark.skipif(
    "DIFFRACTORY_DATA" not in os.environ, reason="DIFFRACTORY_DATA is not set"
)


@pytest.fixture
def example():
    path = Path(os.environ["DIFFRACTORY_DATA"]) / "dd2d" / "example.json"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path


@needs_example
def test_example_is_written_as_it_was_read(example, tmp_path):
    write_points(tmp_path / "copy.json", *read_points(example))
    assert (tmp_path / "copy.json").read_text() == example.read_text()


@needs_example
def test_example_is_in_the_order_of_sequences(example):
    _, values = read_points(example)
    lattice, positions, numbers = from_sequence(values)
    assert numbers.tolist() == [15, 15]
    np.testing.assert_array_equal(sequence(lattice, positions[::-1], numbers), values)


@needs_example
def test_positions_of_the_example(example):
    """All its points are spots of its layer, turned by 0.03 degree, on our grid.

    Those past the end of the grid are wrapped to the other side.
    """
    points, values = read_points(example)
    (a, b, c, *_, gamma), positions, numbers = from_sequence(values)
    angle = np.radians(np.array([0, gamma]) - 0.03)
    cell = np.diag([1.0, 1.0, c])
    cell[:2, :2] = np.array([[a], [b]]) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    crystal = Crystal(cell, positions @ np.linalg.inv(cell), numbers)
    settings = {
        "radiation": "x_ray",
        "wavelength": 0.2,
        "debye_waller": 0.0,
        "q_max": 4.0,
        "min_intensity": 0.0,
        "max_points": 10_000,
    }
    pattern = layer_patterns(["example"], [crystal], settings)
    inside = (np.abs(pattern.hkl) <= 6).all(axis=1)
    wide = to_points(
        np.append(pattern.qx[inside], 0.0),
        np.append(pattern.qy[inside], 0.0),  # the direct beam is a point there
        np.ones(inside.sum() + 1),
        Q_MAX + 100 * Q_STEP,  # so that the middle is a half as well
        Q_STEP,
    )
    ours = (wide[:2] - 100) % 201
    assert set(map(tuple, points[:2].T)) <= set(map(tuple, ours.T))


def test_grid():
    assert grid_size(Q_MAX, Q_STEP) == 201
    q = np.array([0.0, 1e-8, -1e-8, 0.4 * Q_STEP, -0.4 * Q_STEP, 2.5, -2.5])
    row, column, log_intensity = to_points(q, -q, np.arange(1.0, 8.0), Q_MAX, Q_STEP)
    assert row.tolist() == [101, 101, 101, 101, 100, 200, 0]
    assert column.tolist() == [101, 101, 101, 100, 101, 0, 200]
    np.testing.assert_allclose(log_intensity, np.log(np.arange(1, 8) / 7))


def test_points_lead_back_to_the_pattern():
    rng = np.random.default_rng(1)
    q = rng.uniform(-2.45, 2.45, (2, 300))
    intensity = rng.uniform(1e-4, 3, 300)
    qx, qy, relative = from_points(to_points(*q, intensity, Q_MAX, Q_STEP), Q_MAX, Q_STEP)
    assert np.abs(np.stack([qx, qy]) - q).max() <= Q_STEP * 0.5001
    np.testing.assert_allclose(relative, intensity / intensity.max())
    again = to_points(qx, qy, relative, Q_MAX, Q_STEP)
    np.testing.assert_allclose(again, to_points(*q, intensity, Q_MAX, Q_STEP), atol=1e-12)


def test_atoms_are_ordered_by_number_then_distance_then_coordinates():
    near = 1 + 1e-9  # what rounding tells apart does not count
    positions = np.array(
        [(0, 0, 1), (0, 4, 1), (3, 0, 0), (1, 2, 2), (2, near, 2), (near, -2, 2), (0, 0, 0.5)]
    )
    numbers = np.array([42, 16, 16, 16, 16, 16, 42])
    lattice = [4.0, 5.0, 20.0, 90.0, 90.0, 100.0]
    values = sequence(lattice, positions, numbers)
    assert values[:6].tolist() == lattice
    expected = [5, 3, 4, 2, 1, 6, 0]
    np.testing.assert_array_equal(
        values[6:].reshape(-1, 4), np.column_stack([positions, numbers])[expected]
    )
    for order in ([6, 5, 4, 3, 2, 1, 0], [2, 0, 6, 4, 1, 3, 5]):
        np.testing.assert_array_equal(sequence(lattice, positions[order], numbers[order]), values)
    same_lattice, places, same_numbers = from_sequence(values)
    np.testing.assert_array_equal(sequence(same_lattice, places, same_numbers), values)


def test_a_layer_too_large_for_the_format(tmp_path):
    atoms = np.ones((41, 3))
    values = sequence(np.ones(6), atoms, np.ones(41, dtype=int))
    with pytest.raises(InputError, match=r"large\.json has room for 40 atoms, not 41"):
        write_points(tmp_path / "large.json", np.ones((3, 5)), values)
    write_points(tmp_path / "fits.json", np.ones((3, 5)), values[:-4])
    np.testing.assert_array_equal(read_points(tmp_path / "fits.json")[1], values[:-4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"seq": []}', "cannot be read .*X"),
        ('{"X": [[1], [2], [3]], "seq": ["1", "1", "1", "1", "1", "1", "1"]}', "7 numbers in seq"),
        ("[1]", "cannot be read"),
        ('{"X": [[1], [2], [3, 4]], "seq": []}', "cannot be read"),
        ('{"X": [[1], [2]], "seq": ["1"]}', "three lists"),
        ('{"X": [[1], [2], [3]], "seq": ["a"]}', "cannot be read"),
        ('{"X": [[1], [2], [3]], "seq": ["1", "1"]}', "2 numbers in seq"),
    ],
)
def test_files_that_are_not_of_the_format(content, message, tmp_path):
    path = tmp_path / "pattern.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"pattern.json .*{message}"):
        read_points(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.json cannot be read"):
        read_points(tmp_path / "nothing.json")


@pytest.mark.parametrize("layer", [{}, {"seq": [""] * 166}])
def test_a_pattern_of_an_unknown_layer(layer, tmp_path):
    path = tmp_path / "pattern.json"
    path.write_text(json.dumps({"X": [[1], [2], [-3]], **layer}))
    points, values = read_points(path)
    assert points.tolist() == [[1], [2], [-3]]
    assert len(values) == 0


def with_value(row, value):
    points = np.full((3, 30), 5.0)
    points[row, 7] = value
    return points


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.empty((3, 0)), "has no points, fewer than 20"),
        (np.ones((3, 1)), "has 1 point, fewer than 20"),
        (np.ones((3, 19)), "has 19 points, fewer than 20"),
        (np.ones((3, 351)), "has 351 points, more than 350"),
        (with_value(2, np.nan), "NaN or infinity at point 7"),
        (with_value(2, -np.inf), "NaN or infinity at point 7"),
        (with_value(0, np.nan), "NaN or infinity at point 7"),
        (with_value(0, 201), "point 7 outside of the grid of 201 x 201"),
        (with_value(1, -1), "point 7 outside of the grid of 201 x 201"),
    ],
)
def test_points_that_are_refused(points, message):
    with pytest.raises(InputError, match=f"^mine.json has {message.removeprefix('has ')}.*: "):
        check_points(Path("mine.json"), points, 201, 20, 350)


def test_points_that_are_taken():
    for count in (20, 350):
        check_points(Path("mine.json"), np.full((3, count), 200.0), 201, 20, 350)
