"""Files of microscopes and cameras, read by RosettaSciIO but for blockfiles.

Its reader of blockfiles needs scikit-image, for nothing that is of use here.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from diffractory.errors import InputError
from diffractory.experiment.scan_contents import Axis, Contents

BLOCKFILE = np.dtype(
    [
        ("ID", "S6"),
        ("MAGIC", "<u2"),
        ("Data_offset_1", "<u4"),
        ("Data_offset_2", "<u4"),  # of the first frame, byte
        ("UNKNOWN1", "<u4"),
        ("DP_SZ", "<u2"),  # rows and columns of a frame
        ("DP_rotation", "<u2"),
        ("NX", "<u2"),  # scan columns
        ("NY", "<u2"),  # scan rows
        ("Scan_rotation", "<u2"),
        ("SX", "<f8"),  # nm
        ("SY", "<f8"),  # nm
        ("Beam_energy", "<u4"),  # eV
        ("SDP", "<u2"),  # hundredths of pixels in a cm
        ("Camera_length", "<u4"),  # tenths of mm
    ]
)
"""Head of a NanoMegas blockfile, as RosettaSciIO's reader documents it."""

BLOCKFILE_MAGIC = 0x0102

FRAME_HEAD = 6
"""Bytes before each frame of a blockfile."""

BEAM_ENERGY = "Acquisition_instrument.TEM.beam_energy"
"""Where RosettaSciIO tells the energy of the electrons, keV."""


def read_signals(module: str, path: Path, **settings: Any) -> list[tuple[str, Contents]]:
    """Return title and contents of the signals that a module of RosettaSciIO finds in a file."""
    reader = import_module(f"rsciio.{module}").file_reader
    found: list[tuple[str, Contents]] = []
    for signal in reader(str(path), lazy=True, **settings):
        contents = Contents(_mapped(path, signal), _axes(signal["axes"]), _energy(signal))
        title = str(_at(signal, "metadata.General.title") or "unnamed")
        again = sum(name.startswith(title) for name, _ in found)
        found.append((f"{title} {again + 1}" if again else title, contents))
    return found


def _mapped(path: Path, signal: dict[str, Any]) -> Any:
    """Return the array of a signal, DigitalMicrograph's as a memory map.

    Of the dask array over such a map a single frame takes a hundred times as long.
    """
    array = signal["data"]
    offset = _at(signal, "original_metadata.ImageList.TagGroup0.ImageData.Data.offset")
    return array if offset is None else np.memmap(path, array.dtype, "r", offset, array.shape)


def _energy(signal: dict[str, Any]) -> float | None:
    """Return the energy of the electrons, eV: RosettaSciIO tells it, or where in the file it is."""
    kilo = _at(signal, f"metadata.{BEAM_ENERGY}")
    for source, (target, convert) in signal.get("mapping", {}).items():
        value = _at(signal, f"original_metadata.{source}")
        if target == BEAM_ENERGY and value and not kilo:
            kilo = convert(value) if convert else value
    return float(kilo) * 1e3 if kilo else None


def _at(tree: Any, path: str) -> Any:
    """Return what is at a path of names with dots between, or None."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _axes(axes: list[dict[str, Any]]) -> tuple[Axis, ...]:
    """Return axes of a RosettaSciIO signal in the order of the array."""
    told = len(axes) <= 4 and sum(not axis["navigate"] for axis in axes) == 2
    scan, detector = iter(["ry", "rx"][4 - len(axes) :]), iter(["qy", "qx"])
    return tuple(
        Axis(
            next(scan if axis["navigate"] else detector) if told else "",
            float(axis.get("scale") or 1),
            str(axis.get("units") or ""),
        )
        for axis in axes
    )


def read_blockfile(path: Path) -> dict[str, Contents]:
    """Return the scan in a NanoMegas blockfile.

    Angles are the size of a pixel on the screen over the camera length.
    """
    with path.open("rb") as file:
        head = np.fromfile(file, BLOCKFILE, 1)
    if len(head) == 0 or head["MAGIC"][0] != BLOCKFILE_MAGIC:
        raise InputError(f"{path} is no NanoMegas blockfile: its head is another")
    told = {name: head[name][0].item() for name in BLOCKFILE.names or ()}
    side, shape = told["DP_SZ"], (told["NY"], told["NX"])
    frame = np.dtype([("head", f"V{FRAME_HEAD}"), ("frame", "u1", (side, side))])
    array = np.memmap(path, frame, "r", told["Data_offset_2"], shape)["frame"]
    detector = (1.0, "")
    if told["SDP"] and told["Camera_length"]:
        detector = (1e3 / told["SDP"] / (told["Camera_length"] / 10), "rad")  # both in mm
    axes = (
        Axis("ry", told["SY"], "nm"),
        Axis("rx", told["SX"], "nm"),
        Axis("qy", *detector),
        Axis("qx", *detector),
    )
    return {path.name: Contents(array, axes, float(told["Beam_energy"]) or None)}


def read_merlin(path: Path) -> dict[str, Contents]:
    """Return the scan of a Quantum Detectors camera, its shape from the ``.hdr`` file beside it.

    Without one, RosettaSciIO tells the shape from pauses between frames; where that would leave out
    frames, they are a line.
    """
    module = import_module("rsciio.quantumdetector")
    signal = module.file_reader(str(path), lazy=True)[0]
    told = signal["original_metadata"]["mib_properties"]
    size = told["head_size"] + np.dtype(told["dtype"]).itemsize * int(np.prod(told["merlin_size"]))
    count, rest = divmod(path.stat().st_size, size)
    header = signal["original_metadata"].get("hdr_file", {})
    wanted = int(header.get("Frames in Acquisition (Number)", 0))
    if rest or count < wanted:
        raise InputError(
            f"{path} is cut: it has {path.stat().st_size / size:.2f} frames, not "
            f"{wanted or count + 1}; copy it again, or cut it after a whole frame and rename its "
            ".hdr file"
        )
    if int(np.prod(signal["data"].shape[:-2])) < count:
        signal = module.file_reader(str(path), lazy=True, navigation_shape=(count,))[0]
    frames = module.load_mib_data(str(path), lazy=True).reshape(signal["data"].shape)
    return {path.name: Contents(frames[..., ::-1, :], _axes(signal["axes"]))}  # lowest row first


def read_micrograph(path: Path) -> dict[str, Contents]:
    """Return the images in a file of Gatan's DigitalMicrograph."""
    return dict(read_signals("digitalmicrograph", path))
