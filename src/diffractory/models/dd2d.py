"""DD2D: two transformers that put 2D crystals and their diffraction patterns into one space.

R. Fu et al., Commun. Phys. 8, 221 (2025), 10.1038/s42005-025-02152-8. A crystal is a sequence of
its lattice, the positions of its atoms and their elements, between a start and an end token; a
pattern is a cloud of points on a grid with a class token. Those that belong together get embeddings
that point the same way.

Where the paper is short, the released code or a decision of ours fills in:

- The paper tokenizes text and the released code maps each number linearly. Here a number is
  embedded by sines and cosines of its value, whose periods are those of `PERIODS`; the places of
  points and their intensities are embedded apart and concatenated, as in the paper.
- Each token of a crystal also has learnt embeddings of its place and of its kind (a, b, ... x, y,
  z, element); elements have a table of 103. The released code adds fixed sines of the place.
- The order is that of the paper, elements last; the released files have each atom's after its
  position.
- The start token sees itself and the lattice alone (caption of Fig. 2).
- Layers normalize before attention and before their network (of 4 times the width, GELU), with
  dropout after both. The released code also drops weights of attention, which takes six times as
  long on a CPU.
- A crystal is read from the normalized start and end tokens, added; a pattern from its class token.
  Two linear maps with GELU between project each.
- Similarities are divided by a learnt temperature, as in the released code; Eq. 4 as printed has
  none, and similarities of at most 1 would leave its loss far from 0.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

N_ELEMENTS = 103
N_LATTICE = 6

KINDS = ("start", "a", "b", "c", "alpha", "beta", "gamma", "x", "y", "z", "element", "end")
"""Kinds of tokens of a crystal."""

PERIODS = {"number": (0.1, 400.0), "site": (4.0, 800.0), "intensity": (0.2, 40.0)}
"""Shortest and longest period of the sines: of angstrom and degree, of grid steps, and of the
natural logarithm of an intensity."""

N_PERIODS = 16

FAINTEST = 1e-10
"""Intensity below which points look alike, fraction of the brightest."""

LEAST_TEMPERATURE = 0.01


class Crystals(NamedTuple):
    """B crystals, padded with zeros to the most atoms and the most reflections.

    Attributes
    ----------
    lattice
        a, b, c in angstrom and alpha, beta, gamma in degrees, shape (B, 6), float32.
    positions
        Cartesian, c along z, angstrom, shape (B, N, 3), float32.
    numbers
        Atomic numbers, 0 where no atom is, shape (B, N), int64.
    reflections
        q_x and q_y of the beams (h k 0), one of h k and -h -k, without the direct beam, 1/angstrom,
        shape (B, H, 2), float32.
    """

    lattice: Tensor
    positions: Tensor
    numbers: Tensor
    reflections: Tensor


class TwoTowers(nn.Module):
    """A network with an embedding of crystals and one of patterns, and their loss."""

    loss_name = "Symmetric cross-entropy (Eq. 4) at a learnt temperature"

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def structures(self, crystals: Crystals) -> Tensor:
        """Return embeddings of crystals, of length 1, shape (B, width)."""
        raise NotImplementedError

    def patterns(self, spots: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings of patterns, of length 1, shape (B, width).

        Parameters
        ----------
        spots
            q_x and q_y in 1/angstrom and an intensity in any unit, shape (B, P, 3); anything finite
            where no spot is.
        mask
            True where a spot is, shape (B, P).
        """
        raise NotImplementedError

    def forward(self, crystals: Crystals, spots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings of crystals and of patterns."""
        return self.structures(crystals), self.patterns(spots, mask)

    def similarities(self, structures: Tensor, patterns: Tensor) -> Tensor:
        """Return cosines over the temperature of P patterns and S structures, shape (P, S)."""
        scale = self.log_scale.clamp(max=-math.log(LEAST_TEMPERATURE)).exp()
        with torch.autocast(patterns.device.type, enabled=False):
            return scale * patterns @ structures.T

    def loss(self, structures: Tensor, patterns: Tensor) -> Tensor:
        """Return Eq. 4 of B pairs, whose embeddings have shape (B, width), nat."""
        similarities = self.similarities(structures, patterns)
        truth = torch.arange(len(patterns), device=patterns.device)
        return 0.5 * (
            functional.cross_entropy(similarities, truth)
            + functional.cross_entropy(similarities.T, truth)
        )


class DD2D(TwoTowers):
    """The network.

    Parameters
    ----------
    width, n_layers, n_heads
        Of both transformers; the embeddings have the same width.
    max_length
        Most tokens of a crystal: a crystal of N atoms has 8 + 4 N.
    dropout
        Rate after attention and after the networks of the layers.
    q_max, q_step
        Half a side of the grid of points, and the distance between them, 1/angstrom.
    """

    def __init__(
        self,
        width: int = 384,
        n_layers: int = 4,
        n_heads: int = 4,
        max_length: int = 180,
        dropout: float = 0.1,
        q_max: float = 2.5,
        q_step: float = 0.025,
    ) -> None:
        super().__init__()
        self.max_length, self.q_max, self.q_step = max_length, q_max, q_step
        shape = (width, n_layers, n_heads, dropout)
        self.geometry = GeometricEncoder(max_length, *shape)
        self.texture = TextureEncoder(*shape)

    def structures(self, crystals: Crystals) -> Tensor:
        """Return embeddings of crystals of at most `max_length` tokens, shape (B, width)."""
        embedding: Tensor = self.geometry(crystals)
        return functional.normalize(embedding.float(), dim=-1)

    def patterns(self, spots: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings of patterns, shape (B, width)."""
        row_and_column = (spots[..., :2] / self.q_step).round() + round(self.q_max / self.q_step)
        intensity = spots[..., 2] * mask
        brightest = intensity.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        log_intensity = (intensity / brightest).clamp(min=FAINTEST).log()
        embedding: Tensor = self.texture(row_and_column, log_intensity, mask)
        return functional.normalize(embedding.float(), dim=-1)

    def attention(self, crystal: Crystals) -> Tensor:
        """Return the attention of one crystal in the first and the last layer of its transformer.

        Parameters
        ----------
        crystal
            A batch of one.

        Returns
        -------
        Weights of T tokens (their sum over the last axis is 1), shape (2, heads, T, T).
        """
        x, sees = self.geometry.tokens(crystal)
        weights = self.geometry.transformer.attention(x, sees)[:, 0]
        return weights[[0, -1]]


class GeometricEncoder(nn.Module):
    """The crystallographic geometric encoder (CGE), from sequences of crystals."""

    def __init__(
        self, max_length: int, width: int, n_layers: int, n_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.number = Number(1, width, *PERIODS["number"])
        self.element = nn.Embedding(N_ELEMENTS + 1, width, padding_idx=0)
        self.kind = nn.Embedding(len(KINDS), width)
        self.place = nn.Embedding(max_length, width)
        self.transformer = Transformer(width, n_layers, n_heads, dropout)
        self.project = projection(width)
        for table in (self.element, self.kind, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, crystals: Crystals) -> Tensor:
        """Return shape (B, width)."""
        ends = self.transformer(*self.tokens(crystals), [0, -1])
        result: Tensor = self.project(ends.sum(dim=1))
        return result

    def tokens(self, crystals: Crystals) -> tuple[Tensor, Tensor]:
        """Return the tokens, (B, T, width), and which see which, bool, (B, 1, T, T).

        Padding stands within the sequence, so that all end tokens are last; places are counted
        without it.
        """
        b, n = crystals.numbers.shape
        numbers = torch.cat([crystals.lattice, crystals.positions.flatten(1)], dim=1)
        edge = numbers.new_zeros(b, 1, self.kind.embedding_dim)
        element = self.element(crystals.numbers)
        x = torch.cat([edge, self.number(numbers[..., None]), element, edge], dim=1)

        first = 1 + N_LATTICE
        count = (crystals.numbers > 0).sum(dim=1, keepdim=True)
        atoms = torch.arange(n, device=count.device)
        before = torch.arange(first + 3 * n, device=count.device).expand(b, -1)
        place = torch.cat([before, first + 3 * count + atoms, first + 4 * count], dim=1)
        of_atom = [first, first + 1, first + 2]
        kinds = [*range(first), *of_atom * n, *[len(KINDS) - 2] * n, len(KINDS) - 1]
        kind = torch.tensor(kinds, device=count.device)
        x = x + self.place(place.clamp(max=self.place.num_embeddings - 1)) + self.kind(kind)

        here = atoms < count
        always = here.new_ones(b, first)
        mask = torch.cat([always, here.repeat_interleave(3, dim=1), here, always[:, :1]], dim=1)
        sees = mask[:, None, None, :].repeat(1, 1, x.shape[1], 1)
        sees[:, :, 0, first:] = False
        return x, sees


class TextureEncoder(nn.Module):
    """The site texture encoder (STE), from points of patterns."""

    def __init__(self, width: int, n_layers: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.site = Number(2, width - width // 2, *PERIODS["site"])
        self.intensity = Number(1, width // 2, *PERIODS["intensity"])
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.transformer = Transformer(width, n_layers, n_heads, dropout)
        self.project = projection(width)

    def forward(self, row_and_column: Tensor, log_intensity: Tensor, mask: Tensor) -> Tensor:
        """Return shape (B, width) of points, shapes (B, P, 2), (B, P) and (B, P)."""
        parts = self.site(row_and_column), self.intensity(log_intensity[..., None])
        token = self.token.expand(len(mask), -1, -1)
        x = torch.cat([token, torch.cat(parts, dim=-1)], dim=1)
        sees = functional.pad(mask, (1, 0), value=True)[:, None, None, :]
        result: Tensor = self.project(self.transformer(x, sees, [0])[:, 0])
        return result


class Number(nn.Module):
    """Embedding of ``count`` numbers by sines and cosines of their values."""

    def __init__(self, count: int, width: int, shortest: float, longest: float) -> None:
        super().__init__()
        periods = torch.logspace(math.log10(shortest), math.log10(longest), N_PERIODS)
        self.frequency: Tensor
        self.register_buffer("frequency", 2 * torch.pi / periods, persistent=False)
        self.linear = nn.Linear(2 * N_PERIODS * count, width)

    def forward(self, values: Tensor) -> Tensor:
        """Return shape (..., width) of values, shape (..., count)."""
        phase = values[..., None] * self.frequency
        result: Tensor = self.linear(torch.cat([phase.sin(), phase.cos()], dim=-1).flatten(-2))
        return result


class Transformer(nn.Module):
    """Layers of self-attention, and a normalization at the end."""

    def __init__(self, width: int, n_layers: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, n_heads, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, sees: Tensor, read: list[int]) -> Tensor:
        """Return the tokens that are read, shape (B, R, width).

        Parameters
        ----------
        x
            T tokens, shape (B, T, width).
        sees
            Which tokens see which, broadcast to shape (B, heads, T, T).
        read
            Places of R tokens: the last layer spares the others.
        """
        *others, last = self.layers
        for layer in others:
            x = layer(x, sees)
        result: Tensor = self.norm(last(x, sees, read))
        return result

    def attention(self, x: Tensor, sees: Tensor) -> Tensor:
        """Return the attention weights of every layer, shape (layers, B, heads, T, T)."""
        weights = []
        for module in self.layers:
            layer: Any = module
            q, k, _ = layer.queries_keys_values(x)
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights.append(scores.masked_fill(~sees, -torch.inf).softmax(dim=-1))
            x = layer(x, sees)
        return torch.stack(weights)


class Layer(nn.Module):
    """Self-attention (Eq. 3) and a network for each token, each normalized before and added."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_1 = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, sees: Tensor, read: list[int] | None = None) -> Tensor:
        """Return all tokens, shape (B, T, width), or those at the R places that are read."""
        q, k, v = self.queries_keys_values(x)
        if read is not None:
            sees = sees.expand(-1, -1, x.shape[1], -1)[:, :, read]
            q, x = q[:, :, read], x[:, read]
        heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=sees)
        x = x + self.dropout(self.project_out(heads.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.network(self.norm_2(x)))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return three times shape (B, heads, T, width / heads)."""
        parts = self.project_in(self.norm_1(x)).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        return q, k, v


def projection(width: int) -> nn.Module:
    """Return the network from tokens to an embedding."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
