"""Crystals to diffraction patterns, patterns to trained models, models to published tables."""

__version__ = "0.1.0"
