"""The exponential of many Hermitian or absorbing matrices, each applied to a unit vector: CPUs.

Krylov projection (T. J. Park and J. C. Light, J. Chem. Phys. 85, 5870 (1986)): the vectors
e, H e, H^2 e, ... are made orthonormal (Lanczos; Arnoldi if H absorbs), and exp(2 pi i t H) e is
taken in their span, where H is a small tridiagonal (Hessenberg) matrix. Their number grows with t
times the spread of those eigenvalues that e meets, and symmetry that e shares makes it smaller.
"""

import numba
import numpy as np
from numpy.typing import NDArray

Real32 = NDArray[np.float32]
Real64 = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 3e-6
"""Largest share that the last Krylov vectors may have in the exit wave."""

NOTHING = 5e-7
"""Norms of new Krylov vectors below this fraction of the spectrum's width are rounding errors."""


NEGLIGIBLE = 1e-10
"""Chebyshev coefficients below this are left out, as most are of the lesser thicknesses."""


def propagate(
    table: Real32,
    absorbing: bool,
    centre: int,
    offsets: Integers,
    index: NDArray[np.int32],
    start: Integers,
    diagonal: Real32,
    metric: Real32,
    thicknesses: Real64,
    workers: int,
) -> Real32:
    """Return |phi_i|^2 of phi = exp(2 pi i t H) e for every pattern and thickness.

    H_ij = table[centre + index_i - index_j] metric_i metric_j off the diagonal.

    Parameters
    ----------
    table
        Shape (1, L) for real symmetric H, (2, L) with the imaginary part for others, 1/angstrom.
    absorbing
        Whether H is not Hermitian.
    centre
        Where in the table index differences of zero stand.
    offsets
        Rows of pattern p are offsets[p]:offsets[p + 1], shape (P + 1,).
    index, diagonal, metric
        Shape (B,); diagonal in 1/angstrom.
    start
        Which of its rows each pattern starts from, shape (P,).
    thicknesses
        In angstrom, shape (T,).
    workers
        Number of patterns that are worked on at a time.

    Returns
    -------
    Shape (T, B).
    """
    intensities = np.empty((len(thicknesses), len(index)), dtype=np.float32)
    memory = np.empty((workers, len(table) * np.diff(offsets).max() ** 2), dtype=np.float32)
    # None is a type of its own, by which Numba leaves out, and need not compile, the other solver.
    _propagate(
        table, absorbing or None, centre, offsets, index, start, diagonal, metric, thicknesses,
        memory, intensities,
    )  # fmt: skip
    return intensities


@numba.njit(cache=True, parallel=True, fastmath=True)
def _propagate(
    table: Real32,
    absorbing: bool | None,
    centre: int,
    offsets: Integers,
    index: NDArray[np.int32],
    start: Integers,
    diagonal: Real32,
    metric: Real32,
    thicknesses: Real64,
    memory: Real32,
    intensities: Real32,
) -> None:
    """Write the intensities; `memory` has a row for the matrix of each worker.

    For a Hermitian H, ``absorbing`` is None.
    """
    workers = len(memory)
    for worker in numba.prange(workers):
        for p in range(worker, len(offsets) - 1, workers):  # neighbours are of similar size
            rows = slice(offsets[p], offsets[p + 1])
            matrix, width = _fill(
                memory[worker], table, centre, index[rows], diagonal[rows], metric[rows]
            )
            if absorbing is None:
                basis, y = _lanczos(matrix, start[p], width, thicknesses)
            else:
                basis, y = _arnoldi(matrix, start[p], width, thicknesses)
            for t in range(len(thicknesses)):
                _exit_wave(basis, y[t], intensities[t, rows])


@numba.njit(cache=True, fastmath=True)
def _fill(
    memory: Real32,
    table: Real32,
    centre: int,
    index: NDArray[np.int32],
    diagonal: Real32,
    metric: Real32,
) -> tuple[Real32, float]:
    """Write H; return it, and the width of an interval with its eigenvalues (Gershgorin)."""
    low = high = diagonal[0]
    parts, n = len(table), len(index)
    matrix = memory[: parts * n * n].reshape(parts, n, n)
    for i in range(n):
        radius = np.float32(0.0)
        origin = centre + index[i]
        for part in range(parts):
            row = matrix[part, i]
            for j in range(n):
                row[j] = table[part, origin - index[j]] * (metric[i] * metric[j])
                radius += abs(row[j])
        radius -= abs(matrix[0, i, i])
        matrix[0, i, i] = diagonal[i]  # the mean absorption, an imaginary part, stays
        low = min(low, diagonal[i] - radius)
        high = max(high, diagonal[i] + radius)
    return matrix, max(high - low, np.float32(1e-6))


@numba.njit(cache=True, fastmath=True)
def _multiply(matrix: Real32, x: Real32, y: Real32) -> None:
    """Write H x to y, both of shape (parts, n): several rows at a time, to reuse x."""
    n = matrix.shape[1]
    if len(matrix) == 1:
        u = x[0]
        for i in range(0, n - 3, 4):
            row0, row1, row2, row3 = (
                matrix[0, i],
                matrix[0, i + 1],
                matrix[0, i + 2],
                matrix[0, i + 3],
            )
            sum0, sum1, sum2, sum3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(n):
                sum0 += row0[j] * u[j]
                sum1 += row1[j] * u[j]
                sum2 += row2[j] * u[j]
                sum3 += row3[j] * u[j]
            y[0, i], y[0, i + 1], y[0, i + 2], y[0, i + 3] = sum0, sum1, sum2, sum3
        for i in range(n - n % 4, n):
            sum0 = np.float32(0)
            for j in range(n):
                sum0 += matrix[0, i, j] * u[j]
            y[0, i] = sum0
    else:
        u, v = x[0], x[1]
        for i in range(0, n - 1, 2):
            a0, a1, b0, b1 = matrix[0, i], matrix[0, i + 1], matrix[1, i], matrix[1, i + 1]
            re0, im0, re1, im1 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(n):
                re0 += a0[j] * u[j] - b0[j] * v[j]
                im0 += a0[j] * v[j] + b0[j] * u[j]
                re1 += a1[j] * u[j] - b1[j] * v[j]
                im1 += a1[j] * v[j] + b1[j] * u[j]
            y[0, i], y[1, i], y[0, i + 1], y[1, i + 1] = re0, im0, re1, im1
        if n % 2:
            re0, im0 = np.float32(0), np.float32(0)
            for j in range(n):
                re0 += matrix[0, n - 1, j] * u[j] - matrix[1, n - 1, j] * v[j]
                im0 += matrix[0, n - 1, j] * v[j] + matrix[1, n - 1, j] * u[j]
            y[0, n - 1], y[1, n - 1] = re0, im0


@numba.njit(cache=True, fastmath=True)
def _lanczos(
    matrix: Real32, start: int, width: float, thicknesses: Real64
) -> tuple[Real32, Real64]:
    """Return the Krylov vectors, (m, parts, n), and the wave in them, (T, 2, m): Hermitian H.

    In float32 the vectors soon lose their orthogonality, which costs a few more of them and no
    accuracy (V. Druskin, A. Greenbaum and L. Knizhnerman, SIAM J. Sci. Comput. 19, 38 (1998)).
    """
    limit = chebyshev_terms(width, thicknesses.max())
    basis = np.empty((limit + 1, len(matrix), matrix.shape[1]), dtype=np.float32)
    basis[0] = 0
    basis[0, 0, start] = 1
    alpha, beta = np.empty(limit), np.empty(limit)
    check = first_check(width, thicknesses.max(), matrix.shape[1])
    for m in range(1, limit + 1):
        now, new = basis[m - 1].reshape(-1), basis[m].reshape(-1)
        _multiply(matrix, basis[m - 1], basis[m])
        # For Hermitian H both numbers are real, so that complex vectors are as good as longer ones.
        a = np.float32(0)
        for j in range(len(new)):
            a += now[j] * new[j]
        for j in range(len(new)):
            new[j] -= a * now[j]
        if m > 1:
            before, b = basis[m - 2].reshape(-1), np.float32(beta[m - 2])
            for j in range(len(new)):
                new[j] -= b * before[j]
        square = np.float32(0)
        for j in range(len(new)):
            square += new[j] * new[j]
        alpha[m - 1], beta[m - 1] = a, np.sqrt(square)
        last = beta[m - 1] < NOTHING * width or m == limit
        if m == check or last:
            y = tridiagonal_wave(alpha[:m], beta[: m - 1], thicknesses)
            tail = _tail(y)
            if last or tail < TOLERANCE:
                break
            check = next_check(m, tail)
        scale = np.float32(1 / beta[m - 1])
        for j in range(len(new)):
            new[j] *= scale
    return basis[:m], y


@numba.njit(cache=True, fastmath=True)
def _arnoldi(
    matrix: Real32, start: int, width: float, thicknesses: Real64
) -> tuple[Real32, Real64]:
    """Return what `_lanczos` does, for H that is not Hermitian."""
    n = matrix.shape[1]
    limit = chebyshev_terms(width, thicknesses.max())
    basis = np.empty((limit + 1, 2, n), dtype=np.float32)
    basis[0] = 0
    basis[0, 0, start] = 1
    projected = np.zeros((2, limit + 1, limit))
    check = first_check(width, thicknesses.max(), matrix.shape[1])
    for m in range(1, limit + 1):
        new = basis[m]
        _multiply(matrix, basis[m - 1], new)
        for k in range(m):
            re, im = np.float32(0), np.float32(0)
            for j in range(n):
                re += basis[k, 0, j] * new[0, j] + basis[k, 1, j] * new[1, j]
                im += basis[k, 0, j] * new[1, j] - basis[k, 1, j] * new[0, j]
            for j in range(n):
                new[0, j] -= re * basis[k, 0, j] - im * basis[k, 1, j]
                new[1, j] -= re * basis[k, 1, j] + im * basis[k, 0, j]
            projected[0, k, m - 1], projected[1, k, m - 1] = re, im
        norm = np.sqrt((new * new).sum())
        projected[0, m, m - 1] = norm
        last = norm < NOTHING * width or m == limit
        if m == check or last:
            # The elastic part alone tells cheaply whether it is too early.
            elastic = projected[0, :m, :m]
            y = tridiagonal_wave(np.diag(elastic), np.diag(elastic, -1), thicknesses)
            tail = _tail(y)
            if last or tail < TOLERANCE:
                y = hessenberg_wave(projected[:, :m, :m], thicknesses)
                tail = _tail(y)
                if last or tail < TOLERANCE:
                    break
            check = next_check(m, tail)
        new /= np.float32(norm)
    return basis[:m], y


@numba.njit(cache=True)
def _tail(y: Real64) -> float:
    """Return the largest share of the last three Krylov vectors: y of shape (T, 2, m)."""
    tail = 0.0
    for t in range(y.shape[0]):
        for part in range(2):
            for k in range(max(y.shape[2] - 3, 0), y.shape[2]):
                tail = max(tail, abs(y[t, part, k]))
    return tail


@numba.njit(cache=True)
def first_check(width: float, thickness: float, n: int) -> int:
    """Return how many Krylov vectors n beams need at least, as a rule."""
    return 8 + int(min(np.pi * width * thickness, n)) // 2


@numba.njit(cache=True)
def next_check(m: int, tail: float) -> int:
    """Return when to look again: once the last coefficients fall, they fall fast."""
    return m + max(m // 6 if tail > 0.05 else m // 12, 2)


@numba.njit(cache=True)
def chebyshev_terms(width: float, thickness: float) -> int:
    """Return how many Chebyshev polynomials make exp(2 pi i t x) over an interval of that width.

    Krylov vectors are never needed more.
    """
    argument = np.pi * width * thickness
    return int(argument + 8 * argument ** (1 / 3) + 12)


@numba.njit(cache=True)
def chebyshev_coefficients(width: float, thicknesses: Real64) -> Real64:
    """Return the coefficients of exp(2 pi i t x) in T_k(2 x / width), without i^k, shape (T, K).

    They are Bessel functions, J_0 and 2 J_k (H. Tal-Ezer and R. Kosloff, J. Chem. Phys. 81, 3967
    (1984)), here by Miller's downward recurrence.
    """
    terms = chebyshev_terms(width, thicknesses.max())
    result = np.empty((len(thicknesses), terms))
    values = np.empty(terms + 30)
    for t in range(len(thicknesses)):
        x = np.pi * width * thicknesses[t]
        values[-1] = 0.0
        values[-2] = 1e-30
        for k in range(len(values) - 2, 0, -1):
            values[k - 1] = 2 * k / x * values[k] - values[k + 1]
            if abs(values[k - 1]) > 1e100:
                values[k - 1 :] *= 1e-100
        norm = values[0] + 2 * values[2::2].sum()  # J_0 + 2 (J_2 + J_4 + ...) = 1
        for k in range(terms):
            result[t, k] = (2 if k else 1) / norm * values[k]
    return result


@numba.njit(cache=True)
def _interval(diagonal: Real64, side: Real64) -> tuple[float, float]:
    """Return middle and width of an interval with all eigenvalues of a symmetric tridiagonal."""
    low = high = diagonal[0]
    for i in range(len(diagonal)):
        radius = (side[i - 1] if i > 0 else 0.0) + (side[i] if i < len(side) else 0.0)
        low, high = min(low, diagonal[i] - radius), max(high, diagonal[i] + radius)
    return (low + high) / 2, max(high - low, 1e-6)


@numba.njit(cache=True, fastmath=True)
def tridiagonal_wave(diagonal: Real64, side: Real64, thicknesses: Real64) -> Real64:
    """Return exp(2 pi i t T) e_0 of a symmetric tridiagonal T, up to a phase.

    Parameters
    ----------
    diagonal, side
        Shapes (m,) and (m - 1,), 1/angstrom.

    Returns
    -------
    Real and imaginary part, shape (T, 2, m).
    """
    m = len(diagonal)
    # The interval is that of T itself, whatever rounding has made of it: the sum is always stable.
    middle, width = _interval(diagonal, side)
    coefficients = chebyshev_coefficients(width, thicknesses)
    centred = 4 / width * (diagonal - middle)
    below = np.zeros(m + 1)  # below[j] stands between j - 1 and j
    below[1:m] = 4 / width * side
    y = np.zeros((len(thicknesses), 2, m))
    now, last, new = np.zeros(m + 2), np.zeros(m + 2), np.zeros(m + 2)  # with a zero at each end
    now[1] = 1.0
    for k in range(coefficients.shape[1]):
        for t in range(len(thicknesses)):
            c = coefficients[t, k] if k % 4 < 2 else -coefficients[t, k]  # i^k: 1, i, -1, -i
            part = y[t, k % 2]
            if abs(c) < NEGLIGIBLE:
                continue
            for j in range(min(k + 1, m)):  # T_k has come no further
                part[j] += c * now[j + 1]
        factor = 0.5 if k == 0 else 1.0
        for j in range(min(k + 2, m)):
            product = centred[j] * now[j + 1] + below[j] * now[j] + below[j + 1] * now[j + 2]
            new[j + 1] = factor * product - last[j + 1]
        last, now, new = now, new, last
    return y


SHORT_STEP = 12.0
"""Argument of the Bessel functions up to which absorption may make Chebyshev polynomials grow."""


@numba.njit(cache=True, fastmath=True)
def hessenberg_wave(projected: Real64, thicknesses: Real64) -> Real64:
    """Return exp(2 pi i t h) e_0 of an upper Hessenberg h, up to a phase, as `tridiagonal_wave`.

    Parameters
    ----------
    projected
        Real and imaginary part of h, 1/angstrom, shape (2, m, m); nearly tridiagonal.
    """
    m = projected.shape[1]
    middle, width = _interval(np.diag(projected[0]), np.diag(projected[0], -1))
    width = max(width, 4 * np.abs(projected[1]).max())
    h_re, h_im = 4 / width * projected[0], 4 / width * projected[1]
    for i in range(m):
        h_re[i, i] -= 4 / width * middle
    y = np.empty((len(thicknesses), 2, m))
    re, im = np.zeros(m), np.zeros(m)
    re[0] = 1.0
    done = 0.0
    for t in np.argsort(thicknesses):
        # Polynomials of an absorbing h grow with their order, so that one sum must not go far.
        steps = int(np.pi * width * (thicknesses[t] - done) / SHORT_STEP) + 1
        step = np.full(1, (thicknesses[t] - done) / steps)
        coefficients = chebyshev_coefficients(width, step)[0]
        for _ in range(steps):
            re, im = _chebyshev_step(h_re, h_im, coefficients, re, im)
        done = thicknesses[t]
        y[t, 0], y[t, 1] = re, im
    return y


@numba.njit(cache=True, fastmath=True)
def _chebyshev_step(
    h_re: Real64, h_im: Real64, coefficients: Real64, re: Real64, im: Real64
) -> tuple[Real64, Real64]:
    """Return sum_k i^k c_k T_k(h / 2) v of a Hessenberg h and v = re + i im."""
    m = len(re)
    now, last, new = np.zeros((2, m)), np.zeros((2, m)), np.zeros((2, m))
    now[0], now[1] = re, im
    sum_re, sum_im = np.zeros(m), np.zeros(m)
    for k in range(len(coefficients)):
        c = coefficients[k] if k % 4 < 2 else -coefficients[k]
        if k % 2 == 0:
            sum_re += c * now[0]
            sum_im += c * now[1]
        else:
            sum_re -= c * now[1]
            sum_im += c * now[0]
        factor = 0.5 if k == 0 else 1.0
        for i in range(m):
            product_re, product_im = 0.0, 0.0
            for j in range(max(i - 1, 0), m):
                product_re += h_re[i, j] * now[0, j] - h_im[i, j] * now[1, j]
                product_im += h_re[i, j] * now[1, j] + h_im[i, j] * now[0, j]
            new[0, i] = factor * product_re - last[0, i]
            new[1, i] = factor * product_im - last[1, i]
        last, now, new = now, new, last
    return sum_re, sum_im


@numba.njit(cache=True, fastmath=True)
def _exit_wave(basis: Real32, y: Real64, intensities: Real32) -> None:
    """Write |sum_k y_k v_k|^2 of the Krylov vectors v_k."""
    m, parts, n = basis.shape
    re = np.zeros((parts, n), dtype=np.float32)
    im = np.zeros((parts, n), dtype=np.float32)
    for k in range(m):
        u, v = np.float32(y[0, k]), np.float32(y[1, k])
        for part in range(parts):
            vector = basis[k, part]
            for j in range(n):
                re[part, j] += u * vector[j]
                im[part, j] += v * vector[j]
    for j in range(n):
        if parts == 1:
            intensities[j] = re[0, j] ** 2 + im[0, j] ** 2
        else:
            intensities[j] = (re[0, j] - im[1, j]) ** 2 + (im[0, j] + re[1, j]) ** 2


@numba.njit(cache=True, parallel=True)
def tridiagonal_waves(diagonals: Real64, sides: Real64, thicknesses: Real64) -> Real64:
    """Return `tridiagonal_wave` of P matrices, shape (P, T, 2, m)."""
    y = np.empty((len(diagonals), len(thicknesses), 2, diagonals.shape[1]))
    for p in numba.prange(len(diagonals)):
        y[p] = tridiagonal_wave(diagonals[p], sides[p], thicknesses)
    return y


@numba.njit(cache=True, parallel=True)
def hessenberg_waves(projected: Real64, thicknesses: Real64) -> Real64:
    """Return `hessenberg_wave` of P matrices, (P, 2, m, m), shape (P, T, 2, m)."""
    y = np.empty((len(projected), len(thicknesses), 2, projected.shape[2]))
    for p in numba.prange(len(projected)):
        y[p] = hessenberg_wave(projected[p], thicknesses)
    return y


KRYLOV_VECTORS = 256
"""As many as about 1,000 angstrom ask for at 200 kV."""


def pattern_memory(n_beams: int) -> int:
    """Return the bytes that a pattern of so many beams takes: its matrix and its Krylov vectors.

    Patterns of crystals with inversion take half.
    """
    return 8 * n_beams * (n_beams + KRYLOV_VECTORS)


def most_beams(memory: float) -> int:
    """Return the largest number of beams for which `pattern_memory` is within the memory, bytes."""
    return int(np.sqrt(memory / 8 + (KRYLOV_VECTORS / 2) ** 2) - KRYLOV_VECTORS / 2)
