"""From a scan to its map: read, find spots, ask a model, filter, draw."""

import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from diffractory.errors import InputError
from diffractory.evaluation.scan_maps import draw_maps
from diffractory.experiment.bragg_spots import Detection
from diffractory.experiment.bragg_vectors import holds_bragg_vectors
from diffractory.experiment.finding import Frames, Measured, Vectors
from diffractory.experiment.geometry import BadImageError
from diffractory.experiment.maps import MapSettings, decide, grains, pooled_groups, pooled_systems
from diffractory.experiment.preparing import survey
from diffractory.experiment.scan import open_scan
from diffractory.experiment.series import READERS
from diffractory.experiment.symmetry_model import Said, SymmetryModel
from diffractory.store import CRYSTAL_SYSTEMS, atomic_folder, recorded, track
from diffractory.store.scan_maps import (
    CLASSIFIED,
    TOO_FEW,
    UNUSABLE,
    ScanMap,
    fractions,
    is_map,
    write_map,
)

QUICK = 4
"""A quick look is at every fourth row and column."""

ASKED = 2048
"""Positions that a model is asked about at a time."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapSummary:
    """What there is to say of a map in a few lines.

    Attributes
    ----------
    folder
        Of the map.
    scan, model
        In words.
    fractions
        What `store.scan_maps.fractions` returns.
    """

    folder: Path
    scan: str
    model: str
    fractions: pd.DataFrame


def predict_scan(
    scan: Path,
    model: Path,
    output: Path,
    settings: MapSettings,
    pixel_size: float | None = None,
    energy: float | None = None,
    axes: str | None = None,
    dataset: str | None = None,
    vacuum: str | None = None,
    mask: Path | None = None,
    rotation: float = 0.0,
    thickness: float | None = None,
    every: int = 1,
    device: str = "cpu",
    threads: int | None = None,
) -> MapSummary:
    """Map what a model of the symmetry study says of each position of a scan.

    Parameters
    ----------
    scan
        File or folder of any format that `open_scan` reads, or py4DSTEM's Bragg vectors.
    model
        Folder of a trained model.
    output
        Map folder to write: map.zarr, fractions.csv, pictures and run.json. It may be there if it
        is one already.
    pixel_size, energy, axes, dataset
        As `open_scan` takes them: 1/angstrom, eV.
    vacuum
        Rows and columns without a specimen, which show the probe: ``"r0:r1,c0:c1"``.
    mask
        Image that is not zero where a pixel of the detector counts.
    rotation
        Angle from the +q_x axis of the map to that of the detector, degree.
    thickness
        Of the specimen, angstrom, to compare with what the model was trained on.
    every
        Look only at every so manieth row and column.
    device
        ``cpu`` or ``cuda``.
    threads
        Of PyTorch; None: as many as it takes. Their number changes the last digits.

    Raises
    ------
    InputError
        If the scan, the model or an option cannot be used, or the output would replace something
        else.
    """
    if output.exists() and not is_map(output):
        raise InputError(f"{output} is there and is not a map folder: give another with --output")
    for name, value in (("pixel size", pixel_size), ("energy", energy), ("thickness", thickness)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"the {name} must be above 0, not {value:g}")
    if threads is not None:
        torch.set_num_threads(threads)
    asked, detection = SymmetryModel.load(model, device), Detection()
    source: Frames | Vectors
    if holds_bragg_vectors(scan):
        source = Vectors(scan, pixel_size, energy)
    else:
        opened = open_scan(scan, pixel_size, energy, axes, dataset)
        if opened.pixel_size is None:
            raise InputError(
                f"{scan} does not tell its pixel size: give it with --pixel-size, in 1/angstrom "
                "(that of two spots of a known crystal, or of the camera length's calibration)"
            )
        empty = None if vacuum is None else region(vacuum, opened.shape[:2])
        counts = None if mask is None else read_mask(mask)
        preparation = survey(opened, detection, counts, empty, rotation, device)
        source = Frames(opened, preparation, detection, device)
    warnings = _warnings(source, asked, thickness)
    for line in warnings:
        logger.warning("Warning: %s", line)
    options: dict[str, Any] = {
        "pixel_size": pixel_size, "energy": energy, "axes": axes, "dataset": dataset,
        "vacuum": vacuum, "mask": None if mask is None else str(mask), "rotation": rotation,
        "thickness": thickness, "every": every,
    }  # fmt: skip
    inputs = [model / "model.safetensors", model / "hparams.json"]
    if every == 1:
        inputs.append(scan)  # a quick look does not read all of it
    config = asdict(settings) | asdict(detection) | options
    with (
        atomic_folder(output) as folder,
        recorded(folder / "run.json", "map_scan", config, inputs, [folder], 0, device) as facts,
    ):
        spots = folder / ".spots"
        measured = source.measure(every, spots)
        arrays = map_spots(measured, source.shape, asked, settings, every)
        spots.unlink(missing_ok=True)
        if (arrays["state"] >= UNUSABLE).all():
            raise InputError(f"no frame of {scan} has any light: see to the file and to its axes")
        attributes = {
            "model": asked.kind, "model_folder": str(model), "scan": str(scan),
            "step": source.step, "every": every, "settings": asdict(settings),
            "crystal_systems": list(CRYSTAL_SYSTEMS), "warnings": warnings,
        }  # fmt: skip
        scan_map = ScanMap(**arrays, attributes=attributes)
        write_map(folder, scan_map)
        table = fractions(scan_map)
        table.to_csv(folder / "fractions.csv", index=False, float_format="%.4f")
        draw_maps(scan_map, folder)
        facts["positions"] = table.set_index("crystal_system")["positions"].to_dict()
        facts["warnings"] = warnings
    return MapSummary(output, source.words, f"{asked.kind}, {asked.trained_on}", table)


def map_spots(
    measured: Measured,
    shape: tuple[int, int],
    model: SymmetryModel,
    settings: MapSettings,
    every: int,
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the map of a scan of R rows and C columns by their names in `ScanMap`.

    Parameters
    ----------
    shape
        R and C.
    every
        Only every so manieth row and column was looked at: they are each other's neighbours.
    """
    looked = np.arange(shape[0] * shape[1]).reshape(shape)[::every, ::every]
    state = measured.state[looked]
    state[(state == CLASSIFIED) & (measured.n_spots[looked] < settings.min_spots)] = TOO_FEW
    counts = state == CLASSIFIED
    said = ask(measured, looked[counts], model)
    if settings.pool:
        grain = grains(measured.read, looked, counts)[counts]
        groups = pooled_groups(said.space_group, said.space_group_probability, grain)
        said = Said(pooled_systems(said.crystal_system, grain), *groups)
    probability = np.full((*looked.shape, len(CRYSTAL_SYSTEMS)), np.nan, dtype=np.float32)
    probability[counts] = said.crystal_system
    system, confidence, state = decide(probability, state, settings)

    def whole(values: NDArray[Any], where: NDArray[np.bool_], nothing: float) -> NDArray[Any]:
        """Return values of some of the positions in an array of all."""
        result = np.full((shape[0] * shape[1], *values.shape[1:]), nothing, dtype=values.dtype)
        result[looked[where]] = values
        return result.reshape(*shape, *values.shape[1:])

    everywhere = np.ones_like(counts)
    full_state = measured.state.copy()
    full_state[looked] = state
    return {
        "n_spots": measured.n_spots.reshape(shape),
        "dark_field": measured.dark_field.reshape(shape),
        "probability": whole(said.crystal_system, counts, np.nan),
        "crystal_system_raw": whole(said.crystal_system.argmax(axis=1).astype(np.int8), counts, -1),
        "crystal_system": whole(system.reshape(-1), everywhere, -1),
        "confidence": whole(confidence.reshape(-1), everywhere, np.nan),
        "space_group": whole(said.space_group, counts, 0),
        "space_group_probability": whole(said.space_group_probability, counts, 0),
        "state": full_state.reshape(shape),
    }


def ask(measured: Measured, positions: NDArray[np.int64], model: SymmetryModel) -> Said:
    """Return what a model says of some positions, in ascending order."""
    said = Said.nothing(len(positions))
    starts = range(0, len(positions), ASKED)
    for start in track(starts, "Predicting", len(positions), "positions", ASKED):
        part = slice(start, start + ASKED)
        said.put(part, model.predict(measured.read(positions[part])))
    return said


def region(text: str, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return the positions in rows r0 to r1 and columns c0 to c1 (without r1 and c1) of a scan.

    Raises
    ------
    InputError
        If the text is not ``"r0:r1,c0:c1"``, or the scan of this shape has no such position.
    """
    found = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", text)
    positions = np.arange(shape[0] * shape[1]).reshape(shape)
    if found:
        r0, r1, c0, c1 = map(int, found.groups())
        positions = positions[r0:r1, c0:c1]
    if not found or not positions.size:
        raise InputError(
            f"{text} is no region of a scan of {shape[0]} x {shape[1]} positions: give rows and "
            "columns from 0, such as 0:4,0:16"
        )
    return positions.ravel()


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Return where an image is not zero.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"the mask {path} is not one of {', '.join(READERS)}")
    try:
        values = np.asarray(read(path))
    except BadImageError as error:
        raise InputError(f"the mask {path} cannot be used: {error.detail}") from error
    except Exception as error:  # a broken file can make a reader raise nearly anything
        raise InputError(f"the mask {path} cannot be read: {error}") from error
    if not values.any():
        raise InputError(f"the mask {path} is zero everywhere: it is not zero where pixels count")
    return values != 0


def _warnings(source: Frames | Vectors, model: SymmetryModel, thickness: float | None) -> list[str]:
    """Return in a line each what makes a map less sure."""
    lines = model.warnings(source.energy, thickness, source.q_max, source.direct_beam)
    if isinstance(source, Frames) and source.preparation.saturated:
        lines.append(
            "the direct beam is saturated: intensities are too large as fractions of the incident "
            "beam"
        )
    if tuple(source.shape) == (1, 1):
        lines.append("the scan is a single frame: no neighbour supports what is said of it")
    elif 1 in source.shape:
        lines.append("the scan is a line: the median filter looks along it alone")
    return lines
