"""Patterns of layers: closed forms, symmetry, a sum by hand, and the stage."""

import json
from dataclasses import replace
from pathlib import Path

import abtem
import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import graphene, mx2
from crystals import crystal_of

from diffractory.simulate.crystal import SYMBOLS, Crystal
from diffractory.simulate.layers import layer_patterns, simulate_layers
from diffractory.simulate.scattering import scattering_factor, wavelength, x_ray_factor
from diffractory.store import InputError, read_patterns

SETTINGS = {
    "radiation": "x_ray",
    "wavelength": 0.209,
    "debye_waller": 0.5,
    "q_max": 2.5,
    "min_intensity": 1e-6,
    "max_points": 10_000,
}
FACTORS = {"x_ray": x_ray_factor, "electron": scattering_factor}
GRAPHENE = crystal_of(graphene(a=2.46, vacuum=7.5))
MOS2 = crystal_of(mx2("MoS2", "2H", a=3.18, thickness=3.13, vacuum=7.5))
OBLIQUE = crystal_of(
    Atoms(
        "CuSeOW",
        scaled_positions=[(0.05, 0.1, 0.4), (0.4, 0.55, 0.45), (0.75, 0.2, 0.5), (0.3, 0.9, 0.6)],
        cell=[4.1, 4.7, 20, 90, 90, 105],
    )
)
SINGLE = Crystal(np.diag([3.0, 4.0, 20.0]), np.full((1, 3), 0.5), np.array([29]))


def simulate(*crystals, **changes):
    names = [str(number) for number in range(len(crystals))]
    return layer_patterns(names, crystals, SETTINGS | changes)


def spots(pattern):
    """Return the intensity of each h k of the first pattern."""
    own = slice(0, pattern.offsets[1])
    hk = map(tuple, pattern.hkl[own, :2].tolist())
    return dict(zip(hk, pattern.intensity[own].tolist(), strict=True))


def common_factors(q, settings):
    """Return A P / sin(2 theta)."""
    theta = np.arcsin(settings["wavelength"] * q / 2)
    lorentz = (1 + np.cos(2 * theta) ** 2) / 2 / np.sin(2 * theta)
    debye_waller = np.exp(-2 * settings["debye_waller"] * (q / 2) ** 2)
    return debye_waller * (lorentz if settings["radiation"] == "x_ray" else 1)


def double_sum(crystal, q, settings):
    """Return the intensities at q, shape (S, 2), by Eqs. 1 and 2, a pair of atoms at a time."""
    length = np.linalg.norm(q, axis=1)
    places = (crystal.positions @ crystal.cell)[:, :2]
    total = np.zeros(len(q), dtype=complex)
    factors = [FACTORS[settings["radiation"]](int(z), length) for z in crystal.numbers]
    occupancies = np.broadcast_to(crystal.occupancies, len(places))
    for i, j in np.ndindex(len(places), len(places)):
        phase = np.exp(-2j * np.pi * q @ (places[i] - places[j]))
        total += occupancies[i] * occupancies[j] * factors[i] * factors[j] * phase
    return total.real / occupancies.sum() * common_factors(length, settings)


def rotated(crystal, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return replace(crystal, cell=crystal.cell @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]))


def repeated(crystal, n, m):
    """Return n x m cells as one."""
    shifts = np.array([(i, j, 0) for i in range(n) for j in range(m)])
    positions = (crystal.positions + shifts[:, None]).reshape(-1, 3) / (n, m, 1)
    return Crystal(
        crystal.cell * np.array([[n], [m], [1]]), positions, np.tile(crystal.numbers, n * m)
    )


def test_x_ray_factors_agree_with_waasmaier_and_kirfel():
    path = Path(abtem.__file__).parent / "parametrizations" / "data" / "waasmaier_kirfel.json"
    published = json.loads(path.read_text())
    q = np.linspace(0, 2.6, 131)
    errors = []
    for number, symbol in enumerate(SYMBOLS[:98], start=1):
        a, (c,), b = np.split(np.array(published[symbol]), [5, 6])
        expected = (a * np.exp(-b * (q[:, None] / 2) ** 2)).sum(axis=1) + c
        errors.append(np.abs(x_ray_factor(number, q) / expected - 1))
    assert np.max(errors) < 0.04
    assert np.median(errors) < 0.005


def test_graphene():
    """Hexagons of spots; |F|^2 is f^2 where h - k is no multiple of 3, and 4 f^2 where it is."""
    pattern = simulate(GRAPHENE)
    q = np.hypot(pattern.qx, pattern.qy)
    found = spots(pattern)
    ring = q < 0.5
    assert ring.sum() == 6
    np.testing.assert_allclose(q[ring], 1 / (2.46 * np.sin(np.pi / 3)), rtol=1e-6)
    angles = np.sort(np.degrees(np.arctan2(pattern.qy[ring], pattern.qx[ring])))
    np.testing.assert_allclose(np.diff(angles), 60, atol=1e-4)
    for (h, k), intensity in found.items():
        length = np.sqrt((h * h + k * k + h * k) * 4 / 3) / 2.46
        squared = 4 if (h - k) % 3 == 0 else 1
        expected = squared * x_ray_factor(6, np.array([length]))[0] ** 2 / 2
        assert intensity == pytest.approx(expected * common_factors(length, SETTINGS), rel=1e-5)


def test_molybdenum_disulfide():
    """Mo at (1/3, 2/3) off two S above each other: |f_Mo + 2 f_S exp(2 pi i (h - k) / 3)|^2."""
    pattern = simulate(MOS2)
    assert pattern.thickness[0] == pytest.approx(3.13)
    for (h, k), intensity in spots(pattern).items():
        length = np.array([np.sqrt((h * h + k * k + h * k) * 4 / 3) / 3.18])
        mo, s = x_ray_factor(42, length)[0], x_ray_factor(16, length)[0]
        squared = (mo + 2 * s) ** 2 if (h - k) % 3 == 0 else mo**2 + 4 * s**2 - 2 * mo * s
        expected = squared / 3 * common_factors(length, SETTINGS)[0]
        assert intensity == pytest.approx(expected, rel=1e-5)


def test_single_atom_by_hand():
    """One Cu on a cell of 3 x 4 angstrom, (2 1): q^2 = (2/3)^2 + (1/4)^2 = 73/144."""
    q = np.sqrt(73) / 12
    f = x_ray_factor(29, np.array([q]))[0]
    s = 0.209 * q / 2  # sin(theta); cos(2 theta) = 1 - 2 s^2
    polarization = (1 + (1 - 2 * s**2) ** 2) / 2
    expected = f**2 * np.exp(-0.5 * q**2 / 2) * polarization / np.sin(2 * np.arcsin(s))
    assert spots(simulate(SINGLE))[2, 1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("radiation", ["x_ray", "electron"])
@pytest.mark.parametrize("crystal", [OBLIQUE, MOS2], ids=["oblique", "MoS2"])
def test_equals_the_double_sum(crystal, radiation):
    crystal = replace(crystal, occupancies=np.linspace(0.3, 1, len(crystal.numbers)))
    settings = SETTINGS | {"radiation": radiation, "wavelength": 0.1, "debye_waller": 1.3}
    pattern = layer_patterns(["a"], [crystal], settings)
    q = pattern.hkl @ crystal.reciprocal
    expected = double_sum(crystal, q[:, :2], settings)
    np.testing.assert_allclose(pattern.intensity, expected, rtol=1e-5)
    np.testing.assert_allclose(np.stack([pattern.qx, pattern.qy], 1), q[:, :2], atol=1e-6)


def test_every_spot_of_the_grid_but_the_direct_beam():
    crystal = replace(OBLIQUE, positions=np.zeros((4, 3)))  # nothing is extinct
    hk = np.stack(np.meshgrid(range(-20, 21), range(-20, 21), indexing="ij"), -1).reshape(-1, 2)
    q = hk @ crystal.reciprocal[:2, :2]
    inside = (np.abs(q) <= 2.5).all(axis=1) & hk.any(axis=1)
    assert simulate(crystal).hkl[:, :2].tolist() == hk[inside].tolist()


def test_rotation_turns_the_spots_and_keeps_their_intensity():
    pattern, turned = simulate(OBLIQUE, q_max=4.0), simulate(rotated(OBLIQUE, 33.0))
    still = spots(pattern)
    for hk, intensity in spots(turned).items():
        assert intensity == pytest.approx(still[hk], rel=1e-5)
    q = dict(zip(map(tuple, pattern.hkl.tolist()), pattern.qx + 1j * pattern.qy, strict=True))
    expected = [q[tuple(hkl)] * np.exp(1j * np.radians(33)) for hkl in turned.hkl.tolist()]
    np.testing.assert_allclose(turned.qx + 1j * turned.qy, expected, atol=1e-6)


def test_supercell_has_no_new_spots():
    one, many = spots(simulate(MOS2)), spots(simulate(repeated(MOS2, 2, 1)))
    assert set(many) == {(2 * h, k) for h, k in one}
    for (h, k), intensity in one.items():
        assert many[2 * h, k] == pytest.approx(2 * intensity, rel=1e-5)


def test_folded_supercell_equals_the_cell():
    """Atoms of 3 x 2 cells in one, each with an occupancy of 1/6."""
    folded = replace(
        MOS2,
        positions=np.tile(MOS2.positions, (6, 1)),
        numbers=np.tile(MOS2.numbers, 6),
        occupancies=np.full(18, 1 / 6),
    )
    assert spots(simulate(folded)) == pytest.approx(spots(simulate(MOS2)), rel=1e-5)


def test_centred_cell_extinguishes():
    positions = np.array([(0.1, 0.2, 0.5), (0.6, 0.7, 0.5)])
    centred = Crystal(np.diag([3.0, 5.0, 20.0]), positions, np.array([6, 6]))
    found = np.array(list(spots(simulate(centred))))
    assert len(found) > 50
    assert (found.sum(axis=1) % 2 == 0).all()


def test_patterns_do_not_depend_on_their_company():
    crystals = [GRAPHENE, OBLIQUE, SINGLE, MOS2]
    together = simulate(*crystals)
    for number, crystal in enumerate(crystals):
        alone, own = simulate(crystal), together.select(np.array([number]))
        np.testing.assert_array_equal(own.hkl, alone.hkl)
        np.testing.assert_array_equal(own.intensity, alone.intensity)


def test_the_brightest_stay_and_with_them_the_symmetry():
    """Of stars of 6 and 12 equal spots of graphene, those stay whole that fit."""
    everything, limited = spots(simulate(GRAPHENE)), spots(simulate(GRAPHENE, max_points=50))
    assert 38 < len(limited) <= 50
    assert len(limited) % 6 == 0
    faintest = min(limited.values())
    left_out = [value for hk, value in everything.items() if hk not in limited]
    assert max(left_out) < faintest * (1 - 1e-5)


def test_faint_spots_are_left_out():
    bright = max(spots(simulate(OBLIQUE)).values())
    expected = {hk: value for hk, value in spots(simulate(OBLIQUE)).items() if value >= bright / 50}
    assert spots(simulate(OBLIQUE, min_intensity=0.02)) == expected
    assert len(expected) < simulate(OBLIQUE).offsets[1]


def test_energy():
    assert simulate(SINGLE).energy[0] == pytest.approx(12398.42 / 0.209)
    electrons = simulate(SINGLE, radiation="electron", wavelength=wavelength(80e3))
    assert electrons.energy[0] == pytest.approx(80e3)


@pytest.mark.parametrize("wrong", [0.0, -0.1, 0.41, np.nan])
def test_wavelength_out_of_range(wrong):
    with pytest.raises(InputError, match=r"wavelength of .* at most 1 / q_max = 0\.4 angstrom"):
        simulate(SINGLE, wavelength=wrong)


def test_layer_in_another_plane():
    upright = replace(OBLIQUE, cell=OBLIQUE.cell[:, [1, 2, 0]])
    with pytest.raises(InputError, match=r"^1 does not lie in the plane .* prepare_layers"):
        simulate(GRAPHENE, upright)


def stage(folder, crystals, **changes):
    path = folder / "layers.parquet"
    structures = [crystal.to_json() for crystal in crystals.values()]
    pd.DataFrame({"material_id": list(crystals), "structure": structures}).to_parquet(path)
    settings = SETTINGS | {"min_points": 20} | changes
    outputs = folder / "store", folder / "rejected.parquet", folder / "run.json"
    simulate_layers(path, *outputs, settings, seed=1)
    return (
        read_patterns(outputs[0]),
        pd.read_parquet(outputs[1]),
        json.loads(outputs[2].read_text()),
    )


def test_stage(tmp_path):
    small = Crystal(np.diag([0.7, 0.7, 20.0]), np.zeros((1, 3)), np.array([1]))
    crystals = {"graphene": GRAPHENE, "small": small, "MoS2": MOS2}
    patterns, rejected, run = stage(tmp_path, crystals)
    expected = simulate(GRAPHENE, MOS2)
    assert patterns.material_id.tolist() == ["graphene", "MoS2"]
    np.testing.assert_array_equal(patterns.intensity, expected.intensity)
    np.testing.assert_array_equal(patterns.offsets, expected.offsets)
    assert (patterns.zone_axis == [0, 0, 1]).all()
    assert (patterns.orientation == np.eye(3)).all()
    assert rejected.to_dict("records") == [
        {"material_id": "small", "reason": "too_few_points", "detail": "8 spots, fewer than 20"}
    ]
    assert run["facts"] == {"patterns": 2, "spots": len(expected.qx)}
    patterns, rejected, _ = stage(tmp_path, crystals, min_points=8)
    assert patterns.material_id.tolist() == list(crystals)
    assert rejected.empty


def test_stage_with_no_pattern_left(tmp_path):
    with pytest.raises(InputError, match="none of 1 layers has 20 spots or more"):
        stage(tmp_path, {"graphene": GRAPHENE}, min_intensity=0.9)
