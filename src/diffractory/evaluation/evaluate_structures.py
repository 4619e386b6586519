"""Judge anybody's generated or reconstructed structures: the command ``evaluate-structures``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.crystal_geometry import finite
from diffractory.evaluation.crystal_metrics import (
    MIN_DISTANCE,
    densities,
    element_counts,
    nearest,
    valid_composition,
    valid_structure,
)
from diffractory.evaluation.crystal_scores import (
    DEFAULT_TOLERANCES,
    TOLERANCES,
    Estimate,
    covered,
    estimated_mean,
    estimated_wasserstein,
    rms_with_misses,
)
from diffractory.evaluation.energies import formation_energies
from diffractory.evaluation.fingerprints import fingerprints
from diffractory.evaluation.generation_stages import CELL, SYMPREC, cells_of
from diffractory.evaluation.structure_matching import comparers, match_by_two, originality
from diffractory.store import InputError, generator, track
from diffractory.structures.labels import find_symmetry
from diffractory.structures.reading import Cell, Rejected, read_cell
from diffractory.structures.sources import structure_folder, structure_table
from diffractory.structures.sources.base import RetrievedStructure

SEED = 0
"""Of the bootstrap intervals and of the crystals that are drawn for the distributions."""

SECONDS = 10.0
"""Time of the processor after which a pair of structures is given up."""

DRAWN = 1000
"""Valid crystals, at most, whose properties are compared (T. Xie et al., ICLR 2022)."""

CHUNK = 16
"""Files that a worker reads at a time."""


class Collection(NamedTuple):
    """Structures by name, and why others could not be read.

    Attributes
    ----------
    cells
        In the order of the files.
    unreadable
        The reason for each structure that could not be read.
    """

    cells: dict[str, Cell]
    unreadable: dict[str, str]


class Row(NamedTuple):
    """A line of the table.

    Attributes
    ----------
    measure
        Its name, with the unit.
    estimate
        The number, already in that unit.
    definition
        Cutoffs, tolerances and what it is over.
    """

    measure: str
    estimate: Estimate
    definition: str


def read_collection(path: Path, paired: bool, processes: int) -> Collection:
    """Read a folder of structure files or a table.

    Parameters
    ----------
    path
        A folder of CIF, POSCAR or other files that ASE reads; a CSV table with the columns
        ``material_id`` and ``cif``; or a Parquet table with ``lattice``, ``positions`` and
        ``numbers``, such as the workflow's ``crystals.parquet`` and its generated crystals.
    paired
        Of the workflow's generated crystals, whether to take the reconstructions, by
        ``material_id``, or else the crystals from random numbers. Names may then not repeat.
    processes
        Worker processes.

    Raises
    ------
    InputError
        If there is nothing there that can be read.
    """
    if path.suffix == ".parquet" and path.is_file():
        found = _parquet(path, paired)
    elif path.suffix == ".csv" and path.is_file():
        columns = {"id_column": "material_id", "structure_column": "cif"}
        retrieved = structure_table.retrieve({"paths": [path], **columns}, Path(), Path())
        found = _parsed(list(retrieved), processes)
    elif path.is_dir():
        if not any(file.is_file() for file in path.rglob("*")):
            raise InputError(f"{path} is empty: it should hold structure files")
        retrieved = structure_folder.retrieve({"path": path}, Path(), Path())
        found = _parsed(list(retrieved), processes)
    else:
        raise InputError(f"{path} is neither a folder nor a .csv or .parquet file that is there")
    if not found.cells:
        reasons = [f", such as {name}: {why}" for name, why in found.unreadable.items()]
        raise InputError(f"{path} holds no structure that can be read{(reasons or [''])[0]}")
    return found


def _parsed(retrieved: Sequence[RetrievedStructure], processes: int) -> Collection:
    found = Collection({}, {})
    with comparers(processes) as pool:
        outcomes = pool.map(_read, retrieved, chunksize=CHUNK)
        total = len(retrieved)
        for one, outcome in zip(
            retrieved, track(outcomes, "Parsing", total, "structures"), strict=True
        ):
            if one.material_id in found.cells | found.unreadable:
                raise InputError(f"two structures are named {one.material_id}: rename one")
            if isinstance(outcome, Rejected):
                found.unreadable[one.material_id] = f"{outcome.reason}: {outcome.detail}"
            else:
                found.cells[one.material_id] = outcome
    return found


def _read(one: RetrievedStructure) -> Cell | Rejected:
    try:
        return read_cell(one.content, one.format)
    except Rejected as rejected:
        return rejected


def _parquet(path: Path, paired: bool) -> Collection:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}") from error
    missing = [name for name in CELL if name not in table]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; it should hold {', '.join(CELL)}")
    if "task" in table:
        wanted = "reconstruction" if paired else "generation"
        table = table[(table["task"] == wanted) & (table["sampler"] == "")]
    name = "material_id" if paired or "item" not in table else "item"
    names = table[name].astype(str) if name in table else pd.Series(table.index.astype(str))
    if names.duplicated().any():
        raise InputError(f"{path}: {names[names.duplicated()].iloc[0]} is there twice")
    return Collection(dict(zip(names, cells_of(table), strict=True)), {})


def evaluate_generated(
    generated: Sequence[Cell],
    reference: Sequence[Cell],
    structure_cutoff: float,
    composition_cutoff: float,
    energies: bool,
    processes: int,
) -> list[Row]:
    """Return all measures of generated crystals beside a reference set, such as the test set.

    Parameters
    ----------
    structure_cutoff, composition_cutoff
        Of COV-R and COV-P: 0.4 and 10 for MP-20, 0.2 and 4 for Perov-5 and Carbon-24 (T. Xie et
        al., ICLR 2022).
    energies
        Whether to compute formation energies, by CHGNet.
    processes
        Worker processes.
    """
    stable, neutral = valid_structure(generated), valid_composition(generated)
    ours, theirs = fingerprints(generated, processes), fingerprints(reference, processes)
    known, judged = (~np.isnan(found.structure[:, 0]) for found in (ours, theirs))
    near, reached = (
        covered(
            nearest(some.structure, others.structure),
            nearest(some.composition, others.composition),
            structure_cutoff,
            composition_cutoff,
        )
        for some, others in ((ours, theirs), (theirs, ours))
    )
    within = f"structure {structure_cutoff:g}, composition {composition_cutoff:g}"
    valid = stable & neutral & known
    drawn = generator(SEED, "evaluate_structures", 0).permutation(np.flatnonzero(valid))[:DRAWN]
    some = [generated[m] for m in np.sort(drawn)]
    with comparers(processes) as pool:
        distances = [_energy_distance(some, reference, pool)] if energies else []
        original = originality(generated, reference, DEFAULT_TOLERANCES, SECONDS, pool, processes)
    return [
        _share("valid structure", stable, f"distances from {MIN_DISTANCE:g} angstrom"),
        _share("valid composition", neutral, "SMACT: charges, electronegativities"),
        _share("with fingerprint", known, "CrystalNN and Magpie"),
        _share("valid", valid, "all of the above, as CDVAE counts"),
        _share("COV-R", reached[judged], f"{within}; of the reference"),
        _share("COV-P", near, f"{within}; of the generated"),
        *(_distance(name, of, some, reference) for name, of in PROPERTIES.items()),
        *distances,
        _share("unique", original.unique, f"first of its duplicates, {NAMED}"),
        _share("novel", original.novel, f"not in the reference, {NAMED}"),
    ]


def evaluate_pairs(
    reconstructed: Sequence[Cell], truths: Sequence[Cell], processes: int
) -> list[Row]:
    """Return all measures of P reconstructed crystals beside the true ones.

    Parameters
    ----------
    processes
        Worker processes.
    """
    pairs = list(zip(reconstructed, truths, strict=True))
    rows = []
    both = TOLERANCES, DEFAULT_TOLERANCES
    with comparers(processes) as pool:
        matches = match_by_two(pairs, *both, SECONDS, pool)
        groups = list(pool.map(_space_group, [*reconstructed, *truths], chunksize=CHUNK))
    for tolerances, found in zip(both, matches, strict=True):
        named = _named(tolerances)
        missed = rms_with_misses(found.rms, tolerances["stol"])
        rows += [
            _share("match rate", ~np.isnan(found.rms), named),
            _mean("RMS distance / (V/N)^(1/3)", found.rms, f"of those that match, {named}"),
            _mean(
                "the same, with misses", missed, f"a miss counts {tolerances['stol']:g}, {named}"
            ),
            _share("given up", found.timed_out, f"after {SECONDS:g} s; no match, {named}"),
        ]
    same = [a == b != 0 for a, b in zip(groups[: len(pairs)], groups[len(pairs) :], strict=True)]
    return [*rows, _share("same space group", np.array(same), f"within {SYMPREC:g} angstrom")]


def _space_group(cell: Cell) -> int:
    """Return the number of the space group, 0 if none is found."""
    if not finite([cell]).all():
        return 0
    try:
        return find_symmetry(cell, SYMPREC).space_group
    except Rejected:
        return 0


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table."""
    form = "{:28}{:>10}  {:22}{:>8}  {}"
    yield form.format("", "value", "95 % interval", "n", "definition").rstrip()
    for measure, (value, low, high, n), definition in rows:
        numbers = f"{value:.4g}", f"{low:.4g} to {high:.4g}"
        yield form.format(measure, *(numbers if n else ("-", "-")), f"{n:,}", definition)


def _named(tolerances: Mapping[str, float]) -> str:
    ltol, stol, angle = (tolerances[name] for name in ("ltol", "stol", "angle_tol"))
    return f"ltol {ltol:g}, stol {stol:g}, angle {angle:g}"


NAMED = _named(DEFAULT_TOLERANCES)


def _share(measure: str, flags: NDArray[np.bool_], definition: str) -> Row:
    return _mean(f"{measure}, %", 100 * flags.astype(np.float64), definition)


def _mean(measure: str, values: NDArray[np.float64], definition: str) -> Row:
    return Row(measure, estimated_mean(values, SEED), definition)


def _distance(
    name: str,
    of: Callable[[Sequence[Cell]], NDArray[Any]],
    drawn: Sequence[Cell],
    reference: Sequence[Cell],
) -> Row:
    first, second = (np.asarray(of(cells), dtype=np.float64) for cells in (drawn, reference))
    definition = f"of at most {DRAWN:,} valid ones from {len(second):,} of the reference"
    return Row(f"W({name}", estimated_wasserstein(first, second, SEED), definition)


def _energy_distance(drawn: Sequence[Cell], reference: Sequence[Cell], pool: Executor) -> Row:
    row = _distance(
        "formation energy), eV/atom",
        lambda cells: formation_energies(cells, pool),
        drawn,
        reference,
    )
    return row._replace(definition=f"{row.definition}, by CHGNet")


PROPERTIES: Mapping[str, Callable[[Sequence[Cell]], NDArray[Any]]] = {
    "density), g/cm3": densities,
    "number of elements)": element_counts,
}
"""Properties whose distributions are compared."""
