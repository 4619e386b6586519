"""The stage behind the rule `train_random_forest`, and what prediction shares with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from diffractory.models.random_forest import Descriptor, HierarchicalForest
from diffractory.store import (
    LATTICE,
    InputError,
    atomic_folder,
    generator,
    read_selected,
    recorded,
    track,
    write_text,
)
from diffractory.store.labels import labels_of_split
from diffractory.store.patterns import BLOCK
from diffractory.training.conventions import conventions


def describe_patterns(
    patterns: Path, indices: NDArray[np.int64], descriptor: Descriptor
) -> NDArray[np.float32]:
    """Return the descriptors of the patterns with these ascending indices, block by block."""
    stop = int(indices[-1]) + 1 if len(indices) else 0
    none = np.empty((0, descriptor.radial_bins * descriptor.angular_orders), dtype=np.float32)
    blocks = track(read_selected(patterns, indices), "Describing", stop, "patterns", BLOCK)
    described = (descriptor(b.offsets, b.qx, b.qy, b.intensity) for b in blocks)
    return np.concatenate([none, *described])


def train_random_forest(
    patterns: Path,
    structures: Path,
    model: Path,
    settings: Mapping[str, Any],
    g_max: float,
    seed: int,
    threads: int,
) -> None:
    """Train the cascade of forests and write the folder ``model``.

    Parameters
    ----------
    patterns, structures
        Pattern store and ``structures.parquet``.
    model
        Folder to write: model.safetensors, hparams.json, metrics.csv (accuracies on the validation
        part, no epochs here) and run.json.
    settings
        Configuration section ``symmetry.random_forest``.
    g_max
        Outer radius of the descriptor, 1/angstrom.

    Raises
    ------
    InputError
        If there is no pattern to train on, or the forest grows too large.
    """
    descriptor = Descriptor(
        settings["radial_bins"], settings["angular_orders"], settings["intensity_power"], g_max
    )
    config = {"random_forest": dict(settings), "g_max": g_max}
    stage, inputs = "train_random_forest", [patterns, structures]
    with (
        atomic_folder(model) as folder,
        recorded(folder / "run.json", stage, config, inputs, [folder], seed) as facts,
    ):
        train = labels_of_split(patterns, structures, "train")
        if train.empty:
            raise InputError(
                f"no pattern of {patterns} belongs to the training part: use more structures, or "
                "lower split.test and split.validation"
            )
        try:
            forest = HierarchicalForest.fit(
                descriptor,
                features=describe_patterns(patterns, train["pattern"].to_numpy(), descriptor),
                crystal_system=train["crystal_system"].to_numpy(dtype=str),
                space_group=train["space_group"].to_numpy(),
                lattice=train[list(LATTICE)].to_numpy(),
                n_estimators=settings["n_estimators"],
                min_samples_leaf=settings["min_samples_leaf"],
                seed=int(generator(seed, "random_forest", 0).integers(2**31)),
                threads=threads,
            )
        except OverflowError as error:
            raise InputError(
                f"the forest is too large ({error}): raise symmetry.random_forest.min_samples_leaf "
                "or lower n_estimators"
            ) from error
        (folder / "model.safetensors").write_bytes(save(forest.tensors()))
        hparams = forest.hparams()
        hparams["patterns"] = conventions(patterns, train["pattern"].to_numpy())
        write_text(folder / "hparams.json", json.dumps(hparams, indent=2) + "\n")
        metrics = _validate(forest, patterns, structures)
        metrics.to_csv(folder / "metrics.csv", index=False, float_format="%.6f")
        facts["training_patterns"] = len(train)
        facts["training_materials"] = int(train["material_id"].nunique())


def _validate(forest: HierarchicalForest, patterns: Path, structures: Path) -> pd.DataFrame:
    truth = labels_of_split(patterns, structures, "validation")
    features = describe_patterns(patterns, truth["pattern"].to_numpy(), forest.descriptor)
    said = forest.predict(features)
    system = np.array(forest.systems)[said.crystal_system.argmax(axis=1)]
    return pd.DataFrame(
        {
            "epoch": [0],
            "validation_patterns": [len(truth)],
            "crystal_system_accuracy": [(system == truth["crystal_system"]).mean()],
            "space_group_accuracy": [(said.space_group == truth["space_group"]).mean()],
        }
    )


def load_random_forest(model: Path) -> HierarchicalForest:
    """Load a trained model from its folder."""
    hparams = json.loads((model / "hparams.json").read_text(encoding="utf-8"))
    return HierarchicalForest.from_tensors(hparams, load_file(model / "model.safetensors"))
