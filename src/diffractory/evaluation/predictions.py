"""The stages that write the prediction files, from which every table and figure is made."""

from pathlib import Path

import numpy as np
import pandas as pd

from diffractory.store import (
    CRYSTAL_SYSTEMS,
    LATTICE,
    InputError,
    read_material_ids,
    recorded,
    write_parquet,
)
from diffractory.training.random_forest import (
    describe_patterns,
    labels_of_split,
    load_random_forest,
)


def summarize_dataset(
    patterns: Path, structures: Path, dataset: Path, run: Path, seed: int
) -> None:
    """Write one row per material with patterns: its labels, its split, and how many it has."""
    with recorded(run, "summarize_dataset", {}, [patterns, structures], seed) as facts:
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
    with recorded(run, "evaluate_random_forest", {}, inputs, seed) as facts:
        truth = labels_of_split(patterns, structures, "test")
        if truth.empty:
            raise InputError(
                f"no pattern of {patterns} belongs to the test part: use more structures, or raise "
                "split.test"
            )
        forest = load_random_forest(model)
        said = forest.predict(
            describe_patterns(patterns, truth["pattern"].to_numpy(), forest.descriptor)
        )
        table = truth.drop(columns="split")
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
