"""The stage behind the rule `simulate_images`: clean images of augmented crystals of MoTe2."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.augment.compose import Context, augment_crystal
from diffractory.augment.crystals import repeat
from diffractory.augment.mote2 import ORTHOGONAL
from diffractory.augment.phonons import cell_of, read_phonons
from diffractory.simulate.crystal import Crystal, mean_square_displacement
from diffractory.simulate.fourier import Grid, pixel_image
from diffractory.store import (
    claimed,
    generator,
    one_thread,
    recorded,
    track,
    worker_pool,
    write_parquet,
)
from diffractory.store.images import write_images

REFERENCE = "2h"
"""The phase that images are compared with."""

CHUNK = 8
"""Images that a worker process makes at a time."""

Parts = list[tuple[float, Crystal]]
"""Crystals whose images add up, each with its weight."""


def simulate_images(
    phonons: Mapping[str, Path],
    store: Path,
    samples: Path,
    run: Path,
    shard: int,
    shards: int,
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
) -> None:
    """Simulate one contiguous block of the images of one set, without noise.

    Parameters
    ----------
    phonons
        What `calculate_phonons` wrote, by phase.
    store, samples, run
        Image store, the table of its images and ``run.json`` to write.
    shard, shards
        This block (from 0) and the number of blocks.
    settings
        Configuration section ``ued.images``, with ``counts`` and ``kinds`` of this set alone.
    seed
        Global seed.
    threads
        Processes that share the work.

    Raises
    ------
    InputError
        If a kind cannot be made, or another process simulates this block.
    """
    inputs, outputs = list(phonons.values()), [store, samples]
    with (
        claimed(store),
        recorded(
            run, "simulate_images", settings, inputs, outputs, seed, settings["device"]
        ) as facts,
    ):
        table = planned(settings["kinds"], settings["counts"])
        first, last = (len(table) * i // shards for i in (shard, shard + 1))
        table = table.iloc[first:last].reset_index(drop=True)
        drawn: list[str] = []

        def blocks() -> Iterator[NDArray[np.float32]]:
            with _images(table, phonons, settings, seed, threads) as results:
                note = f"Simulating shard {shard + 1} of {shards}"
                for image, found in track(results, note, len(table), "images"):
                    drawn.append(found)
                    yield image[None]

        at_rest = _crystal(_phases(tuple(phonons.items()))[REFERENCE], settings["cells"], settings)
        reference = _summed([(1.0, at_rest)], settings)
        attributes = {"pixel_size": settings["q_step"], "beam_stop": 0.0}
        write_images(store, len(table), blocks(), reference, attributes, np.float32)
        write_parquet(samples, table.assign(drawn=drawn))
        facts["images"] = {str(k): int(v) for k, v in table["kind"].value_counts().items()}


def planned(kinds: Iterable[str], counts: Mapping[str, int]) -> pd.DataFrame:
    """Return the columns ``sample``, ``kind`` and ``split`` of a set of images, in order.

    The name of a sample is what its draws belong to: splits share none.
    """
    rows = [
        (f"{split}/{kind}/{number}", kind, split)
        for split, count in counts.items()
        for kind in kinds
        for number in range(count)
    ]
    return pd.DataFrame(rows, columns=["sample", "kind", "split"])


@contextmanager
def _images(
    table: pd.DataFrame,
    phonons: Mapping[str, Path],
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
) -> Iterator[Iterable[tuple[NDArray[np.float32], str]]]:
    """Yield image and draws of each row, in order, worked on in parallel.

    With a GPU, the processes make the crystals and this one the images.
    """
    rows = list(zip(table["sample"], table["kind"], strict=True))
    common = (tuple(phonons.items()), settings, seed)
    advice = "use fewer threads."
    with worker_pool(threads, __name__, one_thread, advice) as pool:
        if settings["device"] == "cpu":
            yield pool.map(partial(_make_image, common=common), rows, chunksize=CHUNK)
        else:
            made = pool.map(partial(_make_parts, common=common), rows, chunksize=CHUNK)
            yield ((_summed(parts, settings), drawn) for parts, drawn in made)


Common = tuple[tuple[tuple[str, Path], ...], Mapping[str, Any], int]


def _make_image(row: tuple[str, str], common: Common) -> tuple[NDArray[np.float32], str]:
    parts, drawn = _make_parts(row, common)
    return _summed(parts, common[1]), drawn


def _make_parts(row: tuple[str, str], common: Common) -> tuple[Parts, str]:
    """Return the crystals of a sample, and what was drawn for them as JSON."""
    (sample, name), (phonons, settings, seed) = row, common
    kind, phases = settings["kinds"][name], _phases(phonons)
    rng = generator(seed, "images/cells", sample)
    factor = np.clip(rng.normal(1, settings["cell_spread"], 2), 0.2, None)
    cells = np.rint(factor * settings["cells"]).astype(int).tolist()
    drawn: dict[str, Any] = {"cells": cells}
    share = float(generator(seed, "images/mix", sample).random())
    wanted = {kind["phase"]: 1.0}
    if "mix" in kind:
        wanted = {kind["phase"]: 1 - share, kind["mix"]: share}
        drawn["mix"] = wanted
    parts: Parts = []
    for phase, weight in wanted.items():
        crystal = _crystal(phases[phase], cells, settings)
        steps = [*kind["augment"], *settings["every"]]
        crystal, found = augment_crystal(crystal, steps, seed, f"{sample}/{phase}", phases[phase])
        parts.append((weight, crystal))
        drawn[phase] = found
    return parts, json.dumps(drawn)


def _summed(parts: Parts, settings: Mapping[str, Any]) -> NDArray[np.float32]:
    grid = Grid(settings["q_max"], settings["q_step"])
    how = (settings["oversampling"], settings["parametrization"], settings["device"])
    images = [weight * pixel_image(crystal, grid, *how) for weight, crystal in parts]
    return np.sum(images, axis=0, dtype=np.float32)


def _crystal(phase: Context, cells: Sequence[int], settings: Mapping[str, Any]) -> Crystal:
    """Return so many orthogonal cells of a phase along x and y, at rest."""
    assert phase.cell is not None
    crystal = repeat(phase.cell, (*cells, 1))
    return replace(crystal, displacements=mean_square_displacement(settings["debye_waller"]))


@cache
def _phases(phonons: tuple[tuple[str, Path], ...]) -> dict[str, Context]:
    """Read the phases, each with what its augmentation needs."""
    found = {phase: read_phonons(path) for phase, path in phonons}
    cells = {phase: repeat(cell_of(found[phase]), ORTHOGONAL[phase]) for phase in found}
    return {phase: Context(cells[phase], cells, found[phase]) for phase in found}
