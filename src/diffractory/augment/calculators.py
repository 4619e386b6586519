"""Calculators of forces and energies, and what they do to crystals: relaxation and dynamics."""

import contextlib
import importlib
import io
import os
import warnings
from dataclasses import replace
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixCom, FixSymmetry
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

from diffractory.errors import InputError
from diffractory.simulate.crystal import Crystal

IN_PLANE = (True, True, False, False, False, True)
"""Components xx, yy, zz, yz, xz, xy of the strain that a slab may relax by."""


def calculator(name: str, device: str = "cpu") -> Calculator:
    """Return an ASE calculator.

    Parameters
    ----------
    name
        ``"chgnet"`` (Deng et al., Nat. Mach. Intell. 5, 1031 (2023); its weights come with the
        package), ``"emt"``, ``"vasp"`` (through ASE, set up by its environment variables), or
        ``"package.module:Class"``, which is called without arguments.
    device
        ``"cpu"`` or ``"cuda"``, for CHGNet.

    Raises
    ------
    InputError
        If there is no such calculator, or it does not start.
    """
    if name == "chgnet":
        return _chgnet(device)
    if name == "vasp":
        for variable in ("ASE_VASP_COMMAND", "VASP_PP_PATH"):
            if variable not in os.environ:
                raise InputError(
                    f"the calculator vasp needs the environment variable {variable}: set it as "
                    "ASE's documentation of its Vasp calculator says"
                )
        from ase.calculators.vasp import Vasp

        accuracy = {"prec": "Accurate", "encut": 400.0, "ediff": 1e-7, "kspacing": 0.2}
        return Vasp(xc="PBE", ismear=0, sigma=0.05, lreal=False, **accuracy)
    module, _, kind = ("ase.calculators.emt:EMT" if name == "emt" else name).partition(":")
    try:
        return getattr(importlib.import_module(module), kind)()
    except Exception as error:  # whatever a class of the user raises
        raise InputError(
            f"the calculator {name} cannot be had ({error}): give chgnet, emt, vasp or the import "
            "path package.module:Class of an ASE calculator that needs no arguments"
        ) from error


def _chgnet(device: str) -> Calculator:
    try:
        import torch
        from chgnet.model.dynamics import CHGNetCalculator
    except ImportError as error:
        raise InputError(
            f"the calculator chgnet cannot be imported ({error}): install the package chgnet"
        ) from error

    class CHGNet(CHGNetCalculator):
        """CHGNet on one thread: sums over threads would make forces depend on their number."""

        def calculate(self, *arguments: Any, **settings: Any) -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                with warnings.catch_warnings(action="ignore"):  # about what it does not use
                    super().calculate(*arguments, **settings)
            finally:
                torch.set_num_threads(threads)

    with contextlib.redirect_stdout(io.StringIO()):  # it prints where it runs
        return CHGNet(use_device=device, on_isolated_atoms="ignore")


def to_atoms(crystal: Crystal, calculator: Calculator | None = None) -> Atoms:
    """Return the crystal as ASE's ``Atoms``, periodic in all directions."""
    if calculator:
        # What it knows of earlier crystals, such as lists of neighbours, changes the last digits.
        calculator.reset()  # type: ignore[no-untyped-call]
    return Atoms(
        numbers=crystal.numbers,
        cell=crystal.cell,
        positions=crystal.positions @ crystal.cell,
        pbc=True,
        calculator=calculator,
    )


def from_atoms(atoms: Atoms) -> Crystal:
    """Return ASE's ``Atoms`` as a crystal, atoms in the images in which they are."""
    cell = np.array(atoms.cell)
    return Crystal(cell, atoms.positions @ np.linalg.inv(cell), np.array(atoms.numbers))


def relax(
    crystal: Crystal,
    calculator: Calculator,
    in_plane: bool,
    max_force: float = 0.005,
    max_steps: int = 500,
) -> Crystal:
    """Move atoms and lattice to the nearest minimum of the energy, with the symmetry kept.

    Parameters
    ----------
    in_plane
        Whether the crystal is a slab across z, whose cell keeps its height.
    max_force
        Where to stop: the largest force on an atom, eV/angstrom; on the lattice, likewise.

    Raises
    ------
    InputError
        If the forces are larger after ``max_steps`` steps.
    """
    atoms: Any = to_atoms(crystal, calculator)
    atoms.set_constraint(FixSymmetry(atoms, symprec=1e-3))  # type: ignore[no-untyped-call]
    mask = IN_PLANE if in_plane else None
    movable: Any = UnitCellFilter(atoms, mask=mask)  # type: ignore[no-untyped-call]
    optimizer: Any = BFGS(movable, logfile=None)
    if not optimizer.run(max_force, max_steps):
        raise InputError(
            f"the crystal has forces above {max_force} eV/angstrom after {max_steps} steps of "
            "relaxation: allow a larger force, or start nearer to the minimum"
        )
    return replace(
        from_atoms(atoms), occupancies=crystal.occupancies, displacements=crystal.displacements
    )


class Relaxation(NamedTuple):
    """What came of a relaxation.

    Attributes
    ----------
    crystal
        As it is at the end.
    energy_before, energy_after
        Of all its atoms, eV, without the work of the pressure.
    steps
        Steps taken.
    converged
        Whether the forces are as small as was asked for.
    """

    crystal: Crystal
    energy_before: float
    energy_after: float
    steps: int
    converged: bool


def relax_under_pressure(
    crystal: Crystal,
    calculator: Calculator,
    pressure: float,
    max_force: float = 0.05,
    max_steps: int = 500,
    seconds: float = np.inf,
) -> Relaxation:
    """Move atoms and lattice to the nearest minimum of the enthalpy, whatever the symmetry.

    Parameters
    ----------
    pressure
        In GPa.
    max_force
        Where to stop: the largest force on an atom, eV/angstrom; on the lattice, likewise.
    max_steps, seconds
        Where to give up.
    """
    end = monotonic() + seconds
    atoms: Any = to_atoms(crystal, calculator)
    energy = float(atoms.get_potential_energy())
    # With its exponential the lattice stays one, however large a step is.
    movable: Any = FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa)  # type: ignore[no-untyped-call]
    optimizer: Any = BFGS(movable, logfile=None)
    in_time = (done for done in optimizer.irun(max_force, max_steps) if done or monotonic() > end)
    converged = bool(next(in_time, False))
    after = float(atoms.get_potential_energy())
    return Relaxation(from_atoms(atoms), energy, after, optimizer.nsteps, converged)


def snapshots(
    crystal: Crystal,
    calculator: Calculator,
    temperature: float,
    count: int,
    rng: np.random.Generator,
    timestep: float = 2.0,
    friction: float = 10.0,
    equilibration: float = 1.0,
    interval: float = 0.1,
) -> list[Crystal]:
    """Return crystals as they pass by in Langevin dynamics in a fixed cell.

    Parameters
    ----------
    temperature
        In kelvin.
    count
        Number of crystals.
    timestep
        In fs.
    friction
        In 1/ps.
    equilibration, interval
        Time before the first crystal, and between two, ps.

    Raises
    ------
    InputError
        If the atoms fly apart.
    """
    atoms: Any = to_atoms(crystal, calculator)
    # Half of the energy of atoms at rest in their minima goes into displacements.
    thermalize_momenta(atoms, temperature_K=2 * temperature, rng=rng)
    atoms.set_constraint(FixCom())
    langevin: Any = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=friction / (1000 * units.fs),
        fixcm=False,
        rng=rng,
    )
    found = []
    for time in [equilibration] + [interval] * (count - 1):
        langevin.run(round(1000 * time / timestep))
        if not np.isfinite(atoms.positions).all() or atoms.get_temperature() > 100 * temperature:
            raise InputError(
                f"the atoms flew apart in molecular dynamics at {temperature} K: take a shorter "
                f"timestep than {timestep} fs, or relax the crystal first"
            )
        now = from_atoms(atoms)
        found.append(
            replace(now, occupancies=crystal.occupancies, displacements=crystal.displacements)
        )
    return found
