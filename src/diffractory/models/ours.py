"""Our network: circular harmonics of the spots, multiplied so that no direction is left.

Spots become densities c_mn = sum_s f_m(r_s, I_s) exp(i n theta_s) of learnt radial functions f_m.
Turning a pattern by an angle a multiplies c_mn by exp(i n a), so that products of one density with
the conjugate of another of the same n do not change: they are sums over all pairs of spots,

    Re(c_mn c*_m'n) = sum_st f_m(s) f_m'(t) cos(n (theta_s - theta_t)),

at a cost that grows with the number of spots and not of pairs. In two dimensions they are what
the power spectrum of atomic densities is in three (A. P. Bartok, R. Kondor, G. Csanyi, Phys. Rev.
B 87, 184115 (2013)). Mirroring a pattern changes them as little.

It keeps the aim of PE-AG-GMoE, relations between spots whatever the orientation, and changes what
that paper points at: invariance is exact and needs no training, the space group is told within the
crystal system, p(group) = p(system) p(group | system), and the probabilities of a material's
patterns are multiplied to a power that is learnt, in place of a vote. Attention over pairs of
spots, which it began with, was ten times slower for the same number of patterns and had learnt less
in the same time; see docs/networks.md.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffractory.models.spot_lists import N_SPACE_GROUPS, N_SYSTEMS, Opinions, SpotListNetwork

LAST_GROUPS = (2, 15, 74, 142, 167, 194, 230)
"""Last space group of each crystal system, triclinic to cubic."""

PERIODS = (0.04, 3.0)
"""Shortest and longest period of the sines that describe a radius, 1/angstrom."""

N_PERIODS = 16

FAINTEST = 1e-5
"""Intensity below which spots look alike, fraction of the incident beam."""

CENTRE = 0.04
"""Spots nearer to the origin than this fade out, 1/angstrom: the direct beam has no direction, also
where the origin is a little beside it."""


class Ours(SpotListNetwork):
    """The network.

    Parameters
    ----------
    dim
        Features of a spot.
    n_layers
        Times that spots look at the densities around them, each from its own direction.
    n_densities, n_harmonics
        Radial functions, and orders n = 0 .. n_harmonics of their densities.
    n_products
        Products of each order.
    hidden_dim
        Width of the network that reads the products.
    dropout
        Rate in that network.
    """

    loss_name = "Cross-entropy of crystal system and space group"

    def __init__(
        self,
        dim: int = 64,
        n_layers: int = 0,
        n_densities: int = 32,
        n_harmonics: int = 12,
        n_products: int = 64,
        hidden_dim: int = 256,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(locals())
        self.orders: Tensor
        self.register_buffer("orders", torch.arange(n_harmonics + 1), persistent=False)
        self.spot = nn.Sequential(nn.Linear(2 * N_PERIODS + 1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.layers = nn.ModuleList(Look(dim, n_densities, n_harmonics) for _ in range(n_layers))
        self.densities = nn.Linear(dim, n_densities)
        self.products = Products(n_densities, n_harmonics, n_products)
        n_features = (n_harmonics + 1) * n_products + dim
        self.read = nn.Sequential(
            nn.LayerNorm(n_features),
            nn.Linear(n_features, hidden_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
        )
        self.crystal_system = nn.Linear(hidden_dim, N_SYSTEMS)
        self.space_group = nn.Linear(hidden_dim, N_SPACE_GROUPS)
        self.system_of_group: Tensor
        system = np.searchsorted(LAST_GROUPS, np.arange(1, N_SPACE_GROUPS + 1))
        self.register_buffer("system_of_group", torch.from_numpy(system), persistent=False)
        self.pooling = torch.ones(2)

    def forward(self, spots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logarithms of the probabilities, shapes (B, 7) and (B, 230)."""
        spots = spots * mask[:, :, None]  # whatever stands in the padding
        x = self.spot(describe(spots)) * mask[:, :, None]
        waves = self.waves(spots, mask)
        for layer in self.layers:
            x = layer(x, waves) * mask[:, :, None]
        products = self.products(self.densities(x), waves)
        mean = x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        token = self.read(torch.cat([products, mean], dim=-1))
        system = self.crystal_system(token).float().log_softmax(dim=-1)
        group = self.space_group(token).float()
        index = self.system_of_group.expand_as(group)
        within = group - group.detach().amax(dim=-1, keepdim=True)
        total = group.new_zeros(system.shape).scatter_add(1, index, within.exp())
        return system, within + (system - total.clamp(min=1e-30).log()).gather(1, index)

    def waves(self, spots: Tensor, mask: Tensor) -> Tensor:
        """Return cosines and sines of n theta, each over the root of the number of spots.

        Returns
        -------
        Shape (B, N, 2, orders); the direct beam and padding have none.
        """
        x, y, _ = spots.unbind(dim=-1)
        n = mask.sum(dim=1, keepdim=True).clamp(min=1)
        size = mask * -torch.expm1(-(x.square() + y.square()) / CENTRE**2) / n.sqrt()
        phase = torch.atan2(y, x)[..., None] * self.orders
        return torch.stack([phase.cos(), phase.sin()], dim=2) * size[:, :, None, None]

    def loss(
        self, output: tuple[Tensor, Tensor], crystal_system: Tensor, space_group: Tensor
    ) -> Tensor:
        """Return the cross-entropies of crystal system and space group."""
        system, group = output
        return functional.nll_loss(system, crystal_system) + functional.nll_loss(group, space_group)

    def opinions(self, output: tuple[Tensor, Tensor]) -> Opinions:
        """Return the probabilities."""
        return Opinions(output[0].exp(), output[1].exp())


def describe(spots: Tensor) -> Tensor:
    """Return sines and cosines of the radius and the brightness, shape (B, N, 2 N_PERIODS + 1)."""
    radius = torch.linalg.vector_norm(spots[..., :2], dim=-1, keepdim=True)
    low, high = (math.log10(1 / period) for period in PERIODS)
    frequency = torch.logspace(high, low, N_PERIODS, device=spots.device)
    phase = 2 * torch.pi * radius * frequency
    brightness = (spots[..., 2:].clamp(min=FAINTEST) / FAINTEST).log10() / 5
    return torch.cat([phase.sin(), phase.cos(), brightness], dim=-1)


def density(f: Tensor, waves: Tensor) -> Tensor:
    """Return the densities of values f, (B, N, M): real and imaginary part, (B, M, 2, orders)."""
    return torch.einsum("bsm,bspn->bmpn", f, waves.to(f.dtype))


class Products(nn.Module):
    """Learnt products of densities, without direction."""

    def __init__(self, n_densities: int, n_harmonics: int, n_products: int) -> None:
        super().__init__()
        shape = (n_harmonics + 1, n_densities, n_products)
        self.first = nn.Parameter(torch.randn(shape) / n_densities**0.5)
        self.second = nn.Parameter(torch.randn(shape) / n_densities**0.5)

    def forward(self, f: Tensor, waves: Tensor) -> Tensor:
        """Return Re(u v*) of mixtures u and v of the densities, shape (B, orders n_products)."""
        c = density(f, waves)
        u = torch.einsum("bmpn,nmk->bpnk", c, self.first.to(c.dtype))
        v = torch.einsum("bmpn,nmk->bpnk", c, self.second.to(c.dtype))
        return (u * v).sum(dim=1).flatten(1)


class Look(nn.Module):
    """Spots take in the densities, each turned to its own direction."""

    def __init__(self, dim: int, n_densities: int, n_harmonics: int) -> None:
        super().__init__()
        self.densities = nn.Linear(dim, n_densities)
        self.norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim + n_densities * (n_harmonics + 1), 2 * dim)
        self.outer = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, waves: Tensor) -> Tensor:
        """Return the features of the spots, shape (B, N, dim)."""
        c = density(self.densities(x), waves)
        count = (waves[..., 0, :1].square() + waves[..., 1, :1].square()).clamp(min=1e-12)
        seen = torch.einsum("bmpn,bspn->bsmn", c, waves.to(c.dtype)) / count[:, :, None].sqrt()
        y = torch.cat([self.norm(x), seen.flatten(2).to(x.dtype)], dim=-1)
        return x + self.outer(functional.silu(self.inner(y)))
