"""From frames to a map: spots found in simulated frames, and what a model says of them.

Prototypes are simulated and our network is trained on them, by the package's own stages. Its test
patterns are drawn as disks on 256 x 256 pixels with an amorphous halo and Poisson noise, at 1,000,
10,000 and 100,000 electrons a frame. Spots above 1 % of the incident beam count for the recall and
the error of places (root mean square along an axis, and median distance), beside the least error
that the electrons of single disks allow; what is found beside no simulated spot counts against the
precision. The model is asked about the spots that were found, all that were simulated, and those of
them above 1 %. A scan of such frames goes from its file to the map in a process of its own, of
which the peak memory is given.

A quick run trains a model that knows next to nothing. With --py4dstem, the interpreter of an
environment that has py4DSTEM, its detector gets the same frames and the same probe, with the
threshold out of fifty that serves it best. The last line is JSON.
"""

import argparse
import json
import logging
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from diffractory.experiment.bragg_spots import Detection, FoundSpots, Probe, find_spots
from diffractory.experiment.preparing import Preparation, SpotLists, survey, to_spot_lists
from diffractory.experiment.scan import open_scan, write_scan
from diffractory.experiment.symmetry_model import SymmetryModel
from diffractory.simulate.images import Detector, render_images
from diffractory.simulate.stage import simulate_patterns
from diffractory.store import CRYSTAL_SYSTEMS, Patterns, read_selected
from diffractory.store.labels import labels_of_split
from diffractory.structures.cleaning import clean_structures
from diffractory.structures.sources import retrieve_structures
from diffractory.structures.splits import split_structures

CONFIG = yaml.safe_load(
    (Path(__file__).parents[1] / "config" / "config.yaml").read_text(encoding="utf-8")
)
PIXEL, RADIUS, SIDE = 0.0125, 0.02, 256
"""1/angstrom (the radius is 0.5 mrad at 200 kV), and pixels."""

DOSES = (1e3, 1e4, 1e5)
"""Electrons a frame."""

STRONG = 0.01
"""Fraction of the incident beam."""

MOST_IN_HALO = 0.2
"""Fraction of a frame's electrons; the least is 0."""

PATCH = 9
"""Pixels along a patch about a disk."""

NEAR = 2.0
"""A spot is found if one is within so many pixels of it."""

CORES = torch.get_num_threads()

PEER = """
import sys, time
import numpy as np
import py4DSTEM
data = np.load(sys.argv[1])
frames, kernel, radius = data["frames"], data["kernel"], float(data["radius"])
cube = py4DSTEM.DataCube(data=frames.reshape(1, *frames.shape))
beam = np.zeros(frames.shape[1:])
beam[: len(kernel), : len(kernel)] = kernel
probe = py4DSTEM.Probe(beam)
kinds = {"flat": {}, "sigmoid": {"radii": (radius, 2 * radius)}}
results = {}
for mode, more in kinds.items():
    template = probe.get_kernel(mode=mode, origin=(len(kernel) // 2,) * 2, **more)
    start = time.perf_counter()
    found = cube.find_Bragg_disks(
        template, subpixel="poly", minAbsoluteIntensity=0, minRelativeIntensity=0,
        minPeakSpacing=2 * radius, edgeBoundary=2, maxNumPeaks=200,
    )
    results[f"{mode}_seconds"] = time.perf_counter() - start
    lists = [found.raw[0, i] for i in range(len(frames))]
    results[f"{mode}_offsets"] = np.cumsum([0] + [len(spots.qx) for spots in lists])
    for name in ("qx", "qy", "I"):
        results[f"{mode}_{name}"] = np.concatenate([getattr(spots, name) for spots in lists])
np.savez(sys.argv[2], **results)
"""
"""What its interpreter runs: all that it may find, with each of two kinds of kernels."""


class Found(NamedTuple):
    """How found spots compare with simulated ones: fractions, and errors in pixels."""

    recall: float
    precision: float
    rms: float
    median: float


def make_model(folder: Path, quick: bool) -> None:
    """Write structures.parquet, patterns and the trained model to a folder."""
    # Here, as processes that clean and simulate import this file and need no Lightning.
    from diffractory.training.spot_training import train_network

    processes = 1 if quick else CORES  # a process takes seconds to start
    entry = dict(CONFIG["datasets"]["prototypes"])
    simulation, training = dict(CONFIG["simulate"]), dict(CONFIG["symmetry"]["ours"]["training"])
    if quick:
        entry["count"] = 60
        simulation |= {"count": 10, "g_max": 1.0}
        training |= {"epochs": 1, "patterns_per_epoch": 4_000, "validation_patterns": 50}
    names = ("retrieved", "cleaned", "structures", "rejected", "unsolved")
    retrieved, cleaned, structures, rejected, unsolved = (folder / f"{n}.parquet" for n in names)
    run, store = (folder / f"{n}.run.json" for n in names), folder / "patterns"
    retrieve_structures(entry, "prototypes", folder, folder, retrieved, next(run), 0)
    clean_structures(
        retrieved, cleaned, rejected, next(run), CONFIG["structures"], 1.0, 0, processes
    )
    split_structures(cleaned, structures, next(run), CONFIG["split"], 0)
    simulate_patterns(structures, store, unsolved, next(run), 0, 1, simulation, 0, processes)
    settings = CONFIG["symmetry"]["ours"] | {"training": training}
    hardware = CONFIG["symmetry"]["hardware"] | {"threads": CORES}
    most = CONFIG["symmetry"]["max_spots"]
    train_network("ours", store, structures, folder / "ours", settings, most, hardware, 0)


def test_patterns(folder: Path, count: int) -> tuple[Patterns, NDArray[np.int64]]:
    """Return patterns that the model has not seen, and their crystal systems."""
    labels = labels_of_split(folder / "patterns", folder / "structures.parquet", "test")
    labels = labels.sample(min(count, len(labels)), random_state=0).sort_values("pattern")
    patterns = read_selected(folder / "patterns", labels["pattern"].to_numpy())
    system = pd.Index(CRYSTAL_SYSTEMS).get_indexer(pd.Index(labels["crystal_system"]))
    return Patterns.concatenate(list(patterns)), system


@cache
def halo() -> NDArray[np.float64]:
    """Return how electrons that an amorphous film scatters fall on a frame, their sum 1."""
    q = np.hypot(*(np.indices((SIDE, SIDE)) - (SIDE - 1) / 2)) * PIXEL
    values = np.exp(-q / 0.25) + 0.6 * np.exp(-(((q - 0.45) / 0.12) ** 2)) + 0.03
    return values / values.sum()


def exposed(images: NDArray[np.float32], dose: float) -> NDArray[np.float32]:
    """Return what a counting camera reads, with a halo of its own in each frame."""
    rng = np.random.default_rng(0)
    share = rng.uniform(0, MOST_IN_HALO, (len(images), 1, 1))
    return rng.poisson(dose * ((1 - share) * images + share * halo())).astype(np.float32)


def on_detector(patterns: Patterns) -> list[NDArray[np.float64]]:
    """Return row, column (pixels) and intensity of each pattern's spots that a frame shows."""
    row, column = (q / PIXEL + (SIDE - 1) / 2 for q in (patterns.qy, patterns.qx))
    spots = np.column_stack([row, column, patterns.intensity])
    seen = ((spots[:, :2] >= 0) & (spots[:, :2] <= SIDE - 1)).all(axis=1)
    before = np.concatenate([[0], np.cumsum(seen)])[patterns.offsets]
    return np.split(spots[seen], before[1:-1])


def drawn(places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the fraction of a disk in each pixel of a patch, shape (n, PATCH ** 2).

    Places are pixels from the middle of the patch, shape (n, 2).
    """
    n, (qy, qx) = len(places), PIXEL * places.T
    one_each = replace(
        Patterns.empty(), offsets=np.arange(n + 1), qx=qx, qy=qy, intensity=np.ones(n, np.float32)
    )
    patch = Detector((PATCH, PATCH), PIXEL, "disk", RADIUS)
    return render_images(one_each, patch).reshape(n, -1)


def least_error(true: list[NDArray[np.float64]], dose: float, count: int) -> float:
    """Return the error of places that no detector can do without, rms along an axis, pixels.

    Disks of strong spots, each alone, are placed by one who knows the disk, its electrons and the
    halo under it: at the mean of all places, weighted with the likelihood of what is seen.
    """
    rng = np.random.default_rng(0)
    spots = np.concatenate(true)
    spots = rng.choice(spots[spots[:, 2] > STRONG], count)
    row, column = np.rint(spots[:, :2]).astype(int).T
    share = rng.uniform(0, MOST_IN_HALO, count)
    electrons, ground = dose * (1 - share) * spots[:, 2], dose * share * halo()[row, column]
    there = rng.uniform(-0.5, 0.5, (count, 2))
    counts = rng.poisson(electrons[:, None] * drawn(there) + ground[:, None])
    along = np.linspace(-1.5, 1.5, 49)
    places = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
    disks, said = drawn(places), np.empty_like(there)
    for i in range(count):
        score = np.log(electrons[i] * disks + ground[i]) @ counts[i]
        weight = np.exp(score - score.max())
        said[i] = weight @ places / weight.sum()
    return float(np.sqrt(np.mean((said - there) ** 2)))


def compare(found: FoundSpots, true: list[NDArray[np.float64]]) -> Found:
    """Return how well the simulated spots, `on_detector`, were found."""
    said = np.column_stack([found.row, found.column])
    seen, wanted, right, errors = 0, 0, 0, []
    for i, spots in enumerate(true):
        here = said[found.offsets[i] : found.offsets[i + 1]]
        wanted += (spots[:, 2] > STRONG).sum()
        if len(here):
            distance, nearest = cKDTree(spots[:, :2]).query(here)
            right += (distance < NEAR).sum()
            strong = (distance < NEAR) & (spots[nearest, 2] > STRONG)
            seen += len(np.unique(nearest[strong]))
            errors.append(here[strong] - spots[nearest[strong], :2])
    error = np.concatenate(errors)
    return Found(
        recall=seen / wanted,
        precision=right / max(1, len(said)),
        rms=float(np.sqrt(np.mean(error**2))),
        median=float(np.median(np.hypot(*error.T))),
    )


def in_words(found: Found) -> str:
    """Return a line of the table."""
    return f"{found.recall:7.3f} {found.precision:9.3f} {found.rms:7.3f} {found.median:9.3f}"


def timed(work: Callable[[], FoundSpots]) -> tuple[FoundSpots, float]:
    """Return what is found, and the seconds of the better of two turns."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def repeated(images: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of a square scan, in which images follow each other."""
    for row in range(rows):
        yield exposed(images[np.arange(row * rows, (row + 1) * rows) % len(images)], DOSES[0])


def map_it(scan: Path, model: Path, output: Path, device: str) -> tuple[float, float]:
    """Return seconds from the file of a scan to its map, and the peak memory, GiB."""
    from diffractory.experiment.maps import MapSettings
    from diffractory.experiment.predict import predict_scan

    logging.disable()
    start = time.perf_counter()
    predict_scan(scan, model, output, MapSettings(), device=device)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return seconds, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**20  # type: ignore[index]


def ask(model: SymmetryModel, spots: SpotLists, system: NDArray[np.int64]) -> float:
    """Return the share of patterns whose crystal system a model tells rightly."""
    return float((model.predict(spots).crystal_system.argmax(axis=1) == system).mean())


def simulated(patterns: Patterns, least: float) -> SpotLists:
    """Return the spots of patterns above an intensity."""
    kept = patterns.intensity > least
    offsets = np.concatenate([[0], np.cumsum(kept)])[patterns.offsets]
    return SpotLists(offsets, patterns.qx[kept], patterns.qy[kept], patterns.intensity[kept])


def prepared(folder: Path, frames: NDArray[np.float32]) -> Preparation:
    """Return what a look at frames tells, as of a scan of one row."""
    path = folder / "frames.zarr"
    write_scan(path, (1, *frames.shape), [frames], PIXEL, 2e5, 10.0)
    return survey(open_scan(path), Detection())


def calibrated(found: FoundSpots, frames: NDArray[Any], preparation: Preparation) -> SpotLists:
    """Return the spots of all frames as networks read them."""
    totals = frames.sum(axis=(1, 2), where=preparation.mask)
    return to_spot_lists(found, totals, np.arange(len(frames)), preparation)


def peer(
    python: str,
    frames: NDArray[np.float32],
    probe: Probe,
    true: list[NDArray[np.float64]],
) -> tuple[Found, float]:
    """Return what py4DSTEM finds in frames, and how many frames a second."""
    with tempfile.TemporaryDirectory() as name:
        sent, back = Path(name, "sent.npz"), Path(name, "back.npz")
        np.savez(sent, frames=frames, kernel=probe.kernel, radius=probe.radius)
        subprocess.run([python, "-c", PEER, sent, back], check=True, capture_output=True)
        values = dict(np.load(back))
    results = []
    for mode in ("flat", "sigmoid"):
        names = ("offsets", "qx", "qy", "I", "seconds")
        offsets, row, column, intensity, seconds = (values[f"{mode}_{name}"] for name in names)
        for threshold in np.quantile(intensity, np.linspace(0, 0.98, 50)):
            kept = intensity >= threshold
            before = np.concatenate([[0], np.cumsum(kept)])[offsets]
            found = FoundSpots(before, row[kept], column[kept], intensity[kept])
            results.append((compare(found, true), len(frames) / float(seconds)))
    return max(results, key=lambda result: min(result[0].recall, result[0].precision))


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer structures and frames")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--py4dstem", help="interpreter of an environment that has py4DSTEM")
    options = parser.parse_args()
    logging.disable()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, options.quick)
        patterns, system = test_patterns(folder, 60 if options.quick else 1000)
        images = render_images(patterns, Detector((SIDE, SIDE), PIXEL, "disk", RADIUS))
        frames, true = [exposed(images, dose) for dose in DOSES], on_detector(patterns)
        print(f"{options.device}, {CORES} threads, {len(patterns)} frames of {SIDE} x {SIDE}")
        print("electrons frames/s  recall precision  rms px median px")
        model = SymmetryModel.load(folder / "ours", options.device)
        told = {"true_spots": ask(model, simulated(patterns, 0), system)}
        told["true_spots_above_1_percent"] = ask(model, simulated(patterns, STRONG), system)
        looked = prepared(folder, frames[0])  # at the lowest dose, and it serves all
        rates, found = [], []
        for dose, some in zip(DOSES, frames, strict=True):
            arguments = some, looked.probe, Detection(), looked.mask, options.device
            spots, seconds = timed(partial(find_spots, *arguments))
            found.append(compare(spots, true))
            rates.append(len(some) / seconds)
            told[f"spots_at_{dose:.0f}"] = ask(model, calibrated(spots, some, looked), system)
            print(f"{dose:9,.0f} {rates[-1]:8.0f} {in_words(found[-1])}", flush=True)
        least = least_error(true, DOSES[0], 500 if options.quick else 2000)
        print(f"{'at least':>36} {least:7.3f}           ({DOSES[0]:,.0f} electrons)")
        if options.py4dstem:
            theirs, their_rate = peer(options.py4dstem, frames[0], looked.probe, true)
            print(f" py4DSTEM {their_rate:8.1f} {in_words(theirs)}  ({DOSES[0]:,.0f} electrons)")
            result |= {"ratio_vs_py4dstem": rates[0] / their_rate}
            result |= {f"py4dstem_{key}": value for key, value in theirs._asdict().items()}
        side = 16 if options.quick else 100
        scan = folder / "scan.zarr"
        write_scan(scan, (side, side, SIDE, SIDE), repeated(images, side), PIXEL, 2e5, 10.0)
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            job = alone.submit(map_it, scan, folder / "ours", folder / "map", options.device)
            seconds, memory = job.result()
    for what, value in told.items():
        print(f"crystal system right, {what.replace('_', ' '):28} {value:.3f}")
    print(f"{side} x {side} frames to a map: {side**2 / seconds:.0f} frames/s, {memory:.2f} GiB")
    result |= {f"accuracy_{what}": value for what, value in told.items()}
    result |= {
        "detect_frames_per_second": rates[0],
        "end_to_end_frames_per_second": side**2 / seconds,
        "spot_recall": found[0].recall,
        "spot_precision": found[0].precision,
        "position_error_px": found[0].rms,
        "position_error_px_least": least,
        "position_error_px_median": found[0].median,
        "end_to_end_peak_gib": memory,
    }
    rounded = {key: float(f"{value:.4g}") for key, value in result.items()}
    print(json.dumps({**rounded, "threads": CORES}))


if __name__ == "__main__":
    main()
