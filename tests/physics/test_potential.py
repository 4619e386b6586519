"""Structure factors: vibrations, occupancies, origins, and the potential that they make."""

import numpy as np
import pytest
from crystals import GALLIUM_NITRIDE, QUARTZ, SILICON, STRONTIUM_TITANATE, TRICLINIC, crystal_of

from diffractory.simulate.crystal import Crystal, mean_square_displacement
from diffractory.simulate.potential import potential_coefficients, structure_factors
from diffractory.simulate.reciprocal import index_bounds
from diffractory.simulate.scattering import absorptive_factor, lorentz_factor, scattering_factor

G_MAX = 3.0


def grid(crystal):
    bounds = index_bounds(crystal, G_MAX)
    axes = [np.arange(-n, n + 1) for n in bounds]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return bounds, hkl, hkl @ crystal.reciprocal


def test_structure_factors_are_the_sum_over_atoms():
    """Of a triclinic crystal with every attribute: term by term, at every point of the grid."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(3, 3, 3)) * 0.05
    crystal = Crystal(
        np.array(TRICLINIC.cell),
        TRICLINIC.get_scaled_positions(),
        TRICLINIC.numbers,
        np.array([1.0, 0.4, 0.7]),
        half @ half.transpose(0, 2, 1),
    )
    bounds, hkl, g = grid(crystal)
    length = np.linalg.norm(g, axis=-1)
    expected = np.zeros(length.shape, dtype=complex)
    for x, z, n, u in zip(
        crystal.positions, crystal.numbers, crystal.occupancies, crystal.displacements, strict=True
    ):
        damping = np.exp(-2 * np.pi**2 * np.einsum("...i,ij,...j", g, u, g))
        b = 8 * np.pi**2 * np.trace(u) / 3
        f = scattering_factor(z, length) * damping + 1j * absorptive_factor(z, length, b, 2e5)
        expected += n * f * np.exp(-2j * np.pi * hkl @ x)
    expected[length > G_MAX] = 0
    ours = structure_factors(crystal, bounds, G_MAX, absorption_energy=2e5)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_debye_waller_factor_damps_by_its_closed_form():
    b = 0.7
    bounds, _, g = grid(crystal_of(SILICON))
    cold, warm = (structure_factors(crystal_of(SILICON, x), bounds, G_MAX) for x in (0.0, b))
    expected = cold * np.exp(-b * (g**2).sum(axis=-1) / 4)
    np.testing.assert_allclose(warm, expected, rtol=1e-9, atol=1e-12)


def test_anisotropic_atoms_damp_along_their_axes():
    """U = diag(u, 0, 0): reflections along x are damped by exp(-2 pi^2 u g^2), others not."""
    u = np.zeros((3, 3))
    u[0, 0] = 0.02
    still = crystal_of(STRONTIUM_TITANATE)
    moving = Crystal(still.cell, still.positions, still.numbers, displacements=u)
    bounds, _, g = grid(still)
    damped, whole = (structure_factors(c, bounds, G_MAX) for c in (moving, still))
    centre = tuple(bounds)
    for step in range(1, 5):
        x = (centre[0] + step, *centre[1:])
        z = (*centre[:2], centre[2] + step)
        assert damped[x] == pytest.approx(whole[x] * np.exp(-2 * np.pi**2 * 0.02 * g[x][0] ** 2))
        assert damped[z] == pytest.approx(whole[z])


def test_debye_waller_factors_by_element():
    tensor = mean_square_displacement(np.array([0.3, 0.8]))
    np.testing.assert_allclose(np.trace(tensor, axis1=1, axis2=2) * 8 * np.pi**2 / 3, [0.3, 0.8])


def test_two_halves_at_one_site_are_one_atom():
    whole = crystal_of(QUARTZ)
    count = len(whole.numbers)
    halves = Crystal(
        whole.cell,
        np.tile(whole.positions, (2, 1)),
        np.tile(whole.numbers, 2),
        np.full(2 * count, 0.5),
    )
    bounds, _, _ = grid(whole)
    np.testing.assert_allclose(
        structure_factors(halves, bounds, G_MAX), structure_factors(whole, bounds, G_MAX), atol=1e-9
    )


@pytest.mark.parametrize(
    ("atoms", "centric"),
    [(STRONTIUM_TITANATE, True), (SILICON, True), (GALLIUM_NITRIDE, False), (QUARTZ, False)],
    ids=["SrTiO3", "Si", "GaN", "quartz"],
)
def test_origin_goes_to_a_centre_of_inversion(atoms, centric):
    """Structure factors are then real, wherever the origin was; their moduli never change."""
    moved = atoms.copy()
    moved.set_scaled_positions(atoms.get_scaled_positions() + np.array([0.13, 0.27, 0.41]))
    crystal = crystal_of(moved)
    bounds, _, _ = grid(crystal)
    before = structure_factors(crystal, bounds, G_MAX)
    after = structure_factors(crystal.centred(), bounds, G_MAX)
    np.testing.assert_allclose(np.abs(before), np.abs(after), atol=1e-9)
    assert (np.abs(after.imag).max() < 1e-9) == centric


def test_potential_carries_the_relativistic_mass():
    crystal, bounds = crystal_of(SILICON), np.array([2] * 3)
    low, high = (potential_coefficients(crystal, bounds, e, 0.5)[2, 2, 2] for e in (1e3, 3e5))
    assert high / low == pytest.approx(lorentz_factor(3e5) / lorentz_factor(1e3))


def test_symmetry_with_vibrations_asks_for_them_too():
    """Inversion keeps any tensor; a mirror only one that has it."""
    crystal = crystal_of(SILICON)
    tilted = np.array([[2.0, 1, 0], [1, 2, 0], [0, 0, 2]]) * 1e-2
    vibrating = Crystal(crystal.cell, crystal.positions, crystal.numbers, displacements=tilted)
    mirror = np.diag([1, 1, -1])
    other = np.diag([-1, 1, 1])
    assert len(vibrating.translations(-np.eye(3))) == len(crystal.translations(-np.eye(3))) == 4
    assert len(vibrating.translations(mirror)) == len(crystal.translations(mirror)) == 4
    assert len(vibrating.translations(other)) == 0 < len(crystal.translations(other))
