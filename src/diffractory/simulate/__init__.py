"""From crystals to electron-diffraction patterns."""
