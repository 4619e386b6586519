"""Predictions of the symmetry study: of single patterns, and of the patterns of a material."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.fusion import fuse_opinions
from diffractory.evaluation.metrics import random_ranks, vote
from diffractory.evaluation.tables import listed, read_columns
from diffractory.models.pooling import log_probability, pool
from diffractory.store import CRYSTAL_SYSTEMS, InputError

STUDY = "symmetry"

MODELS = {
    "pe_ag_gmoe": "PE-AG-GMoE",
    "random_forest": "RF",
    "mvof_ml": "MVOF-ML",
    "ours": "Ours",
}
"""Models by the name of their file, as the paper prints them, and our own."""

POOLING = ("pool_weight", "pool_power")
"""Columns of a prediction file whose model learns to pool the patterns of a material."""

TESTED = ("test", "new_prototype")
"""Splits with predictions: the test of all tables and figures, and one of new prototypes alone."""

SPACE_GROUP_MODELS = ("pe_ag_gmoe", "random_forest", "ours")
"""Models that predict space groups."""

PRINTED = tuple(reversed(range(len(CRYSTAL_SYSTEMS))))
"""Crystal systems in the order of the paper, which is the opposite of ours."""

N_SYSTEMS = len(CRYSTAL_SYSTEMS)
N_SPACE_GROUPS = 230


@dataclass(frozen=True)
class Outcome:
    """Truth and prediction of N test items, which are patterns or materials.

    Attributes
    ----------
    system
        True crystal system as an index into ``CRYSTAL_SYSTEMS``, shape (N,).
    truth, predicted
        True and predicted class: a crystal system, or the number of a space group; shape (N,).
    confidence
        Probability of the predicted class; of a vote, its mean over the patterns; of fused
        opinions, the fused one; shape (N,).
    """

    system: NDArray[np.int64]
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def right(self) -> NDArray[np.int64]:
        """Number of right predictions by true crystal system, shape (7,)."""
        return np.bincount(self.system[self.truth == self.predicted], minlength=N_SYSTEMS)

    @property
    def total(self) -> NDArray[np.int64]:
        """Number of items by true crystal system, shape (7,)."""
        return np.bincount(self.system, minlength=N_SYSTEMS)


@dataclass(frozen=True)
class Patterns(Outcome):
    """The outcome of single patterns, sorted by material.

    Attributes
    ----------
    material
        Material of each pattern as an index into ``names``, shape (N,).
    names
        Names of the materials, sorted.
    probability
        As ``metrics.vote`` takes it: of every crystal system, or of the predicted space group.
    uncertainty
        Of the opinion that ``probability`` belongs to, shape (N,), from a model that has opinions.
    pooling
        From a model that learns to pool patterns: what ``models.pooling.pool`` takes, which is the
        logarithms of the probabilities of all classes, shape (N, K), the weight and the power.
    """

    material: NDArray[np.int64]
    names: tuple[str, ...]
    probability: NDArray[np.float64]
    uncertainty: NDArray[np.float64] | None = None
    pooling: tuple[NDArray[np.floating], float, float] | None = None

    def ranks(self, n_draws: int, seed: int) -> NDArray[np.int64]:
        """Return the place of each pattern in random orders of its material, shape (D, N)."""
        return random_ranks(self.material, self.names, n_draws, seed)

    def aggregated(self, chosen: NDArray[np.bool_]) -> Outcome:
        """Return the outcome of the materials: pooled, fused, or else by majority vote.

        ``chosen``, shape (N,), has a pattern of each material or more.
        """
        material, probability = self.material[chosen], self.probability[chosen]
        n = len(self.names)
        if self.pooling is not None:
            logs, weight, power = self.pooling
            pooled = pool(logs[chosen], material, weight, power)
            first_class = 1 if probability.ndim == 1 else 0  # space groups count from 1
            winner, confidence = pooled.argmax(axis=1) + first_class, pooled.max(axis=1)
        elif self.uncertainty is None:
            n_classes = N_SPACE_GROUPS + 1 if probability.ndim == 1 else N_SYSTEMS
            winner, confidence = vote(material, self.predicted[chosen], probability, n, n_classes)
        else:
            fused, _ = fuse_opinions(probability, self.uncertainty[chosen], material, n)
            winner, confidence = fused.argmax(axis=1), fused.max(axis=1)
        first = np.searchsorted(self.material, np.arange(n))
        return Outcome(self.system[first], self.truth[first], winner, confidence)


def aggregated_how(single: Mapping[str, Patterns]) -> str:
    """Return in words how the patterns of a material are combined, by model."""
    others = {
        "by fusion of opinions, with the reduced Dempster rule,": [
            MODELS[model] for model, said in single.items() if said.uncertainty is not None
        ],
        "by the product of probabilities, to a learnt power,": [
            MODELS[model] for model, said in single.items() if said.pooling is not None
        ],
    }
    exceptions = [f"{how} for {listed(models)}" for how, models in others.items() if models]
    return "by majority vote, where ties go to the higher mean probability" + (
        f" ({'; '.join(exceptions)})" if exceptions else ""
    )


def read_dataset(path: Path) -> pd.DataFrame:
    """Read the materials that have patterns, with ``system`` as an index into ``CRYSTAL_SYSTEMS``.

    Raises
    ------
    InputError
        If the file is not of the form that its stage writes.
    """
    columns = ["material_id", "split", "crystal_system", "space_group", "n_patterns"]
    dataset = read_columns(path, columns)
    return dataset.assign(system=_systems(path, dataset["crystal_system"]))


def read_predictions(
    path: Path, dataset: pd.DataFrame, target: str, split: str = "test"
) -> Patterns:
    """Read the predictions of one model for the materials of one split.

    Parameters
    ----------
    path
        The model's Parquet file, as ``predictions.evaluate_network`` describes it. Its column
        ``uncertainty``, if any, is read with the crystal systems, to which it belongs.
    dataset
        As ``read_dataset`` gives it.
    target
        ``"crystal_system"`` or ``"space_group"``.
    split
        One of ``TESTED``.

    Raises
    ------
    InputError
        If the file is not of this form, holds a material outside ``TESTED``, or none of the split.
    """
    scores, optional = ["probability_space_group"], [*POOLING, "log_probability_space_groups"]
    if target == "crystal_system":
        scores = [f"probability_{system}" for system in CRYSTAL_SYSTEMS]
        optional = [*POOLING, "uncertainty"]
    columns = ["pattern", "material_id", "crystal_system", "space_group", f"predicted_{target}"]
    table = read_columns(path, [*columns, *scores], optional)
    split_of = table["material_id"].map(dataset.set_index("material_id")["split"])
    if len(strangers := table.loc[~split_of.isin(TESTED), "material_id"].unique()):
        raise InputError(
            f"{path} has predictions for {len(strangers)} materials that are not in the test split "
            f"of the dataset, such as {min(strangers)}: evaluate the model again"
        )
    table = table[split_of == split]
    if table.empty:
        raise InputError(
            f"{path} holds no predictions for the split {split}: evaluate the model again, or "
            "raise split.test if the dataset has no such material"
        )
    material, names = pd.factorize(table["material_id"], sort=True)
    # Sorted, so that what is drawn does not depend on the order of the rows.
    order = np.lexsort([table["pattern"].to_numpy(), material])
    table = table.iloc[order]
    system = _systems(path, table["crystal_system"])
    probability = table[scores].to_numpy(np.float64)
    if target == "crystal_system":
        truth, predicted = system, _systems(path, table["predicted_crystal_system"])
        confidence = probability[np.arange(len(predicted)), predicted]
    else:
        truth = _space_groups(path, table["space_group"])
        predicted = _space_groups(path, table["predicted_space_group"])
        probability = confidence = probability[:, 0]
    return Patterns(
        system=system,
        truth=truth,
        predicted=predicted,
        confidence=confidence,
        material=material[order].astype(np.int64),
        names=tuple(str(name) for name in names),
        probability=probability,
        uncertainty=(table["uncertainty"].to_numpy(np.float64) if "uncertainty" in table else None),
        pooling=_pooling(table, probability),
    )


def _pooling(
    table: pd.DataFrame, probability: NDArray[np.float64]
) -> tuple[NDArray[np.floating], float, float] | None:
    if not {*POOLING} <= {*table}:
        return None
    weight, power = (float(table[name].iloc[0]) for name in POOLING)
    if "log_probability_space_groups" in table:
        return np.stack(table["log_probability_space_groups"].to_list()), weight, power
    return log_probability(probability), weight, power


def _systems(path: Path, names: "pd.Series[str]") -> NDArray[np.int64]:
    known = list(CRYSTAL_SYSTEMS)
    codes = np.asarray(pd.Categorical(names, categories=known).codes, dtype=np.int64)
    if (codes < 0).any():
        bad = names[codes < 0].iloc[0]
        raise InputError(f"{path} has the crystal system {bad!r}; there are {listed(known)}")
    return codes


def _space_groups(path: Path, numbers: "pd.Series[int]") -> NDArray[np.int64]:
    groups = np.asarray(numbers, dtype=np.int64)
    bad = groups[(groups < 1) | (groups > N_SPACE_GROUPS)]
    if len(bad):
        raise InputError(f"{path} has the space group {bad[0]}; there are 1 to {N_SPACE_GROUPS}")
    return groups
