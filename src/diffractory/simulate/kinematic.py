"""Kinematic diffraction: single scattering in a parallel-sided foil."""

import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.beams import Beams
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.potential import potential_coefficients
from diffractory.simulate.reciprocal import index_bounds
from diffractory.simulate.scattering import Parametrization, wavelength


def kinematic_intensities(
    crystal: Crystal,
    beams: Beams,
    thicknesses: NDArray[np.float64],
    g_max: float,
    parametrization: Parametrization = "lobato",
    absorption: bool = False,
) -> NDArray[np.float32]:
    """Return the intensities |pi t U_g/K sinc(s_g t)|^2, as fractions of the incident beam's flux.

    This is the limit of `bloch_intensities` for t -> 0, with U_g/K the inverse extinction distance
    and sinc(x) = sin(pi x)/(pi x) the shape factor of the foil (obliquities left out here). The
    direct beam stays 1. Parameters and result are those of `bloch_intensities`.
    """
    bounds = index_bounds(crystal, g_max)
    potential = potential_coefficients(
        crystal, bounds, beams.energy, g_max, parametrization, absorption
    )
    u = potential[tuple((beams.hkl + bounds).T)]
    direct = (beams.hkl == 0).all(axis=1)
    incident = beams.obliquity[direct][beams.pattern]
    strength = np.pi * wavelength(beams.energy) * np.abs(u) * np.sqrt(beams.obliquity * incident)
    t = np.asarray(thicknesses)[:, None]
    intensity = (strength * t * np.sinc(beams.excitation_error * beams.obliquity * t)) ** 2
    intensity[:, direct] = 1.0
    return intensity.astype(np.float32)
