"""Units as files of microscopes write them."""

import pytest

from diffractory.experiment.scan_units import in_angstrom, in_per_angstrom, reads


@pytest.mark.parametrize(
    "unit",
    [
        "1/Å",
        "1/\u212b",
        "A^-1",
        "Å⁻¹",
        "$\\AA^{-1}$",
        "1 / angstrom",
        "1/A",
        "$1/\\mathrm{\\AA}$",
        "Å-1",
    ],
)
def test_an_angstrom_is_known_in_all_its_writings(unit):
    assert in_per_angstrom(0.02, unit, None) == 0.02
    assert in_angstrom(0.02, unit) is None


@pytest.mark.parametrize(
    ("unit", "size"),
    [("1/nm", 0.1), ("nm^-1", 0.1), ("[1/n_m]", 0.1), ("nm\u207b\u00b9", 0.1), ("1/pm", 100.0),
     ("1/m", 1e-10), ("1 / nanometer", 0.1), ("1/µm", 1e-4)],
)  # fmt: skip
def test_other_reciprocal_lengths(unit, size):
    assert in_per_angstrom(1.0, unit, None) == pytest.approx(size)


@pytest.mark.parametrize(
    ("unit", "size"),
    [("nm", 10.0), ("Å", 1.0), ("Angstroms", 1.0), ("µm", 1e4), ("μm", 1e4), ("pm", 0.01),
     ("m", 1e10), ("nanometers", 10.0)],
)  # fmt: skip
def test_lengths(unit, size):
    assert in_angstrom(1.0, unit) == pytest.approx(size)
    assert in_per_angstrom(1.0, unit, 2e5) is None


@pytest.mark.parametrize(("unit", "size"), [("rad", 1.0), ("mrad", 1e-3), ("µrad", 1e-6)])
def test_angles_are_divided_by_the_wavelength(unit, size):
    # 0.0250793 angstrom at 200 kV
    assert in_per_angstrom(1.0, unit, 2e5) == pytest.approx(size / 0.0250793, rel=1e-5)
    assert in_per_angstrom(1.0, unit, None) is None


@pytest.mark.parametrize(
    "unit", ["", "px", "pixels", "1/px", "1/nm^-1", "s", "nm^2", "<undefined>"]
)
def test_other_units_tell_no_size(unit):
    assert in_per_angstrom(1.0, unit, 2e5) is None
    assert in_angstrom(1.0, unit) is None


def test_what_is_no_unit_has_no_name():
    assert reads("1/nm^-1") == reads("?") == ("", False)
