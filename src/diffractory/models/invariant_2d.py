"""Our network for patterns of 2D crystals: what it says cannot depend on how a crystal is given.

Neither turning nor mirroring a pattern in its plane changes its embedding, since it is read by
products of circular harmonics, as in `ours`. A crystal is read in the same way, by the same
weights, from the spots that it would have,

    I(q) = exp(e(q)) |sum_j f_j(q) exp(-2 pi i q r_j)|^2,

where the form factor of an element, f = Z sum_n a_n exp(-b_n q^2), and the factor exp(e) of all
elements (vibrations, polarization) are learnt. These do not depend on the order of atoms, the
origin, the heights of atoms (the beam is along z) and the choice of the cell: the spots that a
supercell has more are extinct, and faint spots fade out.

A pattern of a thin crystal is the same under a turn by 180 degrees: only even harmonics are read,
and of a crystal one of the beams h k and -h -k.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffractory.models.dd2d import N_ELEMENTS, Crystals, TwoTowers
from diffractory.models.ours import N_PERIODS, Products, describe

FAINT = 1e-3
"""Intensity at which spots have half their weight, fraction of the brightest."""

RIM = 0.1
"""Part of q_max over which spots fade out: the rim of a grid has corners, which do not turn."""

WIDTHS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Widths b_n of the Gaussians of form factors, square angstrom."""


class Invariant2D(TwoTowers):
    """The network.

    Parameters
    ----------
    width
        Of the embeddings.
    dim
        Features of a spot.
    n_densities, n_harmonics
        Radial functions, and orders 0, 2 .. 2 n_harmonics of their densities.
    n_products
        Products of each order.
    hidden_dim
        Width of the network that reads the products.
    dropout
        Rate in that network.
    q_max
        Spots farther out are not read, 1/angstrom.
    """

    def __init__(
        self,
        width: int = 128,
        dim: int = 64,
        n_densities: int = 32,
        n_harmonics: int = 6,
        n_products: int = 64,
        hidden_dim: int = 256,
        dropout: float = 0.1,
        q_max: float = 2.5,
    ) -> None:
        super().__init__()
        self.q_max = q_max
        self.form_factors = FormFactors()
        self.orders: Tensor
        self.register_buffer("orders", 2 * torch.arange(n_harmonics + 1), persistent=False)
        self.spot = nn.Sequential(nn.Linear(2 * N_PERIODS + 1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.densities = nn.Linear(dim, n_densities)
        self.products = Products(n_densities, n_harmonics, n_products)
        n_features = (n_harmonics + 1) * n_products + dim + 1
        self.read = nn.Sequential(
            nn.LayerNorm(n_features),
            nn.Linear(n_features, hidden_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, width),
        )

    def structures(self, crystals: Crystals) -> Tensor:
        """Return embeddings of crystals, shape (B, width)."""
        q = crystals.reflections
        with torch.autocast(q.device.type, enabled=False):
            intensity = self.form_factors(crystals)
        pairs = 2.0 * (q != 0).any(dim=-1)
        return self._embed(q, intensity, pairs)

    def patterns(self, spots: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings of patterns, shape (B, width)."""
        return self._embed(spots[..., :2], spots[..., 2], mask.float())

    def _embed(self, q: Tensor, intensity: Tensor, count: Tensor) -> Tensor:
        """Return embeddings of spots, of which each counts so many times, shapes (B, S, ...)."""
        radius = torch.linalg.vector_norm(q, dim=-1)
        weight = count * ((1 - radius / self.q_max) / RIM).clamp(0, 1)
        brightest = (intensity * weight.sign()).amax(dim=1, keepdim=True)
        relative = intensity / brightest.clamp(min=torch.finfo(torch.float32).tiny)
        weight = weight * relative / (relative + FAINT)
        n = weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
        x = self.spot(describe(torch.cat([q, relative[..., None]], dim=-1)))
        phase = torch.atan2(q[..., 1], q[..., 0])[..., None] * self.orders
        waves = torch.stack([phase.cos(), phase.sin()], dim=2)
        waves = waves * (weight / n.sqrt())[..., None, None]
        products = self.products(self.densities(x), waves)
        mean = (x * weight[..., None]).sum(dim=1) / n
        embedding = self.read(torch.cat([products, mean, n.log()], dim=-1))
        return functional.normalize(embedding.float(), dim=-1)


class FormFactors(nn.Module):
    """Intensities of crystals, with learnt form factors and a learnt factor of all elements."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: Tensor
        self.register_buffer("widths", torch.tensor(WIDTHS), persistent=False)
        self.common = nn.Parameter(torch.ones(len(WIDTHS)) / len(WIDTHS))
        # Relative to the rest, so that an element of which little was seen is like the others.
        self.own = nn.Embedding(N_ELEMENTS + 1, len(WIDTHS))
        self.envelope = nn.Linear(2 * N_PERIODS, 1)
        for parameter in (self.own.weight, self.envelope.weight, self.envelope.bias):
            nn.init.zeros_(parameter)

    def forward(self, crystals: Crystals) -> Tensor:
        """Return the intensities of the reflections, in any unit, shape (B, H)."""
        q, z = crystals.reflections, crystals.numbers
        amplitude = z[..., None] * self.common * (1 + self.own(z))
        fall = torch.exp(-q.square().sum(dim=-1, keepdim=True) * self.widths)
        factor = fall @ amplitude.transpose(1, 2)
        phase = 2 * torch.pi * (q @ crystals.positions[..., :2].transpose(1, 2))
        waves = torch.stack([(factor * phase.cos()).sum(-1), (factor * phase.sin()).sum(-1)])
        radial = describe(functional.pad(q, (0, 1)))[..., :-1]
        return waves.square().sum(dim=0) * self.envelope(radial).squeeze(-1).exp()
