"""Reading a user's series: formats, geometry, and what happens to images that cannot be used."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from diffractory.experiment.geometry import BadImageError, Geometry, Grid, find_centre, to_grid
from diffractory.experiment.series import read_image, read_series
from diffractory.experiment.stage import read_experiment
from diffractory.store import InputError
from diffractory.store.images import ImageReader

GRID = Grid((61, 71), 0.04, 0.15)
SPOTS = [  # q_x, q_y (1/angstrom), height; with each the one at -q
    (0.32, 0.0, 8.0),
    (0.16, 0.28, 5.0),
    (-0.5, 0.4, 3.0),
    (0.9, -0.3, 2.0),
    (0.1, 0.85, 1.0),
]


def pattern(qx, qy, width=0.06):
    """Return Gaussian spots and a slow background where q_x and q_y are."""
    image = 0.3 * np.exp(-np.hypot(qx, qy))
    for x, y, height in SPOTS:
        for sign in (1, -1):
            image += height * np.exp(
                -((qx - sign * x) ** 2 + (qy - sign * y) ** 2) / (2 * width**2)
            )
    return image


def camera(shape, pixel_size, centre, rotation=0.0, subpixels=3):
    """Return the mean of the pattern over each pixel of a camera turned by an angle (degree)."""
    n, m = shape
    row, column = ((np.indices((n * subpixels, m * subpixels)) + 0.5) / subpixels) - 0.5
    x, y = (column - centre[1]) * pixel_size, (row - centre[0]) * pixel_size
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    image = pattern(cos * x - sin * y, sin * x + cos * y)
    return image.reshape(n, subpixels, m, subpixels).mean(axis=(1, 3))


def expected(grid=GRID, subpixels=8):
    """Return the mean of the pattern over each pixel of the grid, normalized."""
    rows, columns = (
        ((np.arange(n * subpixels) + 0.5) / subpixels - n / 2) * grid.pixel_size for n in grid.shape
    )
    image = pattern(columns, rows[:, None])
    n, m = grid.shape
    return grid.normalized(image.reshape(n, subpixels, m, subpixels).mean(axis=(1, 3)))


def write(path, image):
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        Image.fromarray(image).save(path)


COUNTS = np.arange(12, dtype=np.int64).reshape(3, 4)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", (COUNTS * 20).astype(np.uint8)),
        ("a.png", (COUNTS * 5000).astype(np.uint16)),
        ("a.tif", (COUNTS * 20).astype(np.uint8)),
        ("a.tiff", (COUNTS * 5000).astype(np.uint16)),
        ("a.tif", (COUNTS * 100_000 - 7).astype(np.int32)),
        ("a.tif", (COUNTS / 7).astype(np.float32)),
        ("a.TIF", (COUNTS * 5000).astype(">u2")),
        ("a.npy", COUNTS * 3),
        ("a.npy", COUNTS / 7),
    ],
)
def test_every_format_is_read_as_it_was_written(tmp_path, name, image):
    write(tmp_path / name, image)
    found = read_image(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, image.astype(np.float32))


def broken_files(folder):
    """Write files that are no image, and return the reason expected for each."""
    whole = (COUNTS * 20).astype(np.uint8)
    write(folder / "whole.png", np.tile(whole, (50, 50)))
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:-40])
    write(folder / "whole.tif", np.tile(whole, (50, 50)))
    (folder / "cut.tif").write_bytes((folder / "whole.tif").read_bytes()[:500])
    (folder / "empty.npy").touch()
    (folder / "text.png").write_text("no image")
    np.save(folder / "objects.npy", np.array([None, {}], dtype=object), allow_pickle=True)
    np.save(folder / "cube.npy", np.ones((2, 3, 4)))
    np.save(folder / "complex.npy", np.ones((3, 4), dtype=complex))
    Image.fromarray(np.zeros((3, 4, 3), dtype=np.uint8)).save(folder / "colour.png")
    pages = [Image.fromarray(whole)] * 2
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    (folder / "data.hspy").touch()
    unreadable = ("cut.png", "cut.tif", "empty.npy", "text.png", "objects.npy", "data.hspy")
    shape = ("cube.npy", "complex.npy", "colour.png", "pages.tif")
    return dict.fromkeys(unreadable, "unreadable") | dict.fromkeys(shape, "shape")


def test_what_is_no_image_is_named(tmp_path):
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(BadImageError) as caught:
            read_image(tmp_path / name)
        assert (name, caught.value.reason) == (name, reason)
        assert caught.value.detail


@pytest.mark.parametrize("pixel_size", [0.004, 0.011, 0.04, 0.07])
def test_an_image_is_brought_to_the_grid(pixel_size):
    shape = tuple(int(3.2 / pixel_size) + n for n in (0, 5))
    centre = (shape[0] / 2 + 3.3, shape[1] / 2 - 1.6)
    image = camera(shape, pixel_size, centre)
    found = to_grid(image, Geometry(pixel_size, centre), GRID)
    # A pixel wider than the standard deviation of a spot has flattened it already.
    limit = 0.08 if pixel_size > 0.06 else 0.01
    assert abs(found - expected()).max() < limit * expected().max()
    assert found[GRID.lit].mean() == pytest.approx(1, abs=1e-6)
    assert not found[~GRID.lit].any()


def test_a_turned_camera_and_its_background_are_allowed_for():
    image = camera((340, 330), 0.01, (168.2, 166.1), rotation=25.0) + 100
    found = to_grid(image, Geometry(0.01, (168.2, 166.1), 25.0, 100.0), GRID)
    assert abs(found - expected()).max() < 0.01 * expected().max()


def test_pixels_are_dark_within_the_beam_stop_and_have_a_mean_of_1_outside():
    grid = Grid((5, 6), 0.1, 0.14)
    dark = np.zeros((5, 6), dtype=bool)
    dark[1:4, 2:4] = True  # 0.05 to 0.11 from the direct beam, the next ones 0.15
    np.testing.assert_array_equal(grid.lit, ~dark)
    assert grid.normalized(np.where(dark, 50, 4)).sum() == 24


def test_an_image_on_the_grid_is_only_normalized():
    image = 50 * expected() + 7
    found = to_grid(image, Geometry(background=7), GRID)
    np.testing.assert_allclose(found, expected(), atol=1e-5)


@pytest.mark.parametrize("centre", [(100.0, 100.0), (93.37, 110.81), (121.5, 88.25)])
@pytest.mark.parametrize("stopped", [False, True])
def test_the_centre_is_found(centre, stopped):
    image = 1000 * camera((200, 210), 0.013, centre)
    if stopped:
        row, column = np.indices(image.shape)
        image[np.hypot(row - centre[0], column - centre[1]) < 15] = 0
    noisy = np.random.default_rng(1).poisson(image).astype(np.float32)
    assert find_centre(noisy) == pytest.approx(centre, abs=0.1)
    found = to_grid(noisy, Geometry(0.013), Grid((31, 31), 0.05, 0.2))
    given = to_grid(noisy, Geometry(0.013, centre), Grid((31, 31), 0.05, 0.2))
    assert abs(found - given).max() < 0.05 * given.max()


@pytest.mark.parametrize(
    ("image", "geometry", "reason"),
    [
        (np.ones((60, 71)), Geometry(), "shape"),
        (np.where(np.eye(61, 71), np.nan, 1), Geometry(), "not_finite"),
        (np.where(np.eye(61, 71), np.inf, 1), Geometry(0.04, (30, 35)), "not_finite"),
        (np.zeros((61, 71)), Geometry(), "dark"),
        (np.ones((61, 71)), Geometry(background=2), "dark"),
        (np.ones((61, 71)), Geometry(0.04), "dark"),
        (np.ones((61, 71)), Geometry(0.02, (30, 35)), "too_small"),
        (np.ones((61, 71)), Geometry(0.04, (60, 35)), "too_small"),
    ],
)
def test_images_that_cannot_be_used_are_named(image, geometry, reason):
    with pytest.raises(BadImageError) as caught:
        to_grid(image, geometry, GRID)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "fields", [{"pixel_size": 0.0}, {"centre": (3, 4)}, {"rotation": 3.0}, {"pixel_size": -1.0}]
)
def test_a_geometry_that_does_not_fit_together_is_refused(fields):
    with pytest.raises(InputError, match="pixel size"):
        Geometry(**fields)


@cache
def seen():
    """Return what the camera of the series sees."""
    return camera((330, 340), 0.01, (165, 170))


@pytest.fixture
def folder(tmp_path):
    """Return a folder of 24 images, of all formats, in another order of names than of time."""
    folder = tmp_path / "series"
    folder.mkdir()
    rows = []
    for number in range(24):
        image = 200 * seen() * (1 + number)
        end = (".png", ".tif", ".npy")[number % 3]
        name = f"{(number * 7) % 24:02}{end}"
        write(folder / name, image.astype(np.uint16))
        rows.append((name, number - 9.5))
    pd.DataFrame(rows, columns=["file", "time"]).to_csv(folder / "times.csv", index=False)
    return folder


def spoil(folder):
    """Break some of the images; return the reasons by file."""
    times = pd.read_csv(folder / "times.csv").astype({"time": object}).set_index("file")
    names = list(times.index)
    (folder / names[1]).write_bytes(b"")
    write(folder / "stray.npy", np.ones((330, 340)))
    times.loc[names[2], "time"] = "soon"
    (folder / names[3]).unlink()
    np.save(folder / "nan.npy", np.full((330, 340), np.nan))
    times.loc["nan.npy", "time"] = 3.25
    np.save(folder / "wide.npy", np.pad(seen(), ((0, 0), (0, 60))))
    times.loc["wide.npy", "time"] = 4.25
    times.to_csv(folder / "times.csv")
    return {
        names[1]: "unreadable",
        "stray.npy": "no_time",
        names[2]: "no_time",
        names[3]: "unreadable",
        "nan.npy": "not_finite",
        "wide.npy": "shape",
    }


def test_a_series_is_read_in_order_of_time(folder):
    series = read_series(folder, Geometry(0.01, (165, 170)), GRID)
    np.testing.assert_array_equal(series.times, np.arange(24) - 9.5)
    assert series.files[1] == "07.tif"
    assert series.rejected.empty
    assert abs(series.images - expected()).max() < 0.02 * expected().max()


def test_bad_images_of_a_series_are_set_aside_and_the_others_read(folder):
    reasons = spoil(folder)
    series = read_series(folder, Geometry(0.01, (165, 170)), GRID)
    assert dict(zip(series.rejected["file"], series.rejected["reason"], strict=True)) == reasons
    assert len(series.files) == 21
    assert len(series.images) == 21
    assert not set(reasons) & set(series.files)


DETECTOR = {"shape": [61, 71], "pixel_size": 0.04, "beam_stop": 0.15}
CAMERA = {"pixel_size": 0.01, "centre": [165, 170], "rotation": 0.0, "background": 0.0}


def read(folder, most=0.5, **changes):
    out = folder.parent / "out"
    names = ("", ".samples.parquet", ".rejected.parquet", ".run.json")
    paths = [out / f"experiment{name}" for name in names]
    read_experiment(folder, *paths, CAMERA | changes, DETECTOR, most, 7)
    return paths


def test_the_stage_writes_images_labels_and_what_was_set_aside(folder):
    reasons = spoil(folder)
    store, samples, rejected, run = read(folder)
    table, reader = pd.read_parquet(samples), ImageReader(store)
    assert list(table["time"]) == sorted(table["time"])
    assert list(table["kind"]) == ["pristine_2h"] * 7 + ["phonons_2h"] * 14
    every_other = ["train", "test"] * 4 + ["validation", "test"]
    assert list(table["split"]) == (every_other * 3)[:21]
    assert set(table["scan"]) == {0}
    assert table["sample"][1] == "test/pristine_2h/1"
    assert json.loads(table["drawn"][0]) == {"file": "00.png"}
    assert (reader.pixel_size, reader.beam_stop) == (0.04, 0.15)
    images = reader.read(np.arange(21))
    np.testing.assert_allclose(reader.reference, images[[0, 2, 4, 6]].mean(axis=0), rtol=1e-3)
    assert len(pd.read_parquet(rejected)) == 6
    facts = json.loads(run.read_text())["facts"]
    assert facts["frames"] == 21
    assert sum(facts["rejected"].values()) == len(reasons)


def test_too_many_bad_images_stop_the_stage(folder):
    spoil(folder)
    with pytest.raises(InputError, match=r"6 of 27 images .* max_rejected_fraction = 0.2"):
        read(folder, most=0.2)


def test_a_series_without_a_time_before_the_pump_is_refused(folder):
    times = pd.read_csv(folder / "times.csv")
    times["time"] += 50
    times.to_csv(folder / "times.csv", index=False)
    with pytest.raises(InputError, match="before time zero"):
        read(folder)


def test_nothing_left_is_one_sentence(folder):
    with pytest.raises(InputError, match=r"none of 24 images .* too_small|none of 24 .* reaches"):
        read(folder, pixel_size=0.001)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "cannot be read"),
        ("", "cannot be read"),
        ("name,delay\na.png,1\n", "has the columns name, delay"),
        ("file,time\na.png,1\na.png,2\n", "two times of a.png"),
        ("file,time\n", "none of 24 images"),
    ],
)
def test_a_table_of_times_that_cannot_be_used_is_named(folder, text, match):
    (folder / "times.csv").unlink()
    if text is not None:
        (folder / "times.csv").write_text(text)
    with pytest.raises(InputError, match=match):
        read(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read_series(tmp_path / "nowhere", Geometry(), GRID)
