"""What files of microscopes give in many units, in angstrom and 1/angstrom."""

import re
import unicodedata

from diffractory.simulate.scattering import wavelength

ANGSTROM = {
    "a": 1.0,
    "aa": 1.0,  # TeX's \AA
    "å": 1.0,
    "angstrom": 1.0,
    "pm": 1e-2,
    "nm": 10.0,
    "nanometer": 10.0,
    "um": 1e4,
    "μm": 1e4,
    "micrometer": 1e4,
    "mm": 1e7,
    "cm": 1e8,
    "m": 1e10,
    "meter": 1e10,
}
"""Lengths in angstrom, by name in small letters."""

RADIAN = {"rad": 1.0, "radian": 1.0, "mrad": 1e-3, "urad": 1e-6, "μrad": 1e-6}
"""Angles in radian, by name in small letters."""

ORNAMENT = re.compile(r"\\mathrm|\\text|[\\\s${}\[\]()_^*]")
UNIT = re.compile(r"(1/)?([a-zåμ]+)(-1)?")


def reads(unit: str) -> tuple[str, bool]:
    r"""Return the name of a unit in small letters, and whether it is one over that unit.

    Both are empty for what is no such unit. TeX, signs for exponents and all ways to write an
    angstrom or a micrometer are understood: ``$\AA^{-1}$`` is ``("aa", True)``.
    """
    plain = unicodedata.normalize("NFKC", unit).replace("\N{MINUS SIGN}", "-").lower()
    found = UNIT.fullmatch(ORNAMENT.sub("", plain))
    if found is None or (found[1] and found[3]):
        return "", False
    return found[2].removesuffix("s"), bool(found[1] or found[3])


def in_angstrom(value: float, unit: str) -> float | None:
    """Return a length in angstrom, or None if the unit is not one of length."""
    name, inverse = reads(unit)
    return None if inverse or name not in ANGSTROM else value * ANGSTROM[name]


def in_per_angstrom(value: float, unit: str, energy: float | None) -> float | None:
    """Return a length in reciprocal space, or an angle of scattering, in 1/angstrom.

    Parameters
    ----------
    energy
        Of the electrons, eV; an angle needs it: it is divided by their wavelength.

    Returns
    -------
    float or None
        None if the unit is of another kind, or an angle and there is no energy.
    """
    name, inverse = reads(unit)
    if inverse and name in ANGSTROM:
        return value / ANGSTROM[name]
    if not inverse and name in RADIAN and energy is not None:
        return value * RADIAN[name] / wavelength(energy)
    return None
