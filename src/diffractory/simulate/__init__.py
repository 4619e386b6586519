"""From crystals to diffraction patterns."""

import os

# Idle OpenMP threads sleep: if they spin, each parallel loop costs milliseconds on shared cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
