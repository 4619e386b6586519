"""MVOF-ML: a convolutional network whose output is an opinion, to be fused over several views.

After J. Chen et al., "Automated crystal system identification from electron diffraction patterns
using multiview opinion fusion machine learning", PNAS 120, e2309240120 (2023),
10.1073/pnas.2309240120. Each view, which is one pattern of a material, gives evidence
e_k >= 0 for each of K = 7 crystal systems: the parameters alpha_k = e_k + 1 of a Dirichlet
distribution. In subjective logic (A. Josang, "Subjective Logic", Springer 2016) they are an
opinion with belief b_k = e_k / S, uncertainty u = K / S and expected probability alpha_k / S, where
S = sum_k alpha_k. ``evaluation.fusion`` fuses the opinions of a material's views.

This is the method and not a copy of the authors' network: their code
(github.com/jcj7292/Multiview-Opinion-Fusion-Machine-Learning) draws no image but convolves, in one
dimension, the list of spots (radius, angle, intensity), sorted by each of the three in turn.
Decided here:

- Input: an image of `image_size` pixels a side that holds the outermost spot of the training
  patterns. Spots are Gaussians integrated over each pixel, so that none is lost between pixels.
- Intensity: each spot's to the power 1/4, which brings 1e-4 to 0.1; the image is then divided by
  its maximum, which leaves no trace of exposure. The direct beam is left out.
- Network: a 5 x 5 convolution to `width` channels, then three stages that double them, each of
  two 3 x 3 convolutions; every stage halves the image. Group normalization (4 groups) and ReLU
  follow each convolution: a batch holds patterns with about as many spots, so that its statistics
  are not those of others. One linear layer reads the means over 4 x 4 parts of the image: parts,
  since how far a spot is from the middle tells as much as how far spots are from each other.
- Evidence: softplus, which unlike the authors' ReLU has a gradient everywhere.
- Loss: the expected cross-entropy under the Dirichlet distribution (M. Sensoy, L. Kaplan,
  M. Kandemir, "Evidential deep learning to quantify classification uncertainty", NeurIPS 2018,
  eq. 4; the authors take its eq. 5, the squared error), plus the divergence of the evidence for
  wrong classes from none. The weight of the latter rises linearly from 0 to 1 over
  `annealing_steps` training batches (the authors' over 50 epochs, of which they train 10). Outside
  training it is 1, so that validation losses compare from one epoch to the next.
- Fusion: all views of a material once, by Dempster's rule. The authors fuse views in 100 random
  orders, stop each where the uncertainty falls below 0.1, and let the results vote.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffractory.models.spot_lists import N_SYSTEMS, Opinions, SpotListNetwork

INTENSITY_POWER = 0.25

POOLED = 4
"""Parts along each side of the image that the last layer tells apart."""


class MvofMl(SpotListNetwork):
    """The network of one view; `forward` returns alpha, shape (B, 7).

    Parameters
    ----------
    image_size
        Pixels along a side of the image.
    spot_sigma
        Standard deviation of a spot, 1/angstrom.
    width
        Channels of the first stage, a multiple of 4.
    annealing_steps
        Training batches over which the divergence comes to its full weight, 1 or more.
    """

    loss_name = "Expected cross-entropy of crystal system + divergence of wrong evidence"

    edges: Tensor
    step: Tensor

    def __init__(
        self,
        image_size: int = 64,
        spot_sigma: float = 0.03,
        width: int = 16,
        annealing_steps: int = 1000,
    ) -> None:
        super().__init__(locals())
        self.spot_sigma = spot_sigma
        self.annealing_steps = annealing_steps
        self.register_buffer(
            "edges", torch.linspace(-1, 1, image_size + 1)
        )  # of pixels, 1/angstrom
        # A buffer, so that training resumed from a checkpoint goes on where it stopped.
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        layers = _convolution(1, width, kernel_size=5, stride=2)
        for channels in (width, 2 * width, 4 * width):
            layers += _convolution(channels, 2 * channels, kernel_size=3, stride=2)
            layers += _convolution(2 * channels, 2 * channels, kernel_size=3, stride=1)
        layers += [nn.AdaptiveAvgPool2d(POOLED), nn.Flatten()]
        self.features = nn.Sequential(*layers)
        self.evidence = nn.Linear(8 * width * POOLED**2, N_SYSTEMS)

    def normalize_with(self, spots: Tensor, mask: Tensor) -> None:
        """Let the image reach to the radius of the outermost spot."""
        self.edges *= torch.linalg.vector_norm(spots[mask][:, :2], dim=-1).max() / self.edges[-1]

    def render(self, spots: Tensor, mask: Tensor) -> Tensor:
        """Return images with a maximum of 1, shape (B, image_size, image_size).

        Columns count along +q_x and rows along +q_y. A pattern without spots is dark.
        """
        qx, qy, intensity = spots.unbind(-1)
        diffracted = mask & (torch.hypot(qx, qy) > (self.edges[1] - self.edges[0]) / 2)
        weight = torch.where(diffracted, intensity, 0) ** INTENSITY_POWER
        rows, columns = (
            torch.erf((self.edges - q[..., None]) / (math.sqrt(2) * self.spot_sigma)).diff()
            for q in (qy, qx)
        )
        with torch.autocast(spots.device.type, enabled=False):
            images = (weight[..., None] * rows).mT @ columns
        return images / images.amax((1, 2), keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)

    def forward(self, spots: Tensor, mask: Tensor) -> Tensor:
        """Return the parameters alpha of the Dirichlet distributions, shape (B, 7).

        Parameters are those of ``SpotListNetwork.forward``.
        """
        features = self.features(self.render(spots, mask)[:, None])
        return 1 + functional.softplus(self.evidence(features).float())

    def loss(self, output: Tensor, crystal_system: Tensor, space_group: Tensor) -> Tensor:
        """Return the mean loss over the batch, nat; the space group is not used."""
        true = crystal_system[:, None]
        error = torch.digamma(output.sum(1)) - torch.digamma(output.gather(1, true)[:, 0])
        misled = divergence_from_uniform(output.scatter(1, true, 1))
        if not self.training:
            return (error + misled).mean()
        weight = (self.step / self.annealing_steps).clamp(max=1)
        self.step += 1
        return (error + weight * misled).mean()

    def opinions(self, output: Tensor) -> Opinions:
        """Return expected probabilities and uncertainty."""
        strength = output.sum(1)
        return Opinions(output / strength[:, None], uncertainty=N_SYSTEMS / strength)


def divergence_from_uniform(alpha: Tensor) -> Tensor:
    """Return KL(Dir(alpha) || Dir(1, ..., 1)) in nat, shape (B,), for alpha of shape (B, K)."""
    strength = alpha.sum(1)
    excess = (alpha - 1) * (torch.digamma(alpha) - torch.digamma(strength)[:, None])
    log_density = torch.lgamma(strength) - torch.lgamma(alpha).sum(1)
    return log_density - math.lgamma(alpha.shape[1]) + excess.sum(1)


def _convolution(before: int, after: int, kernel_size: int, stride: int) -> list[nn.Module]:
    padding = kernel_size // 2
    return [
        nn.Conv2d(before, after, kernel_size, stride, padding, bias=False),
        nn.GroupNorm(4, after),
        nn.ReLU(inplace=True),
    ]
