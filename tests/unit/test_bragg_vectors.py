"""Bragg vectors of py4DSTEM, in files of the layout that its version 0.14 writes."""

import numpy as np
import pytest
from h5py import File, vlen_dtype
from scans import counts, write_py4dstem

from diffractory.experiment.bragg_vectors import holds_bragg_vectors, read_bragg_vectors
from diffractory.store import InputError

SPOT = np.dtype([("qx", "f8"), ("qy", "f8"), ("intensity", "f8")])

LISTS = [
    [(10, 12, 100.0), (11, 11, 300.0)],
    [],
    [(10.25, 12.5, 8.0)],
    [(4.25, 12.5, 1.0), (10.25, 15.5, 3.0), (10.25, 12.5, 0.0)],
    [],
    [(10, 12, 5.0)],
]

CALIBRATION = {
    "Q_pixel_size": 0.02,
    "Q_pixel_units": b"A^-1",
    "qx0": np.full((2, 3), 10.25),
    "qy0": np.full((2, 3), 12.5),
}

ELLIPSE = {"a": 1.02, "b": 1.0, "theta": 0.3}


def write_vectors(path, calibration, sets=("braggvectors",)):
    with File(path, "w") as file:
        file.attrs.update({"emd_group_type": "file", "version_major": 1, "version_minor": 0})
        for name in sets:
            group = file.create_group(f"py4DSTEM_root/{name}/_v_uncal")
            data = group.create_dataset("data", (2, 3), vlen_dtype(SPOT))
            for number, spots in enumerate(LISTS):
                data[divmod(number, 3)] = np.array(spots, dtype=SPOT)
        for name, value in calibration.items():
            file[f"py4DSTEM_root/metadatabundle/calibration/{name}"] = value
    return path


def test_spots_are_centred_and_scaled(tmp_path):
    shape, spots = read_bragg_vectors(write_vectors(tmp_path / "a.h5", CALIBRATION))
    assert shape == (2, 3)
    np.testing.assert_array_equal(spots.offsets, [0, 2, 2, 3, 6, 6, 7])
    # Its q_x is along rows, which are our q_y.
    np.testing.assert_allclose(spots.qy[3:6], [-0.12, 0, 0], atol=1e-7)
    np.testing.assert_allclose(spots.qx[3:6], [0, 0.06, 0], atol=1e-7)
    np.testing.assert_allclose(spots.intensity, [0.25, 0.75, 1, 0.25, 0.75, 0, 1])
    assert spots.qx.dtype == spots.qy.dtype == spots.intensity.dtype == np.float32


def test_an_ellipse_is_made_round_as_py4dstem_does(tmp_path):
    _, spots = read_bragg_vectors(write_vectors(tmp_path / "a.h5", CALIBRATION | ELLIPSE))
    # What py4DSTEM 0.14.18 returns for these spots.
    np.testing.assert_allclose(spots.qy[:2], [-0.00485517, 0.01489764], atol=1e-8)
    np.testing.assert_allclose(spots.qx[:2], [-0.0099552, -0.03003166], atol=1e-8)


@pytest.mark.parametrize("flip", [False, True])
def test_patterns_are_turned_to_the_axes_of_the_scan(tmp_path, flip):
    turn = {"QR_rotation": np.pi / 2, "QR_flip": flip}
    _, spots = read_bragg_vectors(write_vectors(tmp_path / "a.h5", CALIBRATION | turn))
    # (rows, columns) = (-0.12, 0) and (0, 0.06), from rows to columns by 90 degree.
    rows, columns = ([0, -0.06], [-0.12, 0]) if not flip else ([0.12, 0], [0, 0.06])
    np.testing.assert_allclose(spots.qy[3:5], rows, atol=1e-7)
    np.testing.assert_allclose(spots.qx[3:5], columns, atol=1e-7)


def test_the_mean_centre_stands_for_that_of_each_pattern(tmp_path):
    calibration = dict(CALIBRATION)
    for name in ("qx0", "qy0"):
        calibration[f"{name}_mean"] = calibration.pop(name)[0, 0]
    _, spots = read_bragg_vectors(write_vectors(tmp_path / "a.h5", calibration))
    np.testing.assert_allclose(spots.qy[3:6], [-0.12, 0, 0], atol=1e-7)


def test_an_angle_of_a_pixel_needs_the_energy(tmp_path):
    angles = CALIBRATION | {"Q_pixel_size": 0.5, "Q_pixel_units": b"mrad"}
    path = write_vectors(tmp_path / "a.h5", angles)
    with pytest.raises(InputError, match=r"in mrad.*--pixel-size"):
        read_bragg_vectors(path)
    # The wavelength is 0.02508 angstrom at 200 kV.
    _, spots = read_bragg_vectors(path, energy=2e5)
    assert spots.qy[3] == pytest.approx(-6 * 5e-4 / 0.02508, rel=1e-3)
    _, spots = read_bragg_vectors(path, pixel_size=0.01)
    assert spots.qy[3] == pytest.approx(-0.06)


def test_missing_calibrations_are_named(tmp_path):
    for name, said in (("Q_pixel_size", "--pixel-size"), ("qy0", "measure_origin")):
        calibration = {key: value for key, value in CALIBRATION.items() if key != name}
        calibration |= {"Q_pixel_units": b"pixels"} if name == "Q_pixel_size" else {}
        with pytest.raises(InputError, match=said):
            read_bragg_vectors(write_vectors(tmp_path / "a.h5", calibration))


def test_several_sets_or_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="2 sets"):
        read_bragg_vectors(write_vectors(tmp_path / "a.h5", CALIBRATION, ("one", "two")))
    with pytest.raises(InputError, match="0 sets"):
        read_bragg_vectors(write_vectors(tmp_path / "a.h5", CALIBRATION, ()))


def test_a_file_of_vectors_is_told_from_one_of_frames(tmp_path):
    path = write_vectors(tmp_path / "a.h5", CALIBRATION)
    assert holds_bragg_vectors(path)
    write_py4dstem(tmp_path / "frames.h5", counts())
    assert not holds_bragg_vectors(tmp_path / "frames.h5")
    with File(tmp_path / "frames.h5") as frames, File(path, "a") as both:
        frames.copy("datacube_root", both)
    assert not holds_bragg_vectors(path)
    (tmp_path / "text.h5").write_text("no HDF5")
    for name in ("text.h5", "missing.h5", "a.npy"):
        assert not holds_bragg_vectors(tmp_path / name)


def test_a_cut_file_is_refused(tmp_path):
    path = write_vectors(tmp_path / "a.h5", CALIBRATION)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="cut"):
        read_bragg_vectors(path)
