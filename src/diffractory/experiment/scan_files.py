"""The files that scans come in: what of them is an array of frames, and its calibration.

Arrays stay in their files: memory maps, HDF5, Zarr and dask arrays, of which slices are read.
"""

import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import zarr
import zarr.storage

from diffractory.errors import InputError
from diffractory.experiment.microscope_files import (
    read_blockfile,
    read_merlin,
    read_micrograph,
    read_signals,
)
from diffractory.experiment.scan_contents import Axis, Contents, damaged

HDF5 = (".h5", ".hdf5", ".emd")
"""Ends of names of HDF5 files that are not HyperSpy's."""


def read_contents(path: Path, dataset: str | None) -> Contents:
    """Return the array of frames in a file or Zarr folder, or the one that is named.

    Raises
    ------
    InputError
        If the file is missing, empty, damaged or of no known kind, or has several such arrays.
    """
    read = READERS.get(path.suffix.lower())
    if not path.exists():
        raise InputError(f"there is no scan {path}: see to its name")
    if read is None:
        raise InputError(f"{path} is no scan of a known kind: its name must end in {_listed()}")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{path} is empty: copy it again")
    try:
        with _quiet():
            found = read(path)
    except InputError:
        raise
    except Exception as error:  # a broken file can make a reader raise nearly anything
        raise damaged(path, error) from error
    return _chosen(path, found, dataset)


def _chosen(path: Path, found: dict[str, Contents], dataset: str | None) -> Contents:
    """Return the array that is asked for, or the only one of most axes."""
    if dataset is not None and dataset not in found:
        raise InputError(f"{path} has no data set {dataset!r}: it has {', '.join(found)}")
    if dataset is not None:
        return found[dataset]
    most = max((contents.array.ndim for contents in found.values()), default=0)
    names = [name for name, contents in found.items() if contents.array.ndim == most]
    if len(names) != 1:
        raise InputError(
            f"{path} holds {len(names)} arrays that may be the scan ({', '.join(names)}): name one "
            "with --dataset"
            if names
            else f"{path} holds no array: give a file with the frames themselves"
        )
    return found[names[0]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what readers say of metadata that is not used; RosettaSciIO's goes to stdout."""
    logger = logging.getLogger("rsciio")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _listed() -> str:
    *some, last = READERS
    return f"{', '.join(some)} or {last}"


def _hyperspy(module: str, root: Any, path: Path) -> dict[str, Contents]:
    """Return the signals in a file of HyperSpy's layout, HDF5 or Zarr.

    RosettaSciIO reads the calibration. Its dask arrays of thousands of chunks are passed by, since
    slices of the arrays below are read in half the time.
    """
    groups = root["Experiments"]
    names = [name for name in groups if "data" in groups[name]]
    signals = read_signals(module, path, **({"mode": "r"} if module == "zspy" else {}))
    return {
        name: Contents(groups[name]["data"], contents.axes, contents.energy)
        for name, (_, contents) in zip(names, signals, strict=False)
    }


def _hdf5(path: Path) -> dict[str, Contents]:
    """Return the arrays of HyperSpy, py4DSTEM, Velox, EMD or any other HDF5 file."""
    file = h5py.File(path, "r")
    if "Experiments" in file:
        return _hyperspy("hspy", file, path)
    old = int(file.attrs.get("version_major", 1)) < 1 and "4DSTEM_experiment" not in file
    if "Version" in file or old:  # Velox, and EMD before 1.0, of which axes are in other orders
        settings = {"stack_group": False} if old else {}
        return dict(read_signals("emd", path, **settings))
    found: dict[str, Contents] = {}

    def look(name: str, item: Any) -> None:
        frames = isinstance(item, h5py.Dataset) and 2 <= item.ndim <= 4
        if frames and item.dtype.kind in "uif" and "/metadatabundle/" not in name:
            found[name.removesuffix("/data")] = Contents(item, _dimensions(item))

    file.visititems(look)
    if not found:
        raise InputError(f"{path} holds no frames: give a file with the 4-D data themselves")
    return found


def _dimensions(dataset: Any) -> tuple[Axis, ...]:
    """Return the axes of a data set that has them beside it, as EMD files have (``dim0``, ...).

    Each is a vector of coordinates, of which py4DSTEM writes the first two.
    """
    group = dataset.parent
    first = 0 if "dim0" in group else 1
    vectors = [group.get(f"dim{first + i}") for i in range(dataset.ndim)]
    if any(vector is None or vector.size < 2 for vector in vectors):
        return ()
    return tuple(
        Axis("", float(vector[1] - vector[0]), _text(vector.attrs.get("units", "")))
        for vector in vectors
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _zspy(path: Path) -> dict[str, Contents]:
    store = zarr.storage.ZipStore(path, mode="r") if zipfile.is_zipfile(path) else path
    return _hyperspy("zspy", zarr.open_group(store, mode="r"), path)


def _zarr(path: Path) -> dict[str, Contents]:
    root: Any = zarr.open(path, mode="r")
    if isinstance(root, zarr.Array):
        return {path.name: _own(root)}
    return {name: _own(array) for name, array in root.arrays()}


def _own(array: Any) -> Contents:
    """Return a Zarr array with the attributes that `scan.write_scan` gives it, if it has them."""
    told = dict(array.attrs)
    if array.ndim != 4 or not {"pixel_size", "energy", "step"} <= told.keys():
        return Contents(array)
    detector = (float(told["pixel_size"]), "1/angstrom")
    scan = (float(told["step"]), "angstrom")
    axes = (Axis("ry", *scan), Axis("rx", *scan), Axis("qy", *detector), Axis("qx", *detector))
    return Contents(array, axes, float(told["energy"]), complete=True)


def _numpy(path: Path) -> dict[str, Contents]:
    return {path.name: Contents(np.lib.format.open_memmap(path, mode="r"))}


def _tiff(path: Path) -> dict[str, Contents]:
    """Return the series of pages in a TIFF; RosettaSciIO reads the calibration, if there is one."""
    with _no_complaint(logging.getLogger("tifffile"), path):
        file = tifffile.TiffFile(path)
        series, signals = file.series, read_signals("tiff", path)
    found = {}
    for number, (pages, (_, contents)) in enumerate(zip(series, signals, strict=True)):
        array: Any
        if pages.dataoffset is None:
            array = zarr.open(pages.aszarr(), mode="r")
        else:  # one frame after the other, and not compressed
            dtype = pages.dtype.newbyteorder(file.byteorder)
            array = np.memmap(path, dtype, "r", pages.dataoffset, pages.shape)
        axes = contents.axes if len(contents.axes) == array.ndim else ()
        found[f"series {number}"] = Contents(array, axes, contents.energy)
    return found


@contextmanager
def _no_complaint(logger: logging.Logger, path: Path) -> Iterator[None]:
    """Take what a reader only logs, such as a page that lies past the end of a file, for damage."""
    told: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.propagate, before = False, logger.propagate
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
    if lost := [line for line in told if "page offset" in line or "series" in line]:
        raise damaged(path, OSError(lost[0]))


READERS: dict[str, Callable[[Path], dict[str, Contents]]] = {
    ".hspy": _hdf5,
    ".zspy": _zspy,
    ".blo": read_blockfile,
    ".mib": read_merlin,
    ".dm3": read_micrograph,
    ".dm4": read_micrograph,
    **dict.fromkeys(HDF5, _hdf5),
    ".tif": _tiff,
    ".tiff": _tiff,
    ".zarr": _zarr,
    ".npy": _numpy,
}
"""By the end of the name."""
