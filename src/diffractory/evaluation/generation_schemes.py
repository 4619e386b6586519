"""Figures 1 and S1: how DP-CDVAE is trained, and its four encoders, from the built networks."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from diffractory.evaluation.architecture import PLAIN, Block, read_architecture
from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.generation import MODELS
from diffractory.evaluation.style import MUTED, WIDTH
from diffractory.evaluation.tables import listed
from diffractory.store import InputError

GROUPS = {
    "encoder": ("Encoder", "", "#e3ecf4", "#4d7ea8"),
    "decoder": ("Decoders", "$L_z,\\ N_z,\\ A_z$", "#e4f1e4", "#4f8f57"),
    "denoiser": ("Diffusion network", "$\\epsilon_\\theta,\\ A_\\theta$", "#fde6cf", "#d9822b"),
}
"""Parts of the network: title, results, fill and edge."""

BOX, PITCH, HEAD = 0.36, 0.43, 0.3
"""Height of a box, distance from one to the next, and height of the title of a frame, inch."""

MARGIN, WIDE, NARROW = 0.05, 2.4, 1.0
"""Margin of Figure 1, and widths of a frame and of the box of the crystal, inch."""

NOISE, NOISED = 1.95, 2.1
"""Widths of the boxes of the noise and of the crystal with it, inch."""

COLUMN = 1.66
"""Width of a column of Figure S1, inch."""

ENDS = ("$\\mu$, log $\\sigma^2$", "$z=\\mu+\\sigma\\epsilon''$")
"""What an encoder gives, and what is drawn from that."""


class Part(NamedTuple):
    """A module as one box, or a run of equal ones."""

    block: Block
    repeats: int

    @property
    def kind(self) -> str:
        """Class, and how many there are."""
        times = f" \N{MULTIPLICATION SIGN} {self.repeats}" if self.repeats > 1 else ""
        return self.block.kind + times

    @property
    def outputs(self) -> str:
        """Shapes of the tensors that come out."""
        times = " \N{MULTIPLICATION SIGN} "
        return ", ".join(times.join(map(str, shape)) or "1" for shape in self.block.outputs)

    @property
    def parameters(self) -> int:
        """Their number in all repeats."""
        return self.repeats * self.block.parameters


def scheme_figure(paths: Mapping[str, Path]) -> Drawing:
    """Draw how DP-CDVAE is trained, given the ``architecture.json`` of its model.

    Raises
    ------
    InputError
        If the file does not describe an encoder, decoders and a diffusion network.
    """
    path = paths["dp_cdvae"]
    groups = _parts(read_architecture(path))
    if not all(groups.values()):
        raise InputError(
            f"{path} does not describe an encoder, decoders and a diffusion network: train the "
            "model again"
        )
    tall = {name: HEAD + PITCH * len(parts) for name, parts in groups.items()}
    upper, lower = max(tall["encoder"], tall["decoder"], 1.2), max(tall["denoiser"], 1.0)
    second = MARGIN + upper + 0.5
    figure = Figure(figsize=(WIDTH, second + lower + MARGIN))
    ax = _canvas(figure)
    right, middle = WIDTH - MARGIN - WIDE, MARGIN + NARROW + 0.35
    for name, left, top in (
        ("encoder", middle, MARGIN + (upper - tall["encoder"]) / 2),
        ("decoder", right, MARGIN + upper - tall["decoder"]),
        ("denoiser", right, second),
    ):
        _draw_frame(ax, name, groups[name], left, top, tall[name])
    y, z = MARGIN + upper / 2, (middle + WIDE + right) / 2
    _draw_words(ax, MARGIN, y, NARROW, "Crystal", ("$L,\\ r,\\ Z,\\ N_a$",))
    _draw_arrow(ax, (MARGIN + NARROW, y), (middle, y))
    _draw_arrow(ax, (middle + WIDE, y), (right, y))
    for text, shift in zip(ENDS, (-0.13, 0.14), strict=True):
        ax.text(z, y + shift, text, ha="center", va="center", fontsize=7.5)
    between, noised = second - 0.25, (MARGIN + NOISE + right) / 2
    y = second + lower / 2
    above = y - 0.36
    _draw_words(ax, MARGIN, y, NOISE, "Noise at step $t$", (
        "$r_t=\\sqrt{\\bar\\alpha_t}\\,r+\\sqrt{1-\\bar\\alpha_t}\\,\\epsilon$",
        "$Z_t\\sim A+\\sigma'_t\\,\\mathrm{softmax}(A_z)$",
    ))  # fmt: skip
    _draw_words(ax, noised - NOISED / 2, y, NOISED, "Crystal with noise", (
        "$L,\\ \\pi(r_t)=r_t-\\lfloor r_t\\rfloor,\\ Z_t$",
        "each atom with $z$ and $t$",
    ))  # fmt: skip
    _draw_arrow(ax, (MARGIN + NOISE, y), (noised - NOISED / 2, y))
    _draw_arrow(ax, (noised + NOISED / 2, y), (right, y))
    crystal, types = MARGIN + NARROW / 2, MARGIN + NOISE - 0.3
    _draw_arrow(ax, (crystal, MARGIN + upper / 2 + 0.27), (crystal, above))
    _draw_arrow(ax, (z, MARGIN + upper / 2 + 0.27), (z, above))
    dashed = {"linestyle": (0, (2, 1.5))}
    ax.plot([right + 0.5, right + 0.5, types], [MARGIN + upper, between, between], color=MUTED,
            linewidth=1)  # fmt: skip
    _draw_arrow(ax, (types, between), (types, above))
    _draw_arrow(ax, (right + 0.8, MARGIN + upper), (right + 0.8, second), **dashed)
    for x, place, text in ((crystal, second - 0.37, "$L,\\ r,\\ Z$"), (z, second - 0.4, "$z$"),
                           (types, second - 0.1, "$A_z$"),
                           (right + 0.8, second - 0.25, "$L_z,\\ N_z$ in sampling")):  # fmt: skip
        ax.text(x + 0.05, place, text, va="center", fontsize=7.5)
    caption = (
        "How DP-CDVAE is trained, from the built network. Small boxes: its modules with parameters "
        "in the order in which they run, with class, path, shape of the output for one crystal and "
        "number of parameters; equal ones that follow each other are one box. What happens outside "
        "of modules, such as sums, is not shown. The encoder gives mean and variance of the "
        "latent vector z, from which lattice, number of atoms and composition are decoded. "
        "Coordinates with noise are wrapped into the cell, and the diffusion network learns the "
        "noise and the elements. In training it sees the true lattice and number of atoms; "
        "dashed: in sampling it sees those decoded."
    )
    data = pd.concat(_table(parts, name) for name, parts in groups.items())
    return Drawing(figure, "Training of DP-CDVAE", caption, data)


def encoders_figure(paths: Mapping[str, Path], models: Sequence[str]) -> Drawing:
    """Draw the encoders of some models side by side.

    Parameters
    ----------
    paths
        ``architecture.json`` by model.
    models
        All that the figure is about, in order; those without a file are named in the caption.

    Raises
    ------
    InputError
        If a file does not describe an encoder.
    """
    encoders = {model: _parts(read_architecture(path))["encoder"] for model, path in paths.items()}
    if empty := [paths[model] for model, parts in encoders.items() if not parts]:
        raise InputError(f"{empty[0]} does not describe an encoder: train the model again")
    fullest = sorted(encoders.values(), key=len, reverse=True)
    kinds = list(dict.fromkeys(part.kind for parts in fullest for part in parts))
    top, tall = 0.62, len(kinds) * (PITCH + 0.1)
    figure = Figure(figsize=(WIDTH, top + tall + 0.72))
    ax = _canvas(figure)
    gap = (WIDTH - 2 * MARGIN - len(models) * COLUMN) / (len(models) - 1)
    for column, (model, parts) in enumerate(encoders.items()):
        left = MARGIN + column * (COLUMN + gap)
        middle = left + COLUMN / 2
        ax.text(middle, 0.13, printed(model), fontweight="bold", ha="center", va="center")
        ax.text(middle, 0.36, "crystal: $L,\\ r,\\ Z,\\ N_a$", ha="center", va="center",
                color=MUTED)  # fmt: skip
        _draw_arrow(ax, (middle, 0.46), (middle, top - 0.03))
        found = {part.kind: part for part in parts}
        for row, kind in enumerate(kinds):
            place = top + row * (PITCH + 0.1)
            if kind in found:
                _draw_part(ax, found[kind], "encoder", left, place, COLUMN)
            else:
                _draw_absent(ax, left, place, COLUMN)
        end = top + tall
        _draw_arrow(ax, (middle, end - 0.14), (middle, end + 0.08))
        ax.text(middle, end + 0.2, ", ".join(ENDS), ha="center", va="center", fontsize=7)
        total = sum(part.parameters for part in parts)
        ax.text(middle, end + 0.45, f"{total:,} parameters", ha="center", va="center")
    absent = [MODELS[model] for model in models if model not in encoders]
    caption = (
        "Encoders of the variants of DP-CDVAE, from the built networks. Boxes: modules with "
        "parameters, with class, path, shape of the output for one crystal and number of "
        "parameters; dashed: not in this encoder. The last one joins what the others give. Below: "
        f"parameters of the whole encoder.{f' Not run: {listed(absent)}.' if absent else ''}"
    )
    data = pd.concat(
        _table(parts, "encoder").assign(model=MODELS[model]) for model, parts in encoders.items()
    )
    return Drawing(figure, "Encoders of DP-CDVAE", caption, data)


def printed(model: str) -> str:
    """Return what a model is called, with N_a as a symbol."""
    return MODELS[model].replace("N_a", "$\\mathbf{N_a}$")


def _parts(blocks: Sequence[Block]) -> dict[str, list[Part]]:
    """Return the modules with parameters of each part of the network, in order.

    Of the encoder what it runs; of the rest the outermost ones.
    """
    found: dict[str, list[Block]] = {group: [] for group in GROUPS}
    for block in blocks:
        first = block.name.partition(".")[0]
        group = next((name for name in ("encoder", "decoder") if name in first), "denoiser")
        outermost = block.parent == ("encoder" if group == "encoder" else "")
        if block.parameters and outermost and block.name != "encoder":
            found[group].append(block)
    return {group: _merged(outer) for group, outer in found.items()}


def _merged(blocks: Sequence[Block]) -> list[Part]:
    runs = [list(run) for _, run in groupby(blocks, lambda b: (b.kind, b.outputs, b.parameters))]
    return [Part(run[0], len(run)) for run in runs]


def _table(parts: Sequence[Part], group: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "group": group,
            "name": part.block.name,
            "kind": part.block.kind,
            "repeats": part.repeats,
            "outputs": part.outputs,
            "parameters_each": part.block.parameters,
        }
        for part in parts
    )


def _canvas(figure: Figure) -> Axes:
    """Return axes over a whole figure, in inch from the left upper corner."""
    ax = figure.add_axes((0, 0, 1, 1))
    width, height = figure.get_size_inches()
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    return ax


def _draw_frame(
    ax: Axes, name: str, parts: Sequence[Part], left: float, top: float, height: float
) -> None:
    """Draw a part of the network with its modules one below the other."""
    title, results, _, edge = GROUPS[name]
    _draw_box(ax, left, top, WIDE, height, "white", edge)
    arrow = f" \N{RIGHTWARDS ARROW} {results}" if results else ""
    ax.text(left + 0.1, top + HEAD / 2, title, fontweight="bold", va="center")
    ax.text(left + WIDE - 0.1, top + HEAD / 2, arrow.strip(), ha="right", va="center")
    for row, part in enumerate(parts):
        _draw_part(ax, part, name, left + 0.08, top + HEAD + PITCH * row, WIDE - 0.16)


def _draw_part(ax: Axes, part: Part, group: str, left: float, top: float, width: float) -> None:
    _, _, fill, edge = GROUPS[group]
    _draw_box(ax, left, top, width, BOX, fill, edge)
    upper, lower, right = top + 0.29 * BOX, top + 0.74 * BOX, left + width - 0.06
    ax.text(left + 0.06, upper, part.kind, fontweight="bold", va="center", fontsize=7)
    name = part.block.name.removeprefix("encoder.")
    ax.text(left + 0.06, lower, name, color=MUTED, va="center", fontsize=6.5)
    if part.outputs:
        ax.text(right, upper, f"\N{RIGHTWARDS ARROW} {part.outputs}", ha="right", va="center",
                fontsize=7)  # fmt: skip
    ax.text(right, lower, f"{part.parameters:,} parameters", ha="right", va="center", color=MUTED,
            fontsize=6.5)  # fmt: skip


def _draw_absent(ax: Axes, left: float, top: float, width: float) -> None:
    _draw_box(ax, left, top, width, BOX, "white", "#c4c9ce", linestyle=(0, (3, 2)))


def _draw_words(
    ax: Axes, left: float, middle: float, width: float, title: str, lines: Sequence[str]
) -> None:
    """Draw a box around a title and lines, which are about ``middle``."""
    half = 0.15 + 0.105 * len(lines)
    _draw_box(ax, left, middle - half, width, 2 * half, *PLAIN)
    for row, line in enumerate((title, *lines)):
        ax.text(left + width / 2, middle - half + 0.15 + 0.21 * row, line, ha="center", va="center",
                fontsize=7.5, fontweight="normal" if row else "bold")  # fmt: skip


def _draw_box(
    ax: Axes, left: float, top: float, width: float, height: float, fill: str, edge: str,
    **look: Any,
) -> None:  # fmt: skip
    ax.add_patch(FancyBboxPatch((left, top), width, height, facecolor=fill, edgecolor=edge,
                                boxstyle="round,pad=0,rounding_size=0.05", linewidth=0.8,
                                **look))  # fmt: skip


def _draw_arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], **look: Any
) -> None:
    ax.annotate("", end, start, arrowprops={
        "arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0, "color": MUTED,
        **look,
    })  # fmt: skip
