"""Names that several tables share."""

CRYSTAL_SYSTEMS = (
    "triclinic",
    "monoclinic",
    "orthorhombic",
    "tetragonal",
    "trigonal",
    "hexagonal",
    "cubic",
)
"""From the lowest to the highest symmetry; tables and figures keep this order."""

LATTICE = ("a", "b", "c", "alpha", "beta", "gamma")
"""Lattice constants of the conventional cell, angstrom and degree."""

MAX_ATOMIC_NUMBER = 103
"""Heaviest element with electron scattering factors (Lobato and Van Dyck, 2014): lawrencium."""
