"""How coordinates and elements are made noisy, and how crystals come back from noise.

Three processes with one interface, over crystals whose lattices do not change meanwhile:

- `Ddpm`: denoising diffusion of fractional coordinates, T. Pakornchote et al., Sci. Rep. 14, 1275
  (2024), https://doi.org/10.1038/s41598-024-51400-4, Eqs. 1 to 7.
- `ScoreMatching`: noise of many sizes on Cartesian coordinates and annealed Langevin dynamics,
  T. Xie et al., "Crystal diffusion variational autoencoder for periodic material generation",
  ICLR (2022).
- `Flow`: straight lines on the torus that is a unit cell, from uniform noise to the crystal, after
  R. T. Q. Chen and Y. Lipman, "Flow matching on general geometries", ICLR (2024), and B. K. Miller
  et al., "FlowMM", ICML (2024).

Time is 1 for noise and 0 for crystals. The network gives Cartesian vectors, one for each atom,
which turn with the crystal; what they stand for is each process's own: see `predicted` of each.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from diffractory.models.periodic_graph import UnitCells, to_cartesian

PUBLISHED_STEPS = 1000
"""Steps for which the smallest and the greatest beta are given."""

SIGMOID = (-10.0, 6.0)
"""Where the sigmoid of the betas begins and ends (released code of Pakornchote et al.)."""

N_ELEMENTS = 100
"""Elements that networks know, from hydrogen to fermium."""


class Noised(NamedTuple):
    """Crystals of a batch, each at a time of its own."""

    cells: UnitCells
    time: Tensor
    """What the network is told, shape (B,)."""
    target: Tensor
    """What `Process.predicted` should be, shape (N, 3)."""


class State(NamedTuple):
    """Crystals on their way out of noise."""

    step: int
    """Steps that are left, 0 at the end."""
    time: float
    """From 1 to 0."""
    cells: UnitCells
    """Coordinates from 0 to 1."""
    unwrapped: Tensor
    """The same before they were brought into the cell, shape (N, 3)."""


Denoise = Callable[[UnitCells, Tensor], tuple[Tensor, Tensor]]
"""Of crystals and times, shape (B,): Cartesian vectors, shape (N, 3), and scores of elements, shape
(N, 100)."""


def wrap(fractional: Tensor) -> Tensor:
    """Return pi(r) = r - floor(r), from 0 up to but not 1 (Eq. 3)."""
    wrapped = fractional - fractional.floor()
    return torch.where(wrapped < 1, wrapped, wrapped - 1)  # -1e-9 would be rounded to 1


def nearest(difference: Tensor) -> Tensor:
    """Return differences of fractional coordinates brought to -1/2 .. 1/2."""
    return difference - difference.round()


def per_crystal(values: Tensor, cells: UnitCells) -> Tensor:
    """Return the mean over the atoms of each crystal, shape (B, ...), of shape (N, ...)."""
    total = values.new_zeros(len(cells.counts), *values.shape[1:])
    total.index_add_(0, cells.crystal, values)
    return total / cells.counts.reshape(-1, *[1] * (values.dim() - 1))


def centred(vectors: Tensor, cells: UnitCells) -> Tensor:
    """Return vectors less their mean in each crystal, shape (N, 3)."""
    return vectors - per_crystal(vectors, cells)[cells.crystal]


def transformed(vectors: Tensor, matrices: Tensor, cells: UnitCells) -> Tensor:
    """Return row vectors, shape (N, 3), times the matrix of their crystal, shape (B, 3, 3)."""
    return to_cartesian(vectors, matrices[cells.crystal])


def inverted(matrices: Tensor) -> Tensor:
    """Return inverses, shape (B, 3, 3); those of flat or broken lattices are not finite."""
    return torch.linalg.inv_ex(matrices).inverse


def volume_root(cells: UnitCells) -> Tensor:
    """Return the cube root of the volumes, angstrom, shape (B,)."""
    return torch.linalg.det(cells.lattice).abs().clamp_min(1e-6) ** (1 / 3)


def noisy_numbers(
    numbers: Tensor, scores: Tensor, sigma: Tensor, generator: Generator | None = None
) -> Tensor:
    """Draw atomic numbers between the true ones and those of the composition (Eq. 9).

    The probabilities are proportional to A + sigma' softmax(A_z), of the one-hot vector A of the
    element, as in the released codes. As printed, softmax(A + sigma' A_z), the true one of 100
    elements would be drawn with 3 % without any noise.

    Parameters
    ----------
    numbers
        Atomic numbers, shape (N,).
    scores
        A_z, the logits of the composition, shape (N, 100).
    sigma
        sigma', shape (N,).
    """
    weights = scores.softmax(1) * sigma[:, None]
    weights = weights.nan_to_num() + functional.one_hot(numbers - 1, N_ELEMENTS)
    return torch.multinomial(weights, 1, generator=generator)[:, 0] + 1


def likeliest_numbers(scores: Tensor, counts: Tensor) -> Tensor:
    """Return the atomic numbers that come nearest to a composition, shape (N,).

    Each element gets the whole part of its share of the sites; what is left goes to the elements
    with the largest remainders. The numbers of a crystal ascend.

    Parameters
    ----------
    scores
        A_z, the logits of the composition, shape (B, 100).
    counts
        Sites of each crystal, shape (B,).
    """
    share = scores.softmax(1).nan_to_num() * counts[:, None]
    whole = share.floor()
    left = counts - whole.sum(1).long()
    rank = (whole - share).argsort(dim=1, stable=True).argsort(dim=1)
    sites = whole.long() + (rank < left[:, None])
    element = torch.arange(1, N_ELEMENTS + 1, device=scores.device).expand_as(sites)
    return element.reshape(-1).repeat_interleave(sites.reshape(-1), output_size=int(counts.sum()))


class Process(nn.Module):
    """Makes coordinates noisy, tells what a network should say about them, and draws crystals."""

    steps: int
    """Evaluations of the network that a crystal is drawn with if nothing else is asked for."""

    names_elements = True
    """Whether elements are noisy as well, and are named anew by the network at each step."""

    def noise(self, cells: UnitCells, generator: Generator | None = None) -> Noised:
        """Return noisy crystals at times that are drawn for each."""
        raise NotImplementedError

    def predicted(self, vectors: Tensor, cells: UnitCells) -> Tensor:
        """Return what the network's Cartesian vectors stand for, shape (N, 3)."""
        raise NotImplementedError

    def loss(self, vectors: Tensor, noised: Noised) -> Tensor:
        """Return the squared error of each atom, shape (N,)."""
        return (self.predicted(vectors, noised.cells) - noised.target).square().sum(1)

    def sample(
        self,
        denoise: Denoise,
        cells: UnitCells,
        steps: int | None = None,
        generator: Generator | None = None,
        eq_6: bool = False,
    ) -> Iterator[State]:
        """Yield the states from noise to crystals.

        Parameters
        ----------
        denoise
            The network.
        cells
            Lattices, numbers of sites, and the elements to begin with. Coordinates are not used.
        steps
            Evaluations of the network.
        eq_6
            Whether to sample with Eq. 6 in place of Eq. 7, which only `Ddpm` knows.

        Raises
        ------
        ValueError
            If there is no Eq. 6, or if there is no step.
        """
        raise NotImplementedError


class Ddpm(Process):
    """Denoising diffusion of fractional coordinates.

    alpha_t is 1 - beta_t, and beta_t goes along a sigmoid, of -10 .. 6 in the released code. With
    the published betas, alpha_bar_T is 0.023 and does not vanish; what it leaves of the coordinates
    is lost when they are wrapped, as a normal distribution of 0.99 cells is uniform on the torus
    within 1e-8. With fewer steps, alpha_bar is taken at as many of the published times, so that the
    end is the same.

    Noise is added to coordinates from 0 to 1 as they are (Eq. 2), which depends on the origin: the
    network needs Fourier features of the coordinates.

    Parameters
    ----------
    steps
        T.
    beta_min, beta_max
        beta_1 and beta_T for 1,000 steps.
    """

    alpha_bar: Tensor

    def __init__(self, steps: int = 1000, beta_min: float = 1e-10, beta_max: float = 0.01) -> None:
        super().__init__()
        self.steps = steps
        sigmoid = 1 / (1 + np.exp(-np.linspace(*SIGMOID, PUBLISHED_STEPS)))
        logarithm = np.cumsum(np.log1p(-(beta_min + (beta_max - beta_min) * sigmoid)))
        times = np.linspace(0, PUBLISHED_STEPS, steps + 1)
        published = np.concatenate([[0.0], logarithm])
        alpha_bar = np.exp(np.interp(times, np.arange(PUBLISHED_STEPS + 1), published))
        self.register_buffer("alpha_bar", torch.from_numpy(alpha_bar), persistent=False)

    def noise(self, cells: UnitCells, generator: Generator | None = None) -> Noised:
        """Return wrapped r_t of Eqs. 2 and 3 at times 1 .. T; the target is epsilon."""
        device, dtype = cells.fractional.device, cells.fractional.dtype
        n = len(cells.counts)
        step = torch.randint(1, self.steps + 1, (n,), device=device, generator=generator)
        epsilon = torch.randn(
            cells.fractional.shape, device=device, dtype=dtype, generator=generator
        )
        kept = self.alpha_bar[step][cells.crystal, None]
        noisy = kept.sqrt().to(dtype) * cells.fractional + (1 - kept).sqrt().to(dtype) * epsilon
        time = step.to(dtype) / self.steps
        return Noised(cells._replace(fractional=wrap(noisy)), time, epsilon)

    def predicted(self, vectors: Tensor, cells: UnitCells) -> Tensor:
        """Return epsilon: fractional, the vectors being in units of the cube root of the volume."""
        inverse = inverted(cells.lattice) * volume_root(cells)[:, None, None]
        return transformed(vectors, inverse, cells)

    def sample(
        self,
        denoise: Denoise,
        cells: UnitCells,
        steps: int | None = None,
        generator: Generator | None = None,
        eq_6: bool = False,
    ) -> Iterator[State]:
        """Yield the states by Eq. 7, or by Eq. 6 without wrapping in between.

        With fewer steps than T, from t to s < t, alpha_t is alpha_bar_t / alpha_bar_s, and
        alpha_bar_s takes the place of alpha_bar_(t - 1) in the variance of Eq. 5.
        """
        times, bar = strided(self.steps, steps), self.alpha_bar.tolist()
        shape, device, dtype = cells.fractional.shape, cells.lattice.device, cells.lattice.dtype
        r = torch.randn(shape, device=device, dtype=dtype, generator=generator)
        cells = cells._replace(fractional=wrap(r))
        yield State(len(times) - 1, 1.0, cells, r)
        for left, t, s in zip(range(len(times) - 2, -1, -1), times, times[1:], strict=False):
            vectors, scores = denoise(cells, full_time(t / self.steps, cells))
            epsilon = self.predicted(vectors, cells)
            alpha = bar[t] / bar[s]
            sigma = ((1 - bar[s]) * (1 - alpha) / (1 - bar[t])) ** 0.5
            if eq_6:
                r = (r - (1 - alpha) / (1 - bar[t]) ** 0.5 * epsilon) / alpha**0.5
            else:
                r = (cells.fractional - (1 - bar[t]) ** 0.5 * epsilon) / bar[t] ** 0.5
            r = r + sigma * torch.randn(shape, device=device, dtype=dtype, generator=generator)
            cells = cells._replace(fractional=wrap(r), numbers=scores.argmax(1) + 1)
            yield State(left, s / self.steps, cells, r)


class ScoreMatching(Process):
    """Cartesian noise of many sizes, and annealed Langevin dynamics.

    The network is not told the size of the noise, as in the released code of Xie et al.

    Parameters
    ----------
    sigma_min, sigma_max
        Standard deviations of the noise, angstrom; the levels between are geometric.
    levels
        How many.
    steps_per_level
        Of Langevin dynamics.
    step_size
        Of the steps at the smallest noise, angstrom^2; it goes as the square of the noise.
    """

    sigma: Tensor

    def __init__(
        self,
        sigma_min: float = 0.01,
        sigma_max: float = 10.0,
        levels: int = 50,
        steps_per_level: int = 100,
        step_size: float = 1e-4,
    ) -> None:
        super().__init__()
        self.steps, self.step_size = levels * steps_per_level, step_size
        sigma = torch.from_numpy(np.geomspace(sigma_max, sigma_min, levels))
        self.register_buffer("sigma", sigma.float(), persistent=False)

    def noise(self, cells: UnitCells, generator: Generator | None = None) -> Noised:
        """Return crystals with Cartesian noise.

        The target is the shortest way back over sigma, as in the released code of Xie et al.
        """
        device, dtype = cells.fractional.device, cells.fractional.dtype
        n = len(cells.counts)
        level = torch.randint(len(self.sigma), (n,), device=device, generator=generator)
        noise = torch.randn(cells.fractional.shape, device=device, dtype=dtype, generator=generator)
        sigma = self.sigma[level][cells.crystal, None]
        shift = transformed(sigma * noise, inverted(cells.lattice), cells)
        noisy = wrap(cells.fractional + shift)
        target = shortest(cells.fractional - noisy, cells) / sigma
        time = cells.lattice.new_zeros(n)
        return Noised(cells._replace(fractional=noisy), time, target)

    def predicted(self, vectors: Tensor, cells: UnitCells) -> Tensor:
        """Return the way to the crystal over sigma, Cartesian."""
        return vectors

    def loss(self, vectors: Tensor, noised: Noised) -> Tensor:
        """Return half the squared error of each atom, shape (N,)."""
        return 0.5 * super().loss(vectors, noised)

    def sample(
        self,
        denoise: Denoise,
        cells: UnitCells,
        steps: int | None = None,
        generator: Generator | None = None,
        eq_6: bool = False,
    ) -> Iterator[State]:
        """Yield the states of annealed Langevin dynamics; fewer steps are spread over levels."""
        if eq_6:
            raise ValueError("Eq. 6 is a sampler of DDPM; score matching has none")
        n = len(strided(self.steps, steps)) - 1
        shape, device, dtype = cells.fractional.shape, cells.lattice.device, cells.lattice.dtype
        r = torch.rand(shape, device=device, dtype=dtype, generator=generator)
        cells = cells._replace(fractional=r)
        inverse = inverted(cells.lattice)
        smallest = float(self.sigma[-1])
        yield State(n, 1.0, cells, r)
        for i in range(n):
            sigma = float(self.sigma[i * len(self.sigma) // n])
            size = self.step_size * (sigma / smallest) ** 2
            vectors, scores = denoise(cells, full_time(0.0, cells))
            noise = torch.randn(shape, device=device, dtype=dtype, generator=generator)
            step = size / sigma * self.predicted(vectors, cells) + (2 * size) ** 0.5 * noise
            r = cells.fractional + transformed(step, inverse, cells)
            cells = cells._replace(fractional=wrap(r), numbers=scores.argmax(1) + 1)
            yield State(n - 1 - i, 1 - (i + 1) / n, cells, r)


class Flow(Process):
    """Straight lines on the torus, from coordinates that are uniform to those of the crystal.

    The centre of a crystal stays where it is: the mean of the velocities is taken out, as an origin
    means nothing. What the network learns is then the same for any origin. Elements stay those of
    the composition: nothing holds it together where elements are named anew at each step.

    Parameters
    ----------
    steps
        Of the sampler.
    """

    names_elements = False

    def __init__(self, steps: int = 50) -> None:
        super().__init__()
        self.steps = steps

    def noise(self, cells: UnitCells, generator: Generator | None = None) -> Noised:
        """Return crystals on the way at times that are uniform.

        The target is the Cartesian velocity in units of the root of the volume of an atom.
        """
        device, dtype = cells.fractional.device, cells.fractional.dtype
        time = torch.rand(len(cells.counts), device=device, dtype=dtype, generator=generator)
        start = torch.rand(cells.fractional.shape, device=device, dtype=dtype, generator=generator)
        velocity = centred(nearest(cells.fractional - start), cells)
        noisy = wrap(cells.fractional - time[cells.crystal, None] * velocity)
        matrices = cells.lattice / spacing(cells)[:, None, None]
        target = transformed(velocity, matrices, cells)
        return Noised(cells._replace(fractional=noisy), time, target)

    def predicted(self, vectors: Tensor, cells: UnitCells) -> Tensor:
        """Return the velocities, Cartesian, over the root of the volume of an atom."""
        return centred(vectors, cells)

    def sample(
        self,
        denoise: Denoise,
        cells: UnitCells,
        steps: int | None = None,
        generator: Generator | None = None,
        eq_6: bool = False,
    ) -> Iterator[State]:
        """Yield the states of a sampler that starts anew at each step.

        From where the velocity ends, at time 0, it goes back to the next time towards other
        uniform coordinates. Euler's method, which goes straight on, leaves atoms of one element at
        one site: after 400 batches of eight crystals, 21 of 48 samples came within 0.1 root
        volumes of an atom, and 46 in this way, in as many steps.
        """
        if eq_6:
            raise ValueError("Eq. 6 is a sampler of DDPM; flow matching has none")
        n = len(strided(self.steps if steps is None else steps, steps)) - 1
        shape, device, dtype = cells.fractional.shape, cells.lattice.device, cells.lattice.dtype
        r = torch.rand(shape, device=device, dtype=dtype, generator=generator)
        cells = cells._replace(fractional=r)
        inverse = inverted(cells.lattice) * spacing(cells)[:, None, None]
        yield State(n, 1.0, cells, r)
        for i in range(n):
            time, left = 1 - i / n, 1 - (i + 1) / n
            vectors, _ = denoise(cells, full_time(time, cells))
            velocity = transformed(self.predicted(vectors, cells), inverse, cells)
            end = cells.fractional + time * velocity
            start = torch.rand(shape, device=device, dtype=dtype, generator=generator)
            r = end - left * centred(nearest(end - start), cells)
            cells = cells._replace(fractional=wrap(r))
            yield State(n - 1 - i, left, cells, r)


def spacing(cells: UnitCells) -> Tensor:
    """Return the cube root of the volume of an atom, angstrom, shape (B,)."""
    return volume_root(cells) / cells.counts ** (1 / 3)


def full_time(time: float, cells: UnitCells) -> Tensor:
    """Return one time for every crystal, shape (B,)."""
    return torch.full_like(cells.lattice[:, 0, 0], time)


def strided(most: int, steps: int | None) -> list[int]:
    """Return times from ``most`` to 0 in about equal steps.

    Raises
    ------
    ValueError
        If there is no step, or if there are more than ``most``.
    """
    if steps is not None and not 1 <= steps <= most:
        raise ValueError(f"a sampler of {most} steps can take 1 to {most}, not {steps}")
    return [round(t) for t in np.linspace(most, 0, (steps or most) + 1)]


def shortest(difference: Tensor, cells: UnitCells) -> Tensor:
    """Return the shortest Cartesian vectors of fractional differences, shape (N, 3), angstrom.

    The nearest image and its 26 neighbours are looked at, which is enough in a reduced cell.
    """
    axis = torch.arange(-1.0, 2.0, device=difference.device, dtype=difference.dtype)
    images = torch.cartesian_prod(axis, axis, axis)
    candidates = nearest(difference)[:, None] + images
    vectors = to_cartesian(candidates, cells.lattice[cells.crystal][:, None])
    best = vectors.square().sum(2).argmin(1)
    return vectors[torch.arange(len(vectors), device=vectors.device), best]


def build_process(name: str, settings: Mapping[str, Any]) -> Process:
    """Return a process by its name in the configuration.

    Parameters
    ----------
    name
        ``ddpm``, ``score_matching`` or ``flow``.
    settings
        Section ``diffusion`` of the configuration: ``steps``, ``beta_min``, ``beta_max`` of DDPM,
        ``langevin`` with the arguments of `ScoreMatching`, ``flow_steps``.
    """
    if name == "ddpm":
        return Ddpm(settings["steps"], settings["beta_min"], settings["beta_max"])
    if name == "score_matching":
        return ScoreMatching(**settings["langevin"])
    if name == "flow":
        return Flow(settings["flow_steps"])
    raise ValueError(f"no process {name!r}; there are ddpm, score_matching and flow")
