"""What `propagation.propagate` does, for batches of patterns on any torch device."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from diffractory.simulate.propagation import (
    NOTHING,
    TOLERANCE,
    chebyshev_terms,
    first_check,
    hessenberg_waves,
    next_check,
    pattern_memory,
    tridiagonal_waves,
)
from diffractory.store import InputError

WORKSPACE = 3
"""Memory while the matrices are built, as a multiple of theirs: indices, weights, moduli."""

SMALLEST_OF_LARGEST = 0.8
"""Least number of beams in a batch, as a fraction of the most: padding wastes the rest."""


def propagate_batches(
    table: NDArray[np.float32],
    absorbing: bool,
    centre: int,
    offsets: NDArray[np.int64],
    index: NDArray[np.int32],
    start: NDArray[np.int64],
    diagonal: NDArray[np.float32],
    metric: NDArray[np.float32],
    thicknesses: NDArray[np.float64],
    device: str,
    memory: float,
) -> NDArray[np.float32]:
    """Return |phi_i|^2, shape (T, B), of phi = exp(2 pi i t H) e for every pattern and thickness.

    Parameters
    ----------
    table, absorbing, centre, offsets, index, start, diagonal, metric, thicknesses
        As for `propagation.propagate`.
    device
        As torch names it.
    memory
        Bytes that a batch may take on the device.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"simulate.device is cuda, but torch {torch.__version__} finds no CUDA device here: "
            "set it to cpu, or run where there is one"
        )
    lookup = torch.from_numpy(table[0] if len(table) == 1 else table[0] + 1j * table[1]).to(device)
    result = np.empty((len(thicknesses), len(index)), dtype=np.float32)
    for batch in _batches(np.diff(offsets), memory):
        rows = offsets[batch, None] + np.arange(np.diff(offsets)[batch].max())
        filled = rows < offsets[batch + 1, None]
        # A row of padding has a metric of zero: it couples to nothing.
        padded = [
            np.where(filled, x[np.where(filled, rows, 0)], 0) for x in (index, diagonal, metric)
        ]
        beam, on_diagonal, weight = (torch.from_numpy(x).to(device) for x in padded)
        matrix = lookup[centre + beam[:, :, None] - beam[:, None]]
        matrix *= weight[:, :, None] * weight[:, None]
        matrix.diagonal(dim1=1, dim2=2).real.copy_(on_diagonal)
        wave = torch.zeros_like(matrix[:, 0])
        wave[torch.arange(len(batch)), torch.from_numpy(start[batch])] = 1
        exit_wave = _exit_waves(matrix, wave, absorbing, thicknesses)
        result[:, rows[filled]] = (exit_wave.abs() ** 2).cpu().numpy().transpose(1, 0, 2)[:, filled]
    return result


def _batches(n_beams: NDArray[np.int64], memory: float) -> Iterator[NDArray[np.int64]]:
    """Yield patterns of similar numbers of beams, as many as fit in the memory (bytes)."""
    order = np.argsort(-n_beams, kind="stable")
    while len(order):
        largest = int(n_beams[order[0]])
        similar = int((n_beams[order] >= SMALLEST_OF_LARGEST * largest).sum())
        count = max(1, min(similar, int(memory / (WORKSPACE * pattern_memory(largest)))))
        yield order[:count]
        order = order[count:]


def _exit_waves(
    matrix: torch.Tensor, wave: torch.Tensor, absorbing: bool, thicknesses: NDArray[np.float64]
) -> torch.Tensor:
    """Return exp(2 pi i t H) e, (P, T, N), of matrices (P, N, N) and unit vectors (P, N)."""
    diagonal = matrix.diagonal(dim1=1, dim2=2).real
    radius = matrix.abs().sum(dim=2) - diagonal.abs()
    width = ((diagonal + radius).amax(dim=1) - (diagonal - radius).amin(dim=1)).clamp(min=1e-6)
    limit = chebyshev_terms(width.max().item(), thicknesses.max())
    basis, overlaps, norms = [wave], [], []
    check = first_check(width.min().item(), thicknesses.max(), matrix.shape[1])
    for m in range(1, limit + 1):
        new = torch.bmm(matrix, basis[-1][:, :, None])
        # For Hermitian H the earlier overlaps vanish; Arnoldi's need a second pass in float32.
        earlier = torch.stack(basis if absorbing else basis[-2:], dim=1)
        overlap = torch.zeros_like(earlier[:, :, :1])
        for _ in range(2 if absorbing else 1):
            more = torch.bmm(earlier.conj(), new)
            new = new - torch.bmm(earlier.mT, more)
            overlap += more
        norm = torch.linalg.vector_norm(new[:, :, 0], dim=1)
        norm = torch.where(norm < NOTHING * width, 0, norm)
        overlaps.append(overlap[:, :, 0])
        norms.append(norm)
        basis.append(new[:, :, 0] / torch.where(norm == 0, torch.inf, norm)[:, None])
        if m in (check, limit):
            y = _waves(overlaps, norms, absorbing, thicknesses)
            tail = np.abs(y[..., -3:]).max()
            if tail < TOLERANCE:
                break
            check = next_check(m, tail)
    amplitudes = torch.from_numpy(y[:, :, 0] + 1j * y[:, :, 1]).to(matrix.device, torch.complex64)
    return torch.bmm(amplitudes, torch.stack(basis[:m], dim=1).to(torch.complex64))


def _waves(
    overlaps: list[torch.Tensor],
    norms: list[torch.Tensor],
    absorbing: bool,
    thicknesses: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the waves in the m Krylov vectors, (P, T, 2, m), solved on the host."""
    side = torch.stack(norms, dim=1).double().cpu().numpy()
    if not absorbing:
        diagonal = torch.stack([overlap[:, -1].real for overlap in overlaps], dim=1)
        return tridiagonal_waves(diagonal.double().cpu().numpy(), side[:, :-1], thicknesses)
    m = len(overlaps)
    projected = np.zeros((len(side), 2, m, m))
    for k, overlap in enumerate(overlaps):
        projected[:, 0, : k + 1, k] = overlap.real.cpu().numpy()
        projected[:, 1, : k + 1, k] = overlap.imag.cpu().numpy()
    below = np.arange(m - 1)
    projected[:, 0, below + 1, below] = side[:, :-1]
    return hessenberg_waves(projected, thicknesses)
