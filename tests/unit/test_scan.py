"""Scans: the same frames from every file, in blocks that fit in memory."""

import math
import subprocess
import sys

import numpy as np
import pytest
import zarr
from h5py import File
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import (
    ENERGY,
    NM,
    PER_NM,
    PIXEL_SIZE,
    SHAPE,
    STEP,
    WRITERS,
    counts,
    write,
    write_hspy,
    write_zarr,
)

from diffractory.experiment import scan as scan_module
from diffractory.experiment.scan import Scan, open_scan, write_scan
from diffractory.store import InputError


def gathered(scan, every=1):
    """Return all positions and frames of a scan, in the order of its blocks."""
    positions, frames = zip(*scan.blocks(every), strict=True)
    return np.concatenate(positions), np.concatenate(frames)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_scan_is_read_from_every_kind_of_file(tmp_path, name):
    frames = counts()
    scan = open_scan(write(tmp_path, name, frames))
    positions, found = gathered(scan)
    assert scan.shape == SHAPE
    assert found.dtype == np.float32
    np.testing.assert_array_equal(positions, np.arange(SHAPE[0] * SHAPE[1]))
    np.testing.assert_array_equal(found, frames.reshape(-1, *SHAPE[2:]))
    told = (scan.pixel_size, scan.step)
    if name in ("scan.npy", "scan.tif"):
        assert told == (None, None)
    else:
        assert told == pytest.approx((PIXEL_SIZE, STEP))
    assert scan.energy == (None if name in ("scan.npy", "scan.tif", "scan.h5") else ENERGY)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    chunks=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    every=st.integers(1, 5),
    most=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_blocks_hold_each_position_once_and_no_more_than_fits(shape, chunks, every, most):
    rows, columns = shape
    frames = np.arange(rows * columns * 6, dtype=np.float32).reshape(rows, columns, 2, 3)
    array = zarr.create_array({}, shape=frames.shape, dtype="f4", chunks=(*chunks, 2, 2))
    array[:] = frames
    scan = Scan(None, frames.shape, None, None, None, array, ("ry", "rx", "qy", "qx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "BLOCK_BYTES", most * 24 + 7)
        blocks = list(scan.blocks(every))
        wanted = np.arange(rows * columns).reshape(shape)[::every, ::every].ravel()
        found = np.concatenate([positions for positions, _ in blocks])
        np.testing.assert_array_equal(np.sort(found), wanted)
        for positions, part in blocks:
            assert len(positions) <= most
            assert (np.diff(positions) > 0).all()
            np.testing.assert_array_equal(part, frames.reshape(-1, 2, 3)[positions])
        backward = np.concatenate([found[::-1], found[:1]])
        np.testing.assert_array_equal(scan.read(backward), frames.reshape(-1, 2, 3)[backward])


def test_blocks_are_of_whole_chunks_where_these_fit(monkeypatch):
    array = zarr.create_array({}, shape=(12, 12, 4, 4), dtype="f4", chunks=(3, 4, 4, 4))
    scan = Scan(None, array.shape, None, None, None, array, ("ry", "rx", "qy", "qx"))
    monkeypatch.setattr(scan_module, "BLOCK_BYTES", 30 * 64)
    starts = [positions[0] for positions, _ in scan.blocks()]
    # Of 30 frames that fit 3 rows leave 10 columns, and so 2 chunks of 4; the last is on its own.
    assert starts == [row * 12 + column for row in (0, 3, 6, 9) for column in (0, 8)]


@pytest.mark.parametrize(
    ("order", "axes"),
    [
        ((2, 3, 0, 1), "qy,qx,ry,rx"),
        ((0, 1, 3, 2), "ry, rx, qx, qy"),
        ((1, 0, 2, 3), "rx,ry,qy,qx"),
        ((0, 2, 1, 3), "ry,qy,rx,qx"),
    ],
)
def test_axes_in_another_order_are_named(tmp_path, order, axes):
    frames = counts()
    np.save(tmp_path / "scan.npy", frames.transpose(order))
    scan = open_scan(tmp_path / "scan.npy", axes=axes)
    assert scan.shape == SHAPE
    np.testing.assert_array_equal(gathered(scan)[1], frames.reshape(-1, *SHAPE[2:]))


@pytest.mark.parametrize("name", ["scan.npy", "scan.tif", "scan.zarr"])
def test_a_stack_of_frames_takes_the_lengths_of_the_scan(tmp_path, name, monkeypatch):
    frames = counts()
    stack = frames.reshape(-1, *SHAPE[2:])
    if name == "scan.zarr":
        zarr.create_array(tmp_path / name, data=stack, chunks=(4, 20, 18))
    else:
        WRITERS[name](tmp_path / name, stack)
    line = open_scan(tmp_path / name)
    assert line.shape == (1, 15, 20, 18)
    np.testing.assert_array_equal(gathered(line)[1], stack)
    monkeypatch.setattr(scan_module, "BLOCK_BYTES", 4 * 4 * 360)
    scan = open_scan(tmp_path / name, axes="ry=3,rx=5,qy,qx")
    assert scan.shape == SHAPE
    positions, found = gathered(scan)
    np.testing.assert_array_equal(found, stack[positions])
    np.testing.assert_array_equal(scan.read(np.array([14, 2, 7])), stack[[14, 2, 7]])
    every = gathered(scan, every=2)
    np.testing.assert_array_equal(every[0], [0, 2, 4, 10, 12, 14])
    np.testing.assert_array_equal(every[1], stack[every[0]])


@pytest.mark.parametrize(
    ("shape", "scan_shape"),
    [((20, 18), (1, 1)), ((7, 20, 18), (1, 7)), ((1, 6, 20, 18), (1, 6)), ((6, 1, 20, 18), (6, 1))],
)
def test_a_frame_a_line_and_an_axis_of_one_are_scans(tmp_path, shape, scan_shape):
    frames = counts(shape)
    np.save(tmp_path / "scan.npy", frames)
    scan = open_scan(tmp_path / "scan.npy")
    assert scan.shape == (*scan_shape, 20, 18)
    np.testing.assert_array_equal(gathered(scan)[1], frames.reshape(-1, 20, 18))


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ("qy,qx,ry", "do not fit"),
        ("qy,qx,ry=3,rx=5,", "cannot be"),
        ("y,x,ky,kx", "cannot be"),
        ("ry,ry,qy,qx", "cannot be"),
        ("ry,rx,qy,ry", "cannot be"),
        ("ry=4,rx=5,qy,qx", "do not fit"),
    ],
)
def test_axes_that_do_not_fit_are_refused(tmp_path, axes, said):
    path = write(tmp_path, "scan.npy", counts())
    with pytest.raises(InputError, match=said) as caught:
        open_scan(path, axes=axes)
    assert "--axes" in str(caught.value)


def test_lengths_of_a_stack_must_hold_its_frames(tmp_path):
    path = write(tmp_path, "scan.npy", counts((15, 20, 18)))
    for axes in ("ry=4,rx=4,qy,qx", "ry,rx,qy,qx", "ry=3,qy,rx=5,qx"):
        with pytest.raises(InputError, match="do not fit"):
            open_scan(path, axes=axes)


def test_a_detector_smaller_than_the_scan_is_the_wrong_order(tmp_path):
    frames = counts((6, 8, 32, 32))
    np.save(tmp_path / "scan.npy", frames.transpose(2, 3, 0, 1))
    with pytest.raises(InputError, match=r"6 x 8 pixels at 32 x 32 positions.*--axes qy,qx,ry,rx"):
        open_scan(tmp_path / "scan.npy")
    assert open_scan(tmp_path / "scan.npy", axes="qy,qx,ry,rx").shape == frames.shape


def test_units_tell_the_detector_from_the_scan(tmp_path):
    frames = counts((20, 24, 18, 20))
    write_hspy(tmp_path / "scan.hspy", frames, (*PER_NM, *NM))
    scan = open_scan(tmp_path / "scan.hspy")
    assert scan.shape == (18, 20, 20, 24)
    assert (scan.pixel_size, scan.step) == pytest.approx((PIXEL_SIZE, STEP))
    np.testing.assert_array_equal(scan.read(np.array([25]))[0], frames[:, :, 1, 5])


def test_what_the_user_says_goes_before_the_file(tmp_path):
    path = write(tmp_path, "scan.zarr", counts())
    scan = open_scan(path, pixel_size=0.03, energy=8e4)
    assert (scan.pixel_size, scan.energy, scan.step) == (0.03, 8e4, STEP)
    for wrong in ({"pixel_size": 0.0}, {"pixel_size": math.nan}, {"energy": -2e5}):
        with pytest.raises(InputError, match="above 0"):
            open_scan(path, **wrong)


def test_an_angle_of_a_pixel_needs_the_energy(tmp_path):
    axes = (*NM, ("ky", 0.5, "mrad", False), ("kx", 0.5, "mrad", False))
    write_hspy(tmp_path / "scan.hspy", counts(), axes)
    # The wavelength is 0.02508 angstrom at 200 kV and 0.04176 at 80 kV.
    assert open_scan(tmp_path / "scan.hspy").pixel_size == pytest.approx(5e-4 / 0.02508, rel=1e-3)
    scan = open_scan(tmp_path / "scan.hspy", energy=8e4)
    assert scan.pixel_size == pytest.approx(5e-4 / 0.04176, rel=1e-3)


def test_pixels_that_are_not_square_need_one_size(tmp_path):
    axes = (*NM, ("ky", 0.2, "1/nm", False), ("kx", 0.3, "1/nm", False))
    write_hspy(tmp_path / "scan.hspy", counts(), axes)
    with pytest.raises(InputError, match=r"0\.02 by 0\.03 1/angstrom.*--pixel-size"):
        open_scan(tmp_path / "scan.hspy")
    assert open_scan(tmp_path / "scan.hspy", pixel_size=0.02).pixel_size == 0.02


def test_a_written_scan_is_rounded_and_clipped(tmp_path):
    values = np.full((4, 20, 18), -3.0)
    values[1:, 0, 0] = [7.6, 65_535.4, 1e6]
    blocks = [values[:3], values[3:3], values[3:]]
    write_scan(tmp_path / "scan.zarr", (2, 2, 20, 18), blocks, 0.01, 2e5, 5.0)
    found = open_scan(tmp_path / "scan.zarr").read(np.arange(4))
    np.testing.assert_array_equal(found[:, 0, 0], [0, 8, 65_535, 65_535])
    assert not found[:, 1:].any()


@pytest.mark.parametrize("count", [14, 16, 30])
def test_a_scan_is_written_whole_or_not_at_all(tmp_path, count):
    blocks = np.array_split(counts((count, 20, 18)), 4)
    with pytest.raises(ValueError, match=f"{count} frames"):
        write_scan(tmp_path / "scan.zarr", SHAPE, blocks, 0.01, 2e5, 5.0)
    assert not list(tmp_path.iterdir())


def test_files_of_one_scan_do_not_depend_on_its_blocks(tmp_path):
    frames = counts()
    write_zarr(tmp_path / "rows.zarr", frames)
    uneven = np.array_split(frames.reshape(-1, *SHAPE[2:]), [4, 5, 11])
    write_scan(tmp_path / "uneven.zarr", SHAPE, uneven, PIXEL_SIZE, ENERGY, STEP)
    files = [path for path in sorted((tmp_path / "rows.zarr").rglob("*")) if path.is_file()]
    assert len(files) == SHAPE[0] + 1
    for path in files:
        other = tmp_path / "uneven.zarr" / path.relative_to(tmp_path / "rows.zarr")
        assert other.read_bytes() == path.read_bytes()


READ_BLOCKS = """
import resource, sys
from pathlib import Path
from diffractory.experiment.scan import open_scan

small, *large = map(Path, sys.argv[1:])
open_scan(small)  # what is imported only once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in large:
    scan = open_scan(path)
    blocks = scan.blocks()
    for _ in range(16):
        positions, frames = next(blocks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(scan.shape[0] * scan.shape[1], len(positions), (peak - before) / 1024)
"""


def test_a_scan_larger_than_memory_is_read_a_block_at_a_time(tmp_path):
    shape = (512, 512, 256, 256)  # 32 GiB, of which no byte is on the disk
    np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint16, shape)
    zarr.create_array(tmp_path / "large.zarr", shape=shape, dtype="u2", chunks=(1, 16, 256, 256))
    with File(tmp_path / "large.h5", "w") as file:
        file.create_dataset("data", shape, "u2", chunks=(2, 2, 256, 256))
    files = [write(tmp_path, "scan.zarr", counts()), *sorted(tmp_path.glob("large.*"))]
    command = [sys.executable, "-c", READ_BLOCKS, *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
    for line in result.stdout.splitlines():
        count, together, mebibytes = line.split()
        assert (int(count), int(together)) == (512 * 512, 256)
        # Two blocks of 64 MiB and what they are made of, not the 512 MiB that were read.
        assert float(mebibytes) < 350
