"""Encoders of crystals: DimeNet++, GINE and the number of atoms, and the latent space they share.

Features of a crystal are means over its atoms, but for those of the number of atoms: they do not
depend on the cell that describes it, on the orientation, the origin or the order of atoms.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffractory.models.periodic_graph import (
    Graph,
    Triplets,
    UnitCells,
    envelope,
    periodic_graph,
    triplets,
    with_counter_edges,
)

N_ELEMENTS = 100
"""Largest atomic number."""

N_CHEBYSHEV = 64
"""Polynomials that the radial functions are expanded in."""


class CrystalEncoder(nn.Module):
    """Mean and logarithm of the variance of a crystal's latent variables (Eq. 8).

    T. Pakornchote et al., Sci. Rep. 14, 1275 (2024), 10.1038/s41598-024-51400-4, Fig. S1: features
    of DimeNet++ and, where asked for, of GINE and of the number of atoms, put together by a
    multilayer perceptron.

    Parameters
    ----------
    settings
        `latent`, number of latent variables; `cutoff` in angstrom and `max_neighbours`, of the
        graph; `hidden_dim`, `n_blocks`, `n_spherical` and `n_radial`, of DimeNet++; `gine_layers`;
        `encode_n_sites` and `encode_gine`, whether there are those two.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.cutoff, self.max_neighbours = settings["cutoff"], settings["max_neighbours"]
        hidden, latent, n_radial = (settings[k] for k in ("hidden_dim", "latent", "n_radial"))
        blocks, spherical = settings["n_blocks"], settings["n_spherical"]
        parts: list[nn.Module] = [
            DimeNetPlusPlus(hidden, blocks, spherical, n_radial, self.cutoff, latent)
        ]
        if settings["encode_gine"]:
            parts.append(Gine(hidden, settings["gine_layers"], n_radial, self.cutoff, latent))
        if settings["encode_n_sites"]:
            parts.append(AtomCountEncoder(hidden, latent))
        self.parts = nn.ModuleList(parts)
        self.combine = nn.Sequential(
            nn.Linear(latent * len(parts), latent), nn.SiLU(), nn.Linear(latent, 2 * latent)
        )

    def forward(self, cells: UnitCells) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance, each of shape (B, latent)."""
        graph = periodic_graph(cells, self.cutoff, self.max_neighbours)
        features = torch.cat([part(cells, graph) for part in self.parts], dim=1)
        mu, log_variance = self.combine(features).chunk(2, dim=1)
        return mu, log_variance


class DimeNetPlusPlus(nn.Module):
    """DimeNet++: messages between atoms that know the angle to the messages before them.

    J. Gasteiger, S. Giri, J. T. Margraf, S. Guennemann, arXiv:2011.14115 (2020), with the shapes of
    its released code: down-projected messages of half the width, bases through 8 functions,
    1 residual layer before and 2 after the skip, outputs of twice the width through 3 layers.

    Three things differ. Each edge also has its reverse. Sums over neighbours are divided by the
    root of their number; they and the messages of each block are normalized (LayerNorm). The
    spherical Bessel functions are evaluated from Chebyshev series, which is stable in float32 at
    any distance, and the frequencies of the radial basis are not learnt.

    Parameters
    ----------
    hidden_dim
        Width of messages.
    n_blocks
        Interaction blocks.
    n_spherical, n_radial
        Spherical harmonics, and radial functions of each.
    cutoff
        Longest edge, angstrom.
    out_dim
        Features of a crystal.
    """

    def __init__(
        self,
        hidden_dim: int,
        n_blocks: int,
        n_spherical: int,
        n_radial: int,
        cutoff: float,
        out_dim: int,
    ) -> None:
        super().__init__()
        self.n_spherical, self.cutoff = n_spherical, cutoff
        self.radial = BesselBasis(1, n_radial)
        self.spherical = BesselBasis(n_spherical, n_radial)
        self.element = nn.Embedding(N_ELEMENTS + 1, hidden_dim)
        self.embed_radial = nn.Linear(n_radial, hidden_dim)
        self.embed = nn.Linear(3 * hidden_dim, hidden_dim)
        self.blocks = nn.ModuleList(
            Interaction(hidden_dim, n_spherical, n_radial) for _ in range(n_blocks)
        )
        self.outputs = nn.ModuleList(
            Output(hidden_dim, n_radial, out_dim) for _ in range(n_blocks + 1)
        )
        self.apply(keep_variance)

    def forward(self, cells: UnitCells, graph: Graph) -> Tensor:
        """Return features of crystals, shape (B, out_dim)."""
        graph, reverse = with_counter_edges(graph, len(cells.numbers))
        pairs = triplets(graph, len(cells.numbers), self.n_spherical)
        distance = graph.distance / self.cutoff
        radial, spherical = self.radial(distance)[:, 0], self.spherical(distance)

        x = self.element(cells.numbers)
        ends = [x[graph.target], x[graph.source]]
        edge = functional.silu(self.embed_radial(radial))
        m = functional.silu(self.embed(torch.cat([*ends, edge], dim=1)))
        y = self.outputs[0](m, radial, pairs)
        for block, output in zip(self.blocks, list(self.outputs)[1:], strict=True):
            m = block(m, radial, spherical, pairs, reverse)
            y = y + output(m, radial, pairs)
        return mean_of_crystals(y, cells)


class Interaction(nn.Module):
    """An interaction block of DimeNet++."""

    def __init__(self, hidden_dim: int, n_spherical: int, n_radial: int, basis: int = 8) -> None:
        super().__init__()
        half = hidden_dim // 2
        self.stay = nn.Linear(hidden_dim, hidden_dim)
        self.go = nn.Linear(hidden_dim, hidden_dim)
        self.radial = nn.Sequential(
            nn.Linear(n_radial, basis, bias=False), nn.Linear(basis, hidden_dim, bias=False)
        )
        self.to_basis = nn.Parameter(torch.empty(n_spherical, n_radial, basis))
        self.from_basis = nn.Linear(basis, half, bias=False)
        self.down = nn.Linear(hidden_dim, half, bias=False)
        self.up = nn.Sequential(nn.LayerNorm(half), nn.Linear(half, hidden_dim, bias=False))
        self.before = Residual(hidden_dim)
        self.skip = nn.Linear(hidden_dim, hidden_dim)
        self.after = nn.Sequential(
            Residual(hidden_dim), Residual(hidden_dim), nn.LayerNorm(hidden_dim)
        )
        nn.init.normal_(self.to_basis, std=(n_spherical * n_radial) ** -0.5)

    def forward(
        self, m: Tensor, radial: Tensor, spherical: Tensor, pairs: Triplets, reverse: Tensor
    ) -> Tensor:
        """Return messages along the edges, shape (E, hidden_dim).

        The sum over pairs of an edge c->a and an edge a->b is, for all harmonics and neighbours at
        once, one product of matrices for each atom a.
        """
        x = functional.silu(self.go(m)) * self.radial(radial)
        x = functional.silu(self.down(x))
        weight = self.from_basis(torch.einsum("eln,lns->els", spherical, self.to_basis))
        terms = pairs.table(weight * x[:, None]).transpose(1, 2).flatten(1, 2)
        summed = torch.bmm(pairs.harmonics.flatten(2), terms)
        x = pairs.edges(summed / pairs.degree.clamp(min=1).sqrt()[:, None, None])
        x = x.index_select(0, reverse)
        x = self.before(functional.silu(self.stay(m)) + functional.silu(self.up(x)))
        result: Tensor = self.after(functional.silu(self.skip(x)) + m)
        return result


class Output(nn.Module):
    """An output block of DimeNet++: from messages to atoms."""

    def __init__(self, hidden_dim: int, n_radial: int, out_dim: int) -> None:
        super().__init__()
        wide = 2 * hidden_dim
        self.radial = nn.Linear(n_radial, hidden_dim, bias=False)
        layers: list[nn.Module] = [nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, wide)]
        for _ in range(3):
            layers += [nn.Linear(wide, wide), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(wide, out_dim, bias=False))

    def forward(self, m: Tensor, radial: Tensor, pairs: Triplets) -> Tensor:
        """Return features of the atoms, shape (N, out_dim)."""
        result: Tensor = self.layers(pairs.total(self.radial(radial) * m))
        return result


class Residual(nn.Module):
    """Two layers and their input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (..., dim)."""
        return x + self.layers(x)


class Gine(nn.Module):
    """A graph isomorphism network with edge features (GINE).

    W. Hu et al., Strategies for pre-training graph neural networks, ICLR 2020, arXiv:1905.12265.
    The features of an edge are radial functions of its length.

    Parameters
    ----------
    hidden_dim, n_layers
        Width and number of layers.
    n_radial
        Radial functions.
    cutoff
        Longest edge, angstrom.
    out_dim
        Features of a crystal.
    """

    def __init__(
        self, hidden_dim: int, n_layers: int, n_radial: int, cutoff: float, out_dim: int
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.radial = BesselBasis(1, n_radial)
        self.element = nn.Embedding(N_ELEMENTS + 1, hidden_dim)
        self.layers = nn.ModuleList(GineLayer(hidden_dim, n_radial) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(n_layers))
        self.output = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, out_dim))

    def forward(self, cells: UnitCells, graph: Graph) -> Tensor:
        """Return features of crystals, shape (B, out_dim)."""
        radial = self.radial(graph.distance / self.cutoff)[:, 0]
        x = self.element(cells.numbers)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x), graph, radial)
        return mean_of_crystals(self.output(x), cells)


class GineLayer(nn.Module):
    """A layer of GINE: a perceptron of the sum of an atom and its neighbours' messages.

    A message is what is positive of neighbour and edge together.
    """

    def __init__(self, hidden_dim: int, n_radial: int) -> None:
        super().__init__()
        self.edge = nn.Linear(n_radial, hidden_dim)
        self.perceptron = perceptron(hidden_dim, hidden_dim, hidden_dim)

    def forward(self, x: Tensor, graph: Graph, radial: Tensor) -> Tensor:
        """Return features of the atoms, shape (N, hidden_dim)."""
        messages = functional.relu(x[graph.source] + self.edge(radial))
        result: Tensor = self.perceptron(x.index_add(0, graph.target, messages))
        return result


class AtomCountEncoder(nn.Module):
    """A multilayer perceptron that takes the number of atoms."""

    def __init__(self, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = perceptron(1, hidden_dim, out_dim)

    def forward(self, cells: UnitCells, graph: Graph) -> Tensor:
        """Return features of crystals, shape (B, out_dim)."""
        result: Tensor = self.layers(cells.counts[:, None].to(cells.lattice) / 10)
        return result


class BesselBasis(nn.Module):
    """Radial functions 2^(1/2) j_l(z_ln x) / j_l+1(z_ln) of DimeNet, times an envelope.

    J. Gasteiger, J. Gross, S. Guennemann, ICLR 2020, arXiv:2003.03123, Eqs. 6 to 8, on distances
    over the cutoff; z_ln is the n-th root of the spherical Bessel function j_l. Those of l = 0 are
    2^(1/2) sin(n pi x) / x but for their sign.
    """

    def __init__(self, n_spherical: int, n_radial: int) -> None:
        super().__init__()
        self.shape = (n_spherical, n_radial)
        self.series: Tensor
        series = torch.from_numpy(bessel_series(n_spherical, n_radial)).float()
        self.register_buffer("series", series, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return values at distances over the cutoff, (E,), shape (E, n_spherical, n_radial)."""
        order = torch.arange(len(self.series), device=x.device)
        # The slope of the arc cosine is infinite at 1, where the envelope is 0 anyhow.
        polynomials = torch.cos(order * x.clamp(max=1 - 1e-6).acos()[:, None])
        values = (polynomials @ self.series.to(x.dtype)) * envelope(x)[:, None]
        return values.view(-1, *self.shape)


@cache
def bessel_series(n_spherical: int, n_radial: int) -> np.ndarray:
    """Return Chebyshev series of the radial functions, (N_CHEBYSHEV, n_spherical * n_radial)."""
    roots = bessel_roots(n_spherical, n_radial)
    x = np.cos(np.pi * (np.arange(N_CHEBYSHEV) + 0.5) / N_CHEBYSHEV)
    values = [
        np.sqrt(2) * spherical_bessel(l, z * x) / spherical_bessel(l + 1, np.array([z]))
        for l in range(n_spherical)
        for z in roots[l]
    ]
    series: np.ndarray = np.linalg.solve(
        np.polynomial.chebyshev.chebvander(x, N_CHEBYSHEV - 1), np.stack(values, axis=1)
    )
    return series


def bessel_roots(n_spherical: int, n_radial: int) -> np.ndarray:
    """Return the first roots z_ln of the spherical Bessel functions, (n_spherical, n_radial).

    Between two roots of one order is one of the next.
    """
    roots = np.pi * np.arange(1, n_radial + n_spherical)
    rows = [roots[:n_radial]]
    for l in range(1, n_spherical):
        low, high = roots[:-1].copy(), roots[1:].copy()
        sign = np.sign(spherical_bessel(l, low))
        for _ in range(60):
            middle = (low + high) / 2
            left = np.sign(spherical_bessel(l, middle)) == sign
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        roots = low
        rows.append(roots[:n_radial])
    return np.stack(rows)


def spherical_bessel(l: int, x: np.ndarray) -> np.ndarray:
    """Return j_l(x), from its integral over P_l(t) cos(x t) or sin(x t), t from -1 to 1.

    NIST Digital Library of Mathematical Functions, Eq. 10.54.2.
    """
    t, weight = nodes()
    wave = np.cos if l % 2 == 0 else np.sin
    weight = weight * np.polynomial.legendre.Legendre.basis(l)(t) / 2
    result: np.ndarray = (-1) ** (l // 2) * wave(np.multiply.outer(x, t)) @ weight
    return result


@cache
def nodes() -> tuple[np.ndarray, np.ndarray]:
    """Return points and weights of Gauss-Legendre quadrature, enough for j_l(x) up to x = 60."""
    return np.polynomial.legendre.leggauss(96)


def keep_variance(module: nn.Module) -> None:
    """Give linear layers first weights that make up for what SiLU takes from the variance."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=1.3 * module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def perceptron(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return a perceptron with one hidden layer."""
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim))


def mean_of_crystals(x: Tensor, cells: UnitCells) -> Tensor:
    """Return means over the atoms of each crystal, (N, dim) to (B, dim)."""
    total = x.new_zeros(len(cells.counts), x.shape[1]).index_add(0, cells.crystal, x)
    return total / cells.counts.clamp(min=1)[:, None]
