"""The stages that count layers, and pick the pattern that figures show."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diffractory.evaluation.structure_2d import FAMILIES, chosen, read_answers
from diffractory.evaluation.tables import read_columns
from diffractory.models.dd2d import DD2D
from diffractory.simulate.crystal import SYMBOLS
from diffractory.store import (
    InputError,
    SpotReader,
    read_material_ids,
    recorded,
    write_parquet,
)
from diffractory.training.crystals import Layers, layers_of
from diffractory.training.retrieval_networks import check_length, load_retrieval_network


def summarize_layers(layers: Path, dataset: Path, run: Path, seed: int) -> None:
    """Write how many layers each split has of each family, and how many of them were relaxed.

    Parameters
    ----------
    layers
        ``layers.parquet``, or what `relax_layers` wrote.
    dataset, run
        The Parquet file to write, with the columns split, family, layers and relaxed, and the
        record.

    Raises
    ------
    InputError
        If the table is not of this form.
    """
    with recorded(run, "summarize_layers", {}, [layers], [dataset], seed) as facts:
        table = read_columns(layers, ["split", "family"], ["relaxed"])
        table = table if "relaxed" in table else table.assign(relaxed=False)
        table["family"] = pd.Categorical(table["family"], FAMILIES)
        groups = table.groupby(["split", "family"], observed=True, sort=True)["relaxed"]
        counts = groups.agg(layers="size", relaxed="sum").reset_index()
        write_parquet(dataset, counts.astype({"family": str, "relaxed": np.int64}))
        facts["layers"] = len(table)


def collect_retrieval_examples(
    model: Path,
    layers: Path,
    patterns: Path,
    predictions: Path,
    examples: Path,
    run: Path,
    seed: int,
) -> None:
    """Write a test pattern, its crystal, the candidates, and what DD2D attends to in the crystal.

    It is the first test pattern, by the name of its crystal, whose crystal is among its candidates
    from the gallery of the test; if there is none, the first of all.

    Parameters
    ----------
    model
        Folder of a trained DD2D.
    layers, patterns, predictions
        What it was evaluated with (`evaluate_retrieval`), and the result.
    examples, run
        The Parquet file to write, and the record. The crystal is at ``place`` 0, the candidates
        follow; further columns are ``material_id``, ``formula``, ``score`` (cosine), ``r_factor``,
        ``cell``, ``positions`` (Cartesian, angstrom), ``numbers`` and ``elements``, and for the
        crystal ``spots`` (q_x, q_y in 1/angstrom, intensity) and ``attention``, as for `Example`,
        lists row by row.

    Raises
    ------
    InputError
        If the model is no DD2D, or the inputs do not belong together.
    """
    inputs = [model / "model.safetensors", model / "hparams.json", layers, patterns, predictions]
    with recorded(run, "collect_retrieval_examples", {}, inputs, [examples], seed):
        network = load_retrieval_network(model)
        if not isinstance(network, DD2D):
            raise InputError(f"{model} is no DD2D, whose attention figures show: give that model")
        answer = _shown(read_answers(predictions, "candidates", "scores", "r_factors"))
        names = [answer["material_id"], *answer["candidates"]]
        known = read_columns(layers, ["material_id", "formula", "structure"])
        known = known.set_index("material_id", drop=False)
        if absent := [name for name in names if name not in known.index]:
            raise InputError(f"{layers} does not have {absent[0]} of {predictions}: evaluate again")
        known = known.loc[names]
        crystals = layers_of(known)
        check_length(network, crystals)
        with torch.inference_mode():
            attention = network.attention(crystals.batch(np.array([0]), network.q_max))
        others: list[list[float]] = [[]] * len(answer["candidates"])
        table = pd.DataFrame({"place": np.arange(len(names)), "material_id": names})
        table["formula"] = known["formula"].to_numpy()
        table["score"] = [np.nan, *answer["scores"]]
        table["r_factor"] = [np.nan, *answer["r_factors"]]
        atoms = pd.DataFrame(_atoms(crystals, row) for row in range(len(names)))
        table = table.join(atoms)
        table["spots"] = [_spots(patterns, names[0]), *others]
        table["attention"] = [attention.flatten().tolist(), *others]
        write_parquet(examples, table)


def _shown(answers: pd.DataFrame) -> dict[str, Any]:
    answers = chosen(answers).sort_values("material_id")
    among = [
        name in candidates
        for name, candidates in zip(answers["material_id"], answers["candidates"], strict=True)
    ]
    return {str(name): value for name, value in answers.iloc[int(np.argmax(among))].items()}


def _atoms(layers: Layers, row: int) -> dict[str, Any]:
    atoms = slice(layers.offsets[row], layers.offsets[row + 1])
    return {
        "cell": layers.cell[row].ravel().tolist(),
        "positions": layers.positions[atoms].ravel().tolist(),
        "numbers": layers.numbers[atoms].tolist(),
        "elements": [SYMBOLS[number - 1] for number in layers.numbers[atoms]],
    }


def _spots(patterns: Path, material_id: str) -> list[float]:
    """Return the spots of a layer as a list, three numbers each."""
    places = np.flatnonzero(read_material_ids(patterns) == material_id)
    if len(places) == 0:
        raise InputError(f"{patterns} has no pattern of {material_id}: simulate it again")
    reader, place = SpotReader(patterns), int(places[0])
    values: list[float] = reader.read(place, place + 1).astype(np.float64).ravel().tolist()
    return values
