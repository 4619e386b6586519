"""Patterns of layers with the beam along their normal, and the stage `simulate_layers`.

Each has the reflections (h k 0), all in the plane q_z = 0. Their intensities are those of R. Fu et
al., Commun. Phys. 8, 221 (2025), Eqs. 1 and 2.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from diffractory.simulate.crystal import Crystal
from diffractory.simulate.scattering import (
    ELEMENTARY_CHARGE,
    PLANCK,
    REST_ENERGY,
    SPEED_OF_LIGHT,
    elastic_table,
    lobato,
    mott_bethe,
)
from diffractory.store import (
    InputError,
    Patterns,
    recorded,
    track,
    write_parquet,
    write_patterns,
)

BLOCK = 512
"""Layers that are simulated at a time."""

TIE = 1e-4
"""Relative difference below which intensities count as equal: symmetry makes them so."""

REJECTED_COLUMNS = ["material_id", "reason", "detail"]


def layer_patterns(
    material_ids: Sequence[str], crystals: Sequence[Crystal], settings: Mapping[str, Any]
) -> Patterns:
    """Return the pattern of each layer, brightest spots only, in ascending order of h, then k.

    The intensity of Eq. 1 is, in the plane q_z = 0 and for I_0 = 1,

        I = A P / sin(2 theta) |sum_j o_j f_j(q) exp(-2 pi i q.r_j)|^2 / N,

    with sin(theta) = lambda q / 2 and N the sum of the occupancies o_j. As printed, the equations
    have one form factor for all atoms; here each has that of its element.

    - A = exp(-2 B s^2), s = sin(theta) / lambda = q / 2: the Debye-Waller factor of the intensity,
      of one B for all atoms. Displacements of the crystals themselves are not used.
    - P = (1 + cos^2(2 theta)) / 2: the polarization factor of an unpolarized beam; 1 / sin(2 theta)
      is the Lorentz factor (International Tables C, ch. 6.2). Both are 1 for electrons.
    - f_j: the form factor, in electrons for X-rays and in angstrom for electrons.

    The direct beam is left out. Where `max_points` would part spots of equal intensity, all of them
    are left out, so that a pattern has the symmetry of its layer.

    Parameters
    ----------
    material_ids, crystals
        P layers, whose c axis is along z and whose a and b axes are normal to it.
    settings
        ``radiation`` (``x_ray`` or ``electron``), ``wavelength`` (angstrom), ``debye_waller`` (B,
        square angstrom), ``q_max`` (largest |q_x| and |q_y|, 1/angstrom), ``min_intensity``
        (of a spot, as a fraction of the brightest), ``max_points`` (most spots of a pattern).

    Returns
    -------
    P patterns. The thickness is that between the outermost atoms' centres.

    Raises
    ------
    InputError
        If the c axis of a layer is not along its normal, or the wavelength is out of range.
    """
    cells = np.array([crystal.cell for crystal in crystals]).reshape(-1, 3, 3)
    _check(material_ids, cells, settings)
    reciprocal = np.linalg.inv(cells[:, :2, :2]).transpose(0, 2, 1)
    pattern, half, intensity = _half_patterns(crystals, cells, reciprocal, settings)
    # Friedel's law: the other half of the plane is equal.
    pattern, hk = np.tile(pattern, 2), np.concatenate([half, -half])
    order = np.lexsort((hk[:, 1], hk[:, 0], pattern))
    pattern, hk = pattern[order], hk[order]
    q = np.einsum("sk,skx->sx", hk, reciprocal[pattern])
    count = len(crystals)
    heights = [np.ptp(crystal.positions[:, 2]) * crystal.cell[2, 2] for crystal in crystals]
    energy = _energy(settings["wavelength"], settings["radiation"])
    return Patterns(
        offsets=_offsets(np.bincount(pattern, minlength=count)),
        qx=q[:, 0].astype(np.float32),
        qy=q[:, 1].astype(np.float32),
        intensity=np.tile(intensity, 2)[order].astype(np.float32),
        hkl=np.pad(hk, ((0, 0), (0, 1))).astype(np.int16),
        material_id=np.array(material_ids, dtype=object),
        zone_axis=np.tile(np.array([0, 0, 1], dtype=np.int16), (count, 1)),
        orientation=np.tile(np.eye(3), (count, 1, 1)),
        thickness=np.array(heights, dtype=np.float32),
        energy=np.full(count, energy, dtype=np.float32),
    )


def _check(
    material_ids: Sequence[str], cells: NDArray[np.float64], settings: Mapping[str, Any]
) -> None:
    """Refuse a wavelength that is out of range, and cells, shape (P, 3, 3), that are no layers'."""
    wavelength, q_max = settings["wavelength"], settings["q_max"]
    if not 0 < wavelength <= 1 / q_max:
        raise InputError(
            f"a wavelength of {wavelength:g} angstrom does not scatter to the corners of a grid of "
            f"q_max = {q_max:g}/angstrom at 90 degrees or less: make it positive and at most "
            f"1 / q_max = {1 / q_max:.4g} angstrom, or lower q_max"
        )
    skew = (np.abs(cells[:, [0, 1, 2, 2], [2, 2, 0, 1]]) > 1e-6).any(axis=1)
    if skew.any():
        first = material_ids[int(skew.argmax())]
        raise InputError(
            f"{first} does not lie in the plane of x and y with its c axis along z: make "
            "layers.parquet with the stage prepare_layers"
        )


def _half_patterns(
    crystals: Sequence[Crystal],
    cells: NDArray[np.float64],
    reciprocal: NDArray[np.float64],
    settings: Mapping[str, Any],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return pattern, h k, shape (S, 2), and intensity of the spots of half of each pattern."""
    atoms = [len(crystal.numbers) for crystal in crystals]
    shares = [np.broadcast_to(crystal.occupancies, len(crystal.numbers)) for crystal in crystals]
    # A spot in the grid has |h| = |a.q| <= q_max (|a_x| + |a_y|), and k likewise.
    limits = np.floor(settings["q_max"] * np.abs(cells[:, :2, :2]).sum(axis=2) + 1e-9).astype(int)
    starts = _offsets((limits[:, 0] + 1) * (2 * limits[:, 1] + 1))
    intensity = _intensities(
        _offsets(atoms),
        np.concatenate([crystal.positions[:, :2] for crystal in crystals]),
        np.concatenate([crystal.numbers for crystal in crystals]),
        np.concatenate(shares),
        reciprocal,
        limits,
        starts,
        elastic_table("lobato"),
        settings["radiation"] == "x_ray",
        settings["wavelength"],
        settings["debye_waller"],
        settings["q_max"],
        settings["min_intensity"],
        settings["max_points"] // 2,
    )
    spots = np.flatnonzero(intensity)
    pattern = np.searchsorted(starts, spots, side="right") - 1
    h, k = np.divmod(spots - starts[pattern], 2 * limits[pattern, 1] + 1)
    return pattern, np.stack([h, k - limits[pattern, 1]], axis=1), intensity[spots]


def _offsets(counts: Any) -> NDArray[np.int64]:
    """Return where each of consecutive ranges starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _energy(wavelength: float, radiation: str) -> float:
    """Return the kinetic energy of an electron, or the energy of a photon, in eV."""
    photon = PLANCK * SPEED_OF_LIGHT / (ELEMENTARY_CHARGE * wavelength * 1e-10)
    return photon if radiation == "x_ray" else np.hypot(photon, REST_ENERGY) - REST_ENERGY


@numba.njit(cache=True)
def _intensities(
    atoms: NDArray[np.int64],
    positions: NDArray[np.float64],
    numbers: NDArray[np.int64],
    occupancies: NDArray[np.float64],
    reciprocal: NDArray[np.float64],
    limits: NDArray[np.int64],
    starts: NDArray[np.int64],
    table: NDArray[np.float64],
    x_ray: bool,
    wavelength: float,
    debye_waller: float,
    q_max: float,
    min_intensity: float,
    max_half: int,
) -> NDArray[np.float64]:
    """Return the intensities of half of the plane, h >= 0, and 0 where there is no spot.

    Crystal p has the atoms atoms[p]:atoms[p+1] and the intensities starts[p]:starts[p+1], row by
    row of h, with k from -limits[p, 1] to limits[p, 1].
    """
    result = np.zeros(starts[-1])
    for p in range(len(limits)):
        hk, q = _half_plane(reciprocal[p], limits[p], q_max)
        own = slice(atoms[p], atoms[p + 1])
        amplitude = np.zeros(len(q), dtype=np.complex128)
        for number in set(numbers[own]):
            factor = lobato(q, table[number - 1, 0], table[number - 1, 1])
            if x_ray:
                factor = mott_bethe(number, q, factor)
            weights = np.where(numbers[own] == number, occupancies[own], 0.0)
            amplitude += factor * _geometric_sum(positions[own], weights, hk, limits[p])
        intensity = np.abs(amplitude) ** 2 * np.exp(-debye_waller * q**2 / 2)
        intensity /= occupancies[own].sum()
        if x_ray:
            sine = wavelength * q / 2
            intensity *= (1 + (1 - 2 * sine**2) ** 2) / 2 / (2 * sine * np.sqrt(1 - sine**2))
        limit = _faintest(intensity, min_intensity, max_half)
        for i in range(len(q)):
            if intensity[i] >= limit:
                place = hk[i, 0] * (2 * limits[p, 1] + 1) + hk[i, 1] + limits[p, 1]
                result[starts[p] + place] = intensity[i]
    return result


@numba.njit(cache=True)
def _half_plane(
    reciprocal: NDArray[np.float64], limits: NDArray[np.int64], q_max: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return h k of a half of all spots in the grid, shape (S, 2), and |q|, shape (S,)."""
    hk = np.empty(((limits[0] + 1) * (2 * limits[1] + 1), 2), dtype=np.int64)
    q = np.empty(len(hk))
    count = 0
    for h in range(limits[0] + 1):
        for k in range(-limits[1] if h else 1, limits[1] + 1):
            x = h * reciprocal[0, 0] + k * reciprocal[1, 0]
            y = h * reciprocal[0, 1] + k * reciprocal[1, 1]
            if max(abs(x), abs(y)) <= q_max:
                hk[count, 0], hk[count, 1], q[count] = h, k, np.sqrt(x * x + y * y)
                count += 1
    return hk[:count], q[:count]


@numba.njit(cache=True)
def _geometric_sum(
    positions: NDArray[np.float64],
    weights: NDArray[np.float64],
    hk: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> NDArray[np.complex128]:
    """Return sum_j w_j exp(-2 pi i (h x_j + k y_j)) of each h k, shape (S,)."""
    result = np.zeros(len(hk), dtype=np.complex128)
    for j in range(len(weights)):
        if weights[j] != 0:
            along_a = weights[j] * np.exp(-2j * np.pi * positions[j, 0] * np.arange(limits[0] + 1))
            along_b = np.exp(-2j * np.pi * positions[j, 1] * np.arange(-limits[1], limits[1] + 1))
            for i in range(len(hk)):
                result[i] += along_a[hk[i, 0]] * along_b[hk[i, 1] + limits[1]]
    return result


@numba.njit(cache=True)
def _faintest(intensity: NDArray[np.float64], min_intensity: float, max_half: int) -> float:
    """Return the least intensity of a spot of a half plane that is kept."""
    if len(intensity) == 0:
        return np.inf
    limit = intensity.max() * min_intensity
    if len(intensity) > max_half:
        first_left_out = np.sort(intensity)[-max_half - 1]
        limit = max(limit, first_left_out * (1 + TIE))
    return limit


def simulate_layers(
    layers: Path,
    store: Path,
    rejected: Path,
    run: Path,
    settings: Mapping[str, Any],
    seed: int,
) -> None:
    """Simulate the pattern of every layer.

    Parameters
    ----------
    layers
        ``layers.parquet`` or ``perturbed.parquet``.
    store, rejected, run
        Pattern store, one pattern a layer and in their order; table of layers with fewer than
        ``min_points`` spots, which are not in the store; and ``run.json`` to write.
    settings
        As in `layer_patterns`, and ``min_points``.

    Raises
    ------
    InputError
        If no layer has enough spots, or as in `layer_patterns`.
    """
    with recorded(run, "simulate_layers", settings, [layers], [store, rejected], seed) as facts:
        table = pq.read_table(layers, columns=["material_id", "structure"])
        parts, refused = [], []
        blocks = table.to_batches(max_chunksize=BLOCK)
        for block in track(blocks, "Simulating", len(table), "layers", BLOCK):
            ids, texts = (column.to_pylist() for column in block.columns)
            patterns = layer_patterns(ids, [Crystal.from_json(text) for text in texts], settings)
            counts = np.diff(patterns.offsets)
            enough = counts >= settings["min_points"]
            parts.append(patterns.select(np.flatnonzero(enough)))
            for row in np.flatnonzero(~enough):
                detail = f"{counts[row]} spots, fewer than {settings['min_points']}"
                refused.append((ids[row], "too_few_points", detail))
        if len(refused) == len(table):
            raise InputError(
                f"none of {len(table)} layers has {settings['min_points']} spots or more: lower "
                "min_points or min_intensity, or raise q_max"
            )
        facts["patterns"], facts["spots"] = write_patterns(store, parts)
        write_parquet(rejected, pd.DataFrame(refused, columns=REJECTED_COLUMNS))
