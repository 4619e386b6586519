"""Gold nanoparticles on a film, atom by atom, and what a probe meets of them.

Axes are those of a scan: x along its columns, y along its rows, z along the beam, in angstrom. The
film begins at z = 0; particles lie before it, at z < 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import j0, j1, jn_zeros

from diffractory.errors import InputError
from diffractory.simulate.orientations import random_rotations, rotations_about, rotations_along
from diffractory.simulate.scattering import wavelength
from diffractory.store import generator

LATTICE_CONSTANT = 4.0786
"""Of gold at room temperature, angstrom (powder diffraction file 04-0784)."""

ATOM_VOLUME = LATTICE_CONSTANT**3 / 4
"""Cubic angstrom."""

LAYER = LATTICE_CONSTANT / np.sqrt(3)
"""Distance of {111} planes, angstrom: a probe that meets less gold than one meets no particle."""

BOND = LATTICE_CONSTANT / np.sqrt(2)
"""Distance of neighbours, angstrom: atoms of two particles are no nearer."""

SHARE = 0.1
"""Of the gold under a probe: a grain or a particle that holds less is not counted."""

TILT = 1.0
"""Standard deviation, about each axis, of the film under a particle, degree."""

NEAR = 5.0
"""Largest angle of the beam to the zone axis that a position is said to show, degree."""

ZONE_AXES = np.array(
    [[1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 0], [2, 1, 1], [2, 2, 1], [3, 1, 0], [3, 1, 1]]
)
"""One of each set that symmetry makes equal, with u^2 + v^2 + w^2 up to 11 and u >= v >= w."""

TO_WEDGE = np.array([[0, 0, 1], [np.sqrt(0.5), -np.sqrt(0.5), 0], [np.sqrt(0.5), np.sqrt(0.5), 0]])
"""From the axes of a crystal to those of its fifth of a decahedron: outward, around, along."""

CANDIDATES = 2000
"""Places that are tried for a particle."""


@dataclass(frozen=True)
class Particle:
    """A particle of one or more grains.

    Attributes
    ----------
    kind
        sphere or decahedron.
    diameter
        Of the ball that it fits in, angstrom.
    positions
        Of its atoms, angstrom, shape (N, 3).
    grains
        Grain of each atom, 0 to G - 1, shape (N,).
    orientations
        From the cubic axes of each grain to those of the scan, shape (G, 3, 3).
    """

    kind: str
    diameter: float
    positions: NDArray[np.float64]
    grains: NDArray[np.int64]
    orientations: NDArray[np.float64]


def sphere(diameter: float, rotation: NDArray[np.float64]) -> Particle:
    """Return a ball of one crystal about the origin.

    Parameters
    ----------
    diameter
        In angstrom.
    rotation
        From the cubic axes to those of the scan, shape (3, 3).
    """
    positions = _crystal(diameter) @ rotation.T
    grains = np.zeros(len(positions), dtype=np.int64)
    return Particle("sphere", diameter, positions, grains, rotation[None])


def decahedron(diameter: float, rotation: NDArray[np.float64]) -> Particle:
    """Return five twinned crystals about the origin, a pentagonal bipyramid with a round rim.

    Each is a tetrahedron with an edge along the common <110> axis; neighbours share a {111} plane.
    Five tetrahedra leave a gap of 7.4 degree, which is closed here by an even strain.

    Parameters
    ----------
    diameter
        Between the tips, on the common axis, and of the rim, angstrom.
    rotation
        From the axes of the first grain to those of the scan, shape (3, 3).
    """
    # {111} planes make arctan(sqrt(1/2)) with <001>, the middle of a grain, in place of 36 degree.
    strain = np.sqrt(np.tan(np.pi / 5) * np.sqrt(2))
    out, around, along = (_crystal(1.1 * diameter) @ TO_WEDGE.T * [1 / strain, strain, 1]).T
    radius, angle = np.hypot(out, around), np.arctan2(around, out)
    inside = np.sqrt(2) * abs(along) + out <= diameter / np.sqrt(2) + 1e-6  # its two outer faces
    inside &= np.hypot(radius, along) <= diameter / 2 + 1e-6
    # Atoms of the common planes are of one grain, those of the axis of the first.
    axis = inside & (radius < 1e-6)
    inside &= (angle > -np.pi / 5 + 1e-6) & (angle <= np.pi / 5 + 1e-6) & ~axis
    turns = rotations_about(2, np.linspace(0.0, 2 * np.pi, 5, endpoint=False, dtype=np.float64))
    wedge = np.stack([out, around, along], axis=1)
    fifths = (wedge[inside] @ turns.transpose(0, 2, 1)).reshape(-1, 3)
    positions = np.concatenate([wedge[axis], fifths])
    grains = np.repeat([0, *range(5)], [axis.sum(), *[inside.sum()] * 5])
    to_scan = rotation @ TO_WEDGE.T
    orientations = to_scan @ turns @ TO_WEDGE
    return Particle("decahedron", diameter, positions @ to_scan.T, grains, orientations)


def scatter_particles(
    settings: Mapping[str, Any], field: tuple[float, float], seed: int
) -> list[Particle]:
    """Return particles at random places on the film, some of them on top of others.

    Parameters
    ----------
    settings
        ``particles``, ``diameter``, ``decahedra``, ``facets`` and ``overlapping`` of the
        configuration section ``symmetry.scan.gold``.
    field
        Length along x and y that their middles lie within, angstrom.

    Raises
    ------
    InputError
        If they do not fit.
    """
    count = settings["particles"]
    rng = generator(seed, "gold/particles", 0)
    twinned, lying, stacked = (
        rng.permutation(count) < round(settings[share] * count)
        for share in ("decahedra", "facets", "overlapping")
    )
    placed: list[Particle] = []
    balls = np.empty((0, 4))
    for number in range(count):
        diameter = rng.uniform(*settings["diameter"])
        rotation = _on_a_facet(rng) if lying[number] else random_rotations(1, rng)[0]
        radius = (diameter + BOND) / 2
        middle = _place(field, balls, radius, stacked[number], rng)
        if middle is None:
            raise InputError(
                f"{count} particles do not fit into the {field[1]:.0f} by "
                f"{field[0]:.0f} angstrom of the scan: set fewer symmetry.scan.gold.particles, "
                "smaller ones, or more positions"
            )
        balls = np.vstack([balls, [*middle, radius]])
        particle = (decahedron if twinned[number] else sphere)(diameter, rotation)
        placed.append(replace(particle, positions=particle.positions + middle))
    return placed


def what_probes_meet(
    particles: Sequence[Particle], probes: NDArray[np.float64], energy: float, convergence: float
) -> pd.DataFrame:
    """Return what is under each probe, each atom weighted by the intensity of the probe there.

    Atoms count up to the first dark ring of the probe.

    Parameters
    ----------
    probes
        x and y, angstrom, shape (P, 2).
    energy
        Of the electrons, eV.
    convergence
        Half angle of the probe, radian.

    Returns
    -------
    One row per probe: ``particle`` (index; -1 where less than a layer of gold is met), ``kind``,
    ``overlap`` (more than one particle), ``twinned`` (more than one grain of this particle),
    ``zone_axis`` (of the grain that is met most, such as "[111]", or "other"), ``angle_111``,
    ``angle_100``, ``angle_110`` (of the beam to the nearest such axis of this grain, degree; NaN
    without particle) and ``thickness`` (of gold, mean over the probe, angstrom).
    """
    scale = 2 * np.pi * convergence / wavelength(energy)  # of an Airy pattern, 1/angstrom
    tree = cKDTree(probes)
    grains = np.concatenate([_met(particle, tree, scale) for particle in particles])
    axes = np.concatenate([particle.orientations[:, 2] for particle in particles])
    owner = np.repeat(np.arange(len(particles)), [len(p.orientations) for p in particles])
    whole = np.zeros((len(particles), len(probes)))
    np.add.at(whole, owner, grains)
    thickness = whole.sum(axis=0)
    met, least = thickness >= LAYER, SHARE * thickness
    particle = np.where(met, whole.argmax(axis=0), -1)
    own = np.where(owner[:, None] == particle, grains, 0)
    angles = np.full((len(probes), len(ZONE_AXES)), np.nan)
    angles[met] = angles_to_zone_axes(axes[own.argmax(axis=0)[met]])
    kinds = np.array([*(particle.kind for particle in particles), "none"])
    names = np.array([f"[{u}{v}{w}]" for u, v, w in ZONE_AXES])
    near = np.nan_to_num(angles, nan=np.inf)
    zone_axis = np.where(near.min(axis=1) <= NEAR, names[near.argmin(axis=1)], "other")
    return pd.DataFrame(
        {
            "particle": particle,
            "kind": kinds[particle],
            "overlap": met & ((whole > least).sum(axis=0) > 1),
            "twinned": met & ((own > least).sum(axis=0) > 1),
            "zone_axis": zone_axis,
            "angle_111": angles[:, 2],
            "angle_100": angles[:, 0],
            "angle_110": angles[:, 1],
            "thickness": thickness,
        }
    )


def angles_to_zone_axes(beam: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angles of directions to the nearest of each set of zone axes, degree.

    Parameters
    ----------
    beam
        Unit vectors along the cubic axes of a crystal, shape (N, 3).

    Returns
    -------
    Shape (N, `ZONE_AXES`).
    """
    # The nearest of the 48 equal axes has its indices in the order of the components.
    ordered = -np.sort(-abs(beam), axis=1)
    axes = ZONE_AXES / np.linalg.norm(ZONE_AXES, axis=1, keepdims=True)
    return np.degrees(np.arccos(np.clip(ordered @ axes.T, -1, 1)))


def _crystal(diameter: float) -> NDArray[np.float64]:
    """Return the atoms of a ball of gold along its cubic axes, angstrom, shape (N, 3)."""
    half = LATTICE_CONSTANT / 2
    most = int(np.ceil(diameter / LATTICE_CONSTANT))
    reach = np.arange(-most, most + 1, dtype=np.float64)
    points = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
    points = points[points.sum(axis=1) % 2 == 0] * half
    return points[np.linalg.norm(points, axis=1) <= diameter / 2 + 1e-6]


def _on_a_facet(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the rotation of a crystal that lies on {111} or {100}, turned at random."""
    facet = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]][rng.integers(2)])
    tilted = facet / np.linalg.norm(facet) + rng.normal(0, np.radians(TILT), 3)
    return rotations_along(tilted[None], rng.uniform(0, 2 * np.pi, 1))[0]


def _place(
    field: tuple[float, float],
    balls: NDArray[np.float64],
    radius: float,
    covers: bool,
    rng: np.random.Generator,
) -> NDArray[np.float64] | None:
    """Return the middle of a new ball on the film, or that covers one other in part.

    Where there is no place of the one kind it is of the other; None if there is none of either.

    Parameters
    ----------
    balls
        Middles and radii of those that are there, angstrom, shape (N, 4).
    """
    tried = rng.uniform(0, 1, (CANDIDATES, 2)) * field
    middles, radii = balls[:, :3], balls[:, 3]
    touching = radii + radius
    apart = np.linalg.norm(tried[:, None] - middles[:, :2], axis=2)
    covered = apart < touching
    low = -middles[:, 2] < radii + 1e-6
    partly = (covered & low & (apart > 0.5 * touching) & (apart < 0.8 * touching)).any(axis=1)
    free, on_one = ~covered.any(axis=1), partly & (covered.sum(axis=1) == 1)
    good = on_one if (covers and on_one.any()) or not free.any() else free
    if not good.any():
        return None
    first = good.argmax()
    under = covered[first]
    on_top = np.sqrt(touching[under] ** 2 - apart[first, under] ** 2) - middles[under, 2]
    return np.array([*tried[first], -on_top.max(initial=radius)])


def _met(particle: Particle, probes: cKDTree, scale: float) -> NDArray[np.float64]:
    """Return the gold of each grain under each probe, mean over the probe, angstrom, (G, P)."""
    dark = jn_zeros(1, 1)[0]
    atoms = cKDTree(particle.positions[:, :2])
    pairs = probes.sparse_distance_matrix(atoms, dark / scale, output_type="ndarray")
    x = np.maximum(scale * pairs["v"], 1e-9)
    # Of the whole pattern, 4 pi / scale^2, this part lies within the dark ring.
    area = 4 * np.pi / scale**2 * (1 - j0(dark) ** 2)
    thickness = (2 * j1(x) / x) ** 2 * ATOM_VOLUME / area
    shape = len(particle.orientations), probes.n
    cell = np.ravel_multi_index((particle.grains[pairs["j"]], pairs["i"]), shape)
    sums = np.bincount(cell, thickness, minlength=np.prod(shape))
    return np.asarray(sums, dtype=np.float64).reshape(shape)
