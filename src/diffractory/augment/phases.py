"""The stage behind the rule `calculate_phonons`: a phase of MoTe2 at rest, and how it vibrates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffractory.augment.calculators import calculator, relax
from diffractory.augment.mote2 import primitive_cell
from diffractory.augment.phonons import calculate_phonons, eigenmodes, write_phonons
from diffractory.store import recorded


def calculate_phase(
    phase: str,
    phonons: Path,
    run: Path,
    settings: Mapping[str, Any],
    calculator_name: str,
    device: str,
    seed: int,
) -> None:
    """Relax the published cell of a phase, and calculate its force constants.

    Parameters
    ----------
    phase
        ``"2h"`` or ``"1t"``.
    phonons, run
        What to write: cell and force constants in phonopy's YAML format, and the record, with the
        lattice constants and frequencies.
    settings
        Configuration section ``ued.phases``: ``max_force`` (eV/angstrom), ``displacement``
        (angstrom) and ``supercell``, cells along each axis by phase.
    calculator_name, device
        As `calculator` takes them.
    seed
        Global seed.

    Raises
    ------
    InputError
        If the calculator cannot be had, or does not relax the cell.
    """
    config = {**settings, "calculator": calculator_name}
    with recorded(run, "calculate_phonons", config, [], [phonons], seed, device) as facts:
        forces = calculator(calculator_name, device)
        crystal = relax(primitive_cell(phase), forces, True, settings["max_force"])
        found = calculate_phonons(
            crystal, forces, settings["supercell"][phase], settings["displacement"]
        )
        write_phonons(phonons, found)
        frequencies = eigenmodes(found, [0, 0, 0]).frequencies[0]
        facts["lattice_constants_angstrom"] = np.linalg.norm(crystal.cell[:2], axis=1).tolist()
        facts["frequencies_at_gamma_thz"] = np.round(frequencies, 4).tolist()
