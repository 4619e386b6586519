"""Block diagrams of a network, drawn from the modules that ran in it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from diffractory.evaluation.drawing import Drawing
from diffractory.evaluation.style import MUTED, WIDTH
from diffractory.store import InputError

HEIGHT, GAP = 0.4, 0.2
"""Height of a box and distance between boxes, inch."""

MARGIN, INSET = 0.9, 0.15
"""Width of the margins of the figure and of a frame, inch."""

PLAIN, EXPERTS = ("#f3f5f7", "#8a939c"), ("#fde6cf", "#d9822b")
"""Fill and edge of a box; mixtures of experts stand out."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Block:
    """A module as it ran: dotted path, class, shapes without the batch axis, parameters."""

    name: str
    kind: str
    inputs: Shapes
    outputs: Shapes
    parameters: int
    parent: str

    @property
    def is_mixture(self) -> bool:
        """Whether this is a mixture of experts."""
        return re.search("MixtureOfExperts|MoE", self.kind) is not None


@dataclass(frozen=True)
class Step:
    """One box: a block, or a run of equal ones from ``block`` to ``last``, and what is in it."""

    block: Block
    last: Block
    repeats: int
    parts: tuple["Step", ...]

    @property
    def height(self) -> float:
        """Height with the parts, inch."""
        return HEIGHT + sum(part.height + GAP for part in self.parts) + bool(self.parts) * GAP / 2


def read_architecture(path: Path) -> list[Block]:
    """Read the blocks of a network, in the order in which they ran.

    Parameters
    ----------
    path
        ``architecture.json``: a list of objects with ``name`` (dotted path), ``kind`` (class),
        ``inputs`` and ``outputs`` (lists of shapes without the batch axis), ``parameters`` (their
        number) and ``parent`` (the block that runs this one; empty for the network itself).

    Raises
    ------
    InputError
        If the file is not of this form.
    """
    try:
        return [
            Block(
                entry["name"],
                entry["kind"],
                tuple(map(tuple, entry["inputs"])),
                tuple(map(tuple, entry["outputs"])),
                int(entry["parameters"]),
                entry["parent"],
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not describe a network ({error!r}): train the model again"
        ) from error


def architecture_figure(
    path: Path, parent: str, inside: bool, title: str, opened: str = ""
) -> Drawing:
    """Draw the blocks that one block runs.

    Parameters
    ----------
    path
        As ``read_architecture`` takes it.
    parent
        Dotted path of the block; empty for the whole network.
    inside
        Whether to show what the blocks run in turn, except in mixtures of experts.
    title
        Title of the figure.
    opened
        Dotted path of one more block, among those that are shown, to show the inside of.

    Raises
    ------
    InputError
        If the file is not of the form described, or has no such blocks.
    """
    blocks = read_architecture(path)
    steps = _steps(blocks, parent, inside, opened)
    if not steps:
        raise InputError(
            f"{path} has no blocks in {parent or 'the network'}: train the model again"
        )
    height = sum(step.height for step in steps) + GAP * (len(steps) - 1) + 0.1
    figure = Figure(figsize=(WIDTH, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))  # inch
    ax.axis("off")
    _draw(ax, steps, 0.05, MARGIN, parent)
    mixtures = "Orange: mixtures of experts. " if any(b.is_mixture for b in blocks) else ""
    caption = (
        f"{title}. Boxes: modules of the built network in the order in which they run, with "
        "class, path, shapes of inputs and outputs for one pattern, and number of parameters. "
        "Solid arrow: the first input of a module has the shape of an output of the one above; "
        f"dashed: it has another. {mixtures}What happens outside of modules, such as sums, is not "
        "shown."
    )
    lines = _lines(steps)
    data = pd.DataFrame(
        {
            "name": [line.block.name for line in lines],
            "kind": [line.block.kind for line in lines],
            "repeats": [line.repeats for line in lines],
            "inputs": [_printed(line.block.inputs) for line in lines],
            "outputs": [_printed(line.block.outputs) for line in lines],
            "parameters_each": [line.block.parameters for line in lines],
        }
    )
    return Drawing(figure, title, caption, data)


def _steps(blocks: Sequence[Block], parent: str, inside: bool, opened: str) -> list[Step]:
    """Return what a block runs, with runs of equal items of a list as one."""
    steps = []
    for _, run in groupby((b for b in blocks if b.name and b.parent == parent), _likeness):
        first, *rest = run
        shown = first.name == opened or (inside and not first.is_mixture)
        parts = _steps(blocks, first.name, False, opened) if shown else []
        steps.append(Step(first, rest[-1] if rest else first, 1 + len(rest), tuple(parts)))
    return steps


def _lines(steps: Sequence[Step]) -> list[Step]:
    """Return all steps, each followed by its parts."""
    return [line for step in steps for line in (step, *_lines(step.parts))]


def _likeness(block: Block) -> tuple[object, ...]:
    name = re.sub(r"\.\d+$", "", block.name)
    return name, block.kind, block.inputs, block.outputs, block.parameters


def _draw(ax: Axes, steps: Sequence[Step], top: float, left: float, parent: str) -> None:
    """Draw boxes one below the other, ``left`` inches from both sides."""
    before: Step | None = None
    for step in steps:
        if before is not None:
            follows = set(step.block.inputs[:1]) & set(before.block.outputs)
            ax.annotate("", (WIDTH / 2, top), (WIDTH / 2, top - GAP), arrowprops={
                "arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 0, "shrinkB": 0,
                "color": MUTED, "linestyle": "-" if follows else (0, (2, 1.5)),
            })  # fmt: skip
        _draw_box(ax, step, top, left, parent)
        _draw(ax, step.parts, top + HEIGHT + GAP / 2, left + INSET, step.block.name)
        top += step.height + GAP
        before = step


def _draw_box(ax: Axes, step: Step, top: float, left: float, parent: str) -> None:
    block = step.block
    fill, edge = EXPERTS if block.is_mixture else PLAIN
    ax.add_patch(FancyBboxPatch(
        (left, top), WIDTH - 2 * left, step.height, boxstyle="round,pad=0,rounding_size=0.05",
        facecolor="white" if step.parts else fill, edgecolor=edge, linewidth=0.8,
    ))  # fmt: skip
    names = [b.name.removeprefix(f"{parent}.") for b in (block, step.last)]
    times = f" \N{MULTIPLICATION SIGN} {step.repeats}" if step.repeats > 1 else ""
    upper, lower = top + 0.4 * HEIGHT, top + 0.8 * HEIGHT
    middle, right = 0.46 * WIDTH, WIDTH - left - 0.1
    ax.text(left + 0.1, upper, block.kind + times, fontweight="bold")
    ax.text(left + 0.1, lower, " to ".join(dict.fromkeys(names)), color=MUTED)
    ax.text(middle, upper, _printed(block.inputs))
    ax.text(middle, lower, f"\N{RIGHTWARDS ARROW} {_printed(block.outputs)}")
    if block.parameters:
        ax.text(right, upper, f"{block.parameters:,}", ha="right")
        ax.text(right, lower, f"parameters{' each' if times else ''}", ha="right", color=MUTED)


def _printed(shapes: Shapes) -> str:
    times = " \N{MULTIPLICATION SIGN} "
    return ", ".join(times.join(map(str, shape)) or "scalar" for shape in shapes)
