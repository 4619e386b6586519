"""The stages that write the prediction files, from which every table and figure is made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diffractory.evaluation.symmetry import TESTED
from diffractory.models.pooling import log_probability
from diffractory.store import (
    CRYSTAL_SYSTEMS,
    LATTICE,
    read_material_ids,
    recorded,
    write_parquet,
)
from diffractory.store.labels import labels_of_test
from diffractory.training.random_forest import describe_patterns, load_random_forest
from diffractory.training.spot_networks import load_network, predict
from diffractory.training.spots import SpotBatches

BATCH_SIZE = 64
"""Patterns that a network predicts at a time."""


def summarize_dataset(
    patterns: Path, structures: Path, dataset: Path, run: Path, seed: int
) -> None:
    """Write one row per material with patterns: its labels, its split, and how many it has."""
    inputs = [patterns, structures]
    with recorded(run, "summarize_dataset", {}, inputs, [dataset], seed) as facts:
        counts = pd.Series(read_material_ids(patterns)).value_counts()
        columns = ["material_id", "split", "crystal_system", "space_group"]
        table = pd.read_parquet(structures, columns=columns)
        table["n_patterns"] = table["material_id"].map(counts).fillna(0).astype(int)
        table = table[table["n_patterns"] > 0]
        write_parquet(dataset, table)
        facts["materials"] = {str(k): int(v) for k, v in table["split"].value_counts().items()}


def evaluate_random_forest(
    model: Path, patterns: Path, structures: Path, predictions: Path, run: Path, seed: int
) -> None:
    """Write one row per test pattern: truth, prediction and probabilities.

    Raises
    ------
    InputError
        If there is no test pattern.
    """
    inputs = [model / "model.safetensors", model / "hparams.json", patterns, structures]
    with recorded(run, "evaluate_random_forest", {}, inputs, [predictions], seed) as facts:
        truth = labels_of_test(patterns, structures, *TESTED)
        forest = load_random_forest(model)
        said = forest.predict(
            describe_patterns(patterns, truth["pattern"].to_numpy(), forest.descriptor)
        )
        table = truth.copy()
        best = said.crystal_system.argmax(axis=1)
        table["predicted_crystal_system"] = np.array(forest.systems)[best]
        probabilities = pd.DataFrame(said.crystal_system, columns=forest.systems)
        for name in CRYSTAL_SYSTEMS:
            table[f"probability_{name}"] = probabilities.get(name, 0.0)
        table["predicted_space_group"] = said.space_group
        table["probability_space_group"] = said.space_group_probability
        table[[f"predicted_{name}" for name in LATTICE]] = said.lattice
        write_parquet(predictions, table)
        facts["test_patterns"] = len(table)


def evaluate_network(
    model: Path,
    patterns: Path,
    structures: Path,
    predictions: Path,
    run: Path,
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Write what `evaluate_random_forest` does, of a network.

    Networks tell no lattice constants. One that does not tell the space group has no columns for
    it, and one that knows its ``uncertainty`` has a column for that. One that says how to pool the
    patterns of a material has this in the columns ``pool_weight`` and ``pool_power``, and the
    logarithms of the probabilities of all space groups in ``log_probability_space_groups``.

    Raises
    ------
    InputError
        If there is no test pattern, the model cannot be read, or the device is not there.
    """
    torch.set_num_threads(hardware["threads"])
    inputs = [model / "model.safetensors", model / "hparams.json", patterns, structures]
    config, device = {"hardware": dict(hardware)}, hardware["device"]
    with recorded(run, "evaluate_network", config, inputs, [predictions], seed, device) as facts:
        truth = labels_of_test(patterns, structures, *TESTED)
        network, max_spots = load_network(model)
        batches = SpotBatches(patterns, truth, BATCH_SIZE, max_spots, seed, False, False)
        order, said = predict(network, batches, hardware)
        order = np.argsort(order)  # as in the store, which is the order of the rows
        table = truth.drop(columns=list(LATTICE))
        system = said.crystal_system.numpy()[order]
        table["predicted_crystal_system"] = np.array(CRYSTAL_SYSTEMS)[system.argmax(axis=1)]
        table[[f"probability_{name}" for name in CRYSTAL_SYSTEMS]] = system
        if said.space_group is not None:
            group = said.space_group.numpy()[order]
            table["predicted_space_group"] = group.argmax(axis=1) + 1
            table["probability_space_group"] = group.max(axis=1)
            if network.pooling is not None:
                table["pool_weight"], table["pool_power"] = network.pooling.tolist()
                logs = log_probability(group).astype(np.float16)
                table["log_probability_space_groups"] = list(logs)
        if said.uncertainty is not None:
            table["uncertainty"] = said.uncertainty.numpy()[order]
        write_parquet(predictions, table)
        facts["test_patterns"] = len(table)
