"""PE-AG-GMoE: pointlist encoder, attention graph, Graphormer with mixtures of experts.

A. Nathani et al., npj Comput. Mater. (2026), 10.1038/s41524-025-01927-5; equations are numbered as
there. What the paper leaves open was decided so:

- Channels are normalized by mean and standard deviation over the spots of training patterns.
- The encoder normalizes the features of each spot (layer normalization), so that neither padding
  nor the other patterns of a batch matter; its widths are 3, 64, 64, 128, 128, d.
- Experts have `expert_ratio` times as many hidden features as inputs.
- Attention weights are averaged over the heads before Eq. 9.
- Products of softmax weights are positive, so that "an edge where A > 0" makes every graph
  complete, with all distances 1 and all degrees N. `edge_rule` is "positive" as printed; "relative"
  asks for A_ij > edge_threshold / N; "top_k" takes the edge_threshold largest A_ij of each row.
- Distances beyond `max_distance` count as one more, with no path; the graph token has a distance of
  its own.
- The load balancing loss is summed over all mixtures.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffractory.models.mixture_of_experts import MixtureOfExperts
from diffractory.models.spot_lists import N_SPACE_GROUPS, N_SYSTEMS, Opinions, SpotListNetwork

MAX_DEGREE = 1023


class PeAgGmoe(SpotListNetwork):
    """The network as published, but for `edge_rule`.

    Parameters
    ----------
    input_dim
        Features d of a spot after the encoder.
    hidden_dim, n_layers, n_heads
        Width and depth of the Graphormer, and attention heads there and in the graph.
    n_experts_adjacency, n_experts_graphormer, top_k, expert_ratio
        Local experts in the attention graph and in the Graphormer, how many see a token, and their
        hidden features relative to their input.
    dropout
        Rate after attention and experts of the Graphormer.
    balance_weight
        Weight alpha of the load balancing loss, Eq. 16.
    edge_rule, edge_threshold
        "positive", "relative" or "top_k", see above.
    max_distance
        Longest path that is told apart, edges.
    """

    loss_name = "Cross-entropy of crystal system and space group + load balancing loss"

    def __init__(
        self,
        input_dim: int = 256,
        hidden_dim: int = 64,
        n_layers: int = 8,
        n_heads: int = 8,
        n_experts_adjacency: int = 4,
        n_experts_graphormer: int = 4,
        top_k: int = 2,
        expert_ratio: int = 1,
        dropout: float = 0.1,
        balance_weight: float = 0.01,
        edge_rule: str = "positive",
        edge_threshold: float = 0.0,
        max_distance: int = 5,
    ) -> None:
        super().__init__(locals())
        self.balance_weight = balance_weight
        self.edge_rule, self.edge_threshold = edge_rule, edge_threshold
        self.max_distance = max_distance
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("deviation", torch.ones(3))
        self.encoder = PointlistEncoder(input_dim)
        experts = (expert_ratio * input_dim, n_experts_adjacency, top_k)
        self.graph = AttentionGraph(input_dim, n_heads, *experts)
        experts = (expert_ratio * hidden_dim, n_experts_graphormer, top_k)
        self.graphormer = Graphormer(
            input_dim, hidden_dim, n_layers, n_heads, *experts, dropout, max_distance
        )
        self.crystal_system = nn.Linear(hidden_dim, N_SYSTEMS)
        self.space_group = nn.Linear(hidden_dim, N_SPACE_GROUPS)

    def normalize_with(self, spots: Tensor, mask: Tensor) -> None:
        """Take mean and deviation of each channel over the spots."""
        features = polar(spots)[mask]
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0).clamp(min=1e-6))

    def forward(self, spots: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, shapes (B, 7) and (B, 230), and the sum of the balances, shape ()."""
        h = self.encoder((polar(spots) - self.mean) / self.deviation)
        h, adjacency, balance = self.graph(h, mask)
        edges = edges_of(adjacency, mask, self.edge_rule, self.edge_threshold)
        distance = shortest_paths(edges, self.max_distance)
        token, more = self.graphormer(h, mask, edges.sum(dim=-1), distance)
        return self.crystal_system(token), self.space_group(token), balance + more

    def loss(
        self, output: tuple[Tensor, Tensor, Tensor], crystal_system: Tensor, space_group: Tensor
    ) -> Tensor:
        """Return Eq. 16."""
        system, group, balance = output
        return (
            functional.cross_entropy(system.float(), crystal_system)
            + functional.cross_entropy(group.float(), space_group)
            + self.balance_weight * balance
        )

    def opinions(self, output: tuple[Tensor, Tensor, Tensor]) -> Opinions:
        """Return the softmax of the logits."""
        return Opinions(output[0].float().softmax(dim=-1), output[1].float().softmax(dim=-1))


def polar(spots: Tensor) -> Tensor:
    """Return [r, theta, I] of [q_x, q_y, I], in 1/angstrom and radian, shape (..., 3)."""
    x, y, intensity = spots.unbind(dim=-1)
    return torch.stack([torch.hypot(x, y), torch.atan2(y, x), intensity], dim=-1)


class PointlistEncoder(nn.Module):
    """Pointwise convolutions of [r, theta, I], Eq. 1 and Fig. 6."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Pointwise(i, o) for i, o in ((3, 64), (64, 64), (64, 128), (128, 128), (128, dim))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features of each spot, shape (B, N, dim)."""
        for layer in self.layers:
            x = layer(x)
        return x


class Pointwise(nn.Module):
    """A convolution of kernel size 1, a linear map of every spot, with a residual if it can."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        self.is_residual = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (B, N, outputs)."""
        y = functional.relu(self.norm(self.linear(x)))
        return x + y if self.is_residual else y


class Attention(nn.Module):
    """Multi-head self-attention that also returns its weights."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return updates, shape (B, N, dim), and weights, shape (B, heads, N, N).

        Parameters
        ----------
        bias
            Added to the scores of Eq. 14, minus infinity where none may look; shape broadcast to
            (B, heads, N, N).
        """
        b, n, dim = x.shape
        q, k, v = self.project_in(x).reshape(b, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q / q.shape[-1] ** 0.5) @ k.transpose(-1, -2)
        weights = (scores.float() + bias).softmax(dim=-1)
        update = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, n, dim)
        return self.project_out(update), weights


class AttentionGraph(nn.Module):
    """Two layers of attention with a mixture of experts between, Eqs. 7 to 9 and Fig. 7."""

    def __init__(self, dim: int, n_heads: int, hidden: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm_1 = nn.LayerNorm(dim)
        self.attention_1 = Attention(dim, n_heads)
        self.norm_2 = nn.LayerNorm(dim)
        self.experts = MixtureOfExperts(dim, hidden, n_experts, top_k)
        self.norm_3 = nn.LayerNorm(dim)
        self.attention_2 = Attention(dim, n_heads)

    def forward(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, shape (B, N, dim), the adjacency A, (B, N, N), and the balance, ()."""
        # Large and not infinite: a pattern without spots has no NaN.
        hidden = torch.where(mask, 0.0, -1e9)[:, None, None, :]
        z = self.project(h)
        update, first = self.attention_1(self.norm_1(z), hidden)
        h = z + update
        update, balance = self.experts(self.norm_2(h), mask)
        h = h + update
        update, second = self.attention_2(self.norm_3(h), hidden)
        return h + update, second.mean(dim=1) @ first.mean(dim=1), balance


def edges_of(adjacency: Tensor, mask: Tensor, rule: str, threshold: float) -> Tensor:
    """Return where an edge is, bool of shape (B, N, N); `PeAgGmoe` has the rules."""
    match rule:
        case "positive":
            edges = adjacency > 0
        case "relative":
            edges = adjacency > threshold / mask.sum(dim=-1).clamp(min=1)[:, None, None]
        case "top_k":
            among = adjacency.masked_fill(~mask[:, None, :], -1.0)
            best = among.topk(min(int(threshold), among.shape[-1]), dim=-1).indices
            edges = torch.zeros_like(mask[:, None, :] & mask[:, :, None]).scatter(2, best, True)
        case _:
            raise ValueError(f"edge_rule is {rule!r}: use positive, relative or top_k")
    return edges & mask[:, None, :] & mask[:, :, None]


def shortest_paths(edges: Tensor, longest: int) -> Tensor:
    """Return numbers of edges from i to j, int64 of shape (B, N, N), longest + 1 where beyond."""
    n = edges.shape[-1]
    itself = torch.eye(n, dtype=torch.bool, device=edges.device)
    distance = torch.full(edges.shape, longest + 1, device=edges.device)
    distance.masked_fill_(edges, 1).masked_fill_(itself, 0)
    step = (edges | itself).float()
    reached = step
    for length in range(2, longest + 1):
        further = ((reached @ step) > 0).float()
        if torch.equal(further, reached):
            break
        distance.masked_fill_((further > reached), length)
        reached = further
    return distance


class Graphormer(nn.Module):
    """Transformer over spots and a graph token, biased by the graph, Eqs. 10 to 15 and Fig. 8."""

    def __init__(
        self,
        inputs: int,
        dim: int,
        n_layers: int,
        n_heads: int,
        hidden: int,
        n_experts: int,
        top_k: int,
        dropout: float,
        max_distance: int,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, dim)
        self.degree = nn.Embedding(MAX_DEGREE + 1, dim)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.bias = StructuralBias(n_heads, max_distance)
        self.layers = nn.ModuleList(
            GraphormerLayer(dim, n_heads, hidden, n_experts, top_k, dropout)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.experts = MixtureOfExperts(dim, hidden, n_experts, top_k)
        nn.init.normal_(self.degree.weight, std=0.02)
        nn.init.normal_(self.token, std=0.02)

    def forward(
        self, h: Tensor, mask: Tensor, degree: Tensor, distance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the graph token, shape (B, dim), and the sum of the balances, shape ().

        Parameters
        ----------
        h
            Features of the spots, shape (B, N, inputs).
        degree, distance
            Of the graph, int64 of shapes (B, N) and (B, N, N).
        """
        h = self.project(h) + self.degree(degree.clamp(max=MAX_DEGREE))  # Eq. 13
        x = torch.cat([self.token.expand(len(h), -1, -1), h], dim=1)
        mask = functional.pad(mask, (1, 0), value=True)
        bias = self.bias(distance) + torch.where(mask, 0.0, -1e9)[:, None, None, :]
        balance = x.new_zeros((), dtype=torch.float32)
        for layer in self.layers:
            x, more = layer(x, mask, bias)
            balance = balance + more
        token = x[:, 0]
        update, more = self.experts(self.norm(token), mask[:, 0])
        return token + update, balance + more


class StructuralBias(nn.Module):
    """The bias b of Eq. 14: path encoding (Eq. 10) plus spatial encoding (Eq. 12)."""

    def __init__(self, n_heads: int, max_distance: int) -> None:
        super().__init__()
        self.spatial = nn.Parameter(torch.empty(max_distance + 2, n_heads))
        self.path = nn.Parameter(torch.empty(2, max_distance, n_heads))  # of P_ijl = 0 and 1
        self.to_token = nn.Parameter(torch.empty(n_heads))
        for table in (self.spatial, self.path, self.to_token):
            nn.init.normal_(table, std=0.02)

    def forward(self, distance: Tensor) -> Tensor:
        """Return biases with the graph token in front, shape (B, heads, N + 1, N + 1)."""
        # On a path of d edges P_ijl is 0 for l < d and 1 for l = d: the sum depends on d alone.
        absent, present = self.path
        lengths = torch.arange(1, len(absent) + 1, device=distance.device)[:, None]
        sums = absent.cumsum(dim=0) - absent + present
        along = functional.pad(sums / lengths, (0, 0, 1, 1))  # none to itself, none beyond
        pairs = functional.embedding(distance, self.spatial + along).permute(0, 3, 1, 2)
        bias = self.to_token[:, None, None].repeat(1, pairs.shape[2] + 1, pairs.shape[3] + 1)
        bias = bias.expand(len(pairs), -1, -1, -1).clone()
        bias[:, :, 1:, 1:] = pairs
        return bias


class GraphormerLayer(nn.Module):
    """Biased attention and a mixture of experts, each normalized before and added after."""

    def __init__(
        self, dim: int, n_heads: int, hidden: int, n_experts: int, top_k: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, n_heads)
        self.norm_2 = nn.LayerNorm(dim)
        self.experts = MixtureOfExperts(dim, hidden, n_experts, top_k)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens, shape (B, N + 1, dim), and the balance, shape ()."""
        x = x + self.dropout(self.attention(self.norm_1(x), bias)[0])
        update, balance = self.experts(self.norm_2(x), mask)  # Eq. 15
        return x + self.dropout(update), balance
