"""Images of finite crystals against the direct sum over the atoms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.fourier import Grid, _kinds_of_atoms, fourier_image, pixel_image
from diffractory.simulate.fourier_torch import image_by_products
from diffractory.simulate.scattering import scattering_factor

GRID = Grid(q_max=0.6, step=0.05)


def finite_crystal(rng, elements, n=60, per_atom=False):
    """Return atoms at random places of a skew cell that reaches beyond a period of the grid."""
    cell = np.array([[31.0, 0.0, 0.0], [7.0, 29.0, 0.0], [0.0, 0.0, 12.0]])
    numbers = np.concatenate([elements, rng.choice(elements, n - len(elements))])
    spread = rng.normal(0, 0.1, (n if per_atom else 1, 3, 3))
    displacements = spread @ spread.transpose(0, 2, 1)
    return Crystal(
        cell,
        rng.random((n, 3)),
        numbers,
        occupancies=rng.random(n),
        displacements=displacements if per_atom else displacements[0],
    )


def direct_sum(crystal, grid):
    """Return the image by a loop over atoms and scattering vectors."""
    image = np.zeros(grid.shape)
    axis = np.arange(-grid.reach, grid.reach + 1) * grid.step
    displacements = np.broadcast_to(crystal.displacements, (len(crystal.numbers), 3, 3))
    for row, qy in enumerate(axis):
        for column, qx in enumerate(axis):
            q = np.array([qx, qy, 0.0])
            amplitude = 0j
            for r, z, o, u in zip(
                crystal.positions @ crystal.cell,
                crystal.numbers,
                crystal.occupancies,
                displacements,
                strict=True,
            ):
                f = scattering_factor(int(z), np.array([np.linalg.norm(q)]))[0]
                damping = np.exp(-2 * np.pi**2 * q @ u @ q)
                amplitude += o * f * damping * np.exp(-2j * np.pi * q @ r)
            image[row, column] = abs(amplitude) ** 2
    return image


@pytest.mark.parametrize("elements", [[42], [42, 52], [42, 52, 16]])
@pytest.mark.parametrize("per_atom", [False, True])
def test_image_is_the_direct_sum(elements, per_atom):
    rng = np.random.default_rng(len(elements))
    crystal = finite_crystal(rng, elements, n=12, per_atom=per_atom)
    expected = direct_sum(crystal, GRID)
    image = fourier_image(crystal, GRID)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6 * expected.max())


@pytest.mark.parametrize("per_atom", [False, True])
def test_products_of_matrices_give_the_same_image(per_atom):
    crystal = finite_crystal(np.random.default_rng(1), [42, 52, 16], per_atom=per_atom)
    kinds, kind = _kinds_of_atoms(crystal)
    axis = GRID.q
    factors = np.stack([
        scattering_factor(z, np.hypot(*axis))
        * np.exp(-2 * np.pi**2 * np.einsum("irc,ij,jrc->rc", axis, np.reshape(u, (2, 2)), axis))
        for z, u in kinds
    ])  # fmt: skip
    positions = (crystal.positions @ crystal.cell)[:, :2]
    image = image_by_products(positions, crystal.occupancies, kind, factors, GRID.step, "cpu")
    expected = fourier_image(crystal, GRID)
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6 * expected.max())


def test_largest_relative_difference_of_a_whole_monolayer():
    """Every single pixel of a thermally disordered crystal of published size, within 1e-4."""
    rng = np.random.default_rng(3)
    cells = np.stack(np.meshgrid(np.arange(51), np.arange(30), indexing="ij"), -1).reshape(-1, 2)
    basis = np.array([[0, 0.66], [0.5, 0.15], [0, 0.33], [0.5, 0.82]])
    planar = ((cells[:, None] + basis).reshape(-1, 2) * [3.51, 6.24]) + rng.normal(
        0, 0.06, (4 * len(cells), 2)
    )
    numbers = np.tile([52, 52, 42, 42], len(cells))
    cell = np.diag([51 * 3.51, 30 * 6.24, 20.0])
    positions = np.column_stack([planar, np.zeros(len(planar))]) @ np.linalg.inv(cell)
    grid = Grid(1.3, 0.01)
    image = fourier_image(Crystal(cell, positions, numbers), grid)
    axis = np.arange(-130, 131) * 0.01
    amplitude = np.zeros(grid.shape, dtype=complex)
    for z in (42, 52):
        x, y = planar[numbers == z].T
        phases = np.exp(-2j * np.pi * np.outer(y, axis)), np.exp(-2j * np.pi * np.outer(x, axis))
        amplitude += scattering_factor(z, np.hypot(*grid.q)) * (phases[0].T @ phases[1])
    expected = np.abs(amplitude) ** 2
    assert grid.shape == (261, 261)
    assert (np.abs(image - expected) / expected).max() < 1e-4


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_image_is_even_and_does_not_depend_on_the_place_of_the_crystal(seed):
    rng = np.random.default_rng(seed)
    crystal = finite_crystal(rng, [42, 52])
    image = fourier_image(crystal, GRID)
    moved = Crystal(
        crystal.cell,
        crystal.positions + rng.normal(size=3),
        crystal.numbers,
        crystal.occupancies,
        crystal.displacements,
    )
    tolerance = 1e-6 * image.max()
    np.testing.assert_allclose(image[::-1, ::-1], image, atol=tolerance)
    np.testing.assert_allclose(fourier_image(moved, GRID), image, rtol=1e-4, atol=tolerance)


def test_columns_are_along_x():
    """Two atoms along x give fringes along the columns and none along the rows."""
    cell = np.diag([10.0, 10.0, 10.0])
    positions = np.array([[0.0, 0, 0], [0.2, 0, 0]])  # 2 angstrom: dark at q_x = 0.25
    image = fourier_image(Crystal(cell, positions, np.array([6, 6])), GRID)
    middle, dark = GRID.reach, GRID.reach + 5
    assert image[middle, dark] < 1e-6 * image[middle, middle]
    assert image[dark, middle] > 0.1 * image[middle, middle]


@pytest.mark.parametrize(
    ("oversampling", "weights"), [(2, [0.25, 0.5, 0.25]), (3, [1 / 3, 1 / 3, 1 / 3])]
)
def test_pixels_are_means_of_points_about_their_middles(oversampling, weights):
    crystal = finite_crystal(np.random.default_rng(5), [42, 52])
    image = pixel_image(crystal, Grid(0.3, 0.05), oversampling)
    fine = fourier_image(crystal, Grid(0.35, 0.05 / 6))  # middle 42; pixels are 6 points apart
    apart = 6 // oversampling
    for row, column in ((6, 6), (1, 9), (0, 12)):
        points = [42 + (k - 6) * 6 + apart * np.arange(-1, 2) for k in (row, column)]
        expected = weights @ fine[np.ix_(*points)] @ weights
        assert image[row, column] == pytest.approx(float(expected), rel=1e-4)


def test_peaks_of_a_large_crystal_do_not_depend_on_its_size():
    """As single points, which published images are made of, they do."""
    grid = Grid(1.3, 0.01)
    heights = []
    for n in (40, 47, 55):
        cells = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
        positions = np.column_stack([cells / n, np.zeros(len(cells))])
        crystal = Crystal(np.diag([3.54 * n, 3.54 * n, 10.0]), positions, np.full(n * n, 42))
        q = np.hypot(grid.q[0] - 2 / 3.54, grid.q[1])
        heights.append([
            image[q < 0.04].sum() / n**2
            for image in (fourier_image(crystal, grid), pixel_image(crystal, grid, 2))
        ])  # fmt: skip
    points, pixels = np.array(heights).T
    assert points.max() / points.min() > 1.5
    assert pixels.max() / pixels.min() < 1.05
