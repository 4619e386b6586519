"""Kinematic diffraction images of finite crystals, by a non-uniform Fourier transform."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import finufft
import numpy as np
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.scattering import Parametrization, scattering_factor

TOLERANCE = 1e-7
"""Of the transform relative to its norm: far weaker pixels stay within 1e-4 of their own value."""


@dataclass(frozen=True)
class Grid:
    """A square grid of scattering vectors about the direct beam, columns along q_x.

    Attributes
    ----------
    q_max
        Largest q_x and q_y, 1/angstrom (without 2 pi); a multiple of the step.
    step
        Distance of neighbours, 1/angstrom.
    """

    q_max: float
    step: float

    @property
    def reach(self) -> int:
        """Steps from the middle to the edge."""
        return round(self.q_max / self.step)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return 2 * self.reach + 1, 2 * self.reach + 1

    @cached_property
    def q(self) -> NDArray[np.float64]:
        """Return q_x and q_y, shape (2, rows, columns)."""
        axis = np.arange(-self.reach, self.reach + 1) * self.step
        return np.stack(np.meshgrid(axis, axis))


def fourier_image(
    crystal: Crystal,
    grid: Grid,
    parametrization: Parametrization = "lobato",
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Return the kinematic image of one cell of a crystal, all of it in the beam.

    I(q) = |sum_j o_j f_j(q) exp(-2 pi^2 q.U_j.q) exp(-2 pi i q.R_j)|^2, with occupancies o, mean
    square displacements U and the scattering factor f of an electron at rest, for a beam along z
    and a flat Ewald sphere, as for a monolayer and fast electrons.

    Parameters
    ----------
    crystal
        The sum is over the atoms in its cell; the cell is not repeated.
    grid
        Where I is wanted.
    parametrization
        As in `scattering_factor`.
    device
        ``"cpu"``: a non-uniform fast Fourier transform; ``"cuda"``: products of matrices, since
        exp(-2 pi i q.R) is a product of a factor of q_x and a factor of q_y. Both in 64 bits.

    Returns
    -------
    Square angstrom, shape (rows, columns).

    References
    ----------
    M. Shaaban et al., Sci. Rep. (2025), Eq. 1, where the sum is over pairs of atoms.
    A. H. Barnett, J. Magland and L. af Klinteberg, SIAM J. Sci. Comput. 41, C479 (2019).
    """
    kinds, kind = _kinds_of_atoms(crystal)
    factors = np.stack([_factor(grid, *found, parametrization) for found in kinds])
    positions = (crystal.positions @ crystal.cell)[:, :2]
    occupancies = np.broadcast_to(crystal.occupancies, len(positions))
    if device == "cpu":
        return _image(positions, occupancies, kind, factors, grid)
    from diffractory.simulate.fourier_torch import image_by_products  # imports torch

    return image_by_products(positions, occupancies, kind, factors, grid.step, device)


def pixel_image(
    crystal: Crystal,
    grid: Grid,
    oversampling: int,
    parametrization: Parametrization = "lobato",
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Return means of `fourier_image` over points of each pixel, a square of one step.

    On points one step apart, atoms 1/step apart seem to be at one place: of crystals longer than
    that, the heights of peaks depend on where they fall between points. With n points a pixel,
    only crystals longer than n/step suffer.

    Parameters
    ----------
    oversampling
        Points along the side of a pixel; if even, those on its edges belong to both pixels.

    Returns
    -------
    Square angstrom, shape (rows, columns) of the grid.
    """
    if oversampling == 1:
        return fourier_image(crystal, grid, parametrization, device)
    reach, step = oversampling * grid.reach + oversampling // 2, grid.step / oversampling
    fine = fourier_image(crystal, Grid(reach * step, step), parametrization, device)
    mean = _mean_over_pixels(grid.shape[0], oversampling)
    return np.matmul(mean @ fine, mean.T)


@lru_cache(maxsize=8)
def _mean_over_pixels(pixels: int, oversampling: int) -> NDArray[np.float32]:
    """Return the matrix from points to pixels along an axis, shape (pixels, points)."""
    half = oversampling // 2
    weights = np.ones(2 * half + 1)
    if oversampling % 2 == 0:
        weights[[0, -1]] = 0.5
    matrix = np.zeros((pixels, (pixels - 1) * oversampling + 2 * half + 1), dtype=np.float32)
    for pixel in range(pixels):
        start = pixel * oversampling
        matrix[pixel, start : start + len(weights)] = weights / oversampling
    return matrix


def _kinds_of_atoms(
    crystal: Crystal,
) -> tuple[list[tuple[int, tuple[float, ...]]], NDArray[np.int64]]:
    """Return atomic number and in-plane displacements of each kind, and the kind of each atom."""
    in_plane = crystal.displacements[..., :2, :2].reshape(-1, 4)
    if len(in_plane) == 1:
        numbers, kind = np.unique(crystal.numbers, return_inverse=True)
        return [(int(z), tuple(in_plane[0])) for z in numbers], kind
    keys, kind = np.unique(
        np.column_stack([crystal.numbers, in_plane]), axis=0, return_inverse=True
    )
    return [(int(key[0]), tuple(key[1:])) for key in keys], kind


@lru_cache(maxsize=32)
def _factor(
    grid: Grid, number: int, displacements: tuple[float, ...], parametrization: Parametrization
) -> NDArray[np.float64]:
    """Return f(q) exp(-2 pi^2 q.U.q) of one kind of atom, shape (rows, columns)."""
    q = grid.q
    exponent = np.einsum("irc,ij,jrc->rc", q, np.reshape(displacements, (2, 2)), q)
    damping = np.exp(-2 * np.pi**2 * exponent)
    return scattering_factor(number, np.hypot(*q), parametrization) * damping


def _image(
    positions: NDArray[np.float64],
    occupancies: NDArray[np.float64],
    kind: NDArray[np.int64],
    factors: NDArray[np.float64],
    grid: Grid,
) -> NDArray[np.float32]:
    """Transform two kinds of atoms at a time, as real and imaginary part of the strengths.

    The transform T of real strengths has T(-q) = T*(q), which takes the two apart again.
    """
    pairs = -(-len(factors) // 2)
    strengths = np.zeros((pairs, len(kind)), dtype=np.complex128)
    strengths[kind // 2, np.arange(len(kind))] = occupancies * np.where(kind % 2, 1j, 1)
    x, y = np.ascontiguousarray(2 * np.pi * (positions.T * grid.step % 1))
    plan = _plan(grid.shape, pairs)
    plan.setpts(y, x)
    both = plan.execute(strengths).reshape(pairs, *grid.shape)
    mirrored = both[:, ::-1, ::-1].conj()
    total = ((both + mirrored) * factors[::2]).sum(axis=0)
    odd = factors[1::2]
    total -= 1j * ((both - mirrored)[: len(odd)] * odd).sum(axis=0)
    return ((total.real**2 + total.imag**2) / 4).astype(np.float32)


@lru_cache(maxsize=8)
def _plan(shape: tuple[int, int], transforms: int) -> finufft.Plan:
    """Return a plan for strengths at points; processes, not threads, share the work."""
    return finufft.Plan(
        1, shape, n_trans=transforms, eps=TOLERANCE, isign=-1, upsampfac=1.25, nthreads=1
    )
