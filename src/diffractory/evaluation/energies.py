"""Formation energies of crystals, by CHGNet.

The published study asks a network of its own for them, trained on its data set (Xie et al., ICLR
2022, arXiv:2110.06197). Here the energy of a crystal is CHGNet's (Deng et al., Nat. Mach. Intell.
5, 1031 (2023)), of the crystal as it is, less that of its atoms in crystals of their elements.
These are relaxed by CHGNet too (`elemental_energy`), so that some of what it does wrong about an
element stands on both sides; as that takes a while for all of them, their energies are kept in
``data/elements_chgnet.csv``. CHGNet's own fit of energies to compositions would not do in their
place: it holds the mean energy of formation, so that differences would come out too small.
"""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.build import bulk
from ase.data import reference_states
from numpy.typing import NDArray
from pymatgen.core.structure import Structure

from diffractory.augment.calculators import from_atoms, relax_under_pressure
from diffractory.augment.layers import calculator_of_process
from diffractory.simulate.crystal import ATOMIC_NUMBERS, SYMBOLS, Crystal
from diffractory.store import track
from diffractory.structures.reading import Cell

CALCULATOR = "chgnet"

BATCH = 16
"""Crystals that CHGNet takes at a time: always the same ones, whatever the processes."""

MAX_NUMBER_DENSITY = 1.0
"""Atoms in a cubic angstrom above which a crystal is nonsense (diamond has 0.18)."""

MAX_SITES = 32
"""Atoms in the largest crystals of elements that are tried."""

BOX = 10.0
"""Edge of the cubic cell around a molecule, angstrom."""

ISOTYPES = {"He": "Ne", "Br": "I", "Te": "Se", "Pm": "Nd"}
"""Elements without a crystal in either source, and the ones whose crystals they relax from."""


def is_plausible(cell: Cell) -> bool:
    """Tell whether a cell is finite, and not so dense that a calculator would choke on it."""
    finite = np.isfinite(cell.lattice).all() and np.isfinite(cell.positions).all()
    return bool(finite and len(cell.numbers) < MAX_NUMBER_DENSITY * cell.volume)


def formation_energies(cells: Sequence[Cell], pool: Executor) -> NDArray[np.float64]:
    """Return the formation energies of M crystals as they are, eV/atom, shape (M,).

    NaN stands for crystals that have none: not `is_plausible`, of elements that have no reference,
    or such that CHGNet cannot make a graph of them.

    Parameters
    ----------
    pool
        As of `structure_matching.comparers`; the result is the same for any number of processes.
    """
    batches = [cells[start : start + BATCH] for start in range(0, len(cells), BATCH)]
    made = pool.map(_formation_energies, batches)
    found = list(track(made, "Computing energies", len(cells), "crystals", BATCH))
    return np.concatenate([np.empty(0), *found])


def _formation_energies(cells: Sequence[Cell]) -> NDArray[np.float64]:
    import torch

    torch.set_num_threads(1)  # sums over threads would depend on their number
    warnings.simplefilter("ignore")  # of CHGNet, about what it does not use
    model: Any = calculator_of_process(CALCULATOR).model  # type: ignore[attr-defined]
    graphs = [_graph(model, cell) for cell in cells]
    known = [place for place, graph in enumerate(graphs) if graph is not None]
    energies = np.full(len(cells), np.nan)
    if known:
        made = model.predict_graph([graphs[place] for place in known], task="e", batch_size=BATCH)
        for place, one in zip(known, made if len(known) > 1 else [made], strict=True):
            energies[place] = one["e"] - elemental_energies()[cells[place].numbers].mean()
    return energies


def _graph(model: Any, cell: Cell) -> Any:
    """Return a crystal as CHGNet's graph, or None if it has none."""
    if not is_plausible(cell) or np.isnan(elemental_energies()[cell.numbers]).any():
        return None
    try:
        return model.graph_converter(Structure(cell.lattice, cell.numbers.tolist(), cell.positions))
    except Exception:  # whatever it has against odd crystals
        return None


@cache
def elemental_energies() -> NDArray[np.float64]:
    """Return the energy of each element by its atomic number, eV/atom; NaN where there is none."""
    file = resources.files("diffractory.evaluation") / "data" / "elements_chgnet.csv"
    with resources.as_file(file) as path:
        table = pd.read_csv(path, comment="#", keep_default_na=False)  # "Na" is an element
    energies = np.full(len(SYMBOLS) + 1, np.nan)
    energies[[ATOMIC_NUMBERS[symbol] for symbol in table["element"]]] = table["energy"]
    return energies


def elemental_energy(symbol: str) -> tuple[str, float]:
    """Return the most stable of the known crystals of an element, relaxed, and its energy, eV/atom.

    The crystals are the reference state in ASE, and those of the AFLOW library of prototypes in
    pymatgen (Mehl et al., Comput. Mater. Sci. 136, S1 (2017)) that are of this very element.
    """
    found = []
    for name, crystal in _crystals(symbol):
        relaxed = relax_under_pressure(crystal, calculator_of_process(CALCULATOR), 0.0)
        found.append((relaxed.energy_after / len(crystal.numbers), name))
    energy, name = min(found)
    return name, energy


def _crystals(symbol: str) -> Iterator[tuple[str, Crystal]]:
    """Yield the crystals of an element with their names."""
    # Takes seconds, and only the energies of elements need it.
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY  # type: ignore[attr-defined]

    source = ISOTYPES.get(symbol, symbol)
    number = ATOMIC_NUMBERS[symbol]
    for prototype in AFLOW_PROTOTYPE_LIBRARY:
        structure = prototype["snl"].structure
        if {e.symbol for e in structure.composition} == {source} and len(structure) <= MAX_SITES:
            numbers = np.full(len(structure), number)
            crystal = Crystal(structure.lattice.matrix, structure.frac_coords, numbers)
            yield prototype["tags"]["aflow"], crystal
    state: Any = reference_states[ATOMIC_NUMBERS[source]] or {}
    if state.get("symmetry") == "diatom":
        ends = [[0, 0, 0], [0, 0, state["d"]]]
        yield "molecule", from_atoms(Atoms([number] * 2, ends, cell=[BOX] * 3))
        return
    try:
        atoms = bulk(source)
    except (ValueError, RuntimeError):
        return  # known by its lattice alone, or not at all
    atoms.numbers[:] = number
    yield state["symmetry"], from_atoms(atoms)
