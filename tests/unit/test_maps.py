"""Maps from what is said of single positions: worked by hand, and as stored and drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffractory.evaluation.scan_maps import draw_maps, symbol
from diffractory.experiment.maps import (
    MapSettings,
    agree,
    decide,
    grains,
    median_filter,
    pooled_groups,
    pooled_systems,
)
from diffractory.experiment.preparing import SpotLists
from diffractory.experiment.symmetry_model import select
from diffractory.store import CRYSTAL_SYSTEMS, InputError
from diffractory.store.scan_maps import (
    CLASSIFIED,
    NOT_CONFIDENT,
    NOT_LOOKED_AT,
    TOO_FEW,
    UNUSABLE,
    ScanMap,
    fractions,
    read_map,
    write_map,
)

TETRAGONAL, TRIGONAL, HEXAGONAL, CUBIC = 3, 4, 5, 6


def sure(*systems):
    """Return probabilities of 1, of these crystal systems."""
    return np.eye(7, dtype=np.float32)[np.array(systems)]


def test_the_median_of_probabilities_finds_no_class_that_nobody_named():
    """Three neighbours say tetragonal, hexagonal, hexagonal: by number the median is in between."""
    probability = sure(TETRAGONAL, HEXAGONAL, HEXAGONAL)[None]
    filtered = median_filter(probability, np.ones((1, 3), dtype=bool), 3)
    # The middle sees all three, each end sees two: the mean of both is their median.
    assert filtered[0, 1].tolist() == sure(HEXAGONAL)[0].tolist()
    assert filtered[0, 0, [TETRAGONAL, HEXAGONAL]].tolist() == [0.5, 0.5]
    assert np.median([TETRAGONAL, TETRAGONAL, HEXAGONAL, HEXAGONAL]) == TRIGONAL
    assert (filtered[..., TRIGONAL] == 0).all()


def test_the_filter_removes_a_single_other_position_and_keeps_an_edge():
    systems = np.full((7, 7), CUBIC)
    systems[3, 3] = HEXAGONAL
    systems[:, 5:] = TETRAGONAL
    system, _, state = decide(sure(*systems.ravel()).reshape(7, 7, 7), np.zeros((7, 7), np.int8),
                              MapSettings(median_filter=3))  # fmt: skip
    expected = np.full((7, 7), CUBIC)
    expected[:, 5:] = TETRAGONAL
    assert system.tolist() == expected.tolist()
    assert (state == CLASSIFIED).all()


def test_positions_that_do_not_count_neither_get_nor_give_a_median():
    probability = np.full((1, 3, 7), np.nan, dtype=np.float32)
    probability[0, [0, 2]] = sure(CUBIC, CUBIC)
    state = np.array([[CLASSIFIED, TOO_FEW, CLASSIFIED]], dtype=np.int8)
    system, confidence, after = decide(probability, state, MapSettings())
    assert system.tolist() == [[CUBIC, -1, CUBIC]]
    assert confidence[0, [0, 2]].tolist() == [1, 1]
    assert np.isnan(confidence[0, 1])
    assert after.tolist() == state.tolist()


@pytest.mark.parametrize(("least", "expected"), [(0.09, CLASSIFIED), (0.11, NOT_CONFIDENT)])
def test_confidence_is_the_difference_of_the_two_largest(least, expected):
    probability = np.array([[[0, 0, 0, 0.2, 0.05, 0.3, 0.4]]], dtype=np.float32)
    how = MapSettings(median_filter=1, min_confidence=least)
    system, confidence, state = decide(probability, np.zeros((1, 1), np.int8), how)
    assert confidence[0, 0] == pytest.approx(0.1)
    assert state[0, 0] == expected
    assert system[0, 0] == (CUBIC if expected == CLASSIFIED else -1)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.sampled_from([1, 3, 5]),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_the_filter_is_numpys_median_and_goes_with_the_scan(shape, size, share, seed):
    rng = np.random.default_rng(seed)
    probability = rng.random((*shape, 7), dtype=np.float32)
    counts = rng.random(shape) < share
    filtered = median_filter(probability, counts, size)
    half = size // 2
    for row, column in zip(*np.nonzero(counts), strict=True):
        window = np.s_[
            max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1
        ]
        expected = np.median(probability[window][counts[window]], axis=0)
        np.testing.assert_allclose(filtered[row, column], expected, rtol=1e-6)
    assert np.isnan(filtered[~counts]).all()
    turned = median_filter(probability.swapaxes(0, 1)[::-1].copy(), counts.T[::-1].copy(), size)
    np.testing.assert_array_equal(turned, filtered.swapaxes(0, 1)[::-1])


def lists(*patterns):
    """Return the spots of patterns, each a list of (q_x, q_y)."""
    offsets = np.cumsum([0, *map(len, patterns)])
    places = [np.reshape(np.array(spots, dtype=np.float32), (-1, 2)) for spots in patterns]
    qx, qy = np.concatenate(places).T.copy()
    return SpotLists(offsets, qx, qy, np.full(len(qx), 0.1, dtype=np.float32))


SQUARE = [(0, 0), (0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)]
MOVED = [(0, 0), (0.51, 0), (0, 0.51), (-0.49, 0), (0, -0.49)]
LONG = [(0, 0), (0.3, 0), (0.6, 0), (-0.3, 0), (-0.6, 0)]
HALF = [(0, 0), (0.5, 0), (0, 0.5), (0.7, 0.1), (-0.7, -0.1)]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (SQUARE, SQUARE, True),
        (SQUARE, MOVED, True),
        (SQUARE, LONG, False),  # the direct beam alone is no agreement
        (SQUARE, HALF, False),  # half is not most
        (SQUARE, SQUARE[:2], False),  # all of the second are in the first, but not the reverse
        (SQUARE[:1], SQUARE[:1], False),
        ([], [], False),
    ],
)
def test_patterns_agree_if_most_of_each_is_in_the_other(a, b, expected):
    for pair in ((a, b), (b, a)):
        same = agree(*lists(*pair)[:3], np.array([0]), np.array([1]))
        assert same.tolist() == [expected]


@pytest.mark.parametrize("strip", [1, 4096])
def test_grains_are_neighbours_along_a_side_that_agree(strip, monkeypatch):
    """Two grains of one kind that only touch at a corner are two, as are those behind a gap."""
    monkeypatch.setattr("diffractory.experiment.maps.STRIP", strip)
    kinds = ["SSL-S", "LLLSS", "SLSSS"]
    spots = lists(*({"S": SQUARE, "L": LONG, "-": SQUARE}[k] for row in kinds for k in row))
    counts = np.array([[k != "-" for k in row] for row in kinds])
    found = grains(lambda p: select(spots, p), np.arange(15).reshape(3, 5), counts)
    expected = ["aab-c", "bbbcc", "dbccc"]
    names = [[(found[r, c], expected[r][c]) for c in range(5)] for r in range(3)]
    pairs = {pair for row in names for pair in row}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 5


def test_pooled_systems_are_geometric_means():
    """Of 0.9 and 0.1 against 0.1 and 0.4: roots of 0.09 and 0.04, which are 0.6 and 0.4 of both."""
    probability = np.zeros((3, 7), dtype=np.float32)
    probability[0, [0, 1]] = 0.9, 0.1
    probability[1, 2] = 1
    probability[2, [0, 1]] = 0.1, 0.4
    pooled = pooled_systems(probability, np.array([8, 3, 8]))
    np.testing.assert_allclose(pooled[0, :2], [0.6, 0.4], rtol=1e-5)
    np.testing.assert_array_equal(pooled[0], pooled[2])
    np.testing.assert_allclose(pooled[1, 2], 1, atol=1e-5)
    np.testing.assert_allclose(pooled.sum(axis=1), 1, rtol=1e-6)


def test_pooled_space_groups_have_the_highest_mean():
    group = np.array([[225, 229, 0], [194, 225, 229], [229, 62, 225]], dtype=np.int16)
    probability = np.array([[0.5, 0.4, 0], [0.8, 0.1, 0.05], [0.6, 0.2, 0.1]], dtype=np.float32)
    best, how = pooled_groups(group, probability, np.array([7, 2, 7]))
    assert best.tolist() == [[229, 225, 62], [194, 225, 229], [229, 225, 62]]
    np.testing.assert_allclose(how[0], [0.5, 0.3, 0.1], rtol=1e-6)
    np.testing.assert_allclose(how[1], probability[1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"median_filter": 4}, "odd number"),
        ({"median_filter": -1}, "odd number"),
        ({"min_spots": 0}, "at least 1 spot"),
        ({"min_confidence": 1.5}, "between 0 and 1"),
        ({"min_confidence": float("nan")}, "between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(InputError, match=words):
        MapSettings(**wrong)


def scan_map(rows=6, columns=8, every=1):
    """Return a map with every state, looked at in every so manieth row and column."""
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(7), (rows, columns)).astype(np.float32)
    state = np.zeros((rows, columns), dtype=np.int8)
    state.ravel()[:3] = [TOO_FEW, NOT_CONFIDENT, UNUSABLE][: state.size]
    if every > 1:
        looked = state[::every, ::every].copy()
        state[:] = NOT_LOOKED_AT
        state[::every, ::every] = looked
    system = np.where(state == CLASSIFIED, probability.argmax(axis=-1), -1).astype(np.int8)
    confidence = np.where(state > NOT_CONFIDENT, np.nan, 0.2).astype(np.float32)
    return ScanMap(
        n_spots=np.full((rows, columns), 9, dtype=np.int32),
        dark_field=np.full((rows, columns), 0.3, dtype=np.float32),
        probability=probability,
        crystal_system_raw=system,
        crystal_system=system,
        confidence=confidence,
        space_group=rng.integers(1, 231, (rows, columns, 3)).astype(np.int16),
        space_group_probability=np.full((rows, columns, 3), 0.1, dtype=np.float32),
        state=state,
        attributes={"model": "ours", "step": 5.0, "every": every},
    )


def test_a_map_comes_back_as_written(tmp_path):
    written = scan_map()
    write_map(tmp_path, written)
    read = read_map(tmp_path)
    for name, values in vars(written).items():
        if name == "attributes":
            assert read.attributes == values
        else:
            assert getattr(read, name).dtype == values.dtype
            np.testing.assert_array_equal(getattr(read, name), values)
    assert json.loads((tmp_path / "map.zarr/zarr.json").read_text())["zarr_format"] == 3


@pytest.mark.parametrize("missing", ["map.zarr", "map.zarr/state"])
def test_what_is_no_map_is_named(tmp_path, missing):
    write_map(tmp_path, scan_map())
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="does not hold the map of a scan"):
        read_map(tmp_path)


def test_fractions_are_of_the_classified_positions():
    one = scan_map()
    table = fractions(one).set_index("crystal_system")
    assert list(table.index[:7]) == list(CRYSTAL_SYSTEMS)
    assert table["positions"].sum() == one.state.size
    assert table["fraction"][:7].sum() == pytest.approx(1)
    assert table["fraction"]["cubic"] == (one.crystal_system == CUBIC).sum() / 45
    abstained = table[7:]
    assert abstained["positions"].to_list() == [1, 1, 1, 0]
    assert abstained["fraction"].isna().all()
    nothing = replace(one, state=np.full_like(one.state, TOO_FEW))
    assert fractions(nothing)["fraction"].isna().all()


@pytest.mark.parametrize(("shape", "every"), [((9, 13), 4), ((1, 30), 1), ((1, 1), 1)])
def test_pictures_of_all_shapes(tmp_path, shape, every):
    draw_maps(scan_map(*shape, every), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    stems = {"crystal_system", "confidence", "n_spots"}
    stems |= {"space_group"} if (scan_map(*shape, every).state == CLASSIFIED).any() else set()
    assert names >= {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    svg = (tmp_path / "crystal_system.svg").read_text("utf-8")
    assert "too few spots: 1" in svg
    assert Image.open(tmp_path / "crystal_system.png").width > 1000


def test_pictures_are_the_same_twice_and_say_what_is_in_them(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw_maps(scan_map(), tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    svg = (tmp_path / "a" / "crystal_system.svg").read_text("utf-8")
    cubic = fractions(scan_map()).set_index("crystal_system")["fraction"]["cubic"]
    assert f"cubic  {100 * cubic:.1f} %" in svg
    assert "1 nm" in svg


def test_a_model_without_space_groups_has_no_picture_of_them(tmp_path):
    one = scan_map()
    draw_maps(replace(one, space_group=np.zeros_like(one.space_group)), tmp_path)
    assert not list(tmp_path.glob("space_group.*"))


def test_symbols_of_space_groups():
    assert [symbol(n) for n in (1, 14, 194, 225)] == ["P1", "P2_1/c", "P6_3/mmc", "Fm-3m"]
