"""C-VAE: a convolutional variational autoencoder of diffraction images.

After M. Shaaban, S. El-Borgi and A. Krishnamoorthy, "Machine learning for experimental design of
ultrafast electron diffraction", Sci. Rep. (2025): images of 256 x 256 pixels, a latent space of
four dimensions, in which the distance to the line between two phases tells how far a crystal is
from a transformation of one to the other.

Methods of the paper give four convolutional layers each way (its Results three, the released code
seven) with ReLU and a sigmoid at the end, and the mean squared error with the Kullback-Leibler
divergence as the loss (the released code takes the binary cross-entropy); kernels of 4 pixels and
steps of 2 are those of the released code. The numbers of channels are not published.

Decided here:

- An image is divided by `BRIGHTEST` of the greatest value of the reference, and what is above 1 is
  cut: with more of the range, the brightest spots alone would be worth reconstructing.
- One channel takes the place of three equal ones.
- The output begins with the mean of the reference in every pixel: from the mean of a sigmoid, half
  of the greatest value, the first steps lead to images that are dark whatever the latent vector.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

BRIGHTEST = 0.2
"""Value of a pixel that becomes 1, as a part of the greatest of the reference."""


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)) in nat, shape (B,), of shapes (B, latent)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def distance_to_line(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distance of points to the segment from ``a`` to ``b``, shape (B,).

    Parameters
    ----------
    z
        Points in latent space, shape (B, latent).
    a, b
        Ends of the segment, shape (latent,).
    """
    along = b - a
    length = along.square().sum().clamp_min(torch.finfo(z.dtype).tiny)
    fraction = ((z - a) @ along / length).clamp(0, 1)
    return torch.linalg.vector_norm(z - a - fraction[:, None] * along, dim=1)


class CVae(nn.Module):
    """The network; `forward` returns reconstructions.

    Parameters
    ----------
    image_size
        Pixels along a side that images are brought to, a multiple of 2 to the number of channels.
    channels
        Of each layer.
    latent
        Dimensions of the latent space.
    kl_weight
        Weight of the divergence in the loss.

    Attributes
    ----------
    brightest
        Value of a pixel that becomes 1.
    ends
        Mean latent vectors of the two phases of a transformation, shape (2, latent), which are
        found after training.
    """

    loss_name = "Squared error + Kullback-Leibler divergence"

    brightest: Tensor
    ends: Tensor

    def __init__(
        self,
        image_size: int = 256,
        channels: Sequence[int] = (32, 64, 128, 256),
        latent: int = 4,
        kl_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.image_size, self.kl_weight = image_size, kl_weight
        self.register_buffer("brightest", torch.ones(()))
        self.register_buffer("ends", torch.zeros(2, latent))
        size = image_size // 2 ** len(channels)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for before, after in zip((1, *channels), channels, strict=False):
            encoder += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
            step = nn.ConvTranspose2d(after, before, 4, stride=2, padding=1)
            decoder = [step, nn.Sigmoid() if before == 1 else nn.ReLU(inplace=True), *decoder]
        features = channels[-1] * size**2
        self.encoder = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(features, 2 * latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent, features),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (channels[-1], size, size)),
            *decoder,
        )

    def normalize_with(self, reference: Tensor) -> None:
        """Take the unit from the image that others are compared with, shape (rows, columns)."""
        self.brightest.copy_(BRIGHTEST * reference.max())
        output = self.decoder[-2]
        assert isinstance(output, nn.ConvTranspose2d)
        assert output.bias is not None
        nn.init.constant_(output.bias, self.scaled(reference[None]).mean().logit().item())

    def scaled(self, images: Tensor) -> Tensor:
        """Return images from 0 to 1, shape (B, 1, image_size, image_size)."""
        size = (self.image_size, self.image_size)
        with torch.autocast(images.device.type, enabled=False):
            images = (images / self.brightest).clamp(0, 1)[:, None]
            return functional.interpolate(images, size, mode="bilinear", antialias=True)

    def latent(self, images: Tensor) -> Tensor:
        """Return the means of the latent vectors, shape (B, latent), of raw images."""
        return self.encode(self.scaled(images))[0]

    def encode(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of the variances, shape (B, latent) each."""
        mean, log_variance = self.encoder(scaled.to(self.dtype)).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """Return reconstructions, from 0 to 1, shape (B, 1, image_size, image_size)."""
        return self.decoder(z.to(self.dtype)).float()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstructions of raw images, shape (B, rows, columns), from the means.

        They are scaled: from 0 to 1, shape (B, 1, image_size, image_size).
        """
        return self.decode(self.latent(images))

    def loss(self, images: Tensor, kind: Tensor) -> Tensor:
        """Return the loss of a batch, nat; the classes are not used.

        It is half the sum of squared errors over the pixels, plus the divergence, as the mean over
        the batch: with a `kl_weight` of 1, minus the evidence lower bound of pixels with a
        variance of 1, but for a constant.
        """
        scaled = self.scaled(images)
        mean, log_variance = self.encode(scaled)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        error = self.decode(z) - scaled
        divergence = self.kl_weight * kl_divergence(mean, log_variance)
        return (0.5 * error.square().sum((1, 2, 3)) + divergence).mean()

    def measures(self, images: Tensor, kind: Tensor) -> dict[str, Tensor]:
        """Return what validation sums up over images: loss, mean squared error and divergence.

        Latent vectors are their means, so that the losses of epochs compare.
        """
        scaled = self.scaled(images)
        mean, log_variance = self.encode(scaled)
        squares = (self.decode(mean) - scaled).square()
        divergence = kl_divergence(mean, log_variance).sum()
        return {
            "validation_loss": 0.5 * squares.sum() + self.kl_weight * divergence,
            "reconstruction_error": squares.mean((1, 2, 3)).sum(),
            "kl_divergence": divergence,
        }

    def folded(self, dtype: torch.dtype) -> "CVae":
        """Return a copy for inference that computes in ``dtype``, but for what `scaled` does."""
        network = copy.deepcopy(self).eval()
        for part in (network.encoder, network.decoder):
            part.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def score(self, images: Tensor) -> Tensor:
        """Return the distance of raw images to the segment between `ends`, shape (B,)."""
        return distance_to_line(self.latent(images), *self.ends)
