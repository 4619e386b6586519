"""The solvers against dense matrix exponentials, and the batched one against the compiled one."""

import numpy as np
import pytest
import torch
from crystals import CRYSTALS, G_MAX, IDS, S_MAX, crystal_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.special import jv

import diffractory.simulate.bloch as bloch
from diffractory.simulate.beams import select_beams
from diffractory.simulate.bloch import bloch_intensities
from diffractory.simulate.orientations import random_rotations, rotations_along
from diffractory.simulate.potential import potential_coefficients
from diffractory.simulate.propagation import (
    chebyshev_coefficients,
    hessenberg_wave,
    most_beams,
    pattern_memory,
    tridiagonal_wave,
)
from diffractory.simulate.propagation_torch import propagate_batches
from diffractory.simulate.reciprocal import index_bounds
from diffractory.simulate.scattering import wavelength

THICKNESSES = np.array([300.0, 40.0, 900.0])


def orientations(crystal, seed=0):
    axes = np.array([[0, 0, 1], [1, 1, 0], [1, 2, -1]]) @ crystal.cell
    return np.concatenate(
        [
            rotations_along(axes, np.array([0.1, 0.2, 0.3])),
            random_rotations(4, np.random.default_rng(seed)),
        ]
    )


def dense_intensities(crystal, beams, absorption):
    """Return |exp(2 pi i t H) e_0|^2 of all patterns by scipy, from the definition of H."""
    bounds, k = index_bounds(crystal, 2 * G_MAX), 1 / wavelength(beams.energy)
    u = potential_coefficients(crystal, bounds, beams.energy, 2 * G_MAX, absorption=absorption)
    result = np.empty((len(THICKNESSES), len(beams.hkl)))
    for p, normal in enumerate(beams.foil_normal):
        rows = slice(beams.offsets[p], beams.offsets[p + 1])
        hkl, along = beams.hkl[rows], k * normal[2] + beams.g[rows] @ normal
        matrix = u[tuple(np.moveaxis(hkl[:, None] - hkl + bounds, -1, 0))]
        mean = 1j * u[tuple(bounds)].imag  # the mean potential only shifts the phase
        np.fill_diagonal(matrix, 2 * k * beams.excitation_error[rows] + mean)
        matrix /= 2 * np.sqrt(along[:, None] * along)
        direct = (hkl == 0).all(axis=1)
        for t, thickness in enumerate(THICKNESSES):
            result[t, rows] = np.abs(expm(2j * np.pi * thickness * matrix)[:, direct][:, 0]) ** 2
    return result


@pytest.mark.parametrize("absorption", [False, True], ids=["elastic", "absorbing"])
@pytest.mark.parametrize("atoms", CRYSTALS, ids=IDS)
def test_intensities_equal_the_dense_exponential(atoms, absorption):
    crystal = crystal_of(atoms, 0.6)
    normal = np.array([0.2, -0.1, np.sqrt(0.95)])
    beams = select_beams(crystal, orientations(crystal), 2e5, G_MAX, S_MAX, normal)
    ours = bloch_intensities(crystal, beams, THICKNESSES, G_MAX, absorption=absorption)
    np.testing.assert_allclose(ours, dense_intensities(crystal, beams, absorption), atol=2e-5)


@pytest.mark.parametrize("absorption", [False, True], ids=["elastic", "absorbing"])
@pytest.mark.parametrize("atoms", CRYSTALS, ids=IDS)
def test_torch_equals_numba(atoms, absorption, monkeypatch):
    """The code that runs on CUDA, here on the CPU; a small budget makes several batches."""
    crystal = crystal_of(atoms, 0.6)
    beams = select_beams(crystal, orientations(crystal), 2e5, G_MAX, S_MAX)
    problems = []

    def both(*problem):
        problems.append(problem)
        return propagate(*problem)

    propagate = bloch.propagate
    monkeypatch.setattr(bloch, "propagate", both)
    compiled = bloch_intensities(crystal, beams, THICKNESSES, G_MAX, absorption=absorption)
    *problem, _ = problems[0]
    torch.set_num_threads(1)  # matrices as small as these gain nothing from more
    budget = 8 * pattern_memory(np.diff(beams.offsets).max())
    batched = propagate_batches(*problem, "cpu", budget)
    np.testing.assert_allclose(batched, compiled, atol=2e-5)


def test_workers_and_memory_change_nothing():
    crystal = crystal_of(CRYSTALS[2], 0.5)
    beams = select_beams(crystal, orientations(crystal), 2e5, G_MAX, S_MAX)
    one = bloch_intensities(crystal, beams, THICKNESSES, G_MAX, memory=1e-6)
    assert np.array_equal(one, bloch_intensities(crystal, beams, THICKNESSES, G_MAX, memory=4.0))


@pytest.mark.parametrize("x", [1e-3, 0.5, 7.0, 88.0, 900.0])
def test_chebyshev_coefficients_are_bessel_functions(x):
    values = chebyshev_coefficients(x / np.pi, np.array([1.0]))[0]
    values[1:] /= 2
    np.testing.assert_allclose(values, jv(np.arange(len(values)), x), atol=1e-12)
    assert abs(jv(len(values), x)) < 1e-12


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), strength=st.floats(1e-6, 1))
def test_small_exponentials_equal_scipy(size, seed, strength):
    rng = np.random.default_rng(seed)
    diagonal, side = rng.normal(size=size) * strength, rng.uniform(size=size - 1) * strength
    dense = np.diag(diagonal) + np.diag(side, 1) + np.diag(side, -1)
    thicknesses = np.array([7.0, 1.0])
    tridiagonal = tridiagonal_wave(diagonal, side, thicknesses)
    loss = 0.05j * np.eye(size) + 1e-3 * np.triu(rng.normal(size=(size, size)), 1)
    absorbing = dense + strength * loss
    hessenberg = hessenberg_wave(np.array([absorbing.real, absorbing.imag]), thicknesses)
    for t, thickness in enumerate(thicknesses):  # up to a phase
        expected = expm(2j * np.pi * thickness * dense)[:, 0]
        ours = tridiagonal[t, 0] + 1j * tridiagonal[t, 1]
        assert abs(np.vdot(expected, ours)) == pytest.approx(1, abs=1e-9)
        expected = expm(2j * np.pi * thickness * absorbing)[:, 0]
        ours = hessenberg[t, 0] + 1j * hessenberg[t, 1]
        overlap = np.vdot(expected, ours)
        np.testing.assert_allclose(ours, expected * overlap / abs(overlap), atol=1e-7)


@given(st.integers(1, 100_000))
def test_memory_and_beams_are_inverse(n_beams):
    assert most_beams(pattern_memory(n_beams)) in (n_beams - 1, n_beams)
    assert most_beams(pattern_memory(n_beams) + 1e-3 * pattern_memory(n_beams)) >= n_beams
