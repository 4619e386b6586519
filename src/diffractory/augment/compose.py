"""A list of steps in the configuration, applied to crystals one after the other.

A step is a mapping of its name to its parameters. A number may be a list of two that it is drawn
between. ``repeat`` takes a list of three, the others a mapping:

=================== ============================================================================
repeat              cells along each lattice vector; each may be a list of two whole numbers
relax               max_force (eV/angstrom), in_plane (for slabs across z); needs a calculator
vacancies           fraction, of each element; by element, each is drawn for itself
strain              limit of each component of a symmetric tensor, in_plane
thermal             debye_waller (B, square angstrom); by element, each is drawn for itself
phonon              q_points (names or vectors), amplitude (angstrom): one mode, drawn
random_displacements  temperature (kelvin): all phonons at once
morph               to (a crystal of the context), fraction of the way
dynamics            temperature (kelvin), duration (ps), timestep (fs), friction (1/ps)
=================== ============================================================================
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator
from phonopy import Phonopy

from diffractory.augment.calculators import relax, snapshots
from diffractory.augment.crystals import (
    PerElement,
    displace,
    matched,
    morph,
    random_strain,
    remove_atoms,
    repeat,
    strain,
)
from diffractory.augment.phonons import (
    Modes,
    calculate_phonons,
    eigenmodes,
    freeze_mode,
    grid_modes,
    random_mode,
    star,
    supercell_matrix,
    vibrate,
)
from diffractory.augment.ranges import draw
from diffractory.errors import InputError
from diffractory.simulate.crystal import Crystal
from diffractory.store import generator

MIN_LENGTH = 10.0
"""Shortest lattice vector of a supercell that forces are calculated in for phonons, angstrom."""


@dataclass
class Context:
    """What steps cannot find out from a crystal alone; what they solve with it is kept here.

    Attributes
    ----------
    cell
        The cell that crystals repeat, as `diffractory.augment.crystals.repeat` does, for `morph`.
    others
        What it may morph to, by name: cells of equal content.
    phonons
        Of the same lattice; if None, they are calculated where a step needs them.
    calculator
        For relaxation, dynamics and phonons.
    """

    cell: Crystal | None = None
    others: Mapping[str, Crystal] = field(default_factory=dict)
    phonons: Phonopy | None = None
    calculator: Calculator | None = None
    _solved: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def need_calculator(self) -> Calculator:
        """Return the calculator, or say that there is none."""
        if self.calculator is None:
            raise InputError("steps relax and dynamics need a calculator, and there is none here")
        return self.calculator

    def need_phonons(self) -> Phonopy:
        """Return the phonons, or say that there are none."""
        if self.phonons is None:
            raise InputError("steps with phonons need a calculator, or phonons of the crystal")
        return self.phonons

    def modes(self, q_points: Sequence[Any]) -> Modes:
        """Return the modes at all members of the stars of these q points."""
        key = f"modes {q_points}"
        if key not in self._solved:
            stars = [star(self.need_phonons(), q_point) for q_point in q_points]
            self._solved[key] = eigenmodes(self.need_phonons(), np.concatenate(stars))
        found: Modes = self._solved[key]
        return found

    def grid(self, crystal: Crystal) -> Modes:
        """Return the modes at all q points that fit into a supercell."""
        cell, modes = self._solved.get("grid", (None, None))
        if cell is None or not np.allclose(cell, crystal.cell):
            modes = grid_modes(self.need_phonons(), crystal)
            self._solved["grid"] = crystal.cell, modes  # the last one only: they are large
        found: Modes = modes
        return found

    def other(self, crystal: Crystal, name: str) -> Crystal:
        """Return what a crystal morphs to, atom by atom."""
        if self.cell is None or name not in self.others:
            known = ", ".join(self.others) or "none"
            raise InputError(f"there is no crystal {name} to morph to: those here are {known}")
        key = f"morph {name}"
        if key not in self._solved:
            self._solved[key] = matched(self.cell, self.others[name])
        return repeat(self._solved[key], supercell_matrix(crystal, self.cell))


def augment_crystal(
    crystal: Crystal,
    steps: Sequence[Mapping[str, Any]],
    seed: int,
    item: str | int,
    context: Context | None = None,
) -> tuple[Crystal, list[dict[str, Any]]]:
    """Apply the steps of a list, one after the other.

    Parameters
    ----------
    steps
        As described in `diffractory.augment.compose`.
    seed
        Global seed.
    item
        Name of the sample, which the draws belong to, with the place of the step and its name.
    context
        What ``relax``, ``phonon``, ``random_displacements``, ``morph`` and ``dynamics`` need.

    Returns
    -------
    The crystal, and for each step its name and what was drawn, ready for JSON.

    Raises
    ------
    InputError
        If a step cannot be applied.
    """
    context = context or Context()
    drawn = []
    todo = parsed(steps)
    wants_phonons = any(name in NEED_PHONONS for name, _ in todo)
    for position, (name, settings) in enumerate(todo):
        # Force constants are those of the crystal at rest: after relaxation, before all else.
        if name != "relax" and wants_phonons and not context.phonons and context.calculator:
            context = replace(context, phonons=_phonons_of(crystal, context.calculator))
        rng = generator(seed, f"augment/{position}/{name}", item)
        crystal, found = STEPS[name](crystal, context, rng, **settings)
        drawn.append({"step": name, **found})
    return crystal, drawn


def parsed(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the name and the parameters of each step.

    Raises
    ------
    InputError
        If a step or a parameter is unknown, or one is missing.
    """
    result = []
    for step in steps:
        if len(step) != 1 or (name := next(iter(step))) not in STEPS:
            raise InputError(f"{dict(step)} is no step of an augmentation: give {', '.join(STEPS)}")
        settings = {"cells": step[name]} if name == "repeat" else step[name]
        parameters = list(inspect.signature(STEPS[name]).parameters.values())[3:]
        known = [parameter.name for parameter in parameters]
        needed = [p.name for p in parameters if p.default is inspect.Parameter.empty]
        if not isinstance(settings, Mapping) or not set(needed) <= set(settings) <= set(known):
            raise InputError(
                f"the step {name} of an augmentation has the parameters {settings}: it takes "
                f"{', '.join(known)}, of which it needs {', '.join(needed) or 'none'}"
            )
        result.append((name, settings))
    return result


def _phonons_of(crystal: Crystal, calculator: Calculator) -> Phonopy:
    lengths = np.linalg.norm(crystal.cell, axis=1)
    return calculate_phonons(crystal, calculator, np.ceil(MIN_LENGTH / lengths).astype(int))


Result = tuple[Crystal, dict[str, Any]]


def _draw_per_element(value: Any, rng: np.random.Generator) -> PerElement:
    """Draw one number for all elements, or one for each that is named."""
    if isinstance(value, Mapping):
        return {element: draw(value[element], rng) for element in sorted(value)}
    return draw(value, rng)


def _repeat(crystal: Crystal, context: Context, rng: np.random.Generator, cells: Any) -> Result:
    drawn = [
        int(rng.integers(n[0], n[1], endpoint=True)) if isinstance(n, list) else int(n)
        for n in cells
    ]
    return repeat(crystal, drawn), {"cells": drawn}


def _relax(
    crystal: Crystal,
    context: Context,
    rng: np.random.Generator,
    max_force: float,
    in_plane: bool = False,
) -> Result:
    return relax(crystal, context.need_calculator(), in_plane, max_force), {}


def _vacancies(
    crystal: Crystal, context: Context, rng: np.random.Generator, fraction: Any
) -> Result:
    drawn = _draw_per_element(fraction, rng)
    return remove_atoms(crystal, drawn, rng), {"fraction": drawn}


def _strain(
    crystal: Crystal,
    context: Context,
    rng: np.random.Generator,
    limit: Any,
    in_plane: bool = False,
) -> Result:
    tensor = random_strain(draw(limit, rng), in_plane, rng)
    return strain(crystal, tensor), {"tensor": tensor.tolist()}


def _thermal(
    crystal: Crystal, context: Context, rng: np.random.Generator, debye_waller: Any
) -> Result:
    drawn = _draw_per_element(debye_waller, rng)
    return displace(crystal, drawn, rng), {"debye_waller": drawn}


def _phonon(
    crystal: Crystal,
    context: Context,
    rng: np.random.Generator,
    q_points: Sequence[Any],
    amplitude: Any,
) -> Result:
    mode = random_mode(context.modes(q_points), rng)
    drawn = draw(amplitude, rng)
    return freeze_mode(crystal, mode, drawn, phase=0), {
        "q_point": mode.q_point.tolist(),
        "frequency": mode.frequency,
        "amplitude": drawn,
    }


def _random_displacements(
    crystal: Crystal, context: Context, rng: np.random.Generator, temperature: Any
) -> Result:
    drawn = draw(temperature, rng)
    return vibrate(crystal, context.grid(crystal), drawn, rng), {"temperature": drawn}


def _morph(
    crystal: Crystal, context: Context, rng: np.random.Generator, to: str, fraction: Any
) -> Result:
    drawn = draw(fraction, rng)
    return morph(crystal, context.other(crystal, to), drawn), {"to": to, "fraction": drawn}


def _dynamics(
    crystal: Crystal,
    context: Context,
    rng: np.random.Generator,
    temperature: Any,
    duration: float,
    timestep: float = 2.0,
    friction: float = 10.0,
) -> Result:
    drawn = draw(temperature, rng)
    found = snapshots(
        crystal, context.need_calculator(), drawn, 1, rng, timestep, friction, duration
    )
    return found[0], {"temperature": drawn}


STEPS: dict[str, Callable[..., Result]] = {
    "repeat": _repeat,
    "relax": _relax,
    "vacancies": _vacancies,
    "strain": _strain,
    "thermal": _thermal,
    "phonon": _phonon,
    "random_displacements": _random_displacements,
    "morph": _morph,
    "dynamics": _dynamics,
}

NEED_PHONONS = ("phonon", "random_displacements")
