"""GemNet-T: a vector and features for each atom of a crystal, from messages along directed edges.

J. Gasteiger, F. Becker, S. Guennemann, GemNet: universal directional graph neural networks for
molecules, NeurIPS 2021, arXiv:2106.08903; T is the variant with triplets of atoms and without
quadruplets, here with forces read directly from edges. The vectors turn with the crystal; the
features do not. Neither depends on the origin, the cell chosen or the order of atoms.

What differs from the paper, or what it leaves to fitted numbers:

- Its scaling factors are fitted to the first batches. Here sums over neighbours are divided by the
  root of their number, and atoms, edges and triplets are normalized (LayerNorm) in each block.
- The radial basis is Gaussian, as in the released code that CDVAE (T. Xie et al., ICLR 2022,
  arXiv:2110.06197) builds on, with the envelope of DimeNet.
- An edge is there in both directions if either of its atoms counts the other among its nearest.
"""

from collections.abc import Mapping
from typing import Any

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

N_BASIS = 16
"""Functions that the bases of distances and of angles are reduced to, shared by the blocks."""


class GemNetT(nn.Module):
    """The network.

    Parameters
    ----------
    settings
        `in_dim`, features of an atom that go in; `hidden_dim`, width of atoms and of edges;
        `n_blocks`, interaction blocks; `n_spherical`, spherical harmonics; `n_radial`, radial
        functions; `cutoff` in angstrom and `max_neighbours`, of the graph.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.cutoff, self.max_neighbours = settings["cutoff"], settings["max_neighbours"]
        self.n_spherical = settings["n_spherical"]
        hidden, n_radial = settings["hidden_dim"], settings["n_radial"]
        n_blocks = settings["n_blocks"]
        self.radial = GaussianBasis(n_radial)
        self.radial_of_message = linear(n_radial, N_BASIS)
        self.radial_of_atom = linear(n_radial, N_BASIS)
        self.radial_of_triplet = linear(n_radial, self.n_spherical * N_BASIS)
        self.atom = linear(settings["in_dim"], hidden)
        self.edge = EdgeEmbedding(hidden, n_radial)
        self.blocks = nn.ModuleList(Interaction(hidden, self.n_spherical) for _ in range(n_blocks))
        self.forces = nn.ModuleList(Force(hidden) for _ in range(n_blocks + 1))

    def forward(
        self, cells: UnitCells, features: Tensor, graph: Graph | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a vector and features of each atom.

        Parameters
        ----------
        cells
            The crystals; their atomic numbers are not looked at.
        features
            Features of the atoms, shape (N, in_dim).
        graph
            Their edges; built here if not given.

        Returns
        -------
        Cartesian vectors, which turn with the crystal, shape (N, 3), and features, shape
        (N, hidden_dim).
        """
        if graph is None:
            graph = periodic_graph(cells, self.cutoff, self.max_neighbours)
        graph, reverse = with_counter_edges(graph, len(features))
        pairs = triplets(graph, len(features), self.n_spherical)
        basis = self.radial(graph.distance / self.cutoff)
        of_message, of_atom = self.radial_of_message(basis), self.radial_of_atom(basis)
        of_triplet = self.radial_of_triplet(basis).view(-1, N_BASIS, self.n_spherical)

        h = self.atom(features)
        m = self.edge(h, basis, graph)
        force = self.forces[0](m, of_atom)
        for block, head in zip(self.blocks, list(self.forces)[1:], strict=True):
            h, m = block(h, m, graph, pairs, reverse, of_message, of_triplet, of_atom)
            force = force + head(m, of_atom)
        unit = functional.normalize(graph.vector, dim=-1)
        return pairs.total(force * unit), h


class Interaction(nn.Module):
    """An interaction block: triplets to edges, edges to atoms, atoms to edges."""

    def __init__(self, dim: int, n_spherical: int) -> None:
        super().__init__()
        self.stay = layer(dim, dim)
        self.triplet = TripletInteraction(dim, n_spherical)
        self.before = Residual(dim)
        self.after = nn.Sequential(Residual(dim), Residual(dim))
        self.radial = linear(N_BASIS, dim)
        self.atom = nn.Sequential(layer(dim, dim), Residual(dim), Residual(dim))
        self.edge = EdgeEmbedding(dim, dim)
        self.last = Residual(dim)
        self.norm_of_atom, self.norm_of_edge = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(
        self,
        h: Tensor,
        m: Tensor,
        graph: Graph,
        pairs: Triplets,
        reverse: Tensor,
        of_message: Tensor,
        of_triplet: Tensor,
        of_atom: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return features of atoms, (N, dim), and of edges, (E, dim)."""
        x = self.stay(m) + self.triplet(m, pairs, reverse, of_message, of_triplet)
        m = self.after(m + self.before(x))
        h = self.norm_of_atom(h + self.atom(pairs.total(m * self.radial(of_atom))))
        m = self.norm_of_edge(m + self.last(self.edge(h, m, graph)))
        return h, m


class TripletInteraction(nn.Module):
    """Messages to edges b->a from all other edges c->a, by distance and angle.

    The efficient bilinear layer of the paper: the sum over c is one product of matrices
    for each atom, before the weights.
    """

    def __init__(self, dim: int, n_spherical: int) -> None:
        super().__init__()
        half = dim // 2
        self.message = layer(dim, dim)
        self.radial = linear(N_BASIS, dim)
        self.down = layer(dim, half)
        self.bilinear = nn.Sequential(linear(N_BASIS * half, half), nn.LayerNorm(half))
        self.up, self.up_reverse = layer(half, dim), layer(half, dim)

    def forward(
        self, m: Tensor, pairs: Triplets, reverse: Tensor, of_message: Tensor, of_triplet: Tensor
    ) -> Tensor:
        """Return shape (E, dim)."""
        x = pairs.table(self.down(self.message(m) * self.radial(of_message)))
        k, l = pairs.harmonics.shape[1:3]
        x = x / pairs.degree.clamp(min=1).sqrt()[:, None, None]
        x = torch.bmm(pairs.harmonics.flatten(1, 2), x)  # sum over c, (N, K of b * l, half)
        x = pairs.edges(x.view(len(x), k, l, x.shape[2]))
        x = self.bilinear(torch.bmm(of_triplet.to(x.dtype), x).flatten(1))
        result: Tensor = self.up(x) + self.up_reverse(x).index_select(0, reverse)
        return result


class EdgeEmbedding(nn.Module):
    """A layer on the features of both atoms of an edge and its own."""

    def __init__(self, dim: int, edge_dim: int) -> None:
        super().__init__()
        self.ends = linear(dim, 2 * dim)
        self.edge = linear(edge_dim, dim)

    def forward(self, h: Tensor, edge: Tensor, graph: Graph) -> Tensor:
        """Return features of edges, (E, dim), from h, (N, dim), and edge, (E, edge_dim)."""
        source, target = self.ends(h).chunk(2, dim=1)
        x = source.index_select(0, graph.source) + target.index_select(0, graph.target)
        return functional.silu(x + self.edge(edge))


class Force(nn.Module):
    """A number for each edge: the part of the vector of its target that is along the edge."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = layer(dim, dim)
        self.radial = linear(N_BASIS, dim)
        self.out = linear(dim, 1)

    def forward(self, m: Tensor, of_atom: Tensor) -> Tensor:
        """Return shape (E, 1)."""
        result: Tensor = self.out(self.layer(m) * self.radial(of_atom))
        return result


class GaussianBasis(nn.Module):
    """Gaussians of the distance over the cutoff, evenly spaced, times an envelope.

    Their mean square is about 1 at short distances, however many there are.
    """

    def __init__(self, n_radial: int) -> None:
        super().__init__()
        self.centre: Tensor
        self.register_buffer("centre", torch.linspace(0, 1, n_radial), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return values at x, (E,), shape (E, n_radial)."""
        n = len(self.centre)
        exponent = 0.5 * ((x[:, None] - self.centre) * (n - 1)).square()
        # Numbers too small for float32 would slow down all that follows on a CPU.
        gauss = torch.where(exponent < 40, torch.exp(-exponent), 0)
        return gauss * (n**0.5 * envelope(x))[:, None]


class Residual(nn.Module):
    """Two layers and their input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(layer(dim, dim), layer(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (..., dim)."""
        return x + self.layers(x)


def linear(in_dim: int, out_dim: int) -> nn.Linear:
    """Return a linear layer without bias."""
    result = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.normal_(result.weight, std=in_dim**-0.5)
    return result


def layer(in_dim: int, out_dim: int) -> nn.Sequential:
    """Return a linear layer and an activation."""
    return nn.Sequential(linear(in_dim, out_dim), nn.SiLU())
