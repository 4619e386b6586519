"""The stage behind the rule `detect_images`: clean images as a detector sees them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.augment.images import Image, detect, without_noise
from diffractory.store import (
    InputError,
    one_thread,
    recorded,
    track,
    worker_pool,
    write_parquet,
)
from diffractory.store.images import ImageReader, write_images

CHUNK = 32
"""Images that a worker process takes at a time."""

Detected = tuple[NDArray[np.float16], list[dict[str, float]]]


def detect_images(
    clean: Sequence[Path],
    clean_samples: Sequence[Path],
    store: Path,
    samples: Path,
    run: Path,
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
) -> None:
    """Write noisy images, each divided by its mean outside of the beam stop.

    Parameters
    ----------
    clean, clean_samples
        What `simulate_images` wrote for each shard, in order.
    store, samples, run
        Image store, the table of its images, and the record, to write. What was drawn for an image
        has the key ``detector`` in the table's column ``drawn``.
    settings
        Configuration section ``ued.detector``: ``beam_stop``, a radius in 1/angstrom, and
        ``steps``, as `images.detect` takes them.
    seed
        Global seed.
    threads
        Processes that share the work.

    Raises
    ------
    InputError
        If a step cannot be applied, or nothing is left of an image.
    """
    outputs = [store, samples]
    with recorded(run, "detect_images", settings, [*clean, *clean_samples], outputs, seed) as facts:
        table = pd.concat([pd.read_parquet(path) for path in clean_samples], ignore_index=True)
        first = ImageReader(clean[0])
        quiet = Image(first.reference, first.pixel_size)
        reference = expose(quiet, without_noise(settings["steps"]), settings, seed, "reference")[0]
        drawn: list[dict[str, float]] = []

        def blocks() -> Iterator[NDArray[np.float16]]:
            detected = _detected(clean, table["sample"].to_numpy(), settings, seed, threads)
            for images, found in track(detected, "Detecting", len(table), "images", CHUNK):
                drawn.extend(found)
                yield images

        attributes = {"pixel_size": reference.pixel_size, "beam_stop": settings["beam_stop"]}
        write_images(store, len(table), blocks(), reference.pixels, attributes, np.float16)
        table["drawn"] = [
            json.dumps(json.loads(before) | {"detector": found})
            for before, found in zip(table["drawn"], drawn, strict=True)
        ]
        write_parquet(samples, table)
        facts["images"] = {str(k): int(v) for k, v in table["kind"].value_counts().items()}


def _detected(
    clean: Sequence[Path],
    names: NDArray[np.object_],
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
) -> Iterator[Detected]:
    """Yield the images of all shards in order, a chunk at a time."""
    tasks, before = [], 0
    for path in clean:
        count = ImageReader(path).shape[0]
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            tasks.append((path, start, tuple(names[before + start : before + stop])))
        before += count
    work = partial(_detect_chunk, settings=dict(settings), seed=seed)
    with worker_pool(threads, __name__, one_thread, "use fewer threads.") as pool:
        yield from pool.map(work, tasks)


def _detect_chunk(
    task: tuple[Path, int, tuple[str, ...]], settings: Mapping[str, Any], seed: int
) -> Detected:
    path, start, names = task
    reader = ImageReader(path)
    clean = reader.read(np.arange(start, start + len(names)))
    results = [
        expose(Image(values, reader.pixel_size), settings["steps"], settings, seed, name)
        for values, name in zip(clean, names, strict=True)
    ]
    images = np.stack([image.pixels for image, _ in results]).astype(np.float16)
    return images, [drawn for _, drawn in results]


def expose(
    image: Image,
    steps: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    seed: int,
    item: str,
) -> tuple[Image, dict[str, float]]:
    """Return an image behind the beam stop after some steps, divided by its mean outside of it.

    The stop is there twice: it keeps the direct beam from the detector, and its shadow is dark.

    Raises
    ------
    InputError
        If a step cannot be applied, or nothing is left of the image.
    """
    radius = settings["beam_stop"]
    stopped = np.where(image.q < radius, np.float32(0), image.pixels)
    seen, drawn = detect(Image(stopped, image.pixel_size), steps, seed, item)
    return normalized(seen, radius, item), drawn


def normalized(image: Image, beam_stop: float, item: str) -> Image:
    """Return an image divided by its mean outside of the beam stop, and dark inside.

    Raises
    ------
    InputError
        If the mean is not positive.
    """
    outside = image.q >= beam_stop
    mean = image.pixels[outside].mean(dtype=np.float64)
    if not mean > 0:
        raise InputError(
            f"nothing is left of the image {item} outside of the beam stop: raise the dose of "
            "poisson, or lower readout or beam_stop"
        )
    values = np.where(outside, image.pixels / mean, 0).astype(np.float32)
    return Image(values, image.pixel_size, image.counted)
