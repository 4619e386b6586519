"""Mixture of SwiGLU experts beside a shared one, as PE-AG-GMoE has it in place of every MLP."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Experts(nn.Module):
    """SwiGLU networks y = W2 [SiLU(W1 x) * (W3 x)], Eq. 4 of Nathani et al. (2026).

    Parameters
    ----------
    count
        Number of experts E.
    dim, hidden
        Numbers of features of x and y, and between; multiples of 8.
    """

    def __init__(self, count: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.empty(count, dim, 2 * hidden))  # W1 and W3
        self.outer = nn.Parameter(torch.empty(count, hidden, dim))  # W2
        for weight in (self.inner, self.outer):
            bound = 1 / math.sqrt(weight.shape[1])  # as of nn.Linear
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor, stops: Tensor) -> Tensor:
        """Return the outputs for rows sorted by expert, all experts in one computation.

        Parameters
        ----------
        x
            Shape (R, dim).
        stops
            Row after the last of each expert, int32, shape (E,).
        """
        kind = x.device.type
        if torch.is_autocast_enabled(kind):  # which leaves grouped products alone
            x = x.to(torch.get_autocast_dtype(kind))
        gate, value = functional.grouped_mm(x, self.inner.to(x.dtype), offs=stops).chunk(2, dim=-1)
        hidden = functional.silu(gate) * value
        return functional.grouped_mm(hidden, self.outer.to(x.dtype), offs=stops)


class MixtureOfExperts(nn.Module):
    """The sum of a shared expert and of the best local ones, Eqs. 2 to 6 of Nathani et al. (2026).

    Parameters
    ----------
    dim, hidden
        As `Experts` takes them.
    n_experts, top_k
        Local experts, and how many of them see a token.
    """

    def __init__(self, dim: int, hidden: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(dim, n_experts, bias=False)
        self.local = Experts(n_experts, dim, hidden)
        self.shared = Experts(1, dim, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the experts make of each token, and how unevenly they are used.

        Parameters
        ----------
        x
            Shape (..., dim).
        mask
            False for padding, which does not count in the balance, shape (...).

        Returns
        -------
        z, balance
            Shapes (..., dim) and (). The balance is E sum_e f_e P_e, with the share f_e of choices
            that went to expert e and its mean probability P_e: 1 if all are used alike (W. Fedus,
            B. Zoph and N. Shazeer, J. Mach. Learn. Res. 23, 120 (2022), Eq. 4).
        """
        tokens = x.reshape(-1, x.shape[-1]).contiguous()  # as grouped products ask for
        probability = self.gate(tokens).float().softmax(dim=-1)
        weight, expert = probability.topk(self.top_k, dim=-1)
        order = expert.reshape(-1).argsort(stable=True)
        counts = torch.zeros_like(probability).scatter_(1, expert, 1.0)  # 1 for each choice
        stops = counts.sum(dim=0).cumsum(dim=0).to(torch.int32)
        said = self.local(tokens[order // self.top_k], stops)
        said = said[order.argsort()].reshape(len(tokens), self.top_k, -1)
        z = (said * weight[:, :, None]).sum(dim=1)
        z = z + self.shared(tokens, stops.new_full((1,), len(tokens)))

        real = mask.reshape(-1, 1)
        n = real.sum().clamp(min=1)
        share = (counts * real).sum(dim=0) / (n * self.top_k)
        mean = (probability * real).sum(dim=0) / n
        return z.reshape(x.shape).to(x.dtype), len(share) * (share * mean).sum()
