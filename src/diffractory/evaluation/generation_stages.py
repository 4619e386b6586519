"""The stages that judge sampled crystals: reconstructed ones by their truth, new ones as a set.

A crystal with NaN, or one that nothing can be said of, is never left out: it counts as not matched,
not valid, not covered.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import spglib
import torch
from numpy.typing import NDArray
from pymatgen.core.composition import Composition

from diffractory.evaluation.crystal_geometry import finite
from diffractory.evaluation.crystal_metrics import (
    densities,
    element_counts,
    nearest,
    valid_composition,
    valid_structure,
)
from diffractory.evaluation.crystal_scores import DEFAULT_TOLERANCES
from diffractory.evaluation.energies import formation_energies
from diffractory.evaluation.fingerprints import Fingerprints, fingerprints
from diffractory.evaluation.structure_matching import comparers, match_by_two, originality
from diffractory.simulate.crystal import SYMBOLS
from diffractory.store import InputError, generator, recorded, write_parquet
from diffractory.structures.reading import Cell

SYMPREC = 0.1
"""Tolerance of the space groups that are compared, angstrom; of that in the labels, those of any
network's crystals would be P1."""

SPLITS = ("split", "disjoint_split")
"""Columns of the crystals that say which are for training, validation and test."""

TEST, TRAIN = "test", "train"

CELL = ("lattice", "positions", "numbers")
"""Columns of a crystal."""


def cells_of(crystals: pd.DataFrame) -> list[Cell]:
    """Return the crystals of a table with the columns `CELL`."""
    columns = [crystals[name] for name in CELL]
    return [
        Cell(
            # In a file whose every number is NaN they are read as None.
            np.asarray(lattice, dtype=np.float64).reshape(3, 3),
            np.asarray(positions, dtype=np.float64).reshape(-1, 3),
            np.asarray(numbers, dtype=np.intc),
        )
        for lattice, positions, numbers in zip(*columns, strict=True)
    ]


def read_samples(samples: Path, task: str) -> pd.DataFrame:
    """Return the rows of a file of sampled crystals that are of one task, in its order."""
    table = pd.read_parquet(samples)
    return table[table["task"] == task].reset_index(drop=True)


def evaluate_reconstruction(
    samples: Path,
    crystals: Path,
    evaluation: Path,
    run: Path,
    settings: Mapping[str, Any],
    seed: int,
    threads: int,
) -> None:
    """Compare each reconstructed crystal with the one that it was encoded from.

    The columns are ``sampler``, ``item``, ``material_id``, ``formula`` and ``n_sites`` (of the
    truth), ``same_n_sites``, ``same_composition`` (of the reduced formulas), ``matched``, ``rms``
    (over (V / N)^(1/3), NaN without a match), ``matched_default`` and ``rms_default`` (by the
    default tolerances of pymatgen), ``same_space_group`` (of both within `SYMPREC`), ``valid``
    (structure and composition of the reconstruction; the code behind the published numbers takes
    nothing else for a match) and ``timed_out`` (by either tolerances; not a match).

    Parameters
    ----------
    samples, crystals
        What `sample_crystals` and `prepare_crystals` wrote.
    evaluation, run
        Table and record to write.
    settings
        ``tolerances`` (``ltol``, ``stol``, ``angle_tol``) and ``seconds_per_pair``.
    seed
        Global seed.
    threads
        Worker processes.

    Raises
    ------
    InputError
        If a reconstructed crystal is not in the table of crystals.
    """
    inputs, config = [samples, crystals], dict(settings)
    with recorded(run, "evaluate_reconstruction", config, inputs, [evaluation], seed) as facts:
        table = read_samples(samples, "reconstruction")
        known = pd.read_parquet(crystals).set_index("material_id")
        missing = table.loc[~table["material_id"].isin(known.index), "material_id"]
        if len(missing):
            raise InputError(
                f"{samples} holds a reconstruction of {missing.iloc[0]}, which {crystals} does not "
                "hold: sample again from these crystals"
            )
        truths = known.loc[table["material_id"]]
        made, true = cells_of(table), cells_of(truths)
        pairs, limit = list(zip(made, true, strict=True)), settings["seconds_per_pair"]
        with comparers(threads) as pool:
            tolerances = settings["tolerances"], DEFAULT_TOLERANCES
            published, default = match_by_two(pairs, *tolerances, limit, pool)
        formulas = [reduced_formula(cell) for cell in true]
        groups = ((_space_group(one), _space_group(other)) for one, other in pairs)
        result = table[["sampler", "item", "material_id"]].assign(
            formula=formulas,
            n_sites=[len(cell.numbers) for cell in true],
            same_n_sites=[len(a.numbers) == len(b.numbers) for a, b in pairs],
            same_composition=[reduced_formula(a) == b for a, b in zip(made, formulas, strict=True)],
            matched=~np.isnan(published.rms),
            rms=published.rms,
            matched_default=~np.isnan(default.rms),
            rms_default=default.rms,
            same_space_group=[first == second is not None for first, second in groups],
            valid=valid_structure(made) & valid_composition(made),
            timed_out=published.timed_out | default.timed_out,
        )
        write_parquet(evaluation, result)
        facts["crystals"] = len(result)
        facts["finite"] = int(finite(made).sum())
        facts["timed_out"] = int(result["timed_out"].sum())


def reduced_formula(cell: Cell) -> str:
    """Return a formula such as ``SrTiO3``, or "" if an atomic number is none."""
    numbers, counts = np.unique(cell.numbers, return_counts=True)
    if len(numbers) == 0 or numbers[0] < 1 or numbers[-1] > len(SYMBOLS):
        return ""
    symbols = [SYMBOLS[z - 1] for z in numbers]
    return Composition(dict(zip(symbols, counts.tolist(), strict=True))).reduced_formula


def _space_group(cell: Cell) -> int | None:
    """Return the number of the space group of a crystal, or None if it has none."""
    crystal: Any = cell  # spglib takes arrays, but does not say so in its types
    if not finite([cell]).all():
        return None
    try:
        found = spglib.get_symmetry_dataset(crystal, symprec=SYMPREC)
    except spglib.SpglibError:
        return None
    return None if found is None else found.number


def fingerprint_crystals(
    crystals: Path, fingerprints_of_test: Path, run: Path, seed: int, threads: int
) -> None:
    """Write once for all models what generated crystals are compared with.

    These are the crystals in the test part of either split. The columns are ``material_id``,
    ``structure`` and ``composition`` (the fingerprints), ``density`` (g/cm3), ``formation_energy``
    (eV/atom) and ``n_elements``.

    Parameters
    ----------
    crystals
        What `prepare_crystals` wrote.
    fingerprints_of_test, run
        Table and record to write.
    seed
        Global seed.
    threads
        Worker processes.
    """
    with recorded(
        run, "fingerprint_crystals", {}, [crystals], [fingerprints_of_test], seed
    ) as facts:
        table = pd.read_parquet(crystals)
        table = table[(table[list(SPLITS)] == TEST).any(axis=1)]
        cells = cells_of(table)
        found = _comparable(fingerprints(cells, threads))
        with comparers(threads) as pool:
            energies = formation_energies(cells, pool)
        result = table[["material_id"]].assign(
            structure=list(found.structure),
            composition=list(found.composition),
            density=densities(cells),
            formation_energy=energies,
            n_elements=element_counts(cells),
        )
        write_parquet(fingerprints_of_test, result)
        facts["crystals"] = len(result)
        facts["with_fingerprint"] = int((~np.isnan(found.structure[:, 0])).sum())
        facts["with_energy"] = int(result["formation_energy"].notna().sum())


def _comparable(found: Fingerprints) -> Fingerprints:
    """Return the fingerprints with NaN for crystals that lack one of the two, as in CDVAE."""
    whole = np.isfinite(np.concatenate(found, axis=1)).all(axis=1, keepdims=True)
    return Fingerprints(*(np.where(whole, rows, np.nan) for rows in found))


def evaluate_generation(
    samples: Path,
    crystals: Path,
    fingerprints_of_test: Path,
    generated: Path,
    reference: Path,
    run: Path,
    settings: Mapping[str, Any],
    split: str,
    seed: int,
    threads: int,
) -> None:
    """Judge generated crystals one by one, and by how near the test crystals they come.

    Those of each sampler are a set of their own.

    Parameters
    ----------
    samples, crystals, fingerprints_of_test
        What `sample_crystals`, `prepare_crystals` and `fingerprint_crystals` wrote.
    generated
        Table to write, one row for each generated crystal: ``sampler``, ``item``, ``formula``,
        ``n_sites``, ``finite``, ``valid_structure``, ``valid_composition``, ``has_fingerprint``,
        ``structure_distance`` and ``composition_distance`` (to the nearest test crystal; NaN
        without a fingerprint), ``density`` (g/cm3), ``formation_energy`` (eV/atom; only where
        ``for_properties``), ``n_elements``, ``for_properties`` (drawn from the valid ones with a
        fingerprint), ``unique`` (first of those that it matches) and ``novel`` (no match among the
        training crystals).
    reference
        Table to write, one row for each sampler and test crystal: ``sampler``, ``material_id``,
        ``structure_distance`` and ``composition_distance`` (to the nearest generated one),
        ``density``, ``formation_energy``, ``n_elements``.
    run
        Record to write.
    settings
        ``tolerances`` and ``seconds_per_pair`` as for `evaluate_reconstruction`, and
        ``properties``: how many crystals at most are drawn for the distributions of properties.
    split
        Which of `SPLITS` the model was trained by.
    seed
        Global seed.
    threads
        Worker processes.
    """
    inputs = [samples, crystals, fingerprints_of_test]
    config, outputs = {**settings, "split": split}, [generated, reference]
    with recorded(run, "evaluate_generation", config, inputs, outputs, seed) as facts:
        torch.set_num_threads(threads)
        known = pd.read_parquet(crystals, columns=["material_id", split, *CELL])
        train = cells_of(known[known[split] == TRAIN])
        test = pd.read_parquet(fingerprints_of_test)
        test = test[test["material_id"].isin(known.loc[known[split] == TEST, "material_id"])]
        table = read_samples(samples, "generation")
        if table.empty:
            raise InputError(f"{samples} holds no generated crystal: raise sampling.generated")
        groups = table.groupby("sampler", sort=False)
        with comparers(threads) as pool:
            common = train, test, settings, seed, pool, threads
            parts = [_judged(part, *common) for _, part in groups]
        write_parquet(generated, pd.concat([part for part, _ in parts], ignore_index=True))
        write_parquet(reference, pd.concat([part for _, part in parts], ignore_index=True))
        facts["generated"], facts["train"], facts["test"] = len(table), len(train), len(test)
        for name in ("finite", "valid_structure", "valid_composition", "has_fingerprint"):
            facts[name] = int(sum(part[name].sum() for part, _ in parts))


def _judged(
    table: pd.DataFrame,
    train: Sequence[Cell],
    test: pd.DataFrame,
    settings: Mapping[str, Any],
    seed: int,
    pool: Executor,
    threads: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of the generated crystals of one sampler, and those of the test crystals."""
    cells, sampler = cells_of(table), table["sampler"].iloc[0]
    found = _comparable(fingerprints(cells, threads))
    true = Fingerprints(*(_rows(test[name], rows) for name, rows in found._asdict().items()))
    limits = settings["tolerances"], settings["seconds_per_pair"], pool, threads
    stable, neutral = valid_structure(cells), valid_composition(cells)
    known = ~np.isnan(found.structure[:, 0])
    # As in CDVAE: only a crystal with a fingerprint is valid as a whole.
    rng = generator(seed, "evaluate_generation", sampler)
    drawn = rng.permutation(np.flatnonzero(stable & neutral & known))[: settings["properties"]]
    drawn.sort()
    energies = np.full(len(cells), np.nan)
    energies[drawn] = formation_energies([cells[place] for place in drawn], pool)
    original = originality(cells, train, *limits)
    judged = table[["sampler", "item"]].assign(
        formula=[reduced_formula(cell) for cell in cells],
        n_sites=[len(cell.numbers) for cell in cells],
        finite=finite(cells),
        valid_structure=stable,
        valid_composition=neutral,
        has_fingerprint=known,
        structure_distance=nearest(found.structure, true.structure),
        composition_distance=nearest(found.composition, true.composition),
        density=densities(cells),
        formation_energy=energies,
        n_elements=element_counts(cells),
        for_properties=np.isin(np.arange(len(cells)), drawn),
        unique=original.unique,
        novel=original.novel,
    )
    near = pd.DataFrame(
        {
            "sampler": sampler,
            "material_id": test["material_id"],
            "structure_distance": nearest(true.structure, found.structure),
            "composition_distance": nearest(true.composition, found.composition),
            **{name: test[name] for name in ("density", "formation_energy", "n_elements")},
        }
    )
    return judged, near


def _rows(lists: pd.Series, like: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a column of fingerprints as an array, also if there is none."""
    return np.array([*lists], dtype=np.float64).reshape(len(lists), like.shape[1])


def summarize_crystals(crystals: Path, dataset: Path, run: Path, seed: int) -> None:
    """Count the crystals of a data set, in each part of each split.

    The columns are ``split_kind`` (of `SPLITS`), ``split`` ("" for what is left out), ``crystals``,
    ``duplicate_groups``, ``with_twin_in_train`` (crystals that a training crystal is a duplicate
    of; of training crystals, another one), ``formulas``, ``prototypes``, ``elements`` (how many
    different ones), ``mean_sites`` and ``max_sites``.

    Parameters
    ----------
    crystals
        What `prepare_crystals` wrote.
    dataset, run
        Table and record to write.
    seed
        Global seed.
    """
    with recorded(run, "summarize_crystals", {}, [crystals], [dataset], seed):
        table = pd.read_parquet(crystals)
        rows = []
        for kind in SPLITS:
            in_train = table.loc[table[kind] == TRAIN, "duplicate_group"].value_counts()
            for split, part in table.groupby(kind, sort=False):
                twins = part["duplicate_group"].map(in_train).fillna(0)
                rows.append(
                    {
                        "split_kind": kind,
                        "split": split,
                        "crystals": len(part),
                        "duplicate_groups": part["duplicate_group"].nunique(),
                        "with_twin_in_train": int((twins > (split == TRAIN)).sum()),
                        "formulas": part["formula"].nunique(),
                        "prototypes": part["prototype"].nunique(),
                        "elements": len(np.unique(np.concatenate([*part["numbers"]]))),
                        "mean_sites": part["n_sites"].mean(),
                        "max_sites": part["n_sites"].max(),
                    }
                )
        write_parquet(dataset, pd.DataFrame(rows))
