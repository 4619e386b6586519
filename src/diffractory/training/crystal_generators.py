"""Networks that generate crystals: those that there are, trained ones, and what they can take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffractory.models.crystal_vae import CrystalVae
from diffractory.models.diffusion import N_ELEMENTS
from diffractory.models.ftcp import Ftcp
from diffractory.store import InputError
from diffractory.training.saved import load_trained
from diffractory.training.unit_cells import CrystalArrays

CrystalGenerator = CrystalVae | Ftcp


def build(name: str, settings: Mapping[str, Any]) -> CrystalGenerator:
    """Return a network with random weights.

    Parameters
    ----------
    name
        ``crystal_vae`` or ``ftcp``.
    settings
        Of the network.
    """
    return Ftcp(**settings) if name == "ftcp" else CrystalVae(dict(settings))


def load_generator(model: Path) -> tuple[CrystalGenerator, dict[str, Any]]:
    """Return the trained network of a folder, and its hparams.json.

    Raises
    ------
    InputError
        If the folder does not hold one.
    """
    return load_trained(model, lambda h: build(h["model"], h["network"]))


def check_crystals(crystals: CrystalArrays, settings: Mapping[str, Any]) -> None:
    """Check that a network with some settings can take all crystals.

    Raises
    ------
    InputError
        If one has too many atoms or elements, too heavy ones, or values that are not finite.
    """
    most = settings["max_sites"]
    _refuse(crystals, crystals.counts > most, f"more than max_sites: {most} atoms", "raise it")
    first = crystals.offsets[:-1]
    broken = np.logical_or.reduceat(~np.isfinite(crystals.positions).all(1), first)
    broken |= ~np.isfinite(crystals.lattice).all((1, 2))
    _refuse(crystals, broken, "values that are not finite", "leave them out")
    heavy = np.maximum.reduceat(crystals.numbers, first) > N_ELEMENTS
    _refuse(crystals, heavy, f"an element beyond atomic number {N_ELEMENTS}", "leave them out")
    if most := settings.get("max_elements"):
        atoms = np.repeat(np.arange(len(crystals)), crystals.counts)
        distinct = np.unique(np.stack([atoms, crystals.numbers]), axis=1)[0]
        too_many = np.bincount(distinct, minlength=len(crystals)) > most
        _refuse(crystals, too_many, f"more than max_elements: {most} elements", "raise it")


def _refuse(crystals: CrystalArrays, bad: np.ndarray[Any, Any], what: str, remedy: str) -> None:
    names = crystals.material_id[bad]
    if len(names):
        more = f" and {len(names) - 5} others" if len(names) > 5 else ""
        raise InputError(f"{', '.join(names[:5])}{more} have {what}: {remedy}")
