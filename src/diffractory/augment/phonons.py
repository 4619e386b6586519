"""Phonons of a crystal, through phonopy, and displacements of atoms along them.

q points are in units of the reciprocal lattice vectors of the cell of the phonons. Eigenvectors e
have phonopy's phase convention: u_j = e_j / sqrt(m_j) exp(2 pi i q.r_j), with r_j where atom j is.
(Togo et al., J. Phys.: Condens. Matter 35, 353001 (2023).)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from ase.calculators.calculator import Calculator
from numpy.typing import ArrayLike, NDArray
from phonopy import Phonopy
from phonopy.file_IO import parse_FORCE_SETS
from phonopy.interface.phonopy_yaml import PhonopyYaml
from phonopy.structure.atoms import PhonopyAtoms

from diffractory.augment.calculators import to_atoms
from diffractory.augment.crystals import moved
from diffractory.errors import InputError
from diffractory.simulate.crystal import Crystal
from diffractory.store import atomic_file

MIN_FREQUENCY = 0.1
"""Modes of a lower (or imaginary) frequency have no amplitude of their own: acoustic modes at Gamma
shift the crystal as a whole, and soft ones are not harmonic. THz."""

DEGENERATE = 1e-3
"""Modes whose frequencies differ by less are one, of which any mixture is a mode too, THz."""

HBAR = 6.3507799  # amu square angstrom / ps
KELVIN_PER_THZ = 47.9924307  # h / k

HEXAGONAL = {"G": (0, 0, 0), "M": (1 / 2, 0, 0), "K": (1 / 3, 1 / 3, 0)}
RECTANGULAR = {"G": (0, 0, 0), "X": (1 / 2, 0, 0), "Y": (0, 1 / 2, 0), "S": (1 / 2, 1 / 2, 0)}


@dataclass(frozen=True)
class Modes:
    """All modes at Q points of a cell of N atoms.

    Attributes
    ----------
    cell
        The cell at rest.
    masses
        In amu, shape (N,).
    q_points
        Shape (Q, 3).
    frequencies
        In THz, imaginary ones as negative, shape (Q, 3N).
    eigenvectors
        Orthonormal, shape (Q, 3N, N, 3), complex.
    """

    cell: Crystal
    masses: NDArray[np.float64]
    q_points: NDArray[np.float64]
    frequencies: NDArray[np.float64]
    eigenvectors: NDArray[np.complex128]


@dataclass(frozen=True)
class Mode:
    """One mode of a cell of N atoms: q point, frequency in THz, eigenvector, shape (N, 3)."""

    cell: Crystal
    masses: NDArray[np.float64]
    q_point: NDArray[np.float64]
    frequency: float
    eigenvector: NDArray[np.complex128]


def calculate_phonons(
    crystal: Crystal,
    calculator: Calculator,
    supercell: ArrayLike,
    displacement: float = 0.01,
) -> Phonopy:
    """Calculate symmetrized force constants of a relaxed crystal from finite displacements.

    Parameters
    ----------
    supercell
        That forces are calculated in: cells along each lattice vector, shape (3,), or a matrix as
        for `diffractory.augment.crystals.repeat`.
    displacement
        Of one atom at a time, angstrom.
    """
    phonons = _phonopy(crystal, supercell)
    phonons.generate_displacements(distance=displacement)
    cells: Any = phonons.supercells_with_displacements
    displaced = [Crystal(cell.cell, cell.scaled_positions, cell.numbers) for cell in cells]
    atoms: list[Any] = [to_atoms(crystal, calculator) for crystal in displaced]
    phonons.forces = np.array([each.get_forces() for each in atoms])
    return _solved(phonons)


def read_force_sets(crystal: Crystal, supercell: ArrayLike, path: Path) -> Phonopy:
    """Return the phonons of published forces.

    Parameters
    ----------
    crystal, supercell
        That the forces were calculated for.
    path
        In phonopy's format ``FORCE_SETS``.

    Raises
    ------
    InputError
        If the file cannot be read, or is of another supercell.
    """
    phonons = _phonopy(crystal, supercell)
    try:
        phonons.dataset = parse_FORCE_SETS(path, natom=len(phonons.supercell))
        return _solved(phonons)
    except (OSError, LookupError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} is not the FORCE_SETS of this crystal and supercell ({error}): give that of "
            "phonopy for both"
        ) from error


def _phonopy(crystal: Crystal, supercell: ArrayLike) -> Phonopy:
    cell = PhonopyAtoms(
        numbers=crystal.numbers, cell=crystal.cell, scaled_positions=crystal.positions
    )
    # phonopy has the lattice vectors of matrices in columns.
    return Phonopy(cell, np.asarray(supercell).T, primitive_matrix="P", log_level=0)


def _solved(phonons: Phonopy) -> Phonopy:
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants(show_drift=False, use_symfc_projector=True)
    return phonons


def write_phonons(path: Path, phonons: Phonopy) -> None:
    """Write cells and force constants in phonopy's own YAML format, atomically."""
    with atomic_file(path) as partial:
        settings = {"force_constants": True, "force_sets": False, "displacements": False}
        phonons.save(partial, settings=settings)


def read_phonons(path: Path) -> Phonopy:
    """Read force constants in phonopy's own YAML format.

    Raises
    ------
    InputError
        If the file is damaged, or holds no force constants.
    """
    # phonopy.load would take a FORCE_SETS or BORN in the working directory for a part of it.
    content: Any = PhonopyYaml()
    try:
        content.read(path)
        phonons = Phonopy(
            content.unitcell,
            content.supercell_matrix,
            primitive_matrix="P" if content.primitive_matrix is None else content.primitive_matrix,
            log_level=0,
        )
        phonons.force_constants = content.force_constants
        assert phonons.dynamical_matrix is not None
    except Exception as error:  # a damaged file may break any part of phonopy
        raise InputError(
            f"{path} is not a file of phonopy with force constants ({error!r}): make it again"
        ) from error
    return phonons


def cell_of(phonons: Phonopy) -> Crystal:
    """Return the cell that q points and eigenvectors belong to."""
    cell = phonons.primitive
    return Crystal(cell.cell.copy(), cell.scaled_positions.copy(), cell.numbers.astype(np.int64))


def eigenmodes(phonons: Phonopy, q_points: ArrayLike) -> Modes:
    """Return the modes at any q points, shape (Q, 3)."""
    q = np.asarray(q_points, dtype=np.float64).reshape(-1, 3)
    found: Any = phonons.run_qpoints(q, with_eigenvectors=True)
    cell = cell_of(phonons)
    vectors = np.swapaxes(found.eigenvectors, 1, 2).reshape(len(q), -1, len(cell.numbers), 3)
    return Modes(cell, phonons.primitive.masses.copy(), q, found.frequencies.copy(), vectors)


def star(phonons: Phonopy, q_point: str | Sequence[float]) -> NDArray[np.float64]:
    """Return all q points that the symmetry of the crystal, or that of time, makes equal to one.

    Parameters
    ----------
    q_point
        A vector; or a name: G, M, K of a hexagonal cell, G, X, Y, S of one with right angles.

    Returns
    -------
    Shape (M, 3), from -1/2 (excluded) to 1/2.

    Raises
    ------
    InputError
        If the cell has no point of this name.
    """
    cell = cell_of(phonons).cell
    if isinstance(q_point, str):
        q_point = _named(cell, q_point)
    # A rotation W of fractional coordinates takes q, a row, to q W^-1; W^-1 is in the group too.
    images = np.asarray(q_point, dtype=float) @ phonons.primitive_symmetry.pointgroup_operations
    images = np.concatenate([images, -images])
    images -= np.ceil(images - 0.5 - 1e-6)
    _, first = np.unique(images.round(6) + 0.0, axis=0, return_index=True)
    return images[np.sort(first)]


def _named(cell: NDArray[np.float64], name: str) -> tuple[float, ...]:
    a, b = np.linalg.norm(cell[:2], axis=1)
    cosine = cell[0] @ cell[1] / (a * b)
    is_hexagonal = abs(a / b - 1) < 1e-3 and abs(abs(cosine) - 0.5) < 1e-3
    points = HEXAGONAL if is_hexagonal else RECTANGULAR if abs(cosine) < 1e-3 else {"G": (0, 0, 0)}
    if name not in points:
        raise InputError(
            f"the cell has no q point {name}: it has {', '.join(points)}; give others by three "
            "numbers in units of its reciprocal lattice vectors"
        )
    if name == "K" and cosine > 0:
        return (1 / 3, -1 / 3, 0)
    return points[name]


def random_mode(modes: Modes, rng: np.random.Generator) -> Mode:
    """Draw one of all modes above `MIN_FREQUENCY`, each as likely.

    Of degenerate modes, a mixture is drawn, uniform on the sphere; so does the global phase come
    out uniform. The draw does not depend on which basis a library solves the modes in.

    Raises
    ------
    InputError
        If there is no such mode.
    """
    candidates = np.argwhere(modes.frequencies > MIN_FREQUENCY)
    if not len(candidates):
        raise InputError(
            f"no phonon at these q points has a frequency above {MIN_FREQUENCY} THz: choose others"
        )
    q, chosen = candidates[rng.integers(len(candidates))]
    frequency = modes.frequencies[q, chosen]
    basis = modes.eigenvectors[q, np.abs(modes.frequencies[q] - frequency) < DEGENERATE]
    real, imaginary = rng.standard_normal((2, *basis.shape[1:]))
    weights = (basis.conj() * (real + 1j * imaginary)).sum(axis=(1, 2))
    vector = np.tensordot(weights / np.linalg.norm(weights), basis, 1)
    return Mode(modes.cell, modes.masses, modes.q_points[q], float(frequency), vector)


def freeze_mode(crystal: Crystal, mode: Mode, amplitude: float, phase: float) -> Crystal:
    """Displace atoms along a mode: u_j = Re(A e_j / sqrt(m_j) exp(2 pi i q.r_j + i phase)).

    Parameters
    ----------
    crystal
        Supercell of the cell of the mode, of any size for any q; atoms may be displaced already,
        or missing.
    amplitude
        Largest displacement of an atom, angstrom, which fixes A.
    phase
        In radian.

    Raises
    ------
    InputError
        If the crystal is no such supercell, or no atom moves at this phase.
    """
    kinds, cells = lattice_sites(crystal, mode.cell)
    vector = mode.eigenvector / np.sqrt(mode.masses)[:, None]
    vector = (
        vector * np.exp(2j * np.pi * (mode.cell.positions @ mode.q_point) + 1j * phase)[:, None]
    )
    u = _wave(vector, mode.q_point, kinds, cells)
    largest = np.sqrt(np.einsum("ij,ij->i", u, u).max())
    if largest < 1e-9 * np.abs(vector).max():
        raise InputError(f"no atom moves at the phase {phase}: choose another")
    return moved(crystal, u * (amplitude / largest))


@numba.njit(cache=True)
def _wave(
    vector: NDArray[np.complex128],
    q_point: NDArray[np.float64],
    kinds: NDArray[np.int64],
    cells: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return Re(v_j exp(2 pi i q.R)) of each atom, its kind j and its cell R, shape (N, 3)."""
    u = np.empty((len(kinds), 3))
    for i in range(len(kinds)):
        turns = q_point[0] * cells[i, 0] + q_point[1] * cells[i, 1] + q_point[2] * cells[i, 2]
        cosine, sine = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
        for k in range(3):
            v = vector[kinds[i], k]
            u[i, k] = cosine * v.real - sine * v.imag
    return u


def grid_modes(phonons: Phonopy, crystal: Crystal) -> Modes:
    """Return the modes at all q points that fit into a supercell, in the order of `numpy.fft`.

    Raises
    ------
    InputError
        If the crystal is no supercell of the cell of the phonons, or its matrix is not triangular.
    """
    sides = _grid(crystal, cell_of(phonons))
    axes = [np.fft.fftfreq(n) for n in sides]
    return eigenmodes(phonons, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1))


def vibrate(
    crystal: Crystal, modes: Modes, temperature: float, rng: np.random.Generator
) -> Crystal:
    """Displace atoms at random, as all modes do together at a temperature.

    Displacements are Gaussian with quantum statistics of harmonic oscillators, as phonopy's
    finite-temperature random displacements. Modes under `MIN_FREQUENCY` are left out. If the matrix
    of the supercell is not diagonal, atoms on its two sides do not know of each other.

    Parameters
    ----------
    crystal
        Supercell; atoms may be displaced already, or missing.
    modes
        From `grid_modes`.
    temperature
        In kelvin.

    Raises
    ------
    InputError
        If the crystal is no such supercell.
    """
    kinds, cells = lattice_sites(crystal, modes.cell)
    sides = _grid(crystal, modes.cell)
    real = modes.frequencies > MIN_FREQUENCY
    frequencies = np.where(real, modes.frequencies, np.inf)
    ratio = KELVIN_PER_THZ * modes.frequencies / (2 * temperature) if temperature else np.inf
    variances = HBAR / (4 * np.pi * frequencies) / np.tanh(np.where(real, ratio, np.inf))
    white = rng.standard_normal((*sides, *modes.cell.positions.shape))
    waves = np.fft.fftn(white, axes=(0, 1, 2)).reshape(len(modes.q_points), -1)
    # In the phases of the lattice alone, the displacements are one Fourier series over the cells.
    phases = np.exp(2j * np.pi * (modes.q_points @ modes.cell.positions.T))
    vectors = modes.eigenvectors.reshape(*modes.frequencies.shape, -1)
    mixed = _mix(vectors, np.sqrt(variances), waves, np.repeat(phases, 3, axis=1))
    u = np.fft.ifftn(mixed.reshape(white.shape), axes=(0, 1, 2)).real
    u /= np.sqrt(modes.masses)[:, None]
    a, b, c = (cells % sides).T
    return moved(crystal, u[a, b, c, kinds])


@numba.njit(cache=True)
def _mix(
    vectors: NDArray[np.complex128],
    deviations: NDArray[np.float64],
    waves: NDArray[np.complex128],
    phases: NDArray[np.complex128],
) -> NDArray[np.complex128]:
    """Multiply each wave by the square root of the covariance of its q point, shape (Q, 3N)."""
    mixed = np.zeros_like(waves)
    for q in range(len(waves)):
        wave = waves[q] * phases[q].conj()
        for s in range(vectors.shape[1]):
            weight = 0j
            for k in range(len(wave)):
                weight += vectors[q, s, k].conjugate() * wave[k]
            weight *= deviations[q, s]
            for k in range(len(wave)):
                mixed[q, k] += weight * vectors[q, s, k]
        mixed[q] *= phases[q]
    return mixed


def _grid(crystal: Crystal, cell: Crystal) -> tuple[int, ...]:
    """Return how many cells there are along each lattice vector of the cell."""
    matrix = supercell_matrix(crystal, cell)
    sides = np.abs(np.diag(matrix))
    if sides.prod() != round(abs(np.linalg.det(matrix))):
        raise InputError(
            "random displacements need a supercell with a triangular matrix: repeat the cell "
            "along its own lattice vectors"
        )
    return tuple(sides.tolist())


def supercell_matrix(crystal: Crystal, cell: Crystal) -> NDArray[np.int64]:
    """Return the lattice vectors of a crystal, as rows in units of those of a cell, shape (3, 3).

    Raises
    ------
    InputError
        If they are not whole numbers.
    """
    matrix = crystal.cell @ np.linalg.inv(cell.cell)
    whole = np.rint(matrix)
    if np.abs(matrix - whole).max() > 1e-3:
        raise InputError(
            "the crystal is no supercell of the cell that its phonons, or those that it morphs "
            "to, belong to: put steps with phonons or morph before strain"
        )
    return whole.astype(np.int64)


def lattice_sites(crystal: Crystal, cell: Crystal) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return on which site each atom of a supercell is: atom of the cell (N,), and cell (N, 3).

    Raises
    ------
    InputError
        If the crystal is no supercell of the cell, or has other elements.
    """
    matrix = supercell_matrix(crystal, cell)
    kinds, cells = _nearest_sites(
        crystal.positions @ matrix, crystal.numbers, cell.positions, cell.numbers, cell.cell
    )
    if (kinds < 0).any():
        raise InputError("the crystal has elements that the cell of its phonons does not have")
    return kinds, cells


@numba.njit(cache=True)
def _nearest_sites(
    positions: NDArray[np.float64],
    numbers: NDArray[np.int64],
    sites: NDArray[np.float64],
    kinds: NDArray[np.int64],
    cell: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the nearest site of its element, or -1, and its cell, for each atom."""
    site = np.full(len(positions), -1)
    cells = np.zeros((len(positions), 3), dtype=np.int64)
    shift, delta = np.empty(3), np.empty(3)
    for i in range(len(positions)):
        least = np.inf
        for j in range(len(sites)):
            if kinds[j] != numbers[i]:
                continue
            for k in range(3):
                x = positions[i, k] - sites[j, k]
                shift[k] = np.rint(x)
                delta[k] = x - shift[k]
            square = 0.0
            for k in range(3):
                x = delta[0] * cell[0, k] + delta[1] * cell[1, k] + delta[2] * cell[2, k]
                square += x * x
            if square < least:
                least, site[i] = square, j
                for k in range(3):
                    cells[i, k] = int(shift[k])
    return site, cells
