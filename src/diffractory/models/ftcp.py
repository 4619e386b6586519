"""FTCP: a convolutional variational autoencoder of Fourier-transformed crystal properties.

After Z. Ren et al., "An invertible crystallographic representation for general inverse design of
inorganic crystals with targeted properties", Matter 5, 314 (2022), and its released code. A crystal
is a matrix. Columns are, first, its elements, in ascending order; three of them also hold lengths,
angles and coordinates; then points of the reciprocal lattice. Rows are

1. elements: the one-hot vector of each,
2. lattice: the three lengths, and the three angles,
3. sites: the fractional coordinates of each,
4. occupancies: the one-hot vector of each site among the elements,
5. points: the distance of each from the origin,
6. properties: those of each element, and their Fourier transform at each point.

As published: three convolutions of 5, 3 and 3 rows with steps of 2, 2 and 1 and a quarter, half and
all of the channels, a layer of 1024, 256 latent dimensions, and a decoder that mirrors the
convolutions; squared error, with a weight for the Kullback-Leibler divergence; a crystal is read
from rows 1 to 4.

Decided here:

- Properties are the period and the group, 25 rows, not the 92 of CGCNN.
- The Fourier transform of a property p is abs(sum_j p_j exp(2 pi i h r_j)) / N, which does not
  depend on the origin. The released code sums p_j pi h r_j.
- Of each two opposite points with abs(h) + abs(k) + abs(l) <= 3 there is one, 31 in all; the
  published 59 are, in most crystals, the same with their opposites, but for three.
- A site is there if its greatest occupancy is over 0.5 (released: 0.05), in any row.
- The loss is the mean over crystals, so that it does not depend on the size of a batch, and the
  normalization is over the channels of a crystal and not over a batch, so that processes can share
  one. In the released code the errors of a batch are summed up, and the divergence is not.
- The output begins near zero, as most of a matrix is, and not at 0.5: crystals are then learnt in
  about a tenth of the steps.
- Nothing is learnt of properties, which crystals of this study do not have.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffractory.models.c_vae import kl_divergence
from diffractory.models.crystal_vae import draw
from diffractory.models.diffusion import N_ELEMENTS
from diffractory.models.periodic_graph import UnitCells, lattice_matrix, lattice_parameters, offsets

MAX_INDEX_SUM = 3
"""Greatest abs(h) + abs(k) + abs(l) of a point of the reciprocal lattice."""

OCCUPIED = 0.5
"""Occupancy over which a site is there."""

EMPTY = -4.0
"""Output before the sigmoid that training begins with: most of a matrix is zero."""

NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)
"""Atomic numbers at the ends of the periods."""


def reciprocal_points() -> Tensor:
    """Return one of each two opposite points up to `MAX_INDEX_SUM`, int64 of shape (P, 3).

    They are in the order of that sum; the origin is not among them.
    """
    h = torch.arange(-MAX_INDEX_SUM, MAX_INDEX_SUM + 1)
    hkl = torch.cartesian_prod(h, h, h)
    hkl = hkl[len(hkl) // 2 + 1 :]  # those before the origin are their opposites
    size = hkl.abs().sum(1)
    return hkl[size.argsort(stable=True)][: int((size <= MAX_INDEX_SUM).sum())]


def element_properties() -> Tensor:
    """Return one-hot vectors of period and group, shape (N_ELEMENTS + 1, 7 + 18).

    Lanthanides and actinides are of group 3. Atomic number 0, which is no element, has none.
    """
    z = torch.arange(1, N_ELEMENTS + 1)
    ends = torch.tensor(NOBLE)
    period = torch.searchsorted(ends, z)  # from 1
    after, before = z - ends[period - 1], ends[period] - z
    first = torch.where(period == 1, 1, 2)  # elements of the s block, but for helium
    group = torch.where(after <= first, after, (18 - before).clamp(min=3))
    properties = torch.cat(
        [functional.one_hot(period - 1, 7), functional.one_hot(group - 1, 18)], dim=1
    )
    return functional.pad(properties, (0, 0, 1, 0)).float()


class Ftcp(nn.Module):
    """The network; `forward` returns reconstructed matrices.

    Parameters
    ----------
    max_sites
        Most sites of a crystal.
    max_elements
        Most elements of a crystal.
    channels
        Of the last convolution, a multiple of 4.
    hidden
        Width of the layer between convolutions and latent space.
    latent
        Dimensions of the latent space.
    kl_weight
        Weight of the divergence in the loss.

    Attributes
    ----------
    low, high
        Least and greatest lengths, angstrom, and angles, radian, and the greatest distance of a
        point, 1/angstrom, of the training set: shape (3,) each, the last of `low` zero.
    """

    points: Tensor
    properties: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        max_sites: int = 20,
        max_elements: int = 5,
        channels: int = 128,
        hidden: int = 1024,
        latent: int = 256,
        kl_weight: float = 0.01,
    ) -> None:
        super().__init__()
        self.max_sites, self.latent, self.kl_weight = max_sites, latent, kl_weight
        self.columns = max(3, max_elements)
        properties = element_properties()
        self.register_buffer("points", reciprocal_points().float(), persistent=False)
        self.register_buffer("properties", properties, persistent=False)
        self.register_buffer("low", torch.zeros(3))
        self.register_buffer("high", torch.ones(3))
        self.parts = [N_ELEMENTS, 2, max_sites, max_sites, 1, properties.shape[1]]
        width = self.columns + len(self.points)
        half, quarter = channels // 2, channels // 4
        self.rows = sum(self.parts)
        rows = -(-self.rows // 4)  # after two steps of 2
        self.encoder = nn.Sequential(
            normalized(nn.Conv1d(width, quarter, 5, 2, 2), nn.LeakyReLU(0.2)),
            normalized(nn.Conv1d(quarter, half, 3, 2, 1), nn.LeakyReLU(0.2)),
            normalized(nn.Conv1d(half, channels, 3, 1, 1), nn.LeakyReLU(0.2)),
            nn.Flatten(),
            nn.Linear(channels * rows, hidden),
            nn.Sigmoid(),
            nn.Linear(hidden, 2 * latent),
        )
        output = nn.ConvTranspose1d(quarter, width, 5, 2, 2, 1)
        assert output.bias is not None
        nn.init.constant_(output.bias, EMPTY)
        self.decoder = nn.Sequential(
            nn.Linear(latent, channels * rows),
            nn.ReLU(),
            nn.Unflatten(1, (channels, rows)),
            nn.GroupNorm(1, channels),
            normalized(nn.ConvTranspose1d(channels, half, 3, 1, 1), nn.ReLU()),
            normalized(nn.ConvTranspose1d(half, quarter, 3, 2, 1, 1), nn.ReLU()),
            output,
            nn.Sigmoid(),
        )

    def fit_scalers(self, lattice: Tensor, counts: Tensor) -> None:
        """Take the ranges of lengths, angles and distances from the lattices of a training set.

        Parameters
        ----------
        lattice
            Lattice vectors as rows, angstrom, shape (B, 3, 3).
        counts
            Atoms of each crystal; they are not used.
        """
        lengths, angles = lattice_parameters(lattice)
        distance = self.distances(lattice)
        self.low.copy_(torch.stack([lengths.min(), angles.min(), distance.new_zeros(())]))
        self.high.copy_(torch.stack([lengths.max(), angles.max(), distance.max()]))
        self.high.clamp_(min=1.01 * self.low)  # one crystal, or cubic ones alone, have no range

    def distances(self, lattice: Tensor) -> Tensor:
        """Return distances of `points` from the origin, 1/angstrom, shape (B, P)."""
        reciprocal = torch.linalg.inv_ex(lattice).inverse.transpose(1, 2)
        return torch.linalg.vector_norm(self.points @ reciprocal, dim=2)

    def features(self, cells: UnitCells) -> Tensor:
        """Return matrices of crystals, from about 0 to 1, shape (B, columns, rows)."""
        with torch.autocast(cells.lattice.device.type, enabled=False):
            return self._features(cells)

    def _features(self, cells: UnitCells) -> Tensor:
        n, crystal = len(cells.counts), cells.crystal
        site = torch.arange(len(crystal), device=crystal.device) - offsets(cells.counts)[crystal]
        present = cells.lattice.new_zeros(n, N_ELEMENTS + 1)
        present[crystal, cells.numbers] = 1
        column = present.long().cumsum(1)[crystal, cells.numbers] - 1  # of each atom
        element = cells.lattice.new_zeros(n, self.columns, N_ELEMENTS + 1)
        element[crystal, column, cells.numbers] = 1
        lattice = torch.stack(lattice_parameters(cells.lattice), dim=2)
        lattice = (lattice - self.low[:2]) / (self.high - self.low)[:2]
        coordinates = lattice.new_zeros(n, self.columns, self.max_sites)
        coordinates[crystal, :3, site] = cells.fractional
        occupancy = torch.zeros_like(coordinates)
        occupancy[crystal, column, site] = 1
        real = [
            element[:, :, 1:],
            functional.pad(lattice, (0, 0, 0, self.columns - 3)),
            coordinates,
            occupancy,
            lattice.new_zeros(n, self.columns, 1),
            element @ self.properties,
        ]
        waves = torch.exp(2j * torch.pi * (cells.fractional @ self.points.T))
        carried = waves[:, :, None] * self.properties[cells.numbers][:, None]
        sums = carried.new_zeros(n, *carried.shape[1:]).index_add_(0, crystal, carried)
        distance = self.distances(cells.lattice) / self.high[2]
        reciprocal = [
            lattice.new_zeros(n, len(self.points), sum(self.parts[:4])),
            distance[:, :, None],
            sums.abs() / cells.counts[:, None, None],
        ]
        return torch.cat([torch.cat(real, dim=2), torch.cat(reciprocal, dim=2)], dim=1)

    def crystals(self, features: Tensor) -> UnitCells:
        """Return the crystals that matrices (B, columns, rows) are read as.

        Each has at least one atom.
        """
        real = torch.split(features[:, : self.columns], self.parts, dim=2)
        element, lattice, coordinates, occupancy = real[:4]
        scaled = lattice[:, :3] * (self.high - self.low)[:2] + self.low[:2]
        strength, column = occupancy.max(dim=1)
        strongest = functional.one_hot(strength.argmax(1), self.max_sites).bool()
        there = (strength > OCCUPIED) | strongest
        crystal, site = there.nonzero(as_tuple=True)
        numbers = element.argmax(dim=2) + 1
        fractional = coordinates[crystal, :3, site]
        return UnitCells(
            fractional - fractional.floor(),
            numbers[crystal, column[crystal, site]],
            lattice_matrix(scaled[:, :, 0], scaled[:, :, 1]),
            there.sum(1),
        )

    def encode(self, cells: UnitCells) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of the variances, shape (B, latent) each."""
        return self._encoded(self.features(cells))

    def _encoded(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(features).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Return matrices, from 0 to 1, shape (B, columns, rows), of z, shape (B, latent)."""
        return self.decoder(z)[:, :, : self.rows].float()

    def forward(self, cells: UnitCells) -> Tensor:
        """Return the matrices of crystals as reconstructed from the means."""
        return self.decode(self.encode(cells)[0])

    def loss(self, cells: UnitCells, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return the loss of a batch and its terms, each the mean over crystals.

        ``features`` is the squared error summed over a matrix, and ``kl`` the divergence, nat.
        """
        features = self.features(cells)
        mean, log_variance = self._encoded(features)
        z = draw(mean, log_variance, generator)
        error = (self.decode(z) - features).square().sum((1, 2)).mean()
        kl = kl_divergence(mean, log_variance).mean()
        return {"loss": error + self.kl_weight * kl, "features": error, "kl": kl}

    def reconstruct(self, cells: UnitCells, generator: torch.Generator | None = None) -> UnitCells:
        """Return what crystals are decoded to from a draw of their latent vectors."""
        return self.crystals(self.decode(draw(*self.encode(cells), generator)))

    def generate(self, n: int, generator: torch.Generator | None = None) -> UnitCells:
        """Return n crystals decoded from draws of the standard normal distribution."""
        mean = self.low.new_zeros(n, self.latent)
        return self.crystals(self.decode(draw(mean, mean, generator)))


def normalized(convolution: nn.Conv1d | nn.ConvTranspose1d, activation: nn.Module) -> nn.Sequential:
    """Return a convolution followed by normalization and an activation."""
    return nn.Sequential(convolution, nn.GroupNorm(1, convolution.out_channels), activation)
