"""Elastic and absorptive scattering factors against abTEM, closed forms and published values."""

import numpy as np
import pytest
from abtem.parametrizations import KirklandParametrization, LobatoParametrization
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import dblquad, quad
from scipy.special import j0

from diffractory.simulate.scattering import (
    _diffuse_integral,
    absorptive_factor,
    lorentz_factor,
    scattering_factor,
    wavelength,
)
from diffractory.store import MAX_ATOMIC_NUMBER, InputError

ELEMENTS = range(1, MAX_ATOMIC_NUMBER + 1)
ORIGIN = np.zeros(1)


@pytest.mark.parametrize(
    ("parametrization", "theirs"),
    [("lobato", LobatoParametrization()), ("kirkland", KirklandParametrization())],
)
def test_elastic_factors_equal_abtem(parametrization, theirs):
    g = np.linspace(0, 6, 200)
    for number in ELEMENTS:
        ours = scattering_factor(number, g, parametrization)
        expected = theirs.scattering_factor(number)(g**2)  # in single precision
        np.testing.assert_allclose(ours, expected, rtol=1e-4, err_msg=f"Z = {number}")


def test_parametrizations_agree():
    """They differ by up to 10 % at g = 0, where the outer electrons count, and by 2 % at most
    where the inner ones do.
    """
    g = np.linspace(0, 6, 121)
    ratio = np.array(
        [scattering_factor(z, g, "kirkland") / scattering_factor(z, g) for z in ELEMENTS]
    )
    assert np.abs(ratio - 1).max() < 0.11
    assert np.median(np.abs(ratio - 1)[:, 0]) < 0.01
    assert np.abs(ratio - 1)[:, g >= 1].max() < 0.02


@pytest.mark.parametrize("parametrization", ["lobato", "kirkland"])
def test_shape_is_kept(parametrization):
    g = np.array([[0.0, 0.3, 1.1], [2.0, 0.7, 3.9]])
    for function in (
        lambda g: scattering_factor(14, g, parametrization),
        lambda g: absorptive_factor(14, g, 0.5, 200e3, parametrization),
    ):
        each = [function(np.array([value]))[0] for value in g.ravel()]
        np.testing.assert_allclose(function(g), np.reshape(each, g.shape), rtol=1e-12)
        assert function(g[:0]).shape == (0, 3)


@given(
    terms=st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.05, 40)), min_size=1, max_size=3),
    debye_waller=st.floats(0.02, 5),
)
def test_diffuse_integral_of_gaussians(terms, debye_waller):
    """int d^2q exp(-x q^2 - y |g - q|^2) = pi / (x + y) exp(-x y g^2 / (x + y)); the damping of the
    second term of the integral adds B/4 to x and y.
    """
    g = np.array([0.0, 0.05, 0.4, 1.0, 2.3, 5.0])

    def overlap(extra):
        return sum(
            c * k * np.pi / (x + y) * np.exp(-x * y * g**2 / (x + y))
            for c, x in ((c, d + extra) for c, d in terms)
            for k, y in ((c, d + extra) for c, d in terms)
        )

    expected = np.exp(-debye_waller * g**2 / 4) * overlap(0) - overlap(debye_waller / 4)
    ours = _diffuse_integral(
        lambda q: sum(c * np.exp(-d * q**2) for c, d in terms), g, debye_waller
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5 * expected[0])


@pytest.mark.parametrize(
    ("number", "parametrization"), [(6, "kirkland"), (14, "lobato"), (79, "kirkland")]
)
def test_off_the_origin_against_cartesian_quadrature(number, parametrization):
    """The integral of the docstring as it stands, over the half plane above the line through g."""
    g, b, energy = 0.83, 0.6, 200e3

    def integrand(y, x):
        q = np.hypot(x, y)
        p = np.hypot(g - x, y)
        f, h = scattering_factor(number, np.array([q, p]), parametrization)
        return f * h * (np.exp(-b * g**2 / 4) - np.exp(-b * (q**2 + p**2) / 4))

    half, _ = dblquad(integrand, -100, 100, 0, 100, epsabs=1e-4, epsrel=1e-4)
    expected = lorentz_factor(energy) * wavelength(energy) * half
    ours = absorptive_factor(number, np.array([g]), b, energy, parametrization)
    assert ours[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("number", [1, 14, 55, 79, 103])
@pytest.mark.parametrize("debye_waller", [0.02, 0.5, 4.0])
def test_absorption_equals_the_diffuse_cross_section(number, debye_waller):
    """Optical theorem: what U''_0 takes from the beam is what is scattered diffusely."""
    energy, atoms_per_volume = 120e3, 0.05
    gamma, length = lorentz_factor(energy), wavelength(energy)

    def scattered(log_q):
        q = np.exp(log_q)
        f = gamma * scattering_factor(number, np.array([q]))[0]
        return 2 * np.pi * q**2 * f**2 * -np.expm1(-debye_waller * q**2 / 2)

    cross_section = length**2 * quad(scattered, -12, 12, epsrel=1e-9, limit=200)[0]
    f0 = absorptive_factor(number, ORIGIN, debye_waller, energy)[0]
    absorption = 2 * np.pi * length * gamma * atoms_per_volume * f0 / np.pi
    assert absorption == pytest.approx(atoms_per_volume * cross_section, rel=1e-5)


@pytest.mark.parametrize(
    ("number", "coefficients"),
    [
        (
            6,
            [
                0.0021582842318798494, 2.899776387924099,
                0.002859453436483505, 0.3263311606670849,
                0.0017787580587577672, 0.3263473175602345,
                0.0007552314094056279, 9.854293298759291,
                -0.0011175772500311508,
            ],
        ),
        (
            14,
            [
                0.0023896754105518087, 11.8881087051502,
                0.01374041243237393, 0.23621182231300988,
                0.012285636456873595, 0.23620816939008668,
                0.007751465197539657, 1.8403956674936763,
                -0.009301290264510625,
            ],
        ),
        (
            79,
            [
                0.005986523352148614, 10.04146791284111,
                0.1974727242433679, 0.8273616153033853,
                5.612957346698491, 0.010000000000309551,
                0.0443242115414684, 3.269134531427389,
                -5.344042608650279,
            ],
        ),
    ],
    ids=["C", "Si", "Au"],
)  # fmt: skip
def test_absorption_equals_published_fits(number, coefficients):
    """Gaussians in s = g/2 fitted to f' v/c at B = 0.5 square angstrom by M. Thomas, A. Cleverley
    and R. Beanland, Acta Cryst. A 80, 146 (2024), 10.1107/S2053273323010963. Their f' is that of
    Bird and King, without exp(-B s^2), and uses the same elastic factors.
    """
    energy, debye_waller = 200e3, 0.5
    s = np.linspace(0, 1.5, 31)
    amplitude, width = np.reshape(coefficients[:8], (4, 2)).T
    fit = np.exp(-np.outer(s**2, width)) @ amplitude + coefficients[8]
    speed = np.sqrt(1 - lorentz_factor(energy) ** -2)
    ours = absorptive_factor(number, 2 * s, debye_waller, energy)
    expected = fit / speed * np.exp(-debye_waller * s**2)
    np.testing.assert_allclose(ours, expected, atol=0.005 * expected[0])


@pytest.mark.parametrize("parametrization", ["lobato", "kirkland"])
def test_no_vibration_no_absorption(parametrization):
    g = np.linspace(0, 5, 50)
    assert not absorptive_factor(29, g, 0.0, 200e3, parametrization).any()


@pytest.mark.parametrize("parametrization", ["lobato", "kirkland"])
def test_absorption_grows_with_vibration(parametrization):
    for number in ELEMENTS:
        f0 = [
            absorptive_factor(number, ORIGIN, b, 200e3, parametrization)[0]
            for b in (0.0, 0.05, 0.3, 1.0, 3.0)
        ]
        assert (np.diff(f0) > 0).all(), number


def test_absorption_goes_with_the_inverse_speed():
    g = np.linspace(0, 4, 20)
    energies = [80e3, 200e3, 300e3]
    speeds = [np.sqrt(1 - lorentz_factor(e) ** -2) for e in energies]
    scaled = [absorptive_factor(31, g, 0.7, e) * v for e, v in zip(energies, speeds, strict=True)]
    np.testing.assert_allclose(scaled[1:], [scaled[0]] * 2, rtol=1e-8)


@pytest.mark.parametrize(("number", "debye_waller"), [(6, 2.0), (14, 0.5), (79, 0.5)])
def test_absorption_is_nowhere_a_source(number, debye_waller):
    """The absorptive potential of an atom is positive in real space, though f'' changes sign."""
    g = np.linspace(0, 20, 4001)
    r = np.linspace(0, 2, 101)
    factor = absorptive_factor(number, g, debye_waller, 200e3)
    assert factor.min() < 0
    potential = np.trapezoid(2 * np.pi * g * factor * j0(2 * np.pi * np.outer(r, g)), g, axis=1)
    assert potential.min() > -1e-5 * potential.max()


@pytest.mark.parametrize("number", [-1, 0, 104])
def test_unknown_element_is_named(number):
    with pytest.raises(InputError, match=f"atomic number {number}"):
        scattering_factor(number, ORIGIN, "kirkland")
    with pytest.raises(InputError, match=f"atomic number {number}"):
        absorptive_factor(number, ORIGIN, 0.5, 200e3)


def test_unknown_parametrization_is_named():
    with pytest.raises(InputError, match=r"'doyle'.*lobato, kirkland"):
        scattering_factor(14, ORIGIN, "doyle")
    with pytest.raises(InputError, match=r"'doyle'.*lobato, kirkland"):
        absorptive_factor(14, ORIGIN, 0.5, 200e3, "doyle")
