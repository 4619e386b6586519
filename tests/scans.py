"""A small scan, written as each kind of file that microscopes and programs write."""

import numpy as np
import rsciio.hspy
import tifffile
import zarr
from h5py import File

from diffractory.experiment.scan import write_scan

SHAPE = (3, 5, 20, 18)
PIXEL_SIZE = 0.02  # 1/angstrom
ENERGY = 2e5  # eV
STEP = 15.0  # angstrom

NM = [("y", 1.5, "nm", True), ("x", 1.5, "nm", True)]
PER_NM = [("ky", 0.2, "1/nm", False), ("kx", 0.2, "1/nm", False)]


def counts(shape=SHAPE, seed=0):
    """Return frames of a scan, uint16."""
    return np.random.default_rng(seed).poisson(3, shape).astype(np.uint16)


def axes_of(frames, axes):
    """Return what RosettaSciIO calls the axes of an array."""
    keys = ("name", "scale", "units", "navigate")
    return [
        dict(zip(keys, axis, strict=True)) | {"offset": 0.0, "size": size, "index_in_array": number}
        for number, (axis, size) in enumerate(zip(axes, frames.shape, strict=True))
    ]


def signal(frames, axes):
    """Return an array as the dictionary that RosettaSciIO writes."""
    empty = ("original_metadata", "learning_results", "models", "package_info", "tmp_parameters")
    return {key: {} for key in empty} | {
        "data": frames,
        "axes": axes_of(frames, axes),
        "metadata": {
            "General": {"title": "scan"},
            "Signal": {"signal_type": "electron_diffraction"},
            "Acquisition_instrument": {"TEM": {"beam_energy": ENERGY / 1e3}},
        },
        "attributes": {"_lazy": False},
    }


def write_hspy(path, frames, axes=(*NM, *PER_NM), **settings):
    rsciio.hspy.file_writer(str(path), signal(frames, axes), show_progressbar=False, **settings)


def write_zspy(path, frames, axes=(*NM, *PER_NM)):
    """Write what HyperSpy writes: RosettaSciIO's own writer needs an older Zarr."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs.update({"file_format": "ZSpy", "file_format_version": "3.3"})
    group = root.create_group("Experiments/scan")
    group.create_array("data", data=frames, chunks=(2, 2, *frames.shape[2:]))
    for number, axis in enumerate(axes_of(frames, axes)):
        group.create_group(f"axis-{number}").attrs.update(axis)
    metadata = signal(frames, axes)["metadata"]
    group.create_group("metadata/General").attrs.update(metadata["General"])
    group.create_group("metadata/Acquisition_instrument/TEM").attrs["beam_energy"] = ENERGY / 1e3
    for name in ("original_metadata", "learning_results", "attributes"):
        group.create_group(name)


def write_py4dstem(path, frames, names=("datacube",)):
    """Write what py4DSTEM 0.14 writes, of which this is the layout, without its calibration."""
    with File(path, "w") as file:
        file.attrs.update({"emd_group_type": "file", "version_major": 1, "version_minor": 0})
        root = file.create_group("datacube_root")
        root.attrs.update({"emd_group_type": "root", "python_class": "Root"})
        for name in names:
            cube = root.create_group(name)
            cube.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
            cube.create_dataset("data", data=frames).attrs["units"] = "pixel intensity"
            scales = [(1.5, "nm"), (1.5, "nm"), (0.02, "A^-1"), (0.02, "A^-1")]
            for number, (step, unit) in enumerate(scales):
                cube.create_dataset(f"dim{number}", data=[0, step]).attrs["units"] = unit
        calibration = root.create_group("metadatabundle/calibration")
        calibration["qx0"] = np.full(frames.shape[:2], 9.5)


def write_zarr(path, frames):
    rows = iter(frames)
    write_scan(path, frames.shape, rows, PIXEL_SIZE, ENERGY, STEP, frames.dtype.type)


def write_tiff(path, frames, **settings):
    tifffile.imwrite(path, frames, photometric="minisblack", **settings)


WRITERS = {
    "scan.hspy": write_hspy,
    "scan.zspy": write_zspy,
    "scan.h5": write_py4dstem,
    "scan.zarr": write_zarr,
    "scan.tif": write_tiff,
    "scan.npy": np.save,
}
"""By name of the file. The last two cannot say pixel size, energy and step."""


def write(folder, name, frames):
    """Write a scan to a folder in the format that a name of `WRITERS` stands for."""
    WRITERS[name](folder / name, frames)
    return folder / name
