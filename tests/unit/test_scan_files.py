"""Files of scans: their calibration, and what happens to those that are damaged or no scan."""

import shutil
import struct

import numpy as np
import pytest
import rsciio.emd
import rsciio.tiff
import tifffile
import zarr
from h5py import File
from scans import (
    ENERGY,
    NM,
    PER_NM,
    PIXEL_SIZE,
    SHAPE,
    STEP,
    WRITERS,
    counts,
    signal,
    write,
    write_hspy,
    write_py4dstem,
    write_tiff,
    write_zspy,
)

from diffractory.experiment.microscope_files import BLOCKFILE
from diffractory.experiment.scan import open_scan
from diffractory.experiment.scan_files import READERS
from diffractory.store import InputError

SIDE = 20


def refused(path, **given):
    """Return the one sentence that a file is refused with, at once or while it is read."""
    with pytest.raises(InputError) as caught:
        for _ in open_scan(path, **given).blocks():
            pass
    said = str(caught.value)
    assert "\n" not in said
    return said


def write_blockfile(path, frames, magic=0x0102):
    """Write a NanoMegas blockfile: head, a virtual image, and frames with 6 bytes before each."""
    head = np.zeros(1, BLOCKFILE)
    rows, columns, side, _ = frames.shape
    told = {"ID": b"IMGBLO", "MAGIC": magic, "DP_SZ": side, "NX": columns, "NY": rows}
    told |= {"SX": 2.5, "SY": 2.5, "Beam_energy": 200_000, "SDP": 20_000, "Camera_length": 2000}
    told |= {"Data_offset_1": 0x1000, "Data_offset_2": 0x1000 + rows * columns}
    for name, value in told.items():
        head[name] = value
    records = np.zeros(rows * columns, [("head", "V6"), ("frame", "u1", (side, side))])
    records["frame"] = frames.reshape(-1, side, side)
    image = bytes(rows * columns)
    path.write_bytes(head.tobytes().ljust(0x1000, b"\0") + image + records.tobytes())


def write_merlin(path, frames, frames_per_line=None, in_acquisition=None):
    """Write frames of a Quantum Detectors camera, and its table of settings if there is one."""
    rows, columns = frames.shape[-2:]
    with path.open("wb") as file:
        for number, frame in enumerate(frames.reshape(-1, rows, columns)):
            time = f"2026-11-20T10:00:00.{number:09d}Z"
            head = (
                f"MQ1,{number + 1:06d},00384,01,{columns:04d},{rows:04d},U16,   1x1,01,"
                f"{time},0.001000,0,0,{time},1000000ns,12,"
            )
            file.write(head.encode().ljust(384, b"\0"))
            file.write(frame[::-1].astype(">u2").tobytes())  # its first row is the lowest
    if frames_per_line is not None:
        path.with_suffix(".hdr").write_text(
            "HDR,\t\n"
            f"Frames in Acquisition (Number):\t{in_acquisition or np.prod(frames.shape[:-2])}\n"
            f"Frames per Trigger (Number):\t{frames_per_line}\n"
            "End\t"
        )


def tag(name, value):
    """Return a tag of a DM4 file: a group, an array, a text or a number, named or not."""
    if isinstance(value, dict | list):
        members = value.items() if isinstance(value, dict) else [("", member) for member in value]
        data = struct.pack(">BBQ", 0, 0, len(members)) + b"".join(
            tag(*member) for member in members
        )
    else:
        kinds = {str: 4, int: 5, float: 6, np.ndarray: 4}  # uint16, uint32, float32, uint16
        info = [kinds[type(value)]]
        if isinstance(value, str):
            value = np.frombuffer(value.encode("utf-16-le"), "<u2")
        if isinstance(value, np.ndarray):
            info, raw = [20, 4, value.size], value.astype("<u2").tobytes()
        else:
            raw = struct.pack("<I" if isinstance(value, int) else "<f", value)
        data = b"%%%%" + struct.pack(f">{len(info) + 1}Q", len(info), *info) + raw
    kind = 20 if isinstance(value, dict | list) else 21
    return struct.pack(">BH", kind, len(name)) + name.encode() + struct.pack(">Q", len(data)) + data


def image_tags(frames, axes):
    """Return the tags of an image, the fastest axis first."""
    scales = [{"Origin": 0.0, "Scale": axis[1], "Units": axis[2]} for axis in axes[::-1]]
    brightness = {"Origin": 0.0, "Scale": 1.0, "Units": "counts"}
    return {
        "ImageData": {
            "Calibrations": {"Brightness": brightness, "Dimension": scales},
            "Data": frames.ravel(),
            "DataType": 10,
            "Dimensions": list(frames.shape[::-1]),
        },
        "ImageTags": {"Microscope Info": {"Voltage": ENERGY}},
        "Name": "scan",
    }


def write_micrograph(path, *images):
    """Write a DM4 file of Gatan's DigitalMicrograph: tags in groups, an image in each of a list."""
    tags = tag("", {"ImageList": [image_tags(*image) for image in images]})
    tags = tags[11:]  # the outermost group has no head
    path.write_bytes(struct.pack(">IQI", 4, len(tags), 1) + tags)


def write_dm4(path, frames):
    write_micrograph(path, (frames, (*NM, *PER_NM)))


def test_the_scan_of_several_images_in_a_micrograph_is_taken(tmp_path):
    frames = counts()
    image = (frames[0, :, 0], (NM[1], PER_NM[1]))
    write_micrograph(tmp_path / "scan.dm4", image, (frames, (*NM, *PER_NM)), image)
    assert open_scan(tmp_path / "scan.dm4").shape == SHAPE
    write_micrograph(tmp_path / "two.dm4", *[(f, (*NM, *PER_NM)) for f in (frames, frames + 9)])
    assert "(scan, scan 2)" in refused(tmp_path / "two.dm4")
    scan = open_scan(tmp_path / "two.dm4", dataset="scan 2")
    np.testing.assert_array_equal(scan.read(np.array([7]))[0], frames[1, 2] + 9)


@pytest.mark.parametrize("scan_first", [True, False])
def test_a_micrograph_is_read_with_its_units(tmp_path, scan_first):
    frames = counts()
    image = (frames, (*NM, *PER_NM))
    if not scan_first:
        image = (frames.transpose(2, 3, 0, 1), (*PER_NM, *NM))
    write_micrograph(tmp_path / "scan.dm4", image)
    scan = open_scan(tmp_path / "scan.dm4")
    assert (scan.shape, scan.energy) == (SHAPE, ENERGY)
    assert (scan.pixel_size, scan.step) == pytest.approx((PIXEL_SIZE, STEP))
    np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, *SHAPE[2:]))


def test_a_blockfile_is_read_with_its_camera_length(tmp_path):
    frames = counts((3, 5, SIDE, SIDE)).astype(np.uint8)
    write_blockfile(tmp_path / "scan.blo", frames)
    scan = open_scan(tmp_path / "scan.blo")
    np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, SIDE, SIDE))
    assert (scan.shape, scan.energy, scan.step) == (frames.shape, 2e5, 25.0)
    # 200 pixels in a cm of a screen at 200 mm; the wavelength is 0.02508 angstrom.
    assert scan.pixel_size == pytest.approx(0.05 / 200 / 0.02508, rel=1e-3)


def test_a_blockfile_of_another_kind_is_refused(tmp_path):
    frames = counts((2, 2, SIDE, SIDE)).astype(np.uint8)
    write_blockfile(tmp_path / "scan.blo", frames, magic=7)
    assert "no NanoMegas blockfile" in refused(tmp_path / "scan.blo")


def test_a_merlin_file_has_its_shape_beside_it(tmp_path):
    frames = counts((3, 5, SIDE, 18))
    write_merlin(tmp_path / "scan.mib", frames, frames_per_line=5)
    scan = open_scan(tmp_path / "scan.mib")
    assert scan.shape == frames.shape
    np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, SIDE, 18))
    assert (scan.pixel_size, scan.energy, scan.step) == (None, None, None)


def test_a_merlin_file_on_its_own_loses_no_frame(tmp_path, capfd):
    frames = counts((7, SIDE, 18))
    write_merlin(tmp_path / "scan.mib", frames)
    scan = open_scan(tmp_path / "scan.mib", axes="rx,qy,qx")
    np.testing.assert_array_equal(scan.read(np.arange(7)), frames)
    assert capfd.readouterr() == ("", "")  # RosettaSciIO misses a file of settings


def test_a_merlin_file_with_fewer_frames_than_were_taken_is_cut(tmp_path):
    write_merlin(tmp_path / "scan.mib", counts(SHAPE), frames_per_line=5, in_acquisition=20)
    assert "15.00 frames, not 20" in refused(tmp_path / "scan.mib")
    (tmp_path / "scan.hdr").unlink()
    assert "cut" not in refused(tmp_path / "scan.mib", axes="ry=4,rx=5,qy,qx")


@pytest.mark.parametrize("write_file", [write_hspy, write_zspy])
def test_hyperspy_says_which_axes_are_the_scan(tmp_path, write_file):
    frames = counts((4, SIDE, 18))
    path = tmp_path / f"scan.{write_file.__name__.removeprefix('write_')}"
    write_file(path, frames, (NM[1], *PER_NM))
    scan = open_scan(path)
    assert (scan.shape, scan.step) == ((1, 4, SIDE, 18), 15.0)
    np.testing.assert_array_equal(scan.read(np.arange(4)), frames)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_tiff_may_be_compressed_and_of_either_byte_order(tmp_path, compression, byteorder):
    frames = counts()
    write_tiff(tmp_path / "scan.tif", frames, compression=compression, byteorder=byteorder)
    scan = open_scan(tmp_path / "scan.tif")
    np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, *SHAPE[2:]))


def test_a_tiff_of_hyperspy_is_a_calibrated_line_of_frames(tmp_path):
    frames = counts()
    rsciio.tiff.file_writer(str(tmp_path / "scan.tif"), signal(frames, (*NM, *PER_NM)))
    scan = open_scan(tmp_path / "scan.tif", axes="ry=3,rx=5,qy,qx")
    assert scan.shape == SHAPE
    assert scan.pixel_size == pytest.approx(0.02)
    np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, *SHAPE[2:]))
    assert open_scan(tmp_path / "scan.tif").shape == (1, 15, *SHAPE[2:])


def test_an_emd_file_before_version_1_is_read_by_its_own_order(tmp_path):
    frames = counts()
    rsciio.emd.file_writer(str(tmp_path / "scan.emd"), signal(frames, (*NM, *PER_NM)))
    scan = open_scan(tmp_path / "scan.emd")
    assert (scan.shape, scan.step) == (SHAPE, STEP)
    np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, *SHAPE[2:]))


def test_a_zspy_file_may_be_an_archive(tmp_path):
    frames = counts()
    write_zspy(tmp_path / "folder.zspy", frames)
    shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "folder.zspy")
    (tmp_path / "scan.zip").rename(tmp_path / "scan.zspy")
    scan = open_scan(tmp_path / "scan.zspy")
    assert scan.pixel_size == pytest.approx(PIXEL_SIZE)
    np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, *SHAPE[2:]))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_zarr_array_may_be_alone_or_in_a_group(tmp_path, zarr_format):
    frames = counts()
    zarr.create_array(tmp_path / "alone.zarr", data=frames, zarr_format=zarr_format)
    group = zarr.open_group(tmp_path / "group.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("frames", data=frames)
    group.create_array("image", data=frames[:, :, 0, 0])
    for name in ("alone.zarr", "group.zarr"):
        scan = open_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.read(np.arange(15)), frames.reshape(-1, *SHAPE[2:]))
        assert scan.pixel_size is None


def test_one_of_several_data_sets_is_named(tmp_path):
    path = tmp_path / "scan.h5"
    write_py4dstem(path, counts(), names=("dark", "bright"))
    said = refused(path)
    assert "datacube_root/bright, datacube_root/dark" in said
    assert "--dataset" in said
    assert open_scan(path, dataset="datacube_root/dark").shape == SHAPE
    assert "it has datacube_root/bright" in refused(path, dataset="gray")


@pytest.mark.parametrize(
    "name", ["scan.hspy", "scan.h5", "scan.tif", "scan.npy", "scan.blo", "scan.mib", "scan.dm4"]
)
def test_a_file_cut_in_half_is_refused(tmp_path, name):
    frames = counts((3, 5, SIDE, SIDE)).astype(np.uint8)
    special = {"scan.blo": write_blockfile, "scan.mib": write_merlin, "scan.dm4": write_dm4}
    (special | WRITERS)[name](tmp_path / name, frames)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    said = refused(tmp_path / name)
    assert "cut" in said
    assert "copy" in said


@pytest.mark.parametrize("settings", [{"compression": "zlib"}, {"imagej": True}, {"pages": True}])
def test_every_kind_of_tiff_cut_in_half_is_refused(tmp_path, settings):
    frames, path = counts((12, SIDE, 18)), tmp_path / "scan.tif"
    if settings.pop("pages", False):
        with tifffile.TiffWriter(path) as file:
            for frame in frames:
                file.write(frame, contiguous=False, metadata=None)
    else:
        write_tiff(path, frames, **settings)
    assert open_scan(path).shape == (1, 12, SIDE, 18)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cut" in refused(path)


@pytest.mark.parametrize("name", ["scan.zarr", "scan.zspy"])
def test_a_damaged_chunk_is_refused_when_it_is_read(tmp_path, name):
    path = write(tmp_path, name, counts())
    chunk = max(
        (file for file in path.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    assert "cannot be read" in refused(path)


def test_a_scan_of_ours_with_a_lost_chunk_is_refused(tmp_path):
    path = write(tmp_path, "scan.zarr", counts())
    (path / "c/1/0/0/0").unlink()
    assert "1 of 3" in refused(path)


def test_frames_that_another_program_left_out_are_zeros(tmp_path):
    array = zarr.create_array(
        tmp_path / "scan.zarr", shape=SHAPE, dtype="u2", chunks=(1, 5, 20, 18)
    )
    array[1] = 3
    scan = open_scan(tmp_path / "scan.zarr")
    np.testing.assert_array_equal(scan.read(np.array([4, 5]))[:, 0, 0], [0, 3])


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_that_is_something_else_is_refused(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    assert "there is no scan" in refused(path)
    path.touch()
    assert "is empty" in refused(path)
    path.write_text("Dear diary,\ntoday the microscope was down.\n" * 50)
    said = refused(path)
    assert str(path) in said
    assert "convert it" in said or "no NanoMegas" in said
    path.unlink()
    path.mkdir()
    assert str(path) in refused(path)


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "scan.pdf").write_text("%PDF")
    assert ".hspy, .zspy" in refused(tmp_path / "scan.pdf")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(20), "an array of 20"),
        (np.zeros((2, 2, 2, 20, 20)), "2 x 2 x 2 x 20 x 20"),
        (np.zeros((0, 3, 20, 20)), "0 x 3 x 20 x 20"),
        (np.zeros((2, 2, 20, 20), dtype=complex), "complex128"),
        (np.zeros((2, 2, 20, 20), dtype="U3"), "<U3"),
        (np.full((2, 2, 20, 20), None), "Python objects"),
    ],
)
def test_what_is_no_scan_is_refused(tmp_path, array, said):
    np.save(tmp_path / "scan.npy", array, allow_pickle=True)
    assert said in refused(tmp_path / "scan.npy")


def test_hdf5_without_frames_is_refused(tmp_path):
    with File(tmp_path / "scan.h5", "w") as file:
        file["spectrum"] = np.zeros(100)
        file["metadata/title"] = "no scan"
    assert "holds no frames" in refused(tmp_path / "scan.h5")
