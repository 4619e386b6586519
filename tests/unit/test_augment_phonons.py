"""Phonons: published forces as phonopy itself solves them, patterns of modes, CHGNet's MoTe2."""

from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import phonopy
import pytest
from phonopy.phonon.random_displacements import RandomDisplacements

from diffractory.augment.calculators import calculator, from_atoms, relax
from diffractory.augment.crystals import displace, remove_atoms, repeat, strain
from diffractory.augment.mote2 import ORTHOGONAL, primitive_cell
from diffractory.augment.phonons import (
    MIN_FREQUENCY,
    Mode,
    Modes,
    calculate_phonons,
    cell_of,
    eigenmodes,
    freeze_mode,
    grid_modes,
    lattice_sites,
    random_mode,
    read_force_sets,
    read_phonons,
    star,
    vibrate,
    write_phonons,
)
from diffractory.errors import InputError
from diffractory.simulate.crystal import Crystal

NACL = Path(__file__).parents[1] / "data" / "nacl"
CONTCAR_1T = Path(__file__).parents[3] / "shared" / "data" / "mote2" / "CONTCAR_1T"
EDGE = (0.5, 0.0, 0.0)
GENERAL = (0.13, 0.21, -0.37)


@pytest.fixture(scope="module")
def nacl() -> phonopy.Phonopy:
    cell = from_atoms(ase.io.read(NACL / "POSCAR-unitcell", format="vasp"))
    return read_force_sets(cell, (2, 2, 2), NACL / "FORCE_SETS")


@pytest.fixture(scope="module")
def mote2() -> dict[str, phonopy.Phonopy]:
    chgnet = calculator("chgnet")
    relaxed = {phase: relax(primitive_cell(phase), chgnet, in_plane=True) for phase in ("2h", "1t")}
    supercells = {"2h": (4, 4, 1), "1t": (4, 2, 1)}
    return {
        phase: calculate_phonons(cell, chgnet, supercells[phase]) for phase, cell in relaxed.items()
    }


def displacements(after: Crystal, before: Crystal) -> np.ndarray:
    return (after.positions - before.positions) @ before.cell


def one_mode(modes: Modes, q: int, s: int) -> Mode:
    found = modes.q_points[q], float(modes.frequencies[q, s]), modes.eigenvectors[q, s]
    return Mode(modes.cell, modes.masses, *found)


def test_published_forces_of_nacl_give_what_phonopy_gives(nacl):
    expected = phonopy.load(
        unitcell_filename=NACL / "POSCAR-unitcell",
        supercell_matrix=[2, 2, 2],
        primitive_matrix="P",
        force_sets_filename=NACL / "FORCE_SETS",
        is_nac=False,
        is_compact_fc=False,
    )
    q_points = [(0, 0, 0), EDGE, GENERAL]
    found = eigenmodes(nacl, q_points)
    assert np.array_equal(nacl.force_constants, expected.force_constants)
    assert np.array_equal(found.frequencies, expected.run_qpoints(q_points).frequencies)
    for q, frequencies, vectors in zip(
        q_points, found.frequencies, found.eigenvectors, strict=True
    ):
        matrix = expected.get_dynamical_matrix_at_q(q)
        flat = vectors.reshape(len(vectors), -1)
        factor = expected.unit_conversion_factor**2
        squares = np.sign(frequencies) * frequencies**2
        assert np.allclose(matrix @ flat.T * factor, flat.T * squares, atol=1e-9)
    # The figure of phonopy's example: optical modes at 4 to 5 THz without the correction.
    assert 4 < found.frequencies[0].max() < 8


def test_force_sets_of_another_crystal_are_refused(nacl, tmp_path):
    with pytest.raises(InputError, match="FORCE_SETS"):
        read_force_sets(cell_of(nacl), (1, 1, 1), NACL / "FORCE_SETS")
    (tmp_path / "FORCE_SETS").write_text("64\n2\n\n1\n 0.01 0 0\n 1 2")
    with pytest.raises(InputError, match="FORCE_SETS"):
        read_force_sets(cell_of(nacl), (2, 2, 2), tmp_path / "FORCE_SETS")


def test_phonons_are_read_back_and_by_phonopy_too(nacl, tmp_path, monkeypatch):
    path = tmp_path / "nacl.yaml"
    write_phonons(path, nacl)
    content = path.read_bytes()
    write_phonons(path, nacl)
    assert path.read_bytes() == content
    # What lies in the working directory by chance must not be taken for a part of it.
    (tmp_path / "FORCE_SETS").write_text("nonsense")
    (tmp_path / "BORN").write_text("nonsense")
    monkeypatch.chdir(tmp_path)
    expected = eigenmodes(nacl, [EDGE, GENERAL]).frequencies
    assert np.allclose(eigenmodes(read_phonons(path), [EDGE, GENERAL]).frequencies, expected)
    (tmp_path / "FORCE_SETS").unlink()
    theirs = phonopy.load(path, is_nac=False)
    assert np.allclose(theirs.run_qpoints([GENERAL]).frequencies, expected[1])


@pytest.mark.parametrize("content", ["", "phonopy: [", "unit_cell: 3\n", "a: 1\n"])
def test_damaged_phonons_are_named(content, tmp_path):
    path = tmp_path / "phonons.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"phonons\.yaml is not a file of phonopy"):
        read_phonons(path)


@pytest.mark.parametrize("q_point", [(0, 0, 0), EDGE, (0.5, 0.5, 0), (0.5, 0.5, 0.5)])
def test_frozen_modes_are_eigenvectors_of_the_force_constants_of_the_supercell(nacl, q_point):
    theirs = nacl.supercell
    crystal = Crystal(theirs.cell, theirs.scaled_positions, theirs.numbers.astype(np.int64))
    constants = nacl.force_constants
    modes = eigenmodes(nacl, [q_point])
    factor = nacl.unit_conversion_factor**2
    patterns = []
    for s in range(modes.frequencies.shape[1]):
        mode = one_mode(modes, 0, s)
        u = displacements(freeze_mode(crystal, mode, 0.1, 0.3), crystal)
        assert np.isclose(np.linalg.norm(u, axis=1).max(), 0.1)
        forces = -np.einsum("ijab,jb->ia", constants, u)
        # Newton: m u'' = -m (2 pi f)^2 u
        square = np.sign(mode.frequency) * mode.frequency**2 / factor
        assert np.allclose(forces, -square * theirs.masses[:, None] * u, atol=1e-9)
        patterns.append((u * np.sqrt(theirs.masses)[:, None]).ravel())
    overlaps = np.array(patterns) @ np.transpose(patterns)
    is_other = np.abs(modes.frequencies[0][:, None] - modes.frequencies[0]) > 1e-3
    assert np.abs(overlaps[is_other]).max() < 1e-6 * np.diag(overlaps).min()


def test_frozen_mode_has_its_q_and_no_other(nacl):
    crystal = repeat(cell_of(nacl), (6, 3, 4))
    mode = random_mode(eigenmodes(nacl, [(1 / 3, 0, 1 / 4)]), np.random.default_rng(0))
    u = displacements(freeze_mode(crystal, mode, 0.05, 1.0), crystal)
    waves = np.abs(np.fft.fftn(u.reshape(6, 3, 4, 8, 3), axes=(0, 1, 2))).sum(axis=(3, 4))
    strong = {tuple(index) for index in np.argwhere(waves > 1e-9 * waves.max()).tolist()}
    assert strong == {(2, 0, 1), (4, 0, 3)}


def test_frozen_mode_follows_its_formula_at_any_q(nacl):
    crystal = repeat(cell_of(nacl), (4, 3, 2))
    mode = random_mode(eigenmodes(nacl, [GENERAL]), np.random.default_rng(1))
    phase = 2.0
    u = displacements(freeze_mode(crystal, mode, 0.2, phase), crystal)
    places = crystal.positions * [4, 3, 2]  # in units of the small cell
    vector = np.tile(mode.eigenvector / np.sqrt(mode.masses)[:, None], (24, 1))
    expected = (vector * np.exp(2j * np.pi * places @ GENERAL + 1j * phase)[:, None]).real
    expected *= 0.2 / np.linalg.norm(expected, axis=1).max()
    assert np.allclose(u, expected)


def test_displaced_and_missing_atoms_move_as_if_they_were_at_rest_and_there(nacl):
    crystal = repeat(cell_of(nacl), (4, 4, 4))
    mode = random_mode(eigenmodes(nacl, [EDGE]), np.random.default_rng(1))
    expected = displacements(freeze_mode(crystal, mode, 0.1, 0.5), crystal)
    rng = np.random.default_rng(2)
    warm = displace(crystal, 1.0, rng)
    assert np.allclose(displacements(freeze_mode(warm, mode, 0.1, 0.5), warm), expected)
    left = remove_atoms(warm, 0.3, rng)
    kept = [np.flatnonzero((warm.positions == row).all(axis=1))[0] for row in left.positions]
    found = displacements(freeze_mode(left, mode, 0.1, 0.5), left)
    scale = 0.1 / np.linalg.norm(expected[kept], axis=1).max()
    assert np.allclose(found, scale * expected[kept])


def test_modes_of_a_primitive_cell_are_frozen_into_orthogonal_cells():
    # The acoustic-like mode of all atoms along z at M alternates from row to row.
    cell = primitive_cell("2h")
    vector = np.sqrt(np.array([95.95, 127.6, 127.6]))[:, None] * [0, 0, 1]
    mode = Mode(cell, np.array([95.95, 127.6, 127.6]), np.array([0, 0.5, 0]), 1.0, vector + 0j)
    crystal = repeat(repeat(cell, ORTHOGONAL["2h"]), (3, 4, 1))
    u = displacements(freeze_mode(crystal, mode, 0.1, 0.0), crystal)
    mo = crystal.numbers == 42
    rows = np.rint((crystal.positions @ crystal.cell)[mo, 1] / (cell.cell[1, 1])).astype(int)
    assert np.allclose(u[mo, 2], 0.1 * (-1.0) ** rows)
    assert not u[mo, :2].any()


def test_crystals_that_are_no_supercells_are_refused(nacl):
    mode = random_mode(eigenmodes(nacl, [EDGE]), np.random.default_rng(0))
    strained = strain(repeat(cell_of(nacl), (4, 4, 4)), 0.01 * np.eye(3))
    with pytest.raises(InputError, match="before strain"):
        freeze_mode(strained, mode, 0.1, 0.0)
    other = replace(cell_of(nacl), numbers=np.full(8, 42))
    with pytest.raises(InputError, match="elements"):
        freeze_mode(other, mode, 0.1, 0.0)


def test_a_phase_at_which_nothing_moves_is_refused(nacl):
    modes = eigenmodes(nacl, [(0, 0, 0)])
    real = replace(one_mode(modes, 0, 20), eigenvector=modes.eigenvectors[0, 20].real + 0j)
    with pytest.raises(InputError, match="phase"):
        freeze_mode(cell_of(nacl), real, 0.1, np.pi / 2)


def test_drawn_modes_are_real_and_all_of_them_come_up(nacl):
    modes = eigenmodes(nacl, [(0, 0, 0), EDGE])
    rng = np.random.default_rng(0)
    drawn = [random_mode(modes, rng) for _ in range(1500)]
    frequencies = np.array([mode.frequency for mode in drawn])
    assert frequencies.min() > MIN_FREQUENCY
    wanted = modes.frequencies[modes.frequencies > MIN_FREQUENCY]
    assert len(wanted) == 45  # 48 modes but for the acoustic ones at Gamma
    assert np.abs(wanted[:, None] - frequencies).min(axis=1).max() < 1e-9
    assert {tuple(mode.q_point) for mode in drawn} == {(0, 0, 0), EDGE}
    only_acoustic = replace(modes, frequencies=modes.frequencies * 0 - 0.5)
    with pytest.raises(InputError, match="no phonon"):
        random_mode(only_acoustic, rng)


def test_drawn_modes_do_not_depend_on_the_basis_of_degenerate_ones(nacl):
    modes = eigenmodes(nacl, [EDGE])
    frequencies, vectors = modes.frequencies[0], modes.eigenvectors[0].copy()
    rng = np.random.default_rng(5)
    mixed = 0
    for f in np.unique(frequencies.round(5)):
        same = np.flatnonzero(np.abs(frequencies - f) < 1e-4)
        matrix = rng.standard_normal((2, len(same), len(same)))
        unitary, _ = np.linalg.qr(matrix[0] + 1j * matrix[1])
        vectors[same] = np.tensordot(unitary, vectors[same], 1)
        mixed = max(mixed, len(same))
    assert mixed > 1
    other = replace(modes, eigenvectors=vectors[None])
    for seed in range(20):
        one, two = (random_mode(m, np.random.default_rng(seed)) for m in (modes, other))
        assert np.allclose(one.eigenvector, two.eigenvector)
        assert np.isclose(np.linalg.norm(one.eigenvector), 1)


def test_temperature_gives_the_correlations_of_phonopy(nacl):
    # The displacements are linear in the draws, so that unit draws give their covariance exactly.
    crystal = repeat(cell_of(nacl), (2, 2, 2))
    modes = grid_modes(nacl, crystal)
    assert modes.frequencies.min() > -1e-3

    class UnitDraws:
        def __init__(self, k):
            self.k = k

        def standard_normal(self, shape):
            draws = np.zeros(np.prod(shape))
            draws[self.k] = 1
            return draws.reshape(shape)

    theirs = RandomDisplacements(
        nacl.supercell, nacl.primitive, nacl.force_constants, cutoff_frequency=MIN_FREQUENCY
    )
    supercell = nacl.supercell
    same = Crystal(supercell.cell, supercell.scaled_positions, supercell.numbers.astype(np.int64))
    key = [np.c_[lattice_sites(c, modes.cell)].tolist() for c in (same, crystal)]
    order = [key[0].index(site) for site in key[1]]
    for temperature in (0.0, 300.0):
        responses = [
            displacements(vibrate(crystal, modes, temperature, UnitDraws(k)), crystal).ravel()
            for k in range(crystal.positions.size)
        ]
        theirs.run_correlation_matrix(max(temperature, 1e-3))
        expected = theirs.uu[np.ix_(order, order)].swapaxes(1, 2).reshape(2 * [len(responses)])
        assert np.allclose(np.transpose(responses) @ responses, expected, rtol=1e-6, atol=1e-9)


def test_random_displacements_need_a_triangular_supercell(nacl):
    crystal = repeat(cell_of(nacl), [[1, -1, 0], [1, 1, 0], [0, 0, 1]])
    with pytest.raises(InputError, match="triangular"):
        grid_modes(nacl, crystal)


def test_phonons_of_mote2_are_stable(mote2):
    path = np.linspace(0, 1, 31)[:, None]
    for end in ((1 / 2, 0, 0), (1 / 3, 1 / 3, 0)):
        frequencies = eigenmodes(mote2["2h"], path * end).frequencies
        assert np.abs(frequencies[0, :3]).max() < 0.05
        assert frequencies.min() > -0.2
        assert 5 < frequencies.max() < 10  # E' and A2'' modes are at 7 to 9 THz
    assert np.abs(eigenmodes(mote2["1t"], [(0, 0, 0)]).frequencies[0, :3]).max() < 0.05


def test_stars_of_named_points(mote2, nacl):
    hexagonal, rectangular = mote2["2h"], mote2["1t"]
    assert (
        len(star(hexagonal, "G")) == len(star(rectangular, "X")) == len(star(rectangular, "S")) == 1
    )
    m = star(hexagonal, "M")
    assert sorted(m.round(6).tolist()) == [[0, 0.5, 0], [0.5, 0, 0], [0.5, 0.5, 0]]
    assert len(star(hexagonal, "K")) == 2
    assert len(star(nacl, "X")) == 3
    # Six rotations and mirrors in the plane, and the reversal of time, as 2H has no inversion.
    general = star(hexagonal, (0.1, 0.05, 0))
    assert len(general) == 12
    frequencies = eigenmodes(hexagonal, general).frequencies
    assert np.abs(frequencies - frequencies[0]).max() < 1e-3
    # M is half way between two points of the reciprocal lattice, K as far from three.
    reciprocal = cell_of(hexagonal).reciprocal
    points = np.array([(i, j, 0) for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ reciprocal
    for name, count in (("M", 2), ("K", 3)):
        for q_point in star(hexagonal, name) @ reciprocal:
            nearest = np.sort(np.linalg.norm(points - q_point, axis=1))
            assert np.allclose(
                nearest[:count], np.linalg.norm(reciprocal[0]) / {2: 2, 3: 3**0.5}[count]
            )
    with pytest.raises(InputError, match="no q point K"):
        star(rectangular, "K")


def test_relaxed_cell_of_2h_is_the_published_one(mote2):
    cell = cell_of(mote2["2h"])
    assert np.allclose(np.linalg.norm(cell.cell[:2], axis=1), 3.52, rtol=0.02)
    assert np.isclose(cell.cell[0] @ cell.cell[1], -(cell.cell[0] @ cell.cell[0]) / 2)
    height = (cell.positions[1:, 2] - cell.positions[0, 2]) * cell.cell[2, 2]
    assert np.allclose(np.abs(height), 1.80, atol=0.03)


@pytest.mark.skipif(not CONTCAR_1T.exists(), reason=f"{CONTCAR_1T} is not there")
def test_relaxed_cell_of_1t_is_that_of_the_authors(mote2):
    cell = cell_of(mote2["1t"])
    theirs = from_atoms(ase.io.read(CONTCAR_1T, format="vasp"))
    assert np.allclose(np.diag(cell.cell)[:2], np.diag(theirs.cell)[:2], rtol=0.05)
    # Zigzag chains of Mo: bonds are shorter than in 2H, in both.
    for crystal in (cell, theirs):
        mo = (crystal.positions @ crystal.cell)[crystal.numbers == 42]
        apart = [
            np.linalg.norm(mo[0] - mo[1] + np.array([i, j, 0]) @ crystal.cell)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
        assert 2.7 < min(apart) < 3.4
