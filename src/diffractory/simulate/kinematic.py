"""Kinematic diffraction: single scattering in a parallel-sided foil."""

import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.beams import Beams, index_bounds
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.scattering import potential_coefficients, wavelength


def kinematic_intensities(
    crystal: Crystal,
    beams: Beams,
    thicknesses: NDArray[np.float64],
    g_max: float,
    debye_waller: float,
) -> NDArray[np.float32]:
    """Return the intensities |pi t U_g/K sinc(s_g t)|^2, as fractions of the incident beam's flux.

    This is the limit of `bloch_intensities` for t -> 0, with U_g/K the inverse extinction distance
    and sinc(x) = sin(pi x)/(pi x) the shape factor of the foil. The direct beam stays 1. Parameters
    and result are those of `bloch_intensities`.
    """
    bounds = index_bounds(crystal, g_max)
    potential = potential_coefficients(crystal, bounds, beams.energy, g_max, debye_waller)
    u = potential[tuple((beams.hkl + bounds).T)]
    wave_number = 1 / wavelength(beams.energy)
    t = np.asarray(thicknesses)[:, None]
    metric = 1 / (1 + beams.g[:, 2] / wave_number)
    amplitude = np.pi * t * np.abs(u) / wave_number * np.sinc(beams.excitation_error * metric * t)
    intensity = amplitude**2 * metric
    intensity[:, (beams.hkl == 0).all(axis=1)] = 1.0
    return intensity.astype(np.float32)
