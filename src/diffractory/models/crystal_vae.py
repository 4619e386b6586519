"""DP-CDVAE and its kin: a variational autoencoder of crystals with a diffusion decoder.

After T. Pakornchote et al., "Diffusion probabilistic models enhance variational autoencoder for
crystal structure generative modeling", Sci. Rep. 14, 1275 (2024),
https://doi.org/10.1038/s41598-024-51400-4, and T. Xie et al., "Crystal diffusion variational
autoencoder for periodic material generation", ICLR (2022). One network, whose settings make it
CDVAE, DP-CDVAE with any of its encoders, or ours.

An encoder makes a crystal a latent vector z. Small networks decode from it the number of atoms, the
lattice and the composition; a diffusion network, which sees z, then moves atoms from noise to their
places and names their elements.

Where paper and released code differ, or are silent:

- z is mu + exp(log_variance / 2) epsilon; Eq. 8 prints exp(log_variance).
- Noise of coordinates keeps its mean in each crystal, and crystals are not moved to their centres
  (the released code does both): so Eqs. 1 to 7 say.
- Vectors of the diffusion network are Cartesian, and are turned to fractional noise with the
  lattice (`Ddpm.predicted`); the released code takes them for fractional as they are.
- In training, the diffusion network sees the true lattice and number of atoms (the lattice is that
  of the released code for its first 400 epochs; then it takes the decoded one).
- Elements have noise of their own size sigma', apart from that of the coordinates, as released.
- Elements to begin with are those that come nearest to the composition A_z, as whole numbers.

Where a process keeps these elements to the end (`diffusion.Flow`), nothing else tells them, and the
shares of the elements go into the latent vector by a way of their own: after 2,000 batches of 16
perovskites, the composition decoded from z was right for 43 of 100 others, and with DimeNet++ alone
(DP-CDVAE) for 2.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from diffractory.models.c_vae import kl_divergence
from diffractory.models.crystal_encoders import CrystalEncoder
from diffractory.models.diffusion import (
    N_ELEMENTS,
    State,
    build_process,
    likeliest_numbers,
    noisy_numbers,
    per_crystal,
)
from diffractory.models.gemnet import GemNetT
from diffractory.models.periodic_graph import (
    UnitCells,
    lattice_matrix,
    lattice_parameters,
)

TIME_FEATURES = 32
"""Sines and cosines of the time."""

SMALLEST_SPREAD = 0.01
"""Spread of a lattice parameter below which it counts as the same in all crystals, angstrom or
radian: where all angles are right, their last digits are not worth learning."""

SHORTEST_LENGTH = 0.5
"""Shortest lattice vector that is decoded, angstrom."""


class Decoded(NamedTuple):
    """What is decoded from latent vectors, before any diffusion."""

    n_sites: Tensor
    """Logits of 1 .. max_sites atoms, shape (B, max_sites)."""
    lattice: Tensor
    """Lengths over the cube root of the number of atoms, and angles, scaled, shape (B, 6)."""
    composition: Tensor
    """A_z, logits of the elements, shape (B, 100)."""


class CrystalVae(nn.Module):
    """The network; see the module for what is decided here.

    Parameters
    ----------
    settings
        ``process`` (``ddpm``, ``score_matching`` or ``flow``) and ``diffusion``, its settings and
        those of the noise of elements (`diffusion.build_process`, ``type_sigma_min``,
        ``type_sigma_max``); ``latent``, dimensions of z; ``encoder``, as `CrystalEncoder` takes it,
        and ``encode_n_sites`` and ``encode_gine``, whether these two encoders are there beside
        DimeNet++; ``decoder``: ``hidden_dim`` and ``n_layers``; ``denoiser``, as `GemNetT` takes
        it; ``fourier``, the first and the last exponent n of Fourier features sin(2 pi 2^n r) of
        the fractional coordinates that the diffusion network sees (3 and 8 released), or none;
        ``cutoff`` (angstrom) and ``max_neighbours`` of graphs; ``max_sites``; ``loss_weights`` of
        ``coordinates``, ``types``, ``lattice``, ``n_sites``, ``composition`` and ``kl``.

    Attributes
    ----------
    lattice_mean, lattice_spread
        Of the lattice parameters of the training set; see `fit_scalers`.
    """

    lattice_mean: Tensor
    lattice_spread: Tensor

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        latent, hidden = settings["latent"], settings["denoiser"]["hidden_dim"]
        graph = {key: settings[key] for key in ("cutoff", "max_neighbours")}
        encoders = {key: settings[key] for key in ("latent", "encode_n_sites", "encode_gine")}
        self.encoder = CrystalEncoder({**settings["encoder"], **encoders, **graph})
        self.process = build_process(settings["process"], settings["diffusion"])
        if not self.process.names_elements:
            self.composition_encoder = nn.Sequential(
                nn.Linear(N_ELEMENTS, 2 * latent),
                nn.SiLU(),
                nn.LayerNorm(2 * latent),
                nn.Linear(2 * latent, 2 * latent),
            )
        width, layers = settings["decoder"]["hidden_dim"], settings["decoder"]["n_layers"]
        self.n_sites_decoder = perceptron(latent, width, layers, settings["max_sites"])
        self.lattice_decoder = perceptron(latent, width, layers, 6)
        self.composition_decoder = perceptron(latent, width, layers, N_ELEMENTS)
        self.register_buffer("lattice_mean", torch.zeros(6))
        self.register_buffer("lattice_spread", torch.ones(6))

        self.element = nn.Embedding(N_ELEMENTS, hidden)
        n_in = hidden + latent + TIME_FEATURES + 6 * len(self.exponents)
        self.denoiser = GemNetT({**settings["denoiser"], "in_dim": n_in, **graph})
        self.types = nn.Linear(hidden + latent, N_ELEMENTS)

    @property
    def exponents(self) -> range:
        """Powers of two of the frequencies of the Fourier features."""
        fourier = self.settings["fourier"]
        return range(fourier[0], fourier[1] + 1) if fourier else range(0)

    def fit_scalers(self, lattice: Tensor, counts: Tensor) -> None:
        """Take mean and spread of the lattice parameters from the training set.

        Parameters
        ----------
        lattice
            Angstrom, shape (C, 3, 3).
        counts
            Atoms of each crystal, shape (C,).
        """
        parameters = lattice_features(lattice.double(), counts)
        self.lattice_mean.copy_(parameters.mean(0))
        spread = parameters.std(0, correction=0)
        self.lattice_spread.copy_(spread.clamp_min(SMALLEST_SPREAD))

    def encode(self, cells: UnitCells) -> tuple[Tensor, Tensor]:
        """Return mu and the logarithm of the variance, shape (B, latent) each."""
        mean, log_variance = self.encoder(cells)
        if not self.process.names_elements:
            one_hot = functional.one_hot(cells.numbers - 1, N_ELEMENTS).to(cells.lattice.dtype)
            more = self.composition_encoder(per_crystal(one_hot, cells))
            mean, log_variance = torch.cat([mean, log_variance], dim=1).add(more).chunk(2, dim=1)
        return mean.float(), log_variance.float()

    def latent(self, cells: UnitCells, generator: Generator | None = None) -> Tensor:
        """Draw z of each crystal, shape (B, latent) (Eq. 8)."""
        return draw(*self.encode(cells), generator)

    def decode(self, z: Tensor) -> Decoded:
        """Return what the small decoders make of z."""
        decoders = (self.n_sites_decoder, self.lattice_decoder, self.composition_decoder)
        return Decoded(*(decoder(z).float() for decoder in decoders))

    def start(self, z: Tensor) -> tuple[UnitCells, Tensor]:
        """Return decoded cells with elements but no coordinates, and A_z.

        A lattice that cannot be is left as it was decoded: flat, or not finite.
        """
        decoded = self.decode(z)
        counts = decoded.n_sites.argmax(1) + 1
        parameters = decoded.lattice * self.lattice_spread + self.lattice_mean
        lengths = parameters[:, :3].clamp_min(SHORTEST_LENGTH) * counts[:, None] ** (1 / 3)
        lattice = lattice_matrix(lengths, parameters[:, 3:])
        numbers = likeliest_numbers(decoded.composition, counts)
        fractional = lattice.new_zeros(len(numbers), 3)
        return UnitCells(fractional, numbers, lattice, counts), decoded.composition

    def denoise(self, cells: UnitCells, z: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors that the process asks for and scores of elements.

        Parameters
        ----------
        cells
            Noisy crystals.
        z
            Latent vectors, shape (B, latent).
        time
            From 0 to 1, shape (B,).

        Returns
        -------
        Shapes (N, 3) and (N, 100).
        """
        crystal = cells.crystal
        features = [
            self.element(cells.numbers - 1),
            torch.cat([z, waves(time)], dim=1)[crystal],
            *([fourier_features(cells.fractional, self.exponents)] if self.exponents else []),
        ]
        vectors, hidden = self.denoiser(cells, torch.cat(features, dim=1))
        scores = self.types(torch.cat([hidden, z[crystal].to(hidden.dtype)], dim=1))
        return vectors.float(), scores.float()

    def loss(self, cells: UnitCells, generator: Generator | None = None) -> dict[str, Tensor]:
        """Return the weighted loss as ``loss``, and its terms before they are weighted.

        Each term is a mean over crystals, of means over the atoms of each: ``coordinates`` is
        Eq. 10, ``types`` the cross-entropy of Eq. 11, ``lattice`` the squared error of scaled
        parameters, ``n_sites`` and ``composition`` cross-entropies, and ``kl`` the divergence of z
        from a normal distribution, nat.

        Parameters
        ----------
        cells
            Crystals of at most max_sites atoms.
        generator
            Draws z, times and noise.
        """
        mean, log_variance = self.encode(cells)
        z = draw(mean, log_variance, generator)
        decoded, crystal = self.decode(z), cells.crystal
        noised = self.process.noise(cells, generator)
        noisy = noised.cells
        if self.process.names_elements:
            scores, sigma = decoded.composition.detach()[crystal], self.type_sigma(cells, generator)
            noisy = noisy._replace(numbers=noisy_numbers(cells.numbers, scores, sigma, generator))
        vectors, scores = self.denoise(noisy, z, noised.time)

        target = lattice_features(cells.lattice, cells.counts) - self.lattice_mean
        elements = cells.numbers - 1
        terms = {
            "coordinates": self.process.loss(vectors, noised),
            "types": functional.cross_entropy(scores, elements, reduction="none"),
            "composition": functional.cross_entropy(
                decoded.composition[crystal], elements, reduction="none"
            ),
        }
        terms = {name: per_crystal(term, cells).mean() for name, term in terms.items()} | {
            "lattice": functional.mse_loss(decoded.lattice, target / self.lattice_spread),
            "n_sites": functional.cross_entropy(decoded.n_sites, cells.counts - 1),
            "kl": kl_divergence(mean, log_variance).mean(),
        }
        weights = self.settings["loss_weights"]
        return {
            "loss": sum((weights[name] * term for name, term in terms.items()), z.new_zeros(()))
        } | terms

    def type_sigma(self, cells: UnitCells, generator: Generator | None = None) -> Tensor:
        """Draw sigma' of each crystal, geometric between its ends, for each atom, shape (N,)."""
        diffusion, lattice = self.settings["diffusion"], cells.lattice
        low, high = diffusion["type_sigma_min"], diffusion["type_sigma_max"]
        exponent = torch.rand(len(lattice), device=lattice.device, generator=generator)
        return (low * (high / low) ** exponent)[cells.crystal]

    def reconstruct(
        self,
        cells: UnitCells,
        steps: int | None = None,
        eq_6: bool = False,
        generator: Generator | None = None,
    ) -> UnitCells:
        """Return crystals decoded from the latent vectors of others.

        Everything is decoded: also the number of atoms, the lattice and the elements.

        Parameters
        ----------
        cells
            The others.
        steps
            Evaluations of the diffusion network; its process's own number if none is given.
        eq_6
            Whether DDPM samples by Eq. 6 in place of Eq. 7.
        generator
            Draws z and the noise.

        Returns
        -------
        As many crystals; values may be NaN where the network went astray.
        """
        with torch.no_grad():
            z = self.latent(cells, generator)
        return self.generate(z, steps, eq_6, generator)

    def generate(
        self,
        z: Tensor | int,
        steps: int | None = None,
        eq_6: bool = False,
        generator: Generator | None = None,
    ) -> UnitCells:
        """Return crystals of latent vectors, shape (B, latent), or of as many that are drawn here.

        The other arguments and the result are those of `reconstruct`.
        """
        if isinstance(z, int):
            z = self.draw_latent(z, generator)
        *_, last = self.trace(z, steps, eq_6, generator)
        return last.cells

    def draw_latent(self, n: int, generator: Generator | None = None) -> Tensor:
        """Draw latent vectors from a normal distribution, shape (n, latent)."""
        shape, device = (n, self.settings["latent"]), self.lattice_mean.device
        return torch.randn(shape, device=device, generator=generator)

    @torch.no_grad()
    def trace(
        self,
        z: Tensor,
        steps: int | None = None,
        eq_6: bool = False,
        generator: Generator | None = None,
    ) -> Iterator[State]:
        """Yield all states from noise to crystals; arguments are those of `generate`."""
        cells, _ = self.start(z)
        yield from self.process.sample(
            lambda noisy, time: self.denoise(noisy, z, time), cells, steps, generator, eq_6
        )


def draw(mean: Tensor, log_variance: Tensor, generator: Generator | None) -> Tensor:
    """Draw from normal distributions, shape (B, latent) all."""
    noise = torch.randn(mean.shape, device=mean.device, generator=generator)
    return mean + (0.5 * log_variance).exp() * noise


def perceptron(n_in: int, width: int, n_layers: int, n_out: int) -> nn.Sequential:
    """Return `n_layers` hidden layers with ReLU, and a linear one."""
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [nn.Linear(width if i else n_in, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, n_out))


def lattice_features(lattice: Tensor, counts: Tensor) -> Tensor:
    """Return lengths over the cube root of the number of atoms, angstrom, and angles, (B, 6)."""
    lengths, angles = lattice_parameters(lattice)
    return torch.cat([lengths / counts[:, None] ** (1 / 3), angles], dim=1)


def waves(time: Tensor) -> Tensor:
    """Return sines and cosines of times, shape (B, TIME_FEATURES), of half a period to sixteen."""
    exponent = torch.arange(TIME_FEATURES // 2, device=time.device) / 3
    phase = torch.pi * 2**exponent * time[:, None]
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def fourier_features(fractional: Tensor, exponents: range) -> Tensor:
    """Return sines and cosines of 2 pi 2^n r, shape (N, 6 * number of exponents)."""
    powers = torch.arange(exponents.start, exponents.stop, device=fractional.device)
    frequency = 2.0**powers
    phase = (2 * torch.pi * frequency * fractional[:, :, None]).flatten(1)
    return torch.cat([phase.sin(), phase.cos()], dim=1)
