"""Evaluations of the generation study: what the files hold, and what stands in for what."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from diffractory.evaluation.tables import read_columns
from diffractory.store import InputError

STUDY = "generation"

MODELS = {
    "ftcp": "FTCP",
    "cdvae": "CDVAE",
    "cdvae_fourier": "CDVAE+Fourier",
    "dp_cdvae": "DP-CDVAE",
    "dp_cdvae_na": "DP-CDVAE+N_a",
    "dp_cdvae_gine": "DP-CDVAE+GINE",
    "dp_cdvae_na_gine": "DP-CDVAE+N_a+GINE",
    "ours": "Ours",
}
"""Models by the name of their files; without ``ours``, as the paper calls them."""

DISJOINT = "_disjoint"
"""End of the name of a model that learnt from the duplicate-free, disjoint split."""

OWN, EQ_6, STEPS = "", "eq_6", "steps_"
"""Samplers: a model's own, Eq. 6 in place of Eq. 7, and, followed by a number, fewer steps."""


class PublishedDataset(NamedTuple):
    """Which published data set one of ours is, or stands in for.

    Attributes
    ----------
    label
        Of ours, as printed.
    published
        Name in the paper; empty for a data set that the paper does not have.
    files
        Whether it is read from the published files.
    """

    label: str
    published: str
    files: bool


DATASETS = {
    "perovskites": PublishedDataset("Perovskites", "Perov-5", files=False),
    "perov_5": PublishedDataset("Perov-5", "Perov-5", files=True),
    "carbon_24": PublishedDataset("Carbon-24", "Carbon-24", files=True),
    "mp_20": PublishedDataset("MP-20", "MP-20", files=True),
}
"""Published counterparts by the name of the data set in the config."""

PUBLISHED = ("Perov-5", "Carbon-24", "MP-20")
"""Data sets of the paper, in its order."""


class Columns(NamedTuple):
    """Columns of an evaluation: words and counts, true or false ones, and numbers.

    A number is NaN where there is none.
    """

    words: tuple[str, ...]
    truths: tuple[str, ...]
    numbers: tuple[str, ...]


COLUMNS = {
    "reconstructed": Columns(
        ("sampler", "item", "material_id", "formula", "n_sites"),
        ("same_n_sites", "same_composition", "matched", "matched_default", "same_space_group",
         "valid", "timed_out"),
        ("rms", "rms_default"),
    ),
    "generated": Columns(
        ("sampler", "item", "formula", "n_sites", "n_elements"),
        ("finite", "valid_structure", "valid_composition", "has_fingerprint", "for_properties",
         "unique", "novel"),
        ("structure_distance", "composition_distance", "density", "formation_energy"),
    ),
    "reference": Columns(
        ("sampler", "material_id", "n_elements"),
        (),
        ("structure_distance", "composition_distance", "density", "formation_energy"),
    ),
    "relaxed": Columns(
        ("item", "formula", "n_sites", "steps", "reason"),
        ("converged", "matched"),
        ("rms", "volume_before", "volume_after", "energy_before", "energy_after",
         "enthalpy_before", "enthalpy_after"),
    ),
}  # fmt: skip
"""Kinds of evaluations of one model, with their columns: of decoded test crystals, of generated
ones, of the test crystals that these should cover, and of relaxed ones."""

ENERGY_STAND_IN = "formation energies with CHGNet for those of the pre-trained network"

CALCULATORS = {"chgnet": "CHGNet", "emt": "EMT", "vasp": "VASP"}


def counterpart(dataset: str) -> PublishedDataset:
    """Return what a data set of the config is to the paper."""
    own = PublishedDataset(dataset.replace("_", " "), "", files=False)
    return DATASETS.get(dataset, own)


def model_label(generator: str) -> str:
    """Return what a model is called in tables and figures, whichever split it learnt from."""
    return MODELS[generator.removesuffix(DISJOINT)]


def split_kind(generator: str) -> str:
    """Return the column of `crystals.parquet` with the split that a model learnt from."""
    return "disjoint_split" if generator.endswith(DISJOINT) else "split"


def files_by_model(paths: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Return files ``{dataset}/{generator}[.kind].parquet`` by data set and model."""
    found: dict[str, dict[str, Path]] = {}
    for path in paths:
        found.setdefault(path.parent.name, {})[path.name.partition(".")[0]] = path
    return found


def read_evaluation(path: Path, kind: str) -> pd.DataFrame:
    """Return an evaluation of a kind of `COLUMNS`.

    Raises
    ------
    InputError
        If the file is not of that kind, or says that crystals match without their distance.
    """
    words, truths, numbers = COLUMNS[kind]
    table = read_columns(path, [*words, *truths, *numbers], gaps=numbers)
    advice = "evaluate the model again"
    if odd := [name for name in truths if len(table) and not is_bool_dtype(table[name])]:
        raise InputError(f"{path} has a {odd[0]} that is not true or false: {advice}")
    if odd := [name for name in numbers if len(table) and not is_numeric_dtype(table[name])]:
        raise InputError(f"{path} has a {odd[0]} that is not a number: {advice}")
    # What no calculator could take is infinite or not a number: either way there is none.
    table[list(numbers)] = table[list(numbers)].replace([np.inf, -np.inf], np.nan)
    table = table.astype(dict.fromkeys(truths, bool) | dict.fromkeys(numbers, np.float64))
    for rms in (name for name in numbers if name.startswith("rms")):
        matched = rms.replace("rms", "matched")
        if (table[matched] != table[rms].notna()).any():
            raise InputError(
                f"{path} has rows that are {matched} without {rms}, or the other way: {advice}"
            )
    return table


def read_dataset(path: Path) -> pd.DataFrame:
    """Return the numbers of crystals, duplicates and formulas of each split.

    Raises
    ------
    InputError
        If the file is not of the form that `summarize_crystals` writes, or is of no crystals.
    """
    words = ["split_kind", "split"]
    counts = ["crystals", "duplicate_groups", "with_twin_in_train", "formulas", "prototypes",
              "elements", "mean_sites", "max_sites"]  # fmt: skip
    table = read_columns(path, words + counts, gaps=["mean_sites", "max_sites"])
    if not count(table, "train"):
        raise InputError(f"{path} has no crystals to learn from: summarize them again")
    return table


def count(dataset: pd.DataFrame, split: str, column: str = "crystals", kind: str = "split") -> int:
    """Return a count of what ``read_dataset`` read, 0 for a split without crystals."""
    rows = dataset[(dataset["split_kind"] == kind) & (dataset["split"] == split)]
    return int(rows[column].sum())


def chosen(table: pd.DataFrame, sampler: str = OWN) -> pd.DataFrame:
    """Return the rows of one sampler."""
    return table[table["sampler"] == sampler]


def evaluations(sampler: str, own: int) -> int:
    """Return how often a sampler asks the network, given how often the model's own does."""
    return int(sampler.removeprefix(STEPS)) if sampler.startswith(STEPS) else own


def crystals_stand_in(dataset: str, source: Mapping[str, Any]) -> str:
    """Return what stands in for the published crystals; empty where all of these are used.

    Parameters
    ----------
    dataset
        Name in the config.
    source
        Its section of the config, with the ``paths`` of published files.
    """
    known = counterpart(dataset)
    if not known.published:
        return ""
    if not known.files:
        return f"embedded {known.label.lower()} for {known.published}"
    names = [Path(path).stem for path in source.get("paths", [])]
    if "train" in names:
        return ""
    return f"{' and '.join(names)} files of {known.published} for all of it"


def relaxation_stand_in(calculator: str) -> str:
    """Return what stands in for relaxation by DFT; empty where it is done so."""
    if calculator == "vasp":
        return ""
    used = CALCULATORS.get(calculator, calculator)
    return f"MLIP-relaxed with {used} for DFT-relaxed with VASP"
