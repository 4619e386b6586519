"""Two-dimensional crystals in a standard setting, so that equal crystals get equal cells.

c stands across the layer (alpha = beta = 90) and is the thickness of the layer, between the centres
of its outermost atoms, plus a vacuum that is the same for all. The layer is whole, its middle at
c/2. a and b span a primitive cell in the plane and are as short as can be, a not longer than b, a
along x and gamma within 90 to 120. An atom of the rarest element (of these, the lightest) is at
x = y = 0. Of all choices that are left, by rotations that keep the lattice and among those atoms,
it is the one whose list of atoms comes first; the atoms are sorted by element, then by coordinates.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import spglib
from numpy.typing import NDArray
from pymatgen.core.lattice import Lattice

from diffractory.store import LATTICE, generator, recorded, track, worker_pool, write_parquet
from diffractory.structures.cleaning import (
    CHUNK,
    Labelled,
    check_enough,
    quiet,
    rejected_table,
    to_json,
)
from diffractory.structures.duplicates import duplicate_groups
from diffractory.structures.labels import (
    find_neighbours,
    find_symmetry,
    niggli_reduced,
    walk_spread,
)
from diffractory.structures.reading import Cell, Rejected, read_cell

LAST_LAYER_GROUP = {"oblique": 7, "rectangular": 48, "square": 64, "hexagonal": 80}
"""Number of the last layer group of each family (International Tables, volume E)."""

BONDED = ("molecules", "chains", "layers", "a network")
"""What the bonds of a crystal make, by its dimensionality."""

COMPARED_VACUUM = 3.0
"""Angstrom of vacuum between layers that are compared: about a van der Waals gap. The matcher
measures distances by the volume per atom, so that with much vacuum all layers would be alike."""

ROUNDING = 1e-4
"""To what coordinates are rounded (in the plane fractional, across it in angstrom) to put settings
in order."""

MAX_STEPS = 8
"""Largest coefficient of the lattice vectors that are looked at in a Niggli-reduced basis."""


def prepare_layers(
    cleaned: Path,
    layers: Path,
    rejected: Path,
    run: Path,
    settings: Mapping[str, Any],
    max_rejected_fraction: float,
    seed: int,
    processes: int,
) -> None:
    """Bring layers to the standard setting, remove duplicates and divide the rest into sets.

    Parameters
    ----------
    cleaned
        ``cleaned.parquet``.
    layers
        Where to write the layers (Parquet): that table with the cells of the standard setting, and
        the columns ``thickness`` (angstrom), ``layer_group`` (1 to 80), ``family`` (of
        `LAST_LAYER_GROUP`) and ``split`` (train, validation, test). It has no ``laue_rotations``,
        which belong to another cell. Labels of symmetry in space stay those of cleaning.
    rejected, run
        Where to write those set aside (of duplicates, all but the one of the first name), and the
        record.
    settings
        ``vacuum`` (angstrom, in the standard setting), ``min_vacuum`` (least gap between a layer
        and its image, angstrom), ``max_sites``, ``duplicates`` (as for `duplicate_groups`),
        ``test`` and ``validation`` (fractions of the layers).
    max_rejected_fraction
        Largest fraction of the structures that may be rejected; duplicates do not count.
    seed
        Global seed.
    processes
        Number of worker processes. They import the main module, so that a script which calls this
        function must do so under ``if __name__ == "__main__"``.

    Raises
    ------
    InputError
        If nothing is left, or more is rejected than allowed.
    """
    config = {"layers": dict(settings), "max_rejected_fraction": max_rejected_fraction}
    with recorded(run, "prepare_layers", config, [cleaned], [layers, rejected], seed) as facts:
        table = pd.read_parquet(cleaned)
        work = partial(standard_layer, settings)
        advice = f"for {cleaned}, use fewer processes or a smaller max_sites."
        with worker_pool(processes, __name__, quiet, advice) as pool:
            columns = table["structure"], table["symprec"]
            made = pool.map(work, *columns, chunksize=CHUNK)
            outcomes = list(track(made, "Preparing layers", len(table), "structures"))
            check_enough(table, outcomes, cleaned, max_rejected_fraction)
            found = {k: layer for k, layer in enumerate(outcomes) if isinstance(layer, Labelled)}
            names = table["material_id"][list(found)].tolist()
            cells = [layer.primitive for layer in found.values()]
            groups = duplicate_groups(names, cells, settings["duplicates"], pool, processes)
        for index, name, first in zip(found, names, groups, strict=True):
            if name != first:
                outcomes[index] = Rejected("duplicate", f"of {first}")
        accepted = _layer_table(table, outcomes)
        split = [split_of(name, settings, seed) for name in accepted["material_id"]]
        accepted.insert(list(accepted.columns).index("structure"), "split", split)
        refused = rejected_table(table, outcomes)
        write_parquet(layers, accepted)
        write_parquet(rejected, refused)
        facts["accepted"] = len(accepted)
        facts["rejected"] = refused["reason"].value_counts().to_dict()
        facts["layers"] = accepted["split"].value_counts().to_dict()


def _layer_table(table: pd.DataFrame, outcomes: Sequence[Labelled | Rejected]) -> pd.DataFrame:
    rows = pd.DataFrame([layer.row for layer in outcomes if isinstance(layer, Labelled)])
    accepted = table[[isinstance(outcome, Labelled) for outcome in outcomes]]
    accepted = accepted.drop(columns="laue_rotations").reset_index(drop=True)
    for name in rows:
        accepted[name] = rows[name]
    accepted["duplicate_group"] = accepted["material_id"]  # each is now alone in its group
    return accepted


def split_of(material_id: str, fractions: Mapping[str, Any], seed: int) -> str:
    """Draw ``"train"``, ``"validation"`` or ``"test"`` for a layer, whatever others there are.

    Parameters
    ----------
    fractions
        ``test`` and ``validation``, fractions of all layers.
    """
    draw = generator(seed, "split_layers", material_id).random()
    if draw < fractions["test"]:
        return "test"
    return "validation" if draw < fractions["test"] + fractions["validation"] else "train"


def standard_layer(
    settings: Mapping[str, Any], structure: str, symprec: float
) -> Labelled | Rejected:
    """Return the new columns of a layer and a cell to compare, or why it is set aside.

    Parameters
    ----------
    settings
        As for `prepare_layers`.
    structure
        Dictionary form of pymatgen's ``Structure`` (JSON), in any cell and direction.
    symprec
        Distance tolerance of symmetry, angstrom.
    """
    try:
        cell = find_symmetry(read_cell(structure.encode(), "json"), symprec).primitive
        if len(cell.numbers) > settings["max_sites"]:
            detail = f"{len(cell.numbers)} sites, more than {settings['max_sites']}"
            return Rejected("too_many_sites", detail)
        layer = _canonical(_find_layer(cell, settings["min_vacuum"]))
        standard = _with_vacuum(layer, settings["vacuum"])
        group = _layer_group(standard, symprec)
    except Rejected as rejected:
        return rejected
    compared = _with_vacuum(layer, COMPARED_VACUUM)
    row = {
        **lattice_columns(standard.lattice),
        "n_sites": len(standard.numbers),
        "structure": to_json(standard),
        "thickness": float(np.ptp(layer.positions[:, 2])),
        "layer_group": group,
        "family": next(name for name, last in LAST_LAYER_GROUP.items() if group <= last),
    }
    return Labelled(row, niggli_reduced(compared, compared.lattice))


def lattice_columns(lattice: NDArray[np.float64]) -> dict[str, float]:
    """Return lattice constants (angstrom, degree) and volume (cubic angstrom) by column name."""
    found = Lattice(lattice)
    constants = dict(zip(LATTICE, found.parameters, strict=True))
    return {**constants, "volume": found.volume}


def upright(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a right-handed lattice (rows, angstrom) so that a is along x, and b across z, y > 0."""
    return np.asarray(np.linalg.cholesky(lattice @ lattice.T), dtype=np.float64)


def _find_layer(cell: Cell, min_vacuum: float) -> Cell:
    """Return a whole layer: a and b as in the standard setting, c of 1 angstrom, the middle at 0.

    The bonds say which plane the layer lies in. All atoms between two vacua are one layer, so that
    stacks of layers a van der Waals gap apart stay together.

    Parameters
    ----------
    cell
        Niggli-reduced primitive cell, sites sorted by atomic number.
    min_vacuum
        As for `prepare_layers`.
    """
    spread = walk_spread(find_neighbours(cell, 0.0), len(cell.numbers))
    ranks = np.linalg.matrix_rank(spread, 1e-6, hermitian=True)
    part = ranks.argmax()
    if ranks[part] != 2:
        detail = f"dimensionality {ranks[part]}: the bonds make {BONDED[ranks[part]]}"
        raise Rejected("not_two_dimensional", detail)
    steps = np.indices((2 * MAX_STEPS + 1,) * 3).reshape(3, -1).T - MAX_STEPS
    heights = steps @ np.linalg.eigh(spread[part])[1][:, 0]
    vectors = steps[np.abs(heights) < 1e-6] @ cell.lattice
    if np.linalg.matrix_rank(vectors, 1e-3) < 2:
        raise Rejected("no_vacuum", "no short lattice vectors span the plane of the layers")
    vectors = vectors[np.linalg.norm(vectors, axis=1).argsort(kind="stable")]
    a = vectors[1]
    b = vectors[(np.linalg.norm(np.cross(a, vectors), axis=1) > 1e-3).argmax()]
    b = -b if a @ b > 0 else b
    normal = np.cross(a, b) / np.linalg.norm(np.cross(a, b))
    across = steps[np.where(heights > 1e-6, heights, np.inf).argmin()] @ cell.lattice
    across = across if across @ normal > 0 else -across
    period = across @ normal

    sites = cell.positions @ cell.lattice
    height = sites @ normal
    order = np.sort(height % period)
    gaps = np.diff(order, append=order[0] + period)
    if (gap := gaps.max()) < min_vacuum:
        detail = f"the largest gap across the layers is {gap:.3g} angstrom, below {min_vacuum:g}"
        raise Rejected("no_vacuum", detail)
    vacuum = order[gaps.argmax()] + gap / 2  # a height within it
    sites -= ((height - vacuum) // period)[:, None] * across
    coordinates = sites @ np.linalg.inv([a, b, normal])
    coordinates[:, 2] -= (coordinates[:, 2].min() + coordinates[:, 2].max()) / 2
    return Cell(np.array([a, b, normal]), coordinates, cell.numbers)


def _canonical(layer: Cell) -> Cell:
    """Choose directions of the axes, origin in the plane and order of the atoms; see the module."""
    metric = layer.lattice @ layer.lattice.T
    elements, counts = np.unique(layer.numbers, return_counts=True)
    rarest = np.flatnonzero(layer.numbers == elements[counts.argmin()])
    found = []
    for entries in product((-1, 0, 1), repeat=4):
        axes = np.eye(3)
        axes[:2, :2] = np.reshape(entries, (2, 2))
        axes[2, 2] = np.linalg.det(axes)  # a rotation: the layer is not mirrored
        if not np.allclose(axes @ metric @ axes.T, metric, rtol=0, atol=1e-6 * metric[1, 1]):
            continue
        coordinates = layer.positions @ np.linalg.inv(axes)
        for atom in rarest:
            shifted = coordinates.copy()
            shifted[:, :2] -= coordinates[atom, :2]
            shifted[:, :2] -= np.floor(shifted[:, :2] + ROUNDING / 2)
            rounded = np.rint(shifted / ROUNDING)
            order = np.lexsort((*rounded.T[::-1], layer.numbers))
            found.append((rounded[order].tolist(), shifted[order]))
    _, positions = min(found, key=lambda choice: choice[0])
    return Cell(upright(layer.lattice), positions, np.sort(layer.numbers))


def _with_vacuum(layer: Cell, vacuum: float) -> Cell:
    """Return the layer (c of 1 angstrom, middle at 0) in a cell with vacuum (angstrom)."""
    height = np.ptp(layer.positions[:, 2]) + vacuum
    scale = np.array([1.0, 1.0, height])
    return Cell(layer.lattice * scale, layer.positions / scale + [0, 0, 0.5], layer.numbers)


def _layer_group(layer: Cell, symprec: float) -> int:
    crystal: Any = layer  # spglib takes arrays, but does not say so in its types
    try:
        dataset = spglib.get_layergroup(crystal, aperiodic_dir=2, symprec=symprec)
    except spglib.SpglibError as error:
        raise Rejected("symmetry_not_found", str(error)) from error
    if dataset is None:
        detail = f"spglib finds no layer group at {symprec} angstrom"
        raise Rejected("symmetry_not_found", detail)
    return int(dataset.number)
