"""The Bloch-wave engine against abTEM's multislice, beam by beam, in zone axes at 200 keV.

Multislice takes a plane wave through slices of the atoms' potentials in real space. It knows no
structure factors, excitation errors or selected beams: what both agree on is the physics. Of the
difference that remains, what g_max and max_excitation_error leave out is most; see docs/physics.md.
"""

from functools import cache
from itertools import product

import numpy as np
import pytest
from abtem import CrystalPotential, PlaneWave, Potential
from abtem.multislice import FourierMultislice
from abtem.potentials.iam import PotentialArray
from ase import Atoms
from ase.build import make_supercell
from ase.spacegroup import crystal as from_space_group
from crystals import STRONTIUM_TITANATE, crystal_of
from scipy.ndimage import gaussian_filter
from scipy.signal import resample

from diffractory.simulate.beams import select_beams
from diffractory.simulate.bloch import bloch_intensities
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.scattering import wavelength

ENERGY = 200e3
SLICE, SAMPLING = 0.35, 0.035  # angstrom
REFINEMENT = 3
B = 0.5  # Debye-Waller factor of a crystal smeared as at room temperature, square angstrom

WURTZITE = from_space_group(  # GaN with the ideal u = 3/8, which puts atoms on points of a grid
    ["Ga", "N"],
    [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 3 / 8)],
    spacegroup=186,
    cellpar=[3.19, 3.19, 5.19, 90, 90, 120],
)
LOPSIDED = Atoms(  # no symmetry
    "CuSeSO",
    scaled_positions=[(0.05, 0.1, 0.2), (0.4, 0.55, 0.45), (0.75, 0.2, 0.6), (0.6, 0.8, 0.9)],
    cell=[4.1, 4.9, 10.3],
    pbc=True,
)
# Per zone a crystal, and in its lattice the axes x, y, z of an orthogonal box.
ZONES = {
    "SrTiO3 [001]": (STRONTIUM_TITANATE, [(1, 0, 0), (0, 1, 0), (0, 0, 1)]),
    "SrTiO3 [210]": (STRONTIUM_TITANATE, [(0, 0, 1), (1, -2, 0), (2, 1, 0)]),
    "GaN [0001]": (WURTZITE, [(1, 0, 0), (1, 2, 0), (0, 0, 1)]),
    "GaN [2-1-10]": (WURTZITE, [(0, 0, 1), (-1, -2, 0), (1, 0, 0)]),  # the polar axis is x
    "lopsided": (LOPSIDED, np.eye(3, dtype=int)),
}
REAL_ZONES = [zone for zone in ZONES if zone != "lopsided"]


@cache
def boxed(zone):
    """Return atoms in a box along laboratory axes, its sides, and the rotation to these axes."""
    atoms, axes = ZONES[zone]
    box = make_supercell(atoms, axes)
    sides = box.cell.lengths()
    rotation = np.array(box.cell) / sides[:, None]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
    box.set_cell(np.diag(sides), scale_atoms=True)
    return box, sides, rotation


def thicknesses(sides):
    """Return those of one box, and of whole boxes up to 20, 50, 100, 200 and 300 angstrom."""
    return np.maximum(np.array([0, 20, 50, 100, 200, 300]) // sides[2], 1) * sides[2]


def grid(sides, multiple=24):
    return np.ceil(sides[:2] / SAMPLING / multiple).astype(int) * multiple


def multislice(slices, sides, order):
    """Return |psi_g|^2 of potential slices (n, x, y), by thickness in the order of an FFT.

    Forward waves are exp(2 pi i k.r), for which potentials act as exp(+i sigma V): the beam g is at
    the index (g_x, g_y) * sides of the forward transform.
    """
    n = np.rint(thicknesses(sides) / sides[2]).astype(int)
    cell = PotentialArray(slices, slice_thickness=sides[2] / len(slices), extent=tuple(sides[:2]))
    crystal = CrystalPotential(cell, (1, 1, n.max()), exit_planes=len(slices))
    algorithm = FourierMultislice(order=order)
    waves = PlaneWave(energy=ENERGY).multislice(crystal, lazy=False, algorithm=algorithm)
    return np.abs(np.fft.fft2(waves.array[n], norm="forward")) ** 2


@cache
def fine_potential(zone):
    """Return slices of the atoms' potentials on a grid so fine that the nuclei's poles fit."""
    box, sides, _ = boxed(zone)
    return Potential(
        box,
        gpts=REFINEMENT * grid(sides),
        slice_thickness=sides[2] / np.ceil(sides[2] / SLICE),
        parametrization="lobato",
        projection="finite",
    ).build(lazy=False)


@cache
def multislice_patterns(zone, b):
    """Return the patterns of the crystal, smeared by a Debye-Waller factor, square angstrom."""
    _, sides, _ = boxed(zone)
    slices = fine_potential(zone).array
    sigma = np.sqrt(b / (8 * np.pi**2)) / (sides[[2, 0, 1]] / slices.shape)
    slices = gaussian_filter(slices, sigma, mode="wrap", truncate=5)
    for axis, n in enumerate(grid(sides), start=1):
        slices = resample(slices, n, axis=axis)
    return multislice(slices, sides, order=2)  # one order beyond the paraxial propagator


def bloch_patterns(crystal, rotation, sides, shape, g_max, s_max):
    """Return the engine's patterns as `multislice` gives its own."""
    beams = select_beams(crystal, rotation[None], ENERGY, g_max, s_max)
    intensities = bloch_intensities(crystal, beams, thicknesses(sides), g_max)
    index = np.rint(beams.g[:, :2] * sides[:2]).astype(int)
    np.testing.assert_allclose(index, beams.g[:, :2] * sides[:2], atol=1e-6)
    patterns = np.zeros((len(intensities), *shape))
    np.add.at(patterns, (slice(None), *index.T), intensities)  # Laue zones may share a place
    return patterns


def differences(zone, atoms, b, g_max=5.0, s_max=0.15):
    """Return |Bloch waves - multislice| of every beam, shape (thicknesses, x, y)."""
    _, sides, rotation = boxed(zone)
    expected = multislice_patterns(zone, b)
    crystal = crystal_of(atoms, b)
    found = bloch_patterns(crystal, rotation, sides, expected.shape[1:], g_max, s_max)
    return np.abs(found - expected)


def tolerance(zone, b):
    """Return a bound by thickness: what the engine leaves out is a phase that grows with it.

    At rest the atoms' sharp peaks scatter far beyond g_max.
    """
    slope, limit = (7e-5, 0.01) if b else (3e-4, 0.07)
    return np.minimum(slope * thicknesses(boxed(zone)[1]), limit)


def reflected(atoms, signs):
    result = atoms.copy()
    result.set_scaled_positions(atoms.get_scaled_positions() * np.array(signs))
    return result


@pytest.mark.parametrize("zone", REAL_ZONES)
def test_projected_crystal_at_rest(zone):
    """Without higher Laue zones nothing but g_max is left out: it closes the gap, to 300 angstrom.

    The slices are the whole cell's projection, spread evenly along the beam. For the engine the
    layers are so thin and so close, each atom there to that part, that higher Laue zones lie beyond
    all beams. Then the paraxial propagator is exact.
    """
    box, sides, _ = boxed(zone)
    potential = Potential(
        box,
        gpts=grid(sides, 120),  # the atoms are at its points
        slice_thickness=sides[2],
        parametrization="lobato",
        projection="infinite",
    ).build(lazy=False)
    n = int(np.ceil(sides[2] / SLICE))
    expected = multislice(np.repeat(potential.array / n, n, axis=0), sides, order=1)

    spacing = 0.1
    projected = Crystal(
        np.diag([*sides[:2], spacing]),
        box.get_scaled_positions() * [1, 1, 0],
        box.numbers,
        occupancies=np.full(len(box), spacing / sides[2]),
    )
    errors = []
    for g_max in (4.0, 6.0, 8.0):
        s_max = wavelength(ENERGY) * g_max**2 / 2 + 1e-6
        found = bloch_patterns(projected, np.eye(3), sides, expected.shape[1:], g_max, s_max)
        errors.append(np.abs(found - expected).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1.5e-3


@pytest.mark.parametrize("b", [0.0, B])
@pytest.mark.parametrize("zone", REAL_ZONES)
def test_crystal(zone, b):
    error = differences(zone, ZONES[zone][0], b).max(axis=(1, 2))
    assert (error < tolerance(zone, b)).all(), error


def test_polarity():
    """The sign of the structure factors: GaN with its polar axis inverted is another crystal."""
    zone = "GaN [2-1-10]"
    error = differences(zone, reflected(WURTZITE, (-1, -1, -1)), B).max(axis=(1, 2))
    assert (error[2:] > 3 * tolerance(zone, B)[2:]).all()
    assert error[-1] > 10 * tolerance(zone, B)[-1]


def test_patterns_are_neither_mirrored_nor_turned():
    """What multislice shows at (+q_x, +q_y) the engine shows there, and at no other place."""
    zone = "lopsided"
    for signs in product((1, -1), (1, -1), (1,)):
        error = differences(zone, reflected(LOPSIDED, signs), B, g_max=3.0)[-1].max()
        right = signs == (1, 1, 1)
        assert error < tolerance(zone, B)[-1] if right else error > 5 * tolerance(zone, B)[-1]


def test_direction_of_travel():
    """Electrons come from -z: the first-order Laue zone that they excite is that of g_z < 0."""
    zone = "lopsided"
    expected = multislice_patterns(zone, B)
    sides = boxed(zone)[1]
    g_x, g_y = (np.fft.fftfreq(n, a / n) for n, a in zip(expected.shape[1:], sides, strict=False))
    radius = np.sqrt(2 / (wavelength(ENERGY) * sides[2]))
    ring = np.abs(np.hypot(g_x[:, None], g_y) - radius) < 0.15
    for z in (1, -1):
        error = differences(zone, reflected(LOPSIDED, (1, 1, z)), B, g_max=3.2)[:, ring]
        relative = error.sum(axis=1) / expected[:, ring].sum(axis=1)
        assert (relative < 0.1).all() if z == 1 else (relative > 0.9).all()
