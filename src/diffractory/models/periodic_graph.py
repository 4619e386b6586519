"""Crystals as graphs: atoms, and edges to their nearest neighbours in all periodic images.

Everything here is one tensor program over a batch of crystals of any sizes, on whatever device they
are on, so that a graph can be built anew at each step of a diffusion process.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MOST_IMAGES = 5
"""Cells searched to either side along each axis. Enough for a cutoff of 7 angstrom where lattice
planes are 1.28 angstrom apart or more; a thinner cell, which only a network makes up, may lose
neighbours but neither time nor memory."""

TIE = 1e-3
"""Neighbours whose distance is that of the last one within this fraction are kept as well."""

LONGEST = 1e4
"""Crystals with a longer lattice vector get no edges, angstrom: float32 has no digits left."""

FARTHEST = 100
"""Atoms whose coordinates differ by more cells than this have no edge between them."""


class UnitCells(NamedTuple):
    """A batch of B crystals with N atoms in all.

    Attributes
    ----------
    fractional
        Fractional coordinates, in any cell, shape (N, 3).
    numbers
        Atomic numbers, shape (N,), int64.
    lattice
        Rows are lattice vectors, angstrom, shape (B, 3, 3).
    counts
        Atoms of each crystal, shape (B,), int64.
    """

    fractional: Tensor
    numbers: Tensor
    lattice: Tensor
    counts: Tensor

    @property
    def crystal(self) -> Tensor:
        """Which crystal each atom is of, shape (N,), int64."""
        return owners(self.counts, len(self.fractional))


class Graph(NamedTuple):
    """Edges from E neighbours to atoms, sorted by the atoms that they go to.

    Attributes
    ----------
    source, target
        Atoms that messages come from and go to, shape (E,), int64.
    image
        Lattice translation of the source, shape (E, 3), int64.
    vector
        From target to source, angstrom, shape (E, 3).
    distance
        Its length, angstrom, shape (E,).
    """

    source: Tensor
    target: Tensor
    image: Tensor
    vector: Tensor
    distance: Tensor


class Triplets(NamedTuple):
    """Edges into each atom in tables padded to the most, and harmonics of angles between them.

    Attributes
    ----------
    place
        Place of each edge in a table of shape (N, K), flattened, shape (E,), int64.
    degree
        Edges into each atom, shape (N,), int64.
    harmonics
        Spherical harmonics Y_l0 of the angle c-a-b of edges b->a and c->a, times the root of 4 pi;
        0 where an edge meets itself or padding, shape (N, K of b, L of l, K of c).
    """

    place: Tensor
    degree: Tensor
    harmonics: Tensor

    def table(self, x: Tensor) -> Tensor:
        """Return values of edges, (E, ...), as a table padded with zeros, (N, K, ...)."""
        n, k = self.harmonics.shape[:2]
        flat = x.new_zeros(n * k, *x.shape[1:]).index_copy(0, self.place, x)
        return flat.view(n, k, *x.shape[1:])

    def edges(self, table: Tensor) -> Tensor:
        """Return the values of edges, (E, ...), in a table, (N, K, ...)."""
        return table.flatten(0, 1).index_select(0, self.place)

    def total(self, x: Tensor) -> Tensor:
        """Return sums over the edges into each atom, over the root of their number, (N, ...)."""
        return self.table(x).sum(dim=1) / self.degree.clamp(min=1).sqrt()[:, None]


def owners(counts: Tensor, total: int) -> Tensor:
    """Return which group each of `total` items in a row is of, counts (B,) items in each."""
    groups = torch.arange(len(counts), device=counts.device)
    return torch.repeat_interleave(groups, counts, output_size=total)


def offsets(counts: Tensor) -> Tensor:
    """Return where each group of items in a row begins, shape (B,)."""
    return counts.cumsum(0) - counts


def to_cartesian(fractional: Tensor, lattice: Tensor) -> Tensor:
    """Return fractional coordinates, (..., 3), in angstrom by lattices, (..., 3, 3)."""
    # Not a matrix product: those lose digits under autocast.
    return (fractional[..., None] * lattice).sum(dim=-2)


def periodic_graph(cells: UnitCells, cutoff: float, max_neighbours: int) -> Graph:
    """Return edges to the nearest neighbours of each atom, its own images among them.

    Neighbours at the distance of the last one are kept too, also beyond `max_neighbours`: of
    neighbours that a symmetry makes equal all or none are kept, and nothing depends on the order of
    atoms, the choice of the cell or its orientation. Atoms whose coordinates are not finite and
    crystals whose lattice is not get no edges.

    Parameters
    ----------
    cells
        The crystals.
    cutoff
        Longest edge, angstrom.
    max_neighbours
        Edges to each atom, but for ties.

    Returns
    -------
    The edges, sorted by target. Gradients reach the coordinates and the lattice.
    """
    with torch.no_grad():
        source, target, image = nearest_edges(cells, cutoff, max_neighbours)
    step = cells.fractional[source] - cells.fractional[target] + image
    vector = to_cartesian(step, cells.lattice[cells.crystal[target]])
    return Graph(source, target, image, vector, torch.linalg.vector_norm(vector, dim=-1))


def nearest_edges(
    cells: UnitCells, cutoff: float, max_neighbours: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return source, target and image of the edges.

    Two atoms differ by at most half a cell along each axis when the nearest image is taken, so that
    images n with (|n| - 1/2) spacing <= radius remain, of planes that far apart. Crystals are
    padded to the most atoms and to the most images.
    """
    counts, fractional = cells.counts, cells.fractional
    if not len(fractional):
        none = counts.new_zeros(0)
        return none, none, counts.new_zeros(0, 3)
    longest = torch.linalg.vector_norm(cells.lattice, dim=-1).amax(dim=1)
    lattice = torch.where((longest < LONGEST)[:, None, None], cells.lattice, torch.nan)
    reach = radius(lattice, counts, cutoff, max_neighbours)[:, None] / spacings(lattice) + 0.5
    reach = reach.nan_to_num(nan=0.0).clamp(min=0, max=MOST_IMAGES).floor().long()
    images, is_image = image_table(reach)
    offset = to_cartesian(images.to(lattice), lattice[:, None])
    offset = torch.where(is_image[..., None], offset, torch.inf)

    within = torch.arange(int(counts.max()), device=counts.device)
    atom = (offsets(counts)[:, None] + within).clamp(max=len(fractional) - 1)
    step = fractional[atom][:, None] - fractional[atom][:, :, None]
    step = torch.where(step.abs() < FARTHEST, step, torch.nan)
    nearest = step.nan_to_num().round()
    pair = to_cartesian(step - nearest, lattice[:, None, None])
    is_atom = within < counts[:, None]
    is_pair = is_atom[:, :, None] & is_atom[:, None]
    pair = torch.where(is_pair[..., None], pair, torch.inf)

    square = torch.zeros((), device=pair.device)
    for k in range(3):
        square = square + (pair[..., None, k] + offset[:, None, None, :, k]).square()
    itself = within[:, None, None] == within[:, None]
    itself = itself & (images == 0).all(dim=-1)[:, None, None]
    square = square.masked_fill(itself, torch.inf)  # (B, target, source, image)
    rank = min(max_neighbours, square.shape[2] * square.shape[3])
    last = square.flatten(2).nan_to_num(nan=torch.inf).kthvalue(rank, dim=2).values
    limit = (last * (1 + TIE) ** 2).clamp(max=cutoff**2)
    b, t, s, i = (square <= limit[..., None, None]).nonzero().unbind(dim=1)
    return atom[b, s], atom[b, t], images[b, i] - nearest[b, t, s].long()


def image_table(reach: Tensor) -> tuple[Tensor, Tensor]:
    """Return all lattice translations up to `reach`, (B, 3), along each axis.

    Returns
    -------
    Translations, padded to the most, (B, M, 3), int64; and True where they are not padding, (B, M).
    """
    span = 2 * reach + 1
    count = span.prod(dim=1, keepdim=True)
    i = torch.arange(int(count.max()), device=reach.device)
    _, b, c = span[:, None].unbind(dim=2)
    images = torch.stack([i // (b * c), i // c % b, i % c.expand(-1, len(i))], dim=2)
    return images - reach[:, None], i < count


def radius(lattice: Tensor, counts: Tensor, cutoff: float, max_neighbours: int) -> Tensor:
    """Return a radius around any atom that holds its nearest neighbours, angstrom, shape (B,).

    A ball of radius R holds a lattice point of each cell whose centre is within R - d, of cells of
    half the diagonal d: at least N / V times the volume of the smaller ball. Dense crystals, like
    those that an untrained network decodes, need far less than the cutoff.
    """
    signs = lattice.new_tensor([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    corners = (signs[:, :, None] * lattice[:, None]).sum(dim=2)
    half = torch.linalg.vector_norm(corners, dim=-1).amax(dim=1) / 2
    volume = torch.linalg.det(lattice).abs()
    ball = (max_neighbours + 1) * volume / counts.clamp(min=1)
    return ((half + (3 * ball / (4 * math.pi)) ** (1 / 3)) * (1 + 2 * TIE)).clamp(max=cutoff)


def spacings(lattice: Tensor) -> Tensor:
    """Return the distances between the lattice planes across each axis, angstrom, shape (B, 3)."""
    a, b, c = lattice.unbind(dim=1)
    normals = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a),
                           torch.linalg.cross(a, b)], dim=1)  # fmt: skip
    volume = (normals * lattice).sum(dim=-1).abs()
    return volume / torch.linalg.vector_norm(normals, dim=-1)


def with_counter_edges(graph: Graph, n_atoms: int) -> tuple[Graph, Tensor]:
    """Return the graph with each edge in both directions, and the place of each edge's reverse.

    An edge stays if either of its atoms counts the other among its nearest.

    Parameters
    ----------
    graph
        Edges of `n_atoms` atoms.

    Returns
    -------
    The larger graph, sorted by target, and int64 indices of shape (E,).
    """
    key, reverse = edge_keys(graph, n_atoms)
    alone = (~torch.isin(reverse, key)).nonzero().squeeze(1)
    both = Graph(
        torch.cat([graph.source, graph.target[alone]]),
        torch.cat([graph.target, graph.source[alone]]),
        torch.cat([graph.image, -graph.image[alone]]),
        torch.cat([graph.vector, -graph.vector[alone]]),
        torch.cat([graph.distance, graph.distance[alone]]),
    )
    order = torch.argsort(both.target, stable=True)
    both = Graph(*(x[order] for x in both))
    key, reverse = edge_keys(both, n_atoms)
    order = torch.argsort(key)
    return both, order[torch.searchsorted(key[order], reverse)]


def edge_keys(graph: Graph, n_atoms: int) -> tuple[Tensor, Tensor]:
    """Return a number for each edge, and that of its reverse, shape (E,), int64."""
    most = int(graph.image.abs().max()) if len(graph.image) else 0
    place = (2 * most + 1) ** torch.arange(3, device=graph.image.device)
    image = (graph.image * place).sum(dim=1)
    n_images = (2 * most + 1) ** 3
    return (
        (graph.source * n_atoms + graph.target) * n_images + image,
        (graph.target * n_atoms + graph.source) * n_images - image,
    )


def triplets(graph: Graph, n_atoms: int, n_spherical: int) -> Triplets:
    """Return the pairs of edges b->a and c->a into all atoms a.

    With counter edges they are also the pairs of an edge c->a and one a->b that goes on; c may be
    an image of b but never b itself.

    Parameters
    ----------
    graph
        Edges of `n_atoms` atoms, sorted by target.
    n_spherical
        Number of spherical harmonics, from l = 0.
    """
    degree = torch.bincount(graph.target, minlength=n_atoms)
    width = int(degree.max()) if n_atoms else 0
    rank = torch.arange(len(graph.target), device=degree.device) - offsets(degree)[graph.target]
    place = graph.target * width + rank
    result = Triplets(place, degree, graph.vector.new_zeros(n_atoms, width, 0, width))
    unit = result.table(functional.normalize(graph.vector, dim=-1))
    x, y, z = ((u[:, :, None], u[:, None]) for u in unit.unbind(dim=2))
    cosine = (x[0] * x[1]).addcmul(*y).addcmul(*z).clamp(-1, 1)
    here = torch.arange(width, device=degree.device) < degree[:, None]
    other = ~torch.eye(width, dtype=torch.bool, device=degree.device)
    mask = here[:, :, None] & here[:, None] & other
    return result._replace(harmonics=legendre(cosine, n_spherical, mask.to(cosine)))


def legendre(x: Tensor, n: int, weight: Tensor) -> Tensor:
    """Return weight (2 l + 1)^(1/2) P_l(x) of l = 0 .. n - 1, x (..., K), shape (..., n, K)."""
    terms = [weight, math.sqrt(3) * x * weight]
    for l in range(1, n - 1):
        # (l + 1) P_l+1 = (2 l + 1) x P_l - l P_l-1, with the roots.
        last = -l / (l + 1) * math.sqrt((2 * l + 3) / (2 * l - 1)) * terms[l - 1]
        factor = math.sqrt((2 * l + 1) * (2 * l + 3)) / (l + 1)
        terms.append(torch.addcmul(last, x, terms[l], value=factor))
    return torch.stack(terms[:n], dim=-2)


def envelope(x: Tensor, p: int = 6) -> Tensor:
    """Return a polynomial that goes from 1 at x = 0 to 0 at 1, smooth to the second derivative.

    J. Gasteiger, J. Gross, S. Guennemann, ICLR 2020, arXiv:2003.03123, Eq. 8.
    """
    x = x.clamp(max=1)
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    return 1 - x**p * (a - b * x + c * x**2)


def lattice_matrix(lengths: Tensor, angles: Tensor) -> Tensor:
    """Return lattices in the standard orientation: a along x, b in the plane of x and y.

    Parameters
    ----------
    lengths
        a, b, c in angstrom, shape (B, 3).
    angles
        alpha, beta, gamma in radians, shape (B, 3).

    Returns
    -------
    Rows are lattice vectors, right-handed, angstrom, shape (B, 3, 3). Angles that no lattice has
    give a flat one.
    """
    a, b, c = lengths.unbind(dim=1)
    cos_alpha, cos_beta, cos_gamma = angles.cos().unbind(dim=1)
    sin_gamma = angles[:, 2].sin().clamp(min=1e-6)
    y = (cos_alpha - cos_beta * cos_gamma) / sin_gamma
    z = (1 - cos_beta.square() - y.square()).clamp(min=1e-12).sqrt()
    zero = torch.zeros_like(a)
    rows = [a, zero, zero, b * cos_gamma, b * sin_gamma, zero, c * cos_beta, c * y, c * z]
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def lattice_parameters(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Return lengths a, b, c in angstrom and angles alpha, beta, gamma in radians, each (B, 3)."""
    lengths = torch.linalg.vector_norm(lattice, dim=-1)
    a, b, c = (lattice / lengths[..., None]).unbind(dim=1)
    cosines = torch.stack([(b * c).sum(-1), (a * c).sum(-1), (a * b).sum(-1)], dim=1)
    return lengths, cosines.clamp(-1 + 1e-7, 1 - 1e-7).acos()
