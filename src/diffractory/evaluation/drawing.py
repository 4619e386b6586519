"""A figure with its words and data, and the files that it becomes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from diffractory.evaluation.style import write_figure
from diffractory.store import atomic_file


class Drawing(NamedTuple):
    """A figure, its title, its caption, and the data in it."""

    figure: Figure
    title: str
    caption: str
    data: pd.DataFrame


def write_drawing(
    drawing: Drawing, context: Mapping[str, Any], svg: Path, png: Path, csv: Path
) -> None:
    """Write the figure twice and its data, all saying their ``dataset`` and ``scale``."""
    caption = f"{drawing.caption} Dataset {context['dataset']}, scale {context['scale']}."
    write_figure(drawing.figure, drawing.title, caption, svg, png)
    with atomic_file(csv) as partial:
        drawing.data.assign(
            dataset=context["dataset"], scale=context["scale"], seed=context["seed"]
        ).to_csv(partial, index=False, lineterminator="\n", float_format="%.2f")
