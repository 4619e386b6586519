"""`diffractory predict`: a scan of two lattices whose map is known, and what can be wrong with one.

The scan has 8 x 10 positions: a square lattice in the left half and a hexagonal one in the right,
each turned at random, with Poisson noise and a direct beam that drifts.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scans
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffractory.cli import main
from diffractory.experiment.finding import SpotFile, light
from diffractory.experiment.preparing import SpotLists
from diffractory.experiment.scan import Scan
from diffractory.simulate.images import Detector, render_images
from diffractory.store import CRYSTAL_SYSTEMS, LATTICE, InputError, Patterns, write_patterns
from diffractory.store.scan_maps import (
    ARRAYS,
    CLASSIFIED,
    NOT_LOOKED_AT,
    TOO_FEW,
    UNUSABLE,
    read_map,
)
from diffractory.training.random_forest import train_random_forest

ROWS, COLUMNS, SIDE = 8, 10, 64
G, RADIUS = 0.24, 0.05  # of the shortest reflection and of a disk, 1/angstrom
ELECTRONS = 20_000
FOREST = {"radial_bins": 12, "angular_orders": 9, "intensity_power": 0.25, "n_estimators": 20,
          "min_samples_leaf": 1}  # fmt: skip
TETRAGONAL, HEXAGONAL = (CRYSTAL_SYSTEMS.index(name) for name in ("tetragonal", "hexagonal"))


def patterns_of(angles, rng):
    """Return patterns of lattices with these angles, degree, turned at random."""
    h, k = (n.ravel() for n in np.mgrid[-2:3, -2:3])
    turn = rng.uniform(0, 2 * np.pi, (len(angles), 1))
    between = np.radians(np.asarray(angles, dtype=float))[:, None]
    qx = G * (h * np.cos(turn) + k * np.cos(turn + between))
    qy = G * (h * np.sin(turn) + k * np.sin(turn + between))
    intensity = np.where((h == 0) & (k == 0), 0.4, 0.6 * rng.uniform(0.5, 1.5, qx.shape) / 24)
    keep = np.hypot(qx, qy) < 2.1 * G
    n = len(angles)
    counts = keep.sum(axis=1)
    return Patterns(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        qx=qx[keep].astype(np.float32),
        qy=qy[keep].astype(np.float32),
        intensity=intensity[keep].astype(np.float32),
        hkl=np.zeros((counts.sum(), 3), dtype=np.int16),
        material_id=np.array([f"m{a}" for a in angles], dtype=object),
        zone_axis=np.zeros((n, 3), dtype=np.int16),
        orientation=np.zeros((n, 3, 3)),
        thickness=np.full(n, 200, dtype=np.float32),
        energy=np.full(n, scans.ENERGY, dtype=np.float32),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a forest that knows both lattices."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(1)
    write_patterns(folder / "patterns", [patterns_of([90] * 150 + [60] * 150, rng)])
    materials = {"material_id": ["m90", "m60"], "split": "train", "space_group": [139, 194],
                 "crystal_system": ["tetragonal", "hexagonal"]}  # fmt: skip
    table = pd.DataFrame(materials | dict.fromkeys(LATTICE, 1.0))
    table.to_parquet(folder / "structures.parquet")
    inputs = folder / "patterns", folder / "structures.parquet"
    train_random_forest(*inputs, folder / "forest", FOREST, 0.6, 1, 1)
    return folder / "forest"


@pytest.fixture(scope="module")
def frames():
    """Return the frames of the scan, shape (8, 10, 64, 64), uint16."""
    rng = np.random.default_rng(2)
    angles = np.where(np.arange(COLUMNS) < COLUMNS // 2, 90, 60)
    patterns = patterns_of(np.tile(angles, ROWS), rng)
    row, column = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    shift = np.repeat(0.004 * np.stack([row, column]), np.diff(patterns.offsets), axis=1)
    patterns.qy[:] += shift[0].astype(np.float32)
    patterns.qx[:] += shift[1].astype(np.float32)
    detector = Detector((SIDE, SIDE), scans.PIXEL_SIZE, "disk", RADIUS)
    expected = ELECTRONS * render_images(patterns, detector)
    return rng.poisson(expected).astype(np.uint16).reshape(ROWS, COLUMNS, SIDE, SIDE)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Return the working directory, of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(drawn, monkeypatch):
    """Return the same; no pictures are drawn, which are most of the time for a scan so small."""
    monkeypatch.setattr("diffractory.experiment.predict.draw_maps", lambda *_: None)
    return drawn


def predict(monkeypatch, capsys, *arguments):
    """Run the command in this process; return its exit code, output and complaint."""
    monkeypatch.setattr(sys, "argv", ["diffractory", "predict", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def made(folder):
    """Return what is in a folder but what the tests put there."""
    return sorted({path.name for path in folder.iterdir()} - {*scans.WRITERS, "scan.model"})


def test_the_map_of_a_scan_of_two_lattices(frames, model, drawn, monkeypatch, capsys):
    path = scans.write(drawn, "scan.zarr", frames)
    code, out, err = predict(monkeypatch, capsys, path, "--model", model)
    assert (code, err) == (0, "")
    assert "8 x 10 positions, 64 x 64 pixels of 0.02 1/angstrom, 200 kV" in out
    assert out.endswith("Map: scan.map\n")
    found = read_map(drawn / "scan.map")
    expected = np.where(np.arange(COLUMNS) < COLUMNS // 2, TETRAGONAL, HEXAGONAL)
    assert (found.crystal_system == expected).mean() > 0.95
    assert (found.crystal_system_raw == expected).mean() > 0.85
    assert np.isin(found.space_group[..., 0], [139, 194]).all()
    assert (found.state == CLASSIFIED).all()
    assert found.n_spots.min() >= 5
    np.testing.assert_allclose(found.dark_field, 0.5, atol=0.15)
    np.testing.assert_allclose(found.probability.sum(axis=-1), 1, atol=1e-5)
    assert found.attributes["step"] == scans.STEP
    assert found.attributes["warnings"] == []
    files = {path.name for path in (drawn / "scan.map").iterdir()}
    pictures = ("crystal_system", "confidence", "space_group", "n_spots")
    kinds = {f"{name}.{kind}" for name in pictures for kind in ("svg", "png")}
    assert files == kinds | {"map.zarr", "fractions.csv", "run.json"}
    table = pd.read_csv(drawn / "scan.map/fractions.csv").set_index("crystal_system")
    shares = table["fraction"][["tetragonal", "hexagonal"]]
    assert shares.sum() == pytest.approx(1)
    for name, share in shares.items():
        assert f"{name:16}" in out
        assert f"{share:8.1%}" in out
    record = json.loads((drawn / "scan.map/run.json").read_text())
    assert record["stage"] == "map_scan"
    assert str(path) in record["inputs"]
    assert {"run.json", ".spots"}.isdisjoint(record["outputs"])


def test_one_scan_in_all_formats_has_one_map(frames, model, here, monkeypatch, capsys):
    options = "--pixel-size", scans.PIXEL_SIZE, "--energy", 200, "--pool"
    maps = {}
    for name in scans.WRITERS:
        path = scans.write(here, name, frames)
        code, _, err = predict(
            monkeypatch, capsys, path, "--model", model, "--output", f"{name}.map", *options
        )
        assert (code, err) == (0, "")
        maps[name] = read_map(here / f"{name}.map")
    reference = maps.pop("scan.npy")
    assert (reference.state == CLASSIFIED).any()
    for name, found in maps.items():
        for array in ARRAYS:
            same = getattr(found, array).tobytes() == getattr(reference, array).tobytes()
            assert same, (name, array)


def test_the_map_does_not_depend_on_how_it_is_divided(frames, model, here, monkeypatch, capsys):
    path, maps = scans.write(here, "scan.npy", frames), []
    options = "--model", model, "--pixel-size", scans.PIXEL_SIZE, "--energy", 200, "--pool"
    for folder in ("whole", "parts"):
        assert predict(monkeypatch, capsys, path, *options, "--output", folder)[0] == 0
        maps.append(read_map(here / folder))
        monkeypatch.setattr("diffractory.experiment.scan.BLOCK_BYTES", 7 * 4 * SIDE**2)
        monkeypatch.setattr("diffractory.experiment.predict.ASKED", 11)
        monkeypatch.setattr("diffractory.experiment.maps.STRIP", 1)
    for array in ARRAYS:
        assert getattr(maps[0], array).tobytes() == getattr(maps[1], array).tobytes(), array


def test_a_quick_look_is_at_every_fourth_row_and_column(frames, model, here, monkeypatch, capsys):
    path = scans.write(here, "scan.zarr", frames)
    code, out, _ = predict(monkeypatch, capsys, path, "--model", model, "--quick")
    assert code == 0
    found = read_map(here / "scan.map")
    looked = np.zeros((ROWS, COLUMNS), dtype=bool)
    looked[::4, ::4] = True
    assert (found.state[~looked] == NOT_LOOKED_AT).all()
    assert (found.state[looked] == CLASSIFIED).all()
    assert np.isnan(found.probability[~looked]).all()
    assert np.isnan(found.dark_field[~looked]).all()
    assert "not looked at           74" in out


def test_some_dark_frames_are_unusable_and_too_few_spots_abstain(
    frames, model, here, monkeypatch, capsys
):
    some = frames.copy()
    some[0, :3] = 0
    path = scans.write(here, "scan.zarr", some)
    assert predict(monkeypatch, capsys, path, "--model", model, "--min-spots", 8)[0] == 0
    found = read_map(here / "scan.map")
    assert (found.state == UNUSABLE).sum() == 3
    assert (found.state[0, :3] == UNUSABLE).all()
    few = found.n_spots < 8
    few[0, :3] = False
    assert ((found.state == TOO_FEW) == few).all()
    assert (found.crystal_system[found.state != CLASSIFIED] == -1).all()
    assert np.isnan(found.dark_field[0, :3]).all()


def test_a_mask_may_be_an_array_or_a_picture(frames, model, here, monkeypatch, capsys):
    """Half of the detector is masked: fewer spots are found."""
    path = scans.write(here, "scan.zarr", frames)
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:20] = False
    np.save(here / "mask.npy", mask)
    Image.fromarray(mask.astype(np.uint8)).save(here / "mask.png")
    options = path, "--model", model
    for name, how in (
        ("all", []),
        ("npy", ["--mask", "mask.npy"]),
        ("png", ["--mask", "mask.png"]),
    ):
        assert predict(monkeypatch, capsys, *options, *how, "--output", name)[0] == 0
    found = [read_map(here / name) for name in ("all", "npy", "png")]
    assert found[1].n_spots.mean() < found[0].n_spots.mean() - 3
    for array in ARRAYS:
        assert getattr(found[1], array).tobytes() == getattr(found[2], array).tobytes()


def test_vacuum_gives_the_probe(frames, model, here, monkeypatch, capsys):
    some = frames.copy()
    detector = Detector((SIDE, SIDE), scans.PIXEL_SIZE, "disk", RADIUS)
    direct = patterns_of([90] * 10, np.random.default_rng(0))
    direct.intensity[np.hypot(direct.qx, direct.qy) > 0.1] = 0
    some[0] = ELECTRONS * render_images(direct, detector)
    path = scans.write(here, "scan.zarr", some)
    code, out, _ = predict(monkeypatch, capsys, path, "--model", model, "--vacuum", "0:1,0:10")
    assert code == 0
    assert "spots of 2.5 pixels radius" in out
    found = read_map(here / "scan.map")
    assert (found.state[0] == TOO_FEW).all()
    expected = np.where(np.arange(COLUMNS) < COLUMNS // 2, TETRAGONAL, HEXAGONAL)
    assert (found.crystal_system[1:] == expected).mean() > 0.9


def test_axes_in_another_order_are_named(frames, model, here, monkeypatch, capsys):
    options = "--model", model, "--pixel-size", scans.PIXEL_SIZE, "--energy", 200
    maps = []
    for name, values, how in (
        ("scan.npy", frames, []),
        ("other.npy", frames.transpose(2, 3, 0, 1).copy(), ["--axes", "qy,qx,ry,rx"]),
    ):
        np.save(here / name, values)
        assert predict(monkeypatch, capsys, name, *options, *how)[0] == 0
        maps.append(read_map(here / name.replace("npy", "map")))
    assert maps[0].probability.tobytes() == maps[1].probability.tobytes()


def test_the_command_itself_warns_in_lines_and_writes_again(
    frames, model, here, monkeypatch, capsys
):
    """As a process of its own: what a shell and a log see."""
    path = scans.write(here, "scan.zarr", frames[:, :, ::-1])
    assert predict(monkeypatch, capsys, path, "--model", model, "--quick")[0] == 0
    command = Path(sys.executable).with_name("diffractory")
    unlike = "--energy", "300", "--thickness", "900"
    result = subprocess.run(
        [command, "predict", path, "--model", model, *unlike],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Warning"] * 2
    assert "the model was trained for 200 kV, and the scan has 300 kV" in lines[0]
    assert "and the specimen has 900" in lines[1]
    found = read_map(here / "scan.map")
    assert found.attributes["warnings"] == [line.removeprefix("Warning: ") for line in lines]
    assert found.attributes["every"] == 1
    assert made(here) == ["scan.map"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: np.minimum(f, 150), "the direct beam is saturated"),
        (lambda f: f[:1, :1], "the scan is a single frame"),
        (lambda f: f[:1], "the scan is a line"),
        (lambda f: f[:, -1:], "the scan is a line"),
    ],
)
def test_what_makes_a_map_less_sure_is_a_warning(
    change, words, frames, model, here, monkeypatch, capsys, caplog
):
    some = change(frames)
    path = scans.write(here, "scan.zarr", some)
    code, *_ = predict(monkeypatch, capsys, path, "--model", model)
    assert code == 0
    (record,) = caplog.records
    assert words in record.getMessage()
    found = read_map(here / "scan.map")
    assert found.state.shape == some.shape[:2]
    assert (found.state == CLASSIFIED).mean() > 0.8


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def chunk(path):
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut_chunk(path):
    truncated(chunk(path))


def lost_chunk(path):
    chunk(path).unlink()


FILES = {
    "truncated .npy": ("scan.npy", truncated, "scan.npy"),
    "truncated .hspy": ("scan.hspy", truncated, "scan.hspy"),
    "truncated .tif": ("scan.tif", truncated, "scan.tif"),
    "cut chunk of .zspy": ("scan.zspy", cut_chunk, "damaged"),
    "lost chunk of .zarr": ("scan.zarr", lost_chunk, "damaged"),
    "not there": ("scan.npy", Path.unlink, "scan.npy"),
    "no scan": ("scan.npy", lambda p: p.write_text("hello"), "scan.npy"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_a_sentence(name, frames, model, here, monkeypatch, capsys):
    file, damage, words = FILES[name]
    path = scans.write(here, file, frames)
    damage(path)
    options = "--model", model, "--pixel-size", scans.PIXEL_SIZE
    check_refused(predict(monkeypatch, capsys, path, *options), words, here)


def check_refused(result, words, folder, left=()):
    """Check for exit code 2, one sentence, and nothing made."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert made(folder) == sorted(left)


OPTIONS = {
    "no pixel size": ([], "--pixel-size"),
    "pixel size 0": (["--pixel-size", 0], "pixel size"),
    "voltage below 0": (["--pixel-size", 0.02, "--energy", -1], "energy"),
    "region": (["--pixel-size", 0.02, "--vacuum", "1-3"], "0:4,0:16"),
    "empty region": (["--pixel-size", 0.02, "--vacuum", "9:12,0:3"], "8 x 10 positions"),
    "mask of other shape": (["--pixel-size", 0.02, "--mask", "small.npy"], "mask"),
    "no mask": (["--pixel-size", 0.02, "--mask", "mask.png"], "mask.png"),
    "mask of other kind": (["--pixel-size", 0.02, "--mask", "mask.gif"], "mask.gif"),
    "mask of nothing": (["--pixel-size", 0.02, "--mask", "zero.npy"], "zero.npy"),
    "even filter": (["--pixel-size", 0.02, "--median-filter", 4], "odd"),
    "no spots": (["--pixel-size", 0.02, "--min-spots", 0], "at least 1 spot"),
    "confidence": (["--pixel-size", 0.02, "--min-confidence", 2], "between 0 and 1"),
    "device": (["--pixel-size", 0.02, "--device", "abacus"], "abacus"),
    "axes": (["--pixel-size", 0.02, "--axes", "a,b,c,d"], "--axes"),
    "output is a file": (["--pixel-size", 0.02, "--output", "small.npy"], "small.npy"),
    "output is a folder": (["--pixel-size", 0.02, "--output", "other"], "not a map folder"),
    "output is here": (["--pixel-size", 0.02, "--output", "."], "not a map folder"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_cannot_be_are_a_sentence(name, frames, model, here, monkeypatch, capsys):
    options, words = OPTIONS[name]
    path = scans.write(here, "scan.npy", frames)
    np.save(here / "small.npy", np.ones((5, 5)))
    np.save(here / "zero.npy", np.zeros((SIDE, SIDE)))
    (here / "other").mkdir()
    (here / "other/thesis.txt").write_text("years of work")
    result = predict(monkeypatch, capsys, path, "--model", model, *options)
    check_refused(result, words, here, ["other", "small.npy", "zero.npy"])
    assert (here / "other/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.zeros_like, "are empty"),
        (lambda f: f.transpose(2, 3, 0, 1), "--axes"),
        (lambda f: f.reshape(2, 4, 10, SIDE, SIDE), "no scan"),
    ],
)
def test_frames_that_cannot_be_are_a_sentence(
    change, words, frames, model, here, monkeypatch, capsys
):
    np.save(here / "scan.npy", change(frames))
    options = "--model", model, "--pixel-size", scans.PIXEL_SIZE
    check_refused(predict(monkeypatch, capsys, "scan.npy", *options), words, here)


@pytest.mark.parametrize("missing", ["", "hparams.json", "model.safetensors"])
def test_a_model_without_its_files_is_a_sentence(missing, frames, model, here, monkeypatch, capsys):
    path = scans.write(here, "scan.zarr", frames)
    copy = shutil.copytree(model, here / "scan.model")
    if missing:
        (copy / missing).unlink()
    else:
        shutil.rmtree(copy)
    check_refused(predict(monkeypatch, capsys, path, "--model", copy), "has no", here)


def test_a_failure_in_the_middle_leaves_the_map_that_was_there(
    frames, model, here, monkeypatch, capsys
):
    path = scans.write(here, "scan.zarr", frames)
    assert predict(monkeypatch, capsys, path, "--model", model)[0] == 0
    before = {p: p.read_bytes() for p in (here / "scan.map").rglob("*") if p.is_file()}
    blocks = Scan.blocks

    def stop_after_the_first(self, every=1):
        yield next(blocks(self, every))
        raise InputError(f"{self.path} is damaged")

    monkeypatch.setattr(Scan, "blocks", stop_after_the_first)
    monkeypatch.setattr("diffractory.experiment.scan.BLOCK_BYTES", 4 * SIDE**2 * COLUMNS)
    result = predict(monkeypatch, capsys, path, "--model", model)
    check_refused(result, "damaged", here, ["scan.map"])
    assert before == {p: p.read_bytes() for p in (here / "scan.map").rglob("*") if p.is_file()}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_spots_come_back_from_their_file_in_any_order(counts, random):
    rng, n = np.random.default_rng(0), len(counts)
    values = rng.random((3, sum(counts)), dtype=np.float32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    whole = SpotLists(offsets, *values)
    order = random.sample(range(n), n)
    with tempfile.TemporaryDirectory() as folder:
        file = SpotFile(Path(folder, "spots"), n)
        for position in order:
            part = slice(offsets[position], offsets[position + 1])
            columns = (column[part] for column in whole[1:])
            one = SpotLists(np.array([0, counts[position]]), *columns)
            file.add(np.array([position]), one)
        for a, b in zip(file.read(np.arange(n)), whole, strict=True):
            np.testing.assert_array_equal(a, b)
        some = np.array(order[: n // 2 + 1])
        np.testing.assert_array_equal(np.diff(file.read(some).offsets), np.array(counts)[some])


def test_light_of_a_frame_and_of_its_direct_beam():
    frames = np.ones((2, 5, 5), dtype=np.float32)
    frames[1, 0, 0] = np.nan
    mask = np.ones((5, 5), dtype=bool)
    mask[4, 4] = False
    total, direct = light(frames, mask, np.array([[2.0, 2.0], [0.0, 0.0]]), 1.1)
    assert total.tolist() == [24, 23]
    assert direct.tolist() == [5, 2]
