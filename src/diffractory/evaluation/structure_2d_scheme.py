"""Figure 1: the two towers of DD2D, from the built network."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from diffractory.evaluation.architecture import PLAIN, Block, read_architecture
from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.style import MUTED, WIDTH
from diffractory.store import InputError

TOWERS = {
    "geometry": ("Crystallographic geometric encoder", "crystal: lattice, positions, elements"),
    "texture": ("Site texture encoder", "pattern: points and their intensities"),
}
"""What is above each tower: its name in the paper, and what it reads."""

MEETING = "Cosine of the two embeddings, divided by a learnt temperature"

BOX, PITCH, SIDE = 0.36, 0.52, 3.3
"""Height of a box, distance between boxes, and width of a tower, inch."""


def scheme_figure(path: Path) -> Drawing:
    """Draw the towers of DD2D side by side, given its ``architecture.json``.

    Raises
    ------
    InputError
        If the file does not describe two towers.
    """
    blocks = read_architecture(path)
    towers = {name: [block for block in blocks if block.parent == name] for name in TOWERS}
    if not all(towers.values()):
        raise InputError(f"{path} does not describe the two towers of DD2D: train it again")
    rows = max(map(len, towers.values()))
    height = 0.55 + rows * PITCH + BOX + 0.05
    figure = Figure(figsize=(WIDTH, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))  # inch
    ax.axis("off")
    bottom = 0.55 + rows * PITCH
    for left, (name, parts) in zip((0.15, WIDTH - 0.15 - SIDE), towers.items(), strict=True):
        title, reads = TOWERS[name]
        ax.text(left, 0.17, title, fontweight="bold", va="center")
        ax.text(left, 0.38, reads, color=MUTED, va="center")
        first = bottom - len(parts) * PITCH
        for k, block in enumerate(parts):
            _draw_block(ax, block, _inside(blocks, block), left, first + k * PITCH)
            follows = k + 1 < len(parts) and set(parts[k + 1].inputs[:1]) & set(block.outputs)
            _draw_arrow(ax, left + SIDE / 2, first + k * PITCH + BOX,
                        bool(follows) or block is parts[-1])  # fmt: skip
    ax.add_patch(FancyBboxPatch((0.15, bottom), WIDTH - 0.3, BOX, facecolor="#fde6cf",
                                boxstyle="round,pad=0,rounding_size=0.05", edgecolor="#d9822b",
                                linewidth=0.8))  # fmt: skip
    ax.text(WIDTH / 2, bottom + BOX / 2, MEETING, ha="center", va="center", fontweight="bold")
    caption = (
        "The two towers of DD2D, from the built network. Boxes: modules of a tower in the order in "
        "which they run, with class, what is inside a transformer, path, shape of the output for "
        "one crystal and its pattern, and number of parameters. Solid arrow: the next module takes "
        "a tensor of this shape; dashed: what lies between, such as sums and concatenations, is "
        "outside of modules and not shown."
    )
    data = pd.DataFrame(
        {
            "name": block.name,
            "kind": block.kind,
            "inside": _inside(blocks, block),
            "outputs": _printed(block),
            "parameters": block.parameters,
        }
        for parts in towers.values()
        for block in parts
    )
    return Drawing(figure, "Scheme of DD2D", caption, data)


def _inside(blocks: Sequence[Block], block: Block) -> str:
    """Return what a transformer runs, with runs of one class as one."""
    if block.kind != "Transformer":
        return ""
    parts = [inner.kind for inner in blocks if inner.parent == block.name]
    runs = [(kind, len(list(run))) for kind, run in groupby(parts)]
    times = " \N{MULTIPLICATION SIGN} "
    return ", ".join(f"{count}{times}{kind}" if count > 1 else kind for kind, count in runs)


def _printed(block: Block) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, block.outputs[0]))


def _draw_block(ax: Axes, block: Block, inside: str, left: float, top: float) -> None:
    fill, edge = PLAIN
    ax.add_patch(FancyBboxPatch((left, top), SIDE, BOX, boxstyle="round,pad=0,rounding_size=0.05",
                                facecolor=fill, edgecolor=edge, linewidth=0.8))  # fmt: skip
    upper, lower, right = top + 0.28 * BOX, top + 0.74 * BOX, left + SIDE - 0.08
    kind = f"{block.kind} ({inside})" if inside else block.kind
    ax.text(left + 0.08, upper, kind, fontweight="bold", va="center")
    ax.text(left + 0.08, lower, block.name.partition(".")[2], color=MUTED, va="center")
    ax.text(right, upper, f"\N{RIGHTWARDS ARROW} {_printed(block)}", ha="right", va="center")
    ax.text(right, lower, f"{block.parameters:,} parameters", ha="right", va="center", color=MUTED)


def _draw_arrow(ax: Axes, x: float, top: float, solid: bool) -> None:
    ax.annotate("", (x, top + PITCH - BOX), (x, top), arrowprops={
        "arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0, "color": MUTED,
        "linestyle": "-" if solid else (0, (2, 1.5)),
    })  # fmt: skip
