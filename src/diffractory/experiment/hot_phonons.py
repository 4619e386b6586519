"""Atoms of a monolayer that vibrate at a temperature, with more motion at M and K than that."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from diffractory.augment.phonons import (
    HBAR,
    KELVIN_PER_THZ,
    MIN_FREQUENCY,
    cell_of,
    eigenmodes,
    read_phonons,
    star,
)
from diffractory.store import InputError

VACUUM = 2.0
"""Below and above the layer, angstrom; atoms stay within."""


@dataclass(frozen=True)
class Supercell:
    """A sheet of orthogonal cells and the phonons that fit into it, S of them.

    Attributes
    ----------
    atoms
        At rest, N of them in a box along x, y and z.
    frequencies
        THz, shape (S,).
    waves
        e exp(2 pi i q.r) / sqrt(m n) with n primitive cells: the displacements by a phonon of
        amplitude 1 angstrom sqrt(u) are the real parts, shape (S, N, 3).
    hot
        Which phonons have q = M (three arms) or K (two), shape (S,).
    """

    atoms: Atoms
    frequencies: NDArray[np.float64]
    waves: NDArray[np.complex128]
    hot: NDArray[np.bool_]


def read_supercell(phonons: Path, cells: tuple[int, int]) -> Supercell:
    """Return a sheet with the phonons in a file of phonopy's.

    Parameters
    ----------
    phonons
        As for `read_phonons`, of a hexagonal layer whose first lattice vector is along x.
    cells
        Orthogonal cells, a along x and sqrt(3) a along y. In units of their reciprocal lattice the
        star of M is (1/2, 1/2), (0, 1), (1/2, 3/2) and that of K (2/3, 0), (1/3, 1): all of them
        fit into multiples of 6 cells along x and 2 along y.

    Raises
    ------
    InputError
        If the file cannot be used, or M and K do not fit.
    """
    if cells[0] % 6 or cells[1] % 2:
        raise InputError(
            f"M and K do not fit into {cells[0]} x {cells[1]} orthogonal cells: choose multiples "
            "of 6 and of 2 for ued.experiment.stand_in.cells"
        )
    model = read_phonons(phonons)
    layer = cell_of(model)
    a = layer.cell[0, 0]
    known = [[a, 0], [a / 2, a * np.sqrt(3) / 2]]
    if not np.allclose(abs(layer.cell[:2, :2]), known, atol=1e-3 * a):
        raise InputError(f"{phonons} is not of a hexagonal layer with its first vector along x")
    sides = np.array([a, np.sqrt(3) * a])
    numbers = np.indices((cells[0], 2 * cells[1])).reshape(2, -1).T
    # A domain of the reciprocal lattice of the layer, and of its own, each point once.
    q = np.column_stack([numbers / np.array(cells) / sides, np.zeros(len(numbers))])
    corners = (numbers + np.column_stack([numbers[:, 1] % 2 / 2, -numbers[:, 1] / 2])) * sides
    place = layer.positions - np.array([0, 0, 1]) * np.rint(layer.positions - layer.positions[0])
    place = place @ layer.cell
    place[:, 2] += VACUUM - place[:, 2].min()
    positions = (np.pad(corners, ((0, 0), (0, 1)))[:, None] + place).reshape(-1, 3)
    modes = eigenmodes(model, q @ layer.cell.T)
    phase = np.exp(2j * np.pi * q @ positions.T).reshape(len(q), 1, len(q), -1, 1)
    vectors = modes.eigenvectors / np.sqrt(modes.masses * len(q))[:, None]
    waves = (phase * vectors[:, :, None]).reshape(*modes.frequencies.shape, -1, 3)
    m_and_k = np.concatenate([star(model, "M"), star(model, "K")])
    away = modes.q_points[:, None] - m_and_k
    hot = (abs(away - np.rint(away)) < 1e-6).all(axis=2).any(axis=1)
    kept = modes.frequencies > MIN_FREQUENCY
    box = [*sides * cells, place[:, 2].max() + VACUUM]
    return Supercell(
        Atoms(np.tile(layer.numbers, len(q)), positions, cell=box, pbc=True),
        modes.frequencies[kept],
        waves[kept],
        np.broadcast_to(hot[:, None], kept.shape)[kept],
    )


def displacements(
    supercell: Supercell, temperature: float, amplitude: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw how far each atom is from its place, angstrom, shape (N, 3).

    Parameters
    ----------
    temperature
        All phonons are in equilibrium at this one, K, with quantum statistics.
    amplitude
        Root mean square displacement, over atoms and time, by what the phonons at M and K have
        more, angstrom. Each has the same energy more, at a random phase.
    """
    normal = rng.standard_normal((2, len(supercell.frequencies)))
    quanta = KELVIN_PER_THZ * supercell.frequencies / (2 * temperature)
    deviation = np.sqrt(HBAR / (4 * np.pi * supercell.frequencies * np.tanh(quanta)))
    amplitudes = deviation * (normal[0] + 1j * normal[1])
    phases = rng.uniform(0, 2 * np.pi, supercell.hot.sum())
    energy = 1 / supercell.frequencies[supercell.hot] ** 2
    per_atom = (abs(supercell.waves[supercell.hot]) ** 2).sum(axis=2).mean(axis=1) / 2
    scale = amplitude / np.sqrt(energy @ per_atom)
    amplitudes[supercell.hot] += scale * np.sqrt(energy) * np.exp(1j * phases)
    return np.tensordot(amplitudes, supercell.waves, 1).real
