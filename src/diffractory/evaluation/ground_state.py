"""The stage that relaxes generated crystals, and asks how far they were from their ground state.

The published study relaxed them by VASP; here any calculator does, and the files for VASP are
written out with the published settings.
"""

from collections.abc import Mapping, Sequence
from contextlib import chdir
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from ase import units
from pymatgen.core.structure import Structure
from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

from diffractory.augment.calculators import relax_under_pressure
from diffractory.augment.layers import calculator_of_process
from diffractory.evaluation.crystal_metrics import valid_structure
from diffractory.evaluation.energies import is_plausible
from diffractory.evaluation.generation_stages import cells_of, read_samples, reduced_formula
from diffractory.evaluation.structure_matching import comparers, match
from diffractory.simulate.crystal import Crystal
from diffractory.store import (
    atomic_folder,
    recorded,
    track,
    write_parquet,
)
from diffractory.structures.reading import Cell

INCAR = {
    "GGA": "PE",
    "PREC": "Accurate",
    "ENCUT": 800,
    "EDIFF": 1e-5,
    "EDIFFG": -1e-5,
    "ISMEAR": 0,
    "SIGMA": 0.05,
    "IBRION": 2,
    "ISIF": 3,
    "NSW": 200,
}
"""Functional, cutoff (eV) and thresholds (eV, eV/angstrom) as published (Pakornchote et al., Sci.
Rep. 14, 1275 (2024), Methods); the others are ours."""

K_POINTS = (5, 5, 5)
"""Monkhorst-Pack mesh (same source)."""

KILOBAR_PER_GPA = 10.0

COLUMNS = {
    "converged": bool,
    "volume_before": float,
    "volume_after": float,
    "energy_before": float,
    "energy_after": float,
    "enthalpy_before": float,
    "enthalpy_after": float,
    "steps": int,
    "lattice": object,
    "positions": object,
    "numbers": object,
    "reason": str,
}
"""What a relaxation says of a crystal."""


def relax_generated(
    samples: Path,
    relaxed: Path,
    dft: Path,
    run: Path,
    settings: Mapping[str, Any],
    calculator: str,
    seed: int,
    threads: int,
) -> None:
    """Relax the first valid generated crystals under pressure, and compare before and after.

    Parameters
    ----------
    samples
        What `sample_crystals` wrote; only crystals of the model's own sampler are taken.
    relaxed
        Table to write: ``item``, ``formula``, ``n_sites``, ``converged``, ``matched`` and ``rms``
        (of the generated crystal by the relaxed one), ``volume_before`` and ``volume_after``
        (cubic angstrom per atom), ``energy_before`` and ``energy_after`` (eV/atom),
        ``enthalpy_before`` and ``enthalpy_after`` (at the pressure, eV/atom), ``steps``,
        ``lattice``, ``positions`` and ``numbers`` (relaxed), and ``reason``: "" or why the crystal
        is not relaxed. What was not converged is compared as it is; of what could not be relaxed
        at all, numbers are NaN.
    dft
        Folder to write, with a folder for each crystal as generated: POSCAR, INCAR and KPOINTS.
    run
        Record to write.
    settings
        ``crystals`` (how many), ``pressure`` (GPa), ``max_force`` (eV/angstrom), ``max_steps``,
        ``seconds_per_crystal``, and ``tolerances`` and ``seconds_per_pair`` of the matcher.
    calculator
        As for `diffractory.augment.calculators.calculator`.
    seed
        Global seed.
    threads
        Worker processes.
    """
    config = {**settings, "calculator": calculator}
    with recorded(run, "relax_generated", config, [samples], [relaxed, dft], seed) as facts:
        table = read_samples(samples, "generation")
        table = table[table["sampler"] == ""]
        valid = valid_structure(cells_of(table))
        table = table[valid][: settings["crystals"]]
        before = cells_of(table)
        facts["valid"], facts["chosen"] = int(valid.sum()), len(table)
        _write_dft(dft, table["item"].tolist(), before, settings["pressure"])
        work = partial(_relaxed, settings=settings, calculator=calculator)
        with comparers(threads) as pool:
            made = pool.map(work, before)
            rows = list(track(made, "Relaxing", len(before), "crystals"))
            pairs = list(zip(map(_cell, rows), before, strict=True))
            limits = settings["tolerances"], settings["seconds_per_pair"]
            matches = match(pairs, *limits, pool)
        result = table[["item"]].reset_index(drop=True)
        result["formula"] = [reduced_formula(cell) for cell in before]
        result["n_sites"] = [len(cell.numbers) for cell in before]
        result["matched"], result["rms"] = ~np.isnan(matches.rms), matches.rms
        result = pd.concat([result, pd.DataFrame(rows, columns=list(COLUMNS))], axis=1)
        write_parquet(relaxed, result.astype(COLUMNS | {"formula": str, "n_sites": int}))
        for name in ("converged", "matched"):
            facts[name] = int(result[name].sum())
        facts["timed_out"] = int(matches.timed_out.sum())
        facts["reasons"] = result.loc[result["reason"] != "", "reason"].value_counts().to_dict()


def _relaxed(cell: Cell, settings: Mapping[str, Any], calculator: str) -> dict[str, Any]:
    """Return the columns `COLUMNS` of a crystal."""
    tool = calculator_of_process(calculator)  # that there is none is no fault of the crystal
    n = len(cell.numbers)
    row: dict[str, Any] = {
        "converged": False,
        "steps": 0,
        "lattice": np.full(9, np.nan),
        "positions": np.full(3 * n, np.nan),
        "numbers": cell.numbers.astype(np.int64),
    }
    if not is_plausible(cell):
        return {**row, "reason": "too dense"}
    crystal = Crystal(cell.lattice, cell.positions, cell.numbers.astype(np.int64))
    limits = (settings[name] for name in ("max_force", "max_steps", "seconds_per_crystal"))
    try:
        # VASP writes its files where it runs, and crystals are relaxed at the same time.
        with TemporaryDirectory() as folder, chdir(folder):
            found = relax_under_pressure(crystal, tool, settings["pressure"], *limits)
    except Exception as error:  # a calculator may raise anything on odd crystals
        return {**row, "reason": str(error) or type(error).__name__}
    made = found.crystal
    reason = "" if found.converged else f"not converged in {found.steps} steps"
    volumes = {
        "before": cell.volume / n,
        "after": float(abs(np.linalg.det(made.cell))) / n,
    }
    energies = {"before": found.energy_before / n, "after": found.energy_after / n}
    work = {when: settings["pressure"] * units.GPa * volume for when, volume in volumes.items()}
    return {
        "converged": found.converged,
        **{f"volume_{when}": volume for when, volume in volumes.items()},
        **{f"energy_{when}": energy for when, energy in energies.items()},
        **{f"enthalpy_{when}": energy + work[when] for when, energy in energies.items()},
        "steps": found.steps,
        "lattice": made.cell.ravel(),
        "positions": (made.positions % 1.0).ravel(),
        "numbers": made.numbers,
        "reason": reason,
    }


def _cell(row: Mapping[str, Any]) -> Cell:
    lattice, positions = row["lattice"].reshape(3, 3), row["positions"].reshape(-1, 3)
    return Cell(lattice, positions, row["numbers"].astype(np.intc))


def _write_dft(folder: Path, items: Sequence[int], cells: Sequence[Cell], pressure: float) -> None:
    """Write the files of a relaxation by VASP, all but POTCAR, which is not free."""
    with atomic_folder(folder) as partial_folder:
        for item, cell in zip(items, cells, strict=True):
            place = partial_folder / f"{item:05d}"
            place.mkdir()
            structure = Structure(cell.lattice, cell.numbers.tolist(), cell.positions)
            Poscar(structure, sort_structure=True).write_file(place / "POSCAR")
            Incar(INCAR | {"PSTRESS": KILOBAR_PER_GPA * pressure}).write_file(place / "INCAR")
            Kpoints.monkhorst_automatic(K_POINTS).write_file(place / "KPOINTS")
