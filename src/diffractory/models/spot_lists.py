"""What every network takes and gives that reads a crystal's symmetry from a list of spots."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

N_SYSTEMS = 7
"""Crystal systems, in the order of ``store.CRYSTAL_SYSTEMS``."""

N_SPACE_GROUPS = 230


class Opinions(NamedTuple):
    """What a network says of B patterns.

    Attributes
    ----------
    crystal_system
        Probabilities, shape (B, 7).
    space_group
        Probabilities of the space groups 1 to 230, shape (B, 230); None if it does not tell them.
    uncertainty
        Belief that is given to no crystal system, 0 to 1, shape (B,); None if it knows no such.
    """

    crystal_system: Tensor
    space_group: Tensor | None = None
    uncertainty: Tensor | None = None


class SpotListNetwork(nn.Module):
    """A network that takes spots and mask, as `forward` does, to an output of its own kind.

    Its constructor takes numbers and names alone, which `hparams` keeps: with them and the tensors
    of its state a trained network is built again.

    Attributes
    ----------
    loss_name
        What `loss` is, in words for a table.
    pooling
        Weight and power with which `pooling.pool` joins the probabilities of a material's patterns,
        shape (2,), fitted after training; None if they are joined otherwise.
    """

    loss_name: str
    pooling: Tensor | None

    def __init__(self, given: Mapping[str, Any]) -> None:
        """Keep, of the ``locals()`` of a constructor, what it was given."""
        super().__init__()
        self.hparams = {name: given[name] for name in inspect.signature(type(self)).parameters}
        self.register_buffer("pooling", None)

    def normalize_with(self, spots: Tensor, mask: Tensor) -> None:
        """Take from training patterns, as `forward` takes them, what normalizes the input."""

    def forward(self, spots: Tensor, mask: Tensor) -> Any:
        """Return what `loss` and `opinions` take.

        Parameters
        ----------
        spots
            q_x and q_y in 1/angstrom and the intensity as a fraction of the incident beam, shape
            (B, N, 3); a pattern of fewer than N spots has anything finite in the rest.
        mask
            True where a spot is, shape (B, N).
        """
        raise NotImplementedError

    def loss(self, output: Any, crystal_system: Tensor, space_group: Tensor) -> Tensor:
        """Return the mean loss over the batch.

        Parameters
        ----------
        crystal_system, space_group
            Classes 0 to 6 and 0 to 229 (space group 1 is class 0), shape (B,).
        """
        raise NotImplementedError

    def opinions(self, output: Any) -> Opinions:
        """Return probabilities."""
        raise NotImplementedError
