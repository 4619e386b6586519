"""The stages behind the rules `simulate_experiment` and `read_experiment`."""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diffractory.experiment.geometry import Geometry, Grid
from diffractory.experiment.series import read_series
from diffractory.experiment.stand_in import frames, reference_image, simulate_frame
from diffractory.store import (
    InputError,
    one_thread,
    recorded,
    track,
    worker_pool,
    write_parquet,
)
from diffractory.store.images import write_images

COLUMNS = ["sample", "kind", "split", "drawn", "time", "scan"]

logger = logging.getLogger(__name__)


def simulate_experiment(
    phonons: Path,
    store: Path,
    samples: Path,
    run: Path,
    settings: Mapping[str, Any],
    detector: Mapping[str, Any],
    seed: int,
    threads: int,
) -> None:
    """Simulate a stand-in for a pump-probe series: two scans of 2H MoTe2.

    Scan 0 is to learn from, every fifth frame of it to validate; scan 1 is the test.

    Parameters
    ----------
    phonons
        phonopy's YAML of the 2H layer.
    store, samples, run
        Image store, its table and ``run.json`` to write.
    settings
        Configuration section ``ued.experiment.stand_in``.
    detector
        ``shape`` (rows, columns), ``pixel_size`` and ``beam_stop`` (1/angstrom) that the networks
        read.
    threads
        Processes; the images do not depend on it.

    Raises
    ------
    InputError
        If the phonons cannot be used or a process is killed.
    """
    config = {"stand_in": dict(settings), "detector": dict(detector)}
    grid, outputs = _grid(detector), [store, samples]
    with recorded(run, "simulate_experiment", config, [phonons], outputs, seed) as facts:
        series = list(frames(settings, seed))
        work = partial(simulate_frame, phonons=phonons, settings=settings, grid=grid, seed=seed)
        advice = "use fewer threads, or fewer ued.experiment.stand_in.cells."
        # One process too has a pool, so that linear algebra runs on one thread whatever `threads`.
        with worker_pool(threads, __name__, one_thread, advice) as pool:
            reference = pool.submit(reference_image, phonons, settings, grid).result()
            images = pool.map(work, series)
            blocks = (image[None] for image in track(images, "Simulating", len(series), "frames"))
            write_images(store, len(series), blocks, reference, _attributes(grid), np.float16)
        rows = [
            (frame.sample, frame.kind, frame.split, json.dumps(frame.drawn), frame.time, frame.scan)
            for frame in series
        ]
        write_parquet(samples, pd.DataFrame(rows, columns=COLUMNS))
        facts["frames"], facts["stand_in"] = len(series), True


def read_experiment(
    folder: Path,
    store: Path,
    samples: Path,
    rejected: Path,
    run: Path,
    settings: Mapping[str, Any],
    detector: Mapping[str, Any],
    max_rejected_fraction: float,
    seed: int,
) -> None:
    """Read a series of images with their times.

    Frames after time zero are of kind ``phonons_2h``, all others of kind ``pristine_2h``. Of the
    frames in order of time every second is for the test, of the others every fifth to validate. The
    reference is the mean of the pristine frames that are not for the test.

    Parameters
    ----------
    folder
        As for `read_series`.
    store, samples, rejected, run
        Image store, its table, table of files that cannot be used and ``run.json`` to write.
    settings
        Fields of `Geometry`: configuration section ``ued.experiment.geometry``.
    detector
        As for `simulate_experiment`.
    max_rejected_fraction
        Largest fraction of the files that may be rejected.

    Raises
    ------
    InputError
        If too few files can be used, or none before time zero.
    """
    config = {"geometry": dict(settings), "detector": dict(detector)}
    grid, outputs = _grid(detector), [store, samples, rejected]
    with recorded(run, "read_experiment", config, [folder], outputs, seed) as facts:
        series = read_series(folder, Geometry(**settings), grid)
        count, refused = len(series.files), series.rejected
        for row in refused.itertuples():
            logger.warning("%s is set aside, %s: %s", row.file, row.reason, row.detail)
        if len(refused) > max_rejected_fraction * (count + len(refused)):
            raise InputError(
                f"{len(refused)} of {count + len(refused)} images in {folder} cannot be used, over "
                f"max_rejected_fraction = {max_rejected_fraction}; the first is "
                f"{refused['file'][0]}: {refused['detail'][0]}"
            )
        order = np.arange(count)
        split = np.where(order // 2 % 5 == 4, "validation", "train")
        split[order % 2 == 1] = "test"
        kinds = np.where(series.times > 0, "phonons_2h", "pristine_2h")
        pristine = (kinds == "pristine_2h") & (split != "test")
        if not pristine.any():
            raise InputError(
                f"no image of {folder} to learn from is from before time zero: add some, with "
                "negative times, since the networks compare all others with those"
            )
        reference = grid.normalized(series.images[pristine].mean(axis=0))
        write_images(store, count, [series.images], reference, _attributes(grid), np.float16)
        rows = [
            (f"{part}/{kind}/{number}", kind, part, json.dumps({"file": file}), time, 0)
            for number, (part, kind, file, time) in enumerate(
                zip(split, kinds, series.files, series.times, strict=True)
            )
        ]
        write_parquet(samples, pd.DataFrame(rows, columns=COLUMNS))
        write_parquet(rejected, refused)
        facts["frames"], facts["rejected"] = count, dict(Counter(refused["reason"]))


def _grid(detector: Mapping[str, Any]) -> Grid:
    rows, columns = detector["shape"]
    return Grid((rows, columns), detector["pixel_size"], detector["beam_stop"])


def _attributes(grid: Grid) -> dict[str, float]:
    return {"pixel_size": grid.pixel_size, "beam_stop": grid.beam_stop}
