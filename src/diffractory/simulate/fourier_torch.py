"""The sums of `fourier` as products of matrices, for GPUs."""

import numpy as np
import torch
from numpy.typing import NDArray


def image_by_products(
    positions: NDArray[np.float64],
    occupancies: NDArray[np.float64],
    kind: NDArray[np.int64],
    factors: NDArray[np.float64],
    step: float,
    device: str,
) -> NDArray[np.float32]:
    """Return |sum over kinds k of f_k(q) sum over its atoms j of o_j exp(-2 pi i q.R_j)|^2.

    One half of the image is computed, the other is its mirror image.

    Parameters
    ----------
    positions
        R in the plane, angstrom, shape (N, 2).
    occupancies, kind
        o and k of each atom, shape (N,).
    factors
        f, shape (K, rows, columns), both odd.
    step
        Distance of neighbouring q, 1/angstrom.
    device
        Of torch, such as ``"cuda"``.

    Returns
    -------
    Shape (rows, columns).
    """
    _, rows, columns = factors.shape
    place = torch.as_tensor(2 * np.pi * step * positions, device=device)
    strength = torch.as_tensor(occupancies, device=device)
    on_device = torch.as_tensor(factors[:, rows // 2 :], device=device)
    axis = torch.arange(-(columns // 2), columns // 2 + 1, device=device, dtype=torch.float64)
    half = torch.arange(rows // 2 + 1, device=device, dtype=torch.float64)
    amplitude = torch.zeros(len(half), columns, device=device, dtype=torch.complex128)
    for k, factor in enumerate(on_device):
        atoms = torch.as_tensor(np.flatnonzero(kind == k), device=device)
        x, y = place[atoms].T[..., None]
        of_columns = torch.polar(strength[atoms, None].expand(-1, columns), -x * axis)
        of_rows = torch.polar(torch.ones_like(y * half), -y * half)
        amplitude += factor * (of_rows.T @ of_columns)
    intensity = (amplitude.real**2 + amplitude.imag**2).float()
    return torch.cat([intensity[1:].flip(0, 1), intensity]).cpu().numpy()
