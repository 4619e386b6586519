"""The waves of a narrow probe at the positions of a scan, by multislice.

Potentials are of abTEM. A wave is followed in a window about its position alone, as if the window
were repeated without end, which makes many positions cheap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import abtem
import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from scipy.fft import next_fast_len

from diffractory.simulate.scattering import wavelength

REACH = 2.5
"""Width of a window: so many times wavelength / convergence, the probe's unit of length."""


@dataclass(frozen=True)
class Optics:
    """The probe, and the grid that its wave is calculated on.

    Attributes
    ----------
    energy
        Of the electrons, eV.
    convergence
        Half angle of the probe, radian.
    stride
        Points of the grid between positions.
    sampling
        Distance of its points, angstrom.
    points
        Along the side of a window.
    """

    energy: float
    convergence: float
    stride: int
    sampling: float
    points: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Optics":
        """Return what the configuration section ``symmetry.scan.gold`` asks for."""
        energy, convergence = settings["energy"], settings["convergence"] * 1e-3
        q_max = settings["pixel_size"] * max(settings["shape"]) / 2
        # Two thirds of the wave vectors of the grid are kept, and they reach the detector's edge.
        stride = int(np.ceil(3.1 * q_max * settings["step"]))
        sampling = settings["step"] / stride
        width = REACH * wavelength(energy) / convergence
        points = next_fast_len(int(np.ceil(width / sampling)), real=True)
        return cls(energy, convergence, stride, sampling, points)

    @property
    def width(self) -> float:
        """Of a window, angstrom."""
        return self.points * self.sampling

    def frequencies(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the wave vectors along one side, and their lengths in the plane, 1/angstrom."""
        q = np.fft.fftfreq(self.points, self.sampling).astype(np.float64)
        return q, np.hypot(q[:, None], q)

    def probe(self) -> torch.Tensor:
        """Return the amplitudes of the probe's plane waves, in the middle of a window.

        An edge of the aperture that crosses a wave vector's share of the plane takes part of it.
        """
        q, length = self.frequencies()
        radius = self.convergence / wavelength(self.energy)
        aperture = np.clip((radius - length) * self.width + 0.5, 0, 1)
        aperture /= np.linalg.norm(aperture)
        to_middle = np.exp(-2j * np.pi * q * (self.points // 2) * self.sampling)
        waves = aperture * to_middle[:, None] * to_middle
        return torch.from_numpy(waves.astype(np.complex64))

    def tile(self, positions: tuple[int, int]) -> tuple[int, int]:
        """Return points along y and x of all windows of rows and columns of positions together.

        There may be more, so many that they are transformed fast.
        """
        y, x = (next_fast_len((n - 1) * self.stride + self.points, real=True) for n in positions)
        return y, x

    def propagator(self, distance: float) -> torch.Tensor:
        """Return what plane waves are multiplied by over a distance in angstrom."""
        _, q = self.frequencies()
        kept = q < 1 / (3 * self.sampling)
        phase = -np.pi * wavelength(self.energy) * distance * q**2
        return torch.from_numpy((kept * np.exp(1j * phase)).astype(np.complex64))


@dataclass(frozen=True)
class Slices:
    """Slices of matter in the order that the beam meets them.

    Attributes
    ----------
    transmission
        What each does to a wave, complex, shape (slices, Y, X).
    thickness
        Of each, angstrom.
    """

    transmission: torch.Tensor
    thickness: float

    def moved(self, start: NDArray[np.int64], tile: tuple[int, int]) -> "Slices":
        """Return a tile of matter that repeats, from point ``start`` on (y and x)."""
        y, x = (
            (torch.arange(count) + int(first)) % period
            for count, first, period in zip(tile, start, self.transmission.shape[1:], strict=True)
        )
        return Slices(self.transmission[:, y][:, :, x], self.thickness)


def cut_slices(atoms: Atoms, optics: Optics, thickest: float) -> Slices:
    """Return slices of atoms in a box whose sides are multiples of the sampling."""
    sides = atoms.cell.lengths()
    x, y = np.rint(sides[:2] / optics.sampling).astype(int)
    thickness = sides[2] / np.ceil(sides[2] / thickest)
    # FFTW would measure which way is fastest, and the last bits would change from run to run.
    options = {"fft": "fftw", "fftw.planning_effort": "FFTW_ESTIMATE", "dask.lazy": False}
    with abtem.config.set(options):
        potential = abtem.Potential(
            atoms, gpts=(x, y), slice_thickness=thickness, parametrization="lobato"
        )
        phase = potential.build(lazy=False).array * abtem.core.energy.energy2sigma(optics.energy)
    phase = torch.from_numpy(phase).mT
    transmission = torch.complex(phase.cos(), phase.sin())
    qx, qy = (np.fft.fftfreq(n, optics.sampling) for n in (x, y))
    kept = torch.from_numpy(np.hypot(qy[:, None], qx) < 1 / (3 * optics.sampling))
    return Slices(torch.fft.ifft2(torch.fft.fft2(transmission) * kept), thickness)


def patterns(
    matter: Sequence[Slices], positions: tuple[int, int], optics: Optics
) -> Iterator[NDArray[np.float32]]:
    """Yield the patterns of each row of positions, fraction of the incident beam.

    Parameters
    ----------
    matter
        In the order that the beam meets it, from the first point of the first window on.
    positions
        Rows and columns.

    Yields
    ------
    Shape (columns, q_y, q_x), with wave vectors as of `Optics.frequencies`.
    """
    size, stride = optics.points, optics.stride
    for row in range(positions[0]):
        waves = optics.probe().expand(positions[1], -1, -1)
        for slices in matter:
            propagator = optics.propagator(slices.thickness)
            lines = slices.transmission[:, row * stride : row * stride + size]
            for windows in lines.unfold(2, size, stride).movedim(2, 1):
                waves = torch.fft.ifft2(waves).mul_(windows[: positions[1]])
                waves = torch.fft.fft2(waves).mul_(propagator)
        yield (waves.abs() ** 2).numpy()
