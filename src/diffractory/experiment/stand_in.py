"""A stand-in for a series that is not public: a pumped monolayer, by multislice simulation.

The images that networks learn from are kinematic sums over finite crystals with one phonon, or with
independent atoms. These come from other physics: dynamical scattering, of which I(q) and I(-q)
differ by a third in the innermost spots of 2H MoTe2, by all phonons at once, and another model of
the detector. Electrons have megaelectronvolts in such experiments, since slower ones repel each
other out of a short pulse.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import abtem
import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.special import ndtr

from diffractory.experiment.geometry import Grid
from diffractory.experiment.hot_phonons import Supercell, displacements, read_supercell
from diffractory.store import generator

Pattern = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]
"""Intensity, shape (Y, X), with q_x and q_y, shapes (X,) and (Y,)."""

SLICE = 2.6
"""Thickest slice, angstrom: three of them, one for each plane of atoms."""

SCANS = 2
"""Scan 0 to learn from, scan 1 to judge by."""

WAVE = 0.2
"""Largest relative change of the background within a scan."""


@dataclass(frozen=True)
class Frame:
    """What an image shows.

    Attributes
    ----------
    sample
        "{split}/{kind}/{number}".
    time
        After the pump, ps.
    temperature
        Of the lattice, K.
    amplitude
        Of the motion at M and K beyond that, see `displacements`, angstrom.
    beam
        q_x and q_y of the direct beam on the detector, 1/angstrom.
    background
        Its share of the electrons on the detector, the beam stop included.
    """

    sample: str
    kind: str
    split: str
    scan: int
    time: float
    temperature: float
    amplitude: float
    beam: tuple[float, float]
    background: float

    @property
    def drawn(self) -> dict[str, Any]:
        """What changes from frame to frame, as plain values."""
        names = ("temperature", "amplitude", "beam", "background")
        return {"stand_in": True} | {name: asdict(self)[name] for name in names}


def frames(settings: Mapping[str, Any], seed: int) -> Iterator[Frame]:
    """Yield the frames of both scans in order of time.

    Every frame after the pump is of kind ``phonons_2h``: the motion at M and K rises in about 1 ps.

    Parameters
    ----------
    settings
        As for `simulate_experiment`.
    """
    count, (cold, warm) = settings["frames"], settings["temperature"]
    first, last = settings["delays"]
    for scan in range(SCANS):
        rng = generator(seed, "experiment/scan", scan)
        drift = rng.normal(0, settings["drift"], (count, 2)).cumsum(axis=0)
        phase = rng.uniform(0, 2 * np.pi)
        for number, time in enumerate(np.linspace(first, last, count)):
            after = max(float(time), 0.0)
            rise = 1 - np.exp(-after / settings["rise_time"])
            heat = 1 - np.exp(-after / settings["heating_time"])
            kind = "phonons_2h" if time > 0 else "pristine_2h"
            split = "test" if scan else "validation" if number % 5 == 4 else "train"
            wave = WAVE * np.sin(2 * np.pi * number / count + phase)
            yield Frame(
                f"{split}/{kind}/{scan * count + number}",
                kind,
                split,
                scan,
                float(time),
                float(cold + heat * (warm - cold)),
                float(settings["amplitude"] * rise * np.exp(-after / settings["decay_time"])),
                (float(drift[number, 0]), float(drift[number, 1])),
                float(settings["background"] * (1 + wave)),
            )


def multislice(atoms: Atoms, energy: float, q_max: float) -> Pattern:
    """Return the pattern of a plane wave along z behind atoms in an orthogonal box.

    Parameters
    ----------
    energy
        Of the electrons, eV.
    q_max
        Largest scattering vector that is wanted, 1/angstrom.

    Returns
    -------
    intensity
        Fraction of the incident beam, shape (Y, X).
    qx, qy
        1/angstrom, shapes (X,) and (Y,).
    """
    sides = atoms.cell.lengths()
    # abTEM keeps two thirds of the wave vectors that a grid can hold.
    x, y = (next_fast_len(int(np.ceil(3.1 * q_max * side)), real=True) for side in sides[:2])
    thickness = sides[2] / np.ceil(sides[2] / SLICE)
    # FFTW chooses its way by timing, so that the last bits would change from run to run.
    with abtem.config.set({"fft": "numpy", "dask.lazy": False}):
        potential = abtem.Potential(
            atoms, gpts=(x, y), slice_thickness=thickness, parametrization="lobato"
        )
        wave: Any = abtem.PlaneWave(energy=energy).multislice(potential)
    intensity = abs(np.fft.fft2(wave.array, norm="forward").T) ** 2
    return intensity, np.fft.fftfreq(x, sides[0] / x), np.fft.fftfreq(y, sides[1] / y)


def on_detector(
    pattern: Pattern,
    grid: Grid,
    spread: float,
    beam: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.floating]:
    """Return the image of what passes the beam stop, fraction of the incident beam in each pixel.

    Each spot is a Gaussian, integrated over the pixels.

    Parameters
    ----------
    pattern
        As of `multislice`.
    spread
        Standard deviation of the Gaussians, 1/angstrom.
    beam
        q_x and q_y of the direct beam on the detector, 1/angstrom.
    """
    intensity, qx, qy = pattern
    qx, qy = qx + beam[0], qy + beam[1]
    passed = np.where(np.hypot(qy[:, None], qx) >= grid.beam_stop, intensity, 0)
    rows, columns = grid.q
    half = grid.pixel_size / 2

    def shares(pixels: NDArray[np.floating], spots: NDArray[np.floating]) -> NDArray[np.floating]:
        distance = pixels[:, None] - spots
        return ndtr((distance + half) / spread) - ndtr((distance - half) / spread)

    return shares(rows, qy) @ passed @ shares(columns, qx).T


def reference_image(phonons: Path, settings: Mapping[str, Any], grid: Grid) -> NDArray[np.float32]:
    """Return the image of atoms at rest, without noise, drift and background, of mean 1.

    It has what the frames have in common, so that their differences to it show the motion.
    """
    sheet = _supercell(phonons, tuple(settings["cells"]))
    pattern = multislice(sheet.atoms, settings["energy"], _q_max(grid))
    return grid.normalized(on_detector(pattern, grid, settings["point_spread"]))


def simulate_frame(
    frame: Frame, phonons: Path, settings: Mapping[str, Any], grid: Grid, seed: int
) -> NDArray[np.float32]:
    """Return the image of a frame with all that a detector adds, of mean 1, shape (rows, columns).

    The pattern is the mean over frozen phonons: each electron meets the atoms at one moment.
    """
    rng = generator(seed, "experiment/frame", frame.sample)
    sheet = _supercell(phonons, tuple(settings["cells"]))
    total = np.zeros(())
    for _ in range(settings["configurations"]):
        moved = displacements(sheet, frame.temperature, frame.amplitude, rng)
        atoms = Atoms(sheet.atoms, positions=sheet.atoms.positions + moved)
        intensity, qx, qy = multislice(atoms, settings["energy"], _q_max(grid))
        total = total + intensity
    image = on_detector((total, qx, qy), grid, settings["point_spread"], frame.beam)
    rows, columns = grid.q
    distance = np.hypot(rows[:, None] - frame.beam[1], columns - frame.beam[0])
    halo = np.exp(-distance / settings["background_width"])
    image /= image.sum()
    image += frame.background / (1 - frame.background) * halo / halo.sum()
    electrons = rng.poisson(settings["electrons"] * np.where(grid.lit, image / image.sum(), 0))
    return grid.normalized(electrons + rng.normal(0, settings["readout_noise"], grid.shape))


@lru_cache(maxsize=1)
def _supercell(phonons: Path, cells: tuple[int, int]) -> Supercell:
    return read_supercell(phonons, cells)


def _q_max(grid: Grid) -> float:
    """Return the distance of the corners of the detector from the direct beam, 1/angstrom."""
    return float(np.hypot(*grid.shape)) * grid.pixel_size / 2
