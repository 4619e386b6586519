"""The stages that say which images there are, and pick those that figures show."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.tables import read_columns
from diffractory.store import InputError, recorded, write_parquet
from diffractory.store.images import ImageReader

FIGURES = {"classes": "2", "experiment": "4", "latent": "6"}
"""Image stores, each with the figure that shows images of it."""

FRAMES = 5
"""Images of the experiment that its figure shows."""


def summarize_images(samples: Mapping[str, Path], dataset: Path, run: Path, seed: int) -> None:
    """Write how many images each store has of each kind and split.

    Parameters
    ----------
    samples
        ``samples.parquet`` by store.
    dataset, run
        The Parquet file to write, with the columns store, kind, split and images, and the record.

    Raises
    ------
    InputError
        If a file is not of the form that its stage writes.
    """
    with recorded(run, "summarize_images", {}, [*samples.values()], [dataset], seed) as facts:
        tables = [
            read_columns(path, ["kind", "split"])
            .groupby(["kind", "split"], sort=False)
            .size()
            .reset_index(name="images")
            .assign(store=store)
            for store, path in samples.items()
        ]
        table = pd.concat(tables, ignore_index=True)[["store", "kind", "split", "images"]]
        write_parquet(dataset, table)
        facts["images"] = {
            str(k): int(v) for k, v in table.groupby("store")["images"].sum().items()
        }


def collect_examples(
    stores: Mapping[str, Path], samples: Mapping[str, Path], examples: Path, run: Path, seed: int
) -> None:
    """Write the images that figures show, and the reference.

    These are the first test image of each kind, and of the experiment ``FRAMES`` of its first test
    scan, at even distances in the order of time.

    Parameters
    ----------
    stores, samples
        Image store and ``samples.parquet`` by name, a key of ``FIGURES``.
    examples, run
        The Parquet file to write, with the columns figure, kind, time (ps after the pump), rows,
        columns, pixel_size (1/angstrom) and image (row by row), and the record.

    Raises
    ------
    InputError
        If samples are not of the images in their store, or none is of the test split.
    """
    inputs = [path for name in FIGURES for path in (stores[name], samples[name])]
    with recorded(run, "collect_examples", {}, inputs, [examples], seed):
        rows = []
        for name, figure in FIGURES.items():
            reader = ImageReader(stores[name])
            chosen = _chosen(name, samples[name], reader.shape[0])
            images = reader.read(chosen.index.to_numpy(np.int64))
            rows += [
                _row(figure, kind, time, reader.pixel_size, image)
                for kind, time, image in zip(chosen["kind"], chosen["time"], images, strict=True)
            ]
            if name == "classes":
                size, image = reader.pixel_size, reader.reference
                rows.append(_row("reference", "reference", np.nan, size, image))
        write_parquet(examples, pd.DataFrame(rows))


def _chosen(name: str, path: Path, count: int) -> pd.DataFrame:
    """Return the samples to show, with ``time``, by their place in the store of so many images."""
    measured = name == "experiment"
    table = read_columns(path, ["kind", "split", *(["time", "scan"] if measured else [])])
    if len(table) != count:
        raise InputError(
            f"{path} has {len(table)} rows for {count} images: simulate the images again"
        )
    test = table[table["split"] == "test"]
    if test.empty:
        raise InputError(f"{path} has no image of the test split: raise its number of images")
    if not measured:
        return test.groupby("kind", sort=False).head(1).assign(time=np.nan)
    scan = test[test["scan"] == test["scan"].min()].sort_values("time")
    places = np.linspace(0, len(scan) - 1, FRAMES).round().astype(int)
    return scan.iloc[np.unique(places)]


def _row(
    figure: str, kind: str, time: float, pixel_size: float, image: NDArray[np.float32]
) -> dict[str, Any]:
    rows, columns = image.shape
    return {
        "figure": figure,
        "kind": kind,
        "time": time,
        "rows": rows,
        "columns": columns,
        "pixel_size": pixel_size,
        "image": image.ravel(),
    }
