"""Images of a detector in figures."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, PowerNorm
from numpy.typing import NDArray

from diffractory.evaluation.style import INK
from diffractory.evaluation.ued import Example

MOST_PIXELS = 140
"""Pixels along a side of an image that a figure shows; more would only make files large."""

BRIGHTEST = 99.8
"""Percentile of the pixels, beam stop included, above which all are drawn alike."""

IMAGE_NOTE = (
    "One grey scale for all, dark is bright, by the square root of the intensity up to the "
    f"{BRIGHTEST:g}th percentile of the brightest image; rows along +q_y, columns along +q_x; "
    "large images are drawn as means over blocks of pixels."
)
"""What a caption says of images."""

BAR = 1.0
"""Length of the scale bar, 1/angstrom."""


def shrunk(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over blocks of pixels so large that no more than ``MOST_PIXELS`` remain."""
    block = -(-max(image.shape) // MOST_PIXELS)
    rows, columns = (size // block for size in image.shape)
    blocks = image[: rows * block, : columns * block].reshape(rows, block, columns, block)
    return blocks.mean(axis=(1, 3))


def difference_image(
    image: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the signed square root of a difference, with increases and decreases to +-1.

    Each of the two is divided by its own greatest value, so that the weaker one is seen too.
    """
    difference = image - reference
    up, down = (np.maximum(part, 0) for part in (difference, -difference))
    return np.sqrt(up / max(up.max(), 1e-12)) - np.sqrt(down / max(down.max(), 1e-12))


def raw_norm(examples: Sequence[Example]) -> Normalize:
    """Return the square-root scale that images share."""
    brightest = max(np.percentile(shrunk(example.image), BRIGHTEST) for example in examples)
    return PowerNorm(0.5, vmin=0, vmax=max(float(brightest), 1e-12), clip=True)


def draw_image(
    ax: Axes,
    image: NDArray[np.float64],
    example: Example,
    norm: Normalize,
    colours: str | Colormap = "gray_r",
) -> None:
    """Draw an image of the size of an example, with axes in 1/angstrom and without ticks."""
    rows, columns = (size * example.pixel_size / 2 for size in example.image.shape)
    ax.imshow(image, norm=norm, cmap=colours, origin="lower", interpolation="none",
              extent=(-columns, columns, -rows, rows))  # fmt: skip
    ax.set(xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(True)


def letter_panel(ax: Axes, letter: str) -> None:
    """Write the letter of a panel above its left upper corner."""
    ax.annotate(letter, (0, 1), (-14, 4), xycoords="axes fraction", textcoords="offset points",
                fontweight="bold", fontsize=9)  # fmt: skip


def draw_scale_bar(ax: Axes, example: Example) -> None:
    """Draw a bar of ``BAR`` below an image that ``draw_image`` drew."""
    right, bottom = ax.get_xlim()[1], ax.get_ylim()[0]
    y = 1.16 * bottom
    ax.plot([right - BAR, right], [y, y], color=INK, linewidth=1.5, clip_on=False,
            solid_capstyle="butt")  # fmt: skip
    length = f"{BAR:g} Å\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ONE}"
    ax.text(right - BAR - 0.08, y, length, ha="right", va="center", fontsize=6.5)
    ax.set(xlim=(-right, right), ylim=(bottom, -bottom))
