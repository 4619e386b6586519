"""The Bloch-wave and kinematic engines against abTEM, closed forms and invariants."""

import numpy as np
import pytest
from abtem.bloch import BlochWaves, StructureFactor
from ase.build import bulk
from crystals import (
    CRYSTALS,
    G_MAX,
    GALLIUM_NITRIDE,
    IDS,
    QUARTZ,
    S_MAX,
    SILICON,
    STRONTIUM_TITANATE,
    TRICLINIC,
    along,
    crystal_of,
    intensities,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from diffractory.simulate.beams import Beams, select_beams
from diffractory.simulate.bloch import bloch_intensities
from diffractory.simulate.kinematic import kinematic_intensities
from diffractory.simulate.orientations import random_rotations
from diffractory.simulate.potential import potential_coefficients
from diffractory.simulate.scattering import wavelength
from diffractory.store import InputError


def abtem_intensities(atoms, rotation, thickness, energy):
    turned = atoms.copy()
    turned.set_cell(np.array(atoms.cell) @ rotation.T, scale_atoms=False)
    turned.positions = atoms.positions @ rotation.T
    factors = StructureFactor(
        turned, g_max=2 * G_MAX, parametrization="lobato", cutoff="hard", centering="P"
    )
    waves = BlochWaves(factors, energy=energy, sg_max=S_MAX, g_max=G_MAX)
    patterns = waves.calculate_diffraction_patterns(thickness, lazy=False)
    indices = np.asarray(patterns.miller_indices)
    return {tuple(h): i for h, i in zip(indices, np.asarray(patterns.array).ravel(), strict=True)}


@pytest.mark.parametrize("atoms", CRYSTALS, ids=IDS)
@pytest.mark.parametrize(("uvw", "energy"), [((0, 0, 1), 200e3), ((2, -1, 0), 300e3), (None, 2e5)])
def test_intensities_equal_abtem(atoms, uvw, energy):
    """Beam by beam: the polar and chiral crystals pin the sign of the structure factors."""
    rotation = along(atoms, uvw) if uvw else random_rotations(1, np.random.default_rng(1))
    beams, ours = intensities(bloch_intensities, atoms, rotation, [200.0], energy)
    theirs = abtem_intensities(atoms, rotation[0], 200.0, energy)
    # abTEM gives |psi_g|^2, we the flux |psi_g|^2 (1 + g_z / K).
    flux = 1 + beams.g[:, 2] * wavelength(energy)
    expected = np.array([theirs.get(tuple(h), 0.0) for h in beams.hkl]) * flux
    np.testing.assert_allclose(ours[0], expected, atol=1e-4)
    assert {tuple(h) for h in beams.hkl} <= set(theirs)
    # Beams that abTEM has and we leave out are forbidden by the centring: they must be dark.
    missing = set(theirs) - {tuple(h) for h in beams.hkl}
    assert max((theirs[h] for h in missing), default=0.0) < 1e-8


def test_reversed_polarity_is_told_apart():
    """Inverting GaN inverts its pattern, and that differs along a direction with a polar axis."""
    rotation = along(GALLIUM_NITRIDE, (1, 0, 0))
    inverted = GALLIUM_NITRIDE.copy()
    inverted.set_scaled_positions(-GALLIUM_NITRIDE.get_scaled_positions())
    beams, here = intensities(bloch_intensities, GALLIUM_NITRIDE, rotation, [200.0])
    other, there = intensities(bloch_intensities, inverted, rotation, [200.0])
    assert np.array_equal(beams.hkl, other.hkl)
    assert np.abs(here - there).max() > 0.01


@pytest.mark.parametrize(
    ("energy", "expected"), [(100e3, 0.037014), (200e3, 0.025079), (300e3, 0.019687)]
)
def test_wavelength(energy, expected):
    """Values of De Graef, Introduction to Conventional TEM, table 2.2."""
    assert wavelength(energy) == pytest.approx(expected, abs=1e-6)


def test_two_beam_pendelloesung():
    """With the direct beam and one reflection alone, I_g follows the closed two-beam form."""
    crystal = crystal_of(SILICON)
    energy, hkl = 200e3, np.array([[0, 0, 0], [2, 2, 0]])
    wave_number = 1 / wavelength(energy)
    u = potential_coefficients(crystal, np.array([20] * 3), energy, 3.0)[22, 22, 20]
    for s in (0.0, 1e-3, -4e-3):
        g_z = 0.0  # the foil normal is in the Ewald sphere's tangent: no obliquity
        g = np.array([[0, 0, 0], [np.linalg.norm(hkl[1] @ crystal.reciprocal), 0, g_z]])
        normal = np.array([[0.0, 0.0, 1.0]])
        beams = Beams(np.array([0, 2]), hkl, g, np.array([0, s]), normal, energy)
        thicknesses = np.linspace(10, 1000, 25)
        ours = bloch_intensities(crystal, beams, thicknesses, G_MAX)
        s_eff = np.sqrt(s**2 + np.abs(u / wave_number) ** 2)
        expected = (np.abs(u / wave_number) / s_eff * np.sin(np.pi * s_eff * thicknesses)) ** 2
        np.testing.assert_allclose(ours[:, 1], expected, atol=2e-5)


@pytest.mark.parametrize("atoms", CRYSTALS, ids=IDS)
def test_thin_limit_is_kinematic_and_quadratic(atoms):
    rotation = random_rotations(1, np.random.default_rng(3))
    beams, dynamical = intensities(bloch_intensities, atoms, rotation, [0.5, 1.0])
    _, kinematic = intensities(kinematic_intensities, atoms, rotation, [0.5, 1.0])
    strong = (beams.hkl != 0).any(axis=1) & (kinematic[0] > 0.02 * np.sort(kinematic[0])[-2])
    assert strong.sum() >= 3
    np.testing.assert_allclose(dynamical[:, strong], kinematic[:, strong], rtol=0.02)
    np.testing.assert_allclose(dynamical[1, strong] / dynamical[0, strong], 4, rtol=0.02)


@settings(max_examples=25, deadline=None)
@given(
    index=st.integers(0, len(CRYSTALS) - 1),
    seed=st.integers(0, 2**32 - 1),
    thickness=st.floats(0.1, 2000),
    energy=st.sampled_from([60e3, 200e3, 300e3]),
)
def test_flux_is_conserved_in_any_orientation(index, seed, thickness, energy):
    rotation = random_rotations(1, np.random.default_rng(seed))
    _, result = intensities(bloch_intensities, CRYSTALS[index], rotation, [thickness], energy, 0.5)
    assert np.isfinite(result).all()
    assert (result >= 0).all()
    assert result.sum() == pytest.approx(1, abs=2e-4)


def test_supercell_gives_the_pattern_of_its_cell():
    rotation = along(GALLIUM_NITRIDE, (1, 1, 0))
    beams, small = intensities(bloch_intensities, GALLIUM_NITRIDE, rotation, [200.0])
    more, large = intensities(
        bloch_intensities, GALLIUM_NITRIDE.repeat((2, 1, 3)), rotation, [200.0]
    )
    assert len(more.hkl) == len(beams.hkl)
    of = {tuple(h): i for h, i in zip(more.hkl, large[0], strict=True)}
    expected = [of[tuple(h * np.array([2, 1, 3]))] for h in beams.hkl]
    np.testing.assert_allclose(small[0], expected, atol=2e-5)


def test_a_slight_displacement_undoes_the_supercell():
    """Only a true translation may remove beams: one moved atom makes satellites possible."""
    cell = GALLIUM_NITRIDE.repeat((2, 1, 1))
    assert len(crystal_of(cell).lattice_translations()) == 2
    cell.positions[0] += 0.01
    assert len(crystal_of(cell).lattice_translations()) == 1


@pytest.mark.parametrize(("symbol", "structure", "order"), [("Al", "fcc", 4), ("Fe", "bcc", 2)])
def test_centring_is_found(symbol, structure, order):
    crystal = crystal_of(bulk(symbol, structure, a=4.0, cubic=True))
    assert len(crystal.lattice_translations()) == order


def test_rotating_the_crystal_and_the_view_changes_nothing():
    turn = random_rotations(2, np.random.default_rng(5))
    turned = QUARTZ.copy()
    turned.set_cell(np.array(QUARTZ.cell) @ turn[0].T, scale_atoms=True)
    _, here = intensities(bloch_intensities, QUARTZ, turn[1:], [300.0])
    _, there = intensities(bloch_intensities, turned, turn[1:] @ turn[0].T, [300.0])
    np.testing.assert_allclose(here, there, atol=2e-5)


def test_zone_axis_pattern_has_the_projected_symmetry():
    """SrTiO3 along [001]: all eight reflections {h k 0} of a set are equally strong."""
    beams, result = intensities(
        bloch_intensities, STRONTIUM_TITANATE, along(STRONTIUM_TITANATE, (0, 0, 1)), [200.0]
    )
    of = {tuple(h): i for h, i in zip(beams.hkl, result[0], strict=True)}
    for h, k in [(1, 0), (1, 1), (2, 1), (3, 1)]:
        equal = [of[a, b, 0] for a in (h, -h) for b in (k, -k)] + [
            of[b, a, 0] for a in (h, -h) for b in (k, -k)
        ]
        assert np.ptp(equal) < 1e-5


def test_forbidden_reflection_appears_by_multiple_scattering():
    """Si 002 is extinct kinematically by the glide planes, and excited through 111 pairs."""
    rotation = along(SILICON, (1, -1, 0))
    beams, dynamical = intensities(bloch_intensities, SILICON, rotation, [300.0])
    _, kinematic = intensities(kinematic_intensities, SILICON, rotation, [300.0])
    i = np.flatnonzero((beams.hkl == (0, 0, 2)).all(axis=1))[0]
    assert kinematic[0, i] < 1e-10
    assert dynamical[0, i] > 1e-3


def test_many_thicknesses_equal_one_by_one():
    rotation = random_rotations(1, np.random.default_rng(8))
    _, together = intensities(bloch_intensities, TRICLINIC, rotation, [50.0, 200.0, 700.0])
    for t, row in zip([50.0, 200.0, 700.0], together, strict=True):
        _, alone = intensities(bloch_intensities, TRICLINIC, rotation, [t])
        np.testing.assert_allclose(alone[0], row, atol=2e-5)


@settings(max_examples=15, deadline=None)
@given(index=st.integers(0, len(CRYSTALS) - 1), seed=st.integers(0, 2**32 - 1))
def test_absorption_leaves_less_than_came_in(index, seed):
    """Intensities sum to less than 1, the less the thicker; without vibration nothing is lost."""
    crystal = crystal_of(CRYSTALS[index], 0.5)
    beams = select_beams(crystal, random_rotations(1, np.random.default_rng(seed)), 2e5, 1.5, 0.05)
    thicknesses = np.array([50.0, 300.0, 1000.0])
    total = bloch_intensities(crystal, beams, thicknesses, G_MAX, absorption=True).sum(axis=1)
    assert 1 > total[0] > total[1] > total[2] > 0
    at_rest = crystal_of(CRYSTALS[index])
    kept = bloch_intensities(at_rest, beams, thicknesses, G_MAX, absorption=True).sum(axis=1)
    np.testing.assert_allclose(kept, 1, atol=2e-4)


def test_absorption_of_a_lone_beam_is_exponential():
    """With no other beam the direct one decays as exp(-2 pi U''_0 t / K)."""
    crystal = crystal_of(SILICON, 0.5)
    zero = np.zeros((1, 3))
    beams = Beams(
        np.array([0, 1]), zero.astype(int), zero, np.zeros(1), np.array([[0, 0, 1.0]]), 2e5
    )
    bounds = np.array([20] * 3)
    mean = potential_coefficients(crystal, bounds, 2e5, 3.0, absorption=True)[20, 20, 20].imag
    thicknesses = np.array([100.0, 2000.0])
    ours = bloch_intensities(crystal, beams, thicknesses, G_MAX, absorption=True)
    expected = np.exp(-2 * np.pi * mean * wavelength(2e5) * thicknesses)
    np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-5)


def test_tilted_foil_lengthens_the_way_of_the_beam():
    """Two beams at s = 0, g in the foil's tilt axis: both run t / cos(tilt) through the crystal."""
    crystal, energy, tilt = crystal_of(SILICON), 200e3, np.radians(40)
    hkl = np.array([[0, 0, 0], [2, 2, 0]])
    u = potential_coefficients(crystal, np.array([20] * 3), energy, 3.0)[22, 22, 20]
    g = np.array([[0, 0, 0], [np.linalg.norm(hkl[1] @ crystal.reciprocal), 0, 0]])
    normal = np.array([[0, np.sin(tilt), np.cos(tilt)]])
    beams = Beams(np.array([0, 2]), hkl, g, np.zeros(2), normal, energy)
    thicknesses = np.linspace(10, 800, 20)
    ours = bloch_intensities(crystal, beams, thicknesses, G_MAX)[:, 1]
    way = thicknesses / np.cos(tilt)
    np.testing.assert_allclose(
        ours, np.sin(np.pi * abs(u) * wavelength(energy) * way) ** 2, atol=1e-5
    )
    kinematic = kinematic_intensities(crystal, beams, np.array([1.0]), G_MAX)[0, 1]
    assert kinematic == pytest.approx((np.pi * abs(u) * wavelength(energy) / np.cos(tilt)) ** 2)


def test_foil_along_the_beam_is_refused():
    normal = np.array([np.cos(0.03), 0.0, np.sin(0.03)])
    with pytest.raises(InputError, match=r"tilted so far.*simulate\.foil_tilt"):
        select_beams(crystal_of(SILICON), np.eye(3)[None], 2e5, G_MAX, S_MAX, normal)


@pytest.mark.parametrize("atoms", [STRONTIUM_TITANATE, QUARTZ], ids=["SrTiO3", "quartz"])
def test_tilted_foil_conserves_flux(atoms):
    crystal = crystal_of(atoms, 0.5)
    normal = np.array([0.3, -0.4, np.sqrt(0.75)])
    beams = select_beams(
        crystal, random_rotations(3, np.random.default_rng(0)), 2e5, 1.5, 0.05, normal
    )
    ours = bloch_intensities(crystal, beams, np.array([300.0]), G_MAX)[0]
    np.testing.assert_allclose(np.add.reduceat(ours, beams.offsets[:-1]), 1, atol=1e-4)


@pytest.mark.parametrize(("uvw", "higher_zones"), [((1, 1, 1), False), ((1, 3, 3), True)])
def test_mirror_related_pair_of_a_polar_crystal(uvw, higher_zones):
    """Along [uvw] and its opposite: equal in the zero-order Laue zone alone, not beyond it."""
    crystal = crystal_of(GALLIUM_NITRIDE, 0.5)
    both = np.concatenate([along(GALLIUM_NITRIDE, uvw), along(GALLIUM_NITRIDE, np.negative(uvw))])
    beams = select_beams(crystal, both, 2e5, 2.5, S_MAX)
    ours = bloch_intensities(crystal, beams, np.array([400.0]), 2.5)[0]
    here, there = (
        dict(zip(map(tuple, beams.hkl[rows]), ours[rows], strict=True))
        for rows in (slice(*beams.offsets[:2]), slice(*beams.offsets[1:]))
    )
    zero_order = [hkl for hkl in here if np.dot(hkl, uvw) == 0]
    assert (len(zero_order) < len(here)) == higher_zones
    difference = max(abs(here[hkl] - there[hkl]) for hkl in zero_order)
    assert difference > 3e-4 if higher_zones else difference < 2e-6
