"""The stage that asks networks which crystal made a pattern, and checks what they answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from diffractory.augment.spot_steps import augment_spots
from diffractory.evaluation.pattern_agreement import Spots, agreement
from diffractory.evaluation.ranking import Best, search
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.layers import layer_patterns
from diffractory.store import (
    InputError,
    Patterns,
    read_material_ids,
    read_selected,
    recorded,
    write_parquet,
)
from diffractory.training.crystals import layers_of
from diffractory.training.retrieval_networks import (
    RetrievalNetwork,
    embed_patterns,
    embed_structures,
    load_retrieval_network,
)

UNCHANGED = "as_simulated"
"""Name of the condition in which patterns are as in the store."""

GALLERIES = ("test", "distractors")
"""The crystals of the test, and these with crystals that are nearly them."""

TWIN = 0.02
"""R-factor below which two crystals have one pattern."""

ALIKE = 0.01
"""Largest relative difference of the in-plane lattice vectors of crystals with one pattern."""

DESCRIBED = ("formula", "point_group", "crystal_system", "family")
"""Columns of the layers that tables and figures show."""


def evaluate_retrieval(
    model: Path,
    layers: Path,
    patterns: Path,
    distractors: Path,
    predictions: Path,
    run: Path,
    settings: Mapping[str, Any],
    simulation: Mapping[str, Any],
    hardware: Mapping[str, Any],
    seed: int,
) -> None:
    """Write one row for each test pattern, condition and gallery: what was found.

    The columns are ``condition``, ``gallery`` (of `GALLERIES`), ``gallery_size``, ``material_id``,
    those of `DESCRIBED`, ``rank`` (of the truth, from 1), ``candidates`` (best first), ``scores``
    (cosines), ``r_factors``, ``checked_rank`` (of the truth once the candidates are in the order of
    their R-factors) and ``twins`` (others of the gallery with the very pattern of the truth).

    Parameters
    ----------
    model
        Folder of a trained network.
    layers, patterns
        ``layers.parquet`` and the pattern store of its layers.
    distractors
        Table of further crystals: ``material_id`` and ``structure``.
    predictions, run
        Table and record to write.
    settings
        ``conditions`` (for each, steps as in `diffractory.augment.spot_steps`) and ``candidates``
        (how many are checked).
    simulation
        As for `layer_patterns`: how candidates are simulated.
    hardware
        Configuration section ``structure_2d.hardware``.
    seed
        Global seed.

    Raises
    ------
    InputError
        If there is no test pattern, an input cannot be used, or the device is not there.
    """
    inputs = [model / "model.safetensors", model / "hparams.json", layers, patterns, distractors]
    config = {"evaluation": dict(settings), "patterns": dict(simulation)}
    config["hardware"] = dict(hardware)
    stage, device = "evaluate_retrieval", hardware["device"]
    with recorded(run, stage, config, inputs, [predictions], seed, device) as facts:
        # Before Numba's first parallel loop, which sets the threads of torch to its own.
        numba.set_num_threads(min(hardware["threads"], numba.get_num_threads()))
        torch.set_num_threads(hardware["threads"])
        network = load_retrieval_network(model)
        queries, truth = _test_patterns(layers, patterns)
        others = pd.read_parquet(distractors, columns=["material_id", "structure"])
        parts = []
        for gallery, crystals in zip(GALLERIES, (truth, pd.concat([truth, others])), strict=True):
            asked = _Gallery(network, crystals, simulation, hardware)
            twins = asked.twins()
            for condition, steps in {UNCHANGED: [], **settings["conditions"]}.items():
                seen = augment_spots(queries, steps, seed)[0]
                part = asked.answers(seen, settings["candidates"])
                part.insert(0, "twins", twins[: len(truth)])
                part.insert(0, "material_id", truth["material_id"].to_numpy())
                part.insert(0, "gallery_size", len(crystals))
                part.insert(0, "gallery", gallery)
                part.insert(0, "condition", condition)
                parts.append(part)
        table = pd.concat(parts, ignore_index=True)
        known = truth[["material_id", *DESCRIBED]]
        write_parquet(predictions, table.merge(known, on="material_id", how="left"))
        facts["patterns"], facts["distractors"] = len(truth), len(others)


def _test_patterns(layers: Path, patterns: Path) -> tuple[Patterns, pd.DataFrame]:
    """Return the patterns of the test, and their crystals, in the same order."""
    table = pd.read_parquet(layers, columns=["material_id", "structure", "split", *DESCRIBED])
    ids = pd.DataFrame({"material_id": read_material_ids(patterns)})
    ids["pattern"] = np.arange(len(ids))
    test = ids.merge(table[table["split"] == "test"], on="material_id")
    if test.empty:
        raise InputError(
            f"no pattern of {patterns} belongs to the test part: use more layers, or raise "
            "structure_2d.layers.test"
        )
    chosen = Patterns.concatenate(list(read_selected(patterns, test["pattern"].to_numpy())))
    return chosen, test[["material_id", "structure", *DESCRIBED]]


class _Gallery:
    """Crystals to choose from, the first of which made the patterns that are asked about.

    Parameters
    ----------
    network
        What is asked.
    crystals
        Columns ``material_id`` and ``structure`` of G crystals.
    simulation
        As for `layer_patterns`.
    hardware
        Configuration section ``structure_2d.hardware``.
    """

    def __init__(
        self,
        network: RetrievalNetwork,
        crystals: pd.DataFrame,
        simulation: Mapping[str, Any],
        hardware: Mapping[str, Any],
    ) -> None:
        self.network, self.hardware, self.q_max = network, hardware, simulation["q_max"]
        self.layers = layers_of(crystals)
        self.embeddings = np.asfortranarray(embed_structures(network, self.layers, hardware))
        structures = [Crystal.from_json(text) for text in crystals["structure"]]
        patterns = layer_patterns(crystals["material_id"].tolist(), structures, simulation)
        self.spots = _spots(patterns)

    def answers(self, patterns: Patterns, k: int) -> pd.DataFrame:
        """Return what is found for each of the first P crystals from its pattern."""
        truth = np.arange(len(patterns))
        asked = embed_patterns(self.network, patterns, self.hardware)
        best = search(asked, self.embeddings, truth, k)
        pairs = np.column_stack([np.repeat(truth, best.place.shape[1]), best.place.ravel()])
        r_factor = self._r_factors(_spots(patterns), pairs).reshape(best.place.shape)
        return pd.DataFrame(
            {
                "rank": best.rank,
                "candidates": list(self.layers.material_id[best.place]),
                "scores": list(best.score),
                "r_factors": list(r_factor),
                "checked_rank": checked_rank(best, r_factor),
            }
        )

    def twins(self) -> NDArray[np.int64]:
        """Return how many others have the pattern of each crystal, shape (G,)."""
        pairs = _alike(self.layers.cell[:, :2, :2])
        r_factor = self._r_factors(self.spots, pairs)
        return np.bincount(pairs[r_factor < TWIN, 0], minlength=len(self.layers))

    def _r_factors(self, spots: Spots, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        cells = np.ascontiguousarray(self.layers.cell[:, :2, :2])
        return agreement(spots, self.spots, cells, pairs, self.q_max).r_factor


def checked_rank(best: Best, r_factor: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rank of the truth once the candidates stand in the order of their R-factors.

    Where it is not among them its rank stays. Equal R-factors count against the truth.

    Parameters
    ----------
    best
        Candidates of Q queries; the truth of query i is place i of the gallery.
    r_factor
        Of each candidate, shape (Q, K).
    """
    is_truth = best.place == np.arange(len(best.place))[:, None]
    found = is_truth.any(axis=1)
    of_truth = np.where(is_truth, r_factor, -np.inf).max(axis=1)
    return np.where(found, (r_factor <= of_truth[:, None]).sum(axis=1), best.rank)


def _spots(patterns: Patterns) -> Spots:
    q = patterns.qx.astype(np.float64) + 1j * patterns.qy.astype(np.float64)
    return Spots(patterns.offsets, q, np.sqrt(patterns.intensity.astype(np.float64)))


def _alike(cells: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the pairs of different crystals, (N, 2), whose lattices in the plane are nearly equal.

    Parameters
    ----------
    cells
        Reduced lattice vectors in the plane as rows, angstrom, shape (G, 2, 2).
    """
    lengths = np.linalg.norm(cells, axis=2)
    areas = np.abs(np.linalg.det(cells))
    known = np.log(np.column_stack([lengths, areas]))
    order = np.argsort(known[:, 0], kind="stable")
    first = known[order, 0]
    stop = np.searchsorted(first, first + ALIKE)
    counts = stop - np.arange(len(order)) - 1
    i = np.repeat(np.arange(len(order)), counts)
    j = i + 1 + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    near = (np.abs(known[order[i]] - known[order[j]]) < ALIKE).all(axis=1)
    pairs = np.column_stack([order[i[near]], order[j[near]]])
    return np.concatenate([pairs, pairs[:, ::-1]])
