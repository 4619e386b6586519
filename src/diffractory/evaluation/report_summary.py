"""The first screen of the report: main results beside the published ones, and what stands in."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import pandas as pd

from diffractory.evaluation.tables import NOT_RUN, Table, listed, stand_ins


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    ``row`` may be the end of a row's name, after what names its data set: "Perovskites, FTCP".
    """

    row: str
    column: str
    label: str = ""
    """What the page calls it; the name of its row where empty."""


@dataclass(frozen=True)
class Headline:
    """Numbers of one table that say in short what a study found."""

    study: str
    table: str
    words: str
    cells: tuple[Cell, ...]
    full: float | None = None
    """Value that a whole bar stands for; 100 for per cent, or else the largest where None."""


HEADLINES = (
    Headline(
        "symmetry",
        "1",
        "Crystal system of one pattern, told right",
        (
            Cell("PE-AG-GMoE", "All test items"),
            Cell("RF", "Mean without triclinic", "RF, mean of six systems"),
            Cell("MVOF-ML", "All test items"),
            Cell("Ours", "All test items"),
        ),
    ),
    Headline(
        "symmetry",
        "scan",
        "Scan of gold nanoparticles, called cubic",
        (Cell("PE-AG-GMoE", "Cubic"), Cell("RF", "Cubic"), Cell("Ours", "Cubic")),
    ),
    Headline(
        "ued",
        "accuracy",
        "Class of a simulated image, told right",
        (Cell("All images", "Accuracy", "CNNSyn, seven classes"),),
    ),
    Headline(
        "ued",
        "experiment",
        "Class of a frame of the experiment, told right",
        (Cell("CNNSyn", "Accuracy"), Cell("CNNExp", "Accuracy")),
    ),
    Headline(
        "ued",
        "steering",
        "Transforming told from molten: area under the ROC curve",
        (
            Cell(
                "ROC AUC, transforming against molten",
                "Distance to the 2H\N{EN DASH}1T' line",
                "C-VAE, distance to the line",
            ),
        ),
        full=1.0,
    ),
    Headline(
        "structure_2d",
        "1",
        "Right crystal first in the gallery",
        (
            Cell("DD2D, unperturbed", "Top-1"),
            Cell("DD2D, perturbed", "Top-1"),
            Cell("Invariant, unperturbed", "Top-1", "Ours (invariant), unperturbed"),
        ),
    ),
    Headline(
        "structure_2d",
        "1",
        "Right crystal among the first ten",
        (Cell("DD2D, unperturbed", "Top-10"),),
    ),
    Headline(
        "generation",
        "1",
        "Crystals decoded to themselves",
        tuple(Cell(model, "Match rate") for model in ("DP-CDVAE", "CDVAE", "FTCP", "Ours")),
    ),
    Headline(
        "generation",
        "3",
        "Energy lost when relaxed, meV/atom: less is better",
        tuple(Cell(model, "RMS energy change (meV/atom)") for model in ("DP-CDVAE", "CDVAE")),
    ),
)
"""What the first screen shows, first of each study what it is about."""


@dataclass(frozen=True)
class Bar:
    """A number as the table has it, and how much of a whole bar it fills, %."""

    text: str
    percent: float | None


@dataclass(frozen=True)
class Pair:
    """A number made here, and the published one if there is one."""

    label: str
    here: Bar
    interval: str
    published: Bar | None
    n_test: str
    stand_in: bool


@dataclass(frozen=True)
class Shown:
    """A headline with its numbers."""

    words: str
    table: str
    pairs: tuple[Pair, ...]


def headlines(study: str, tables: Iterable[Table]) -> list[Shown]:
    """Return the main numbers of a study, of those of its tables that hold any."""
    by_name = {table.cells["table"].iloc[0]: table.cells for table in tables}
    shown = [
        Shown(headline.words, headline.table, _pairs(headline, by_name[headline.table]))
        for headline in HEADLINES
        if headline.study == study and headline.table in by_name
    ]
    return [one for one in shown if one.pairs]


def _pairs(headline: Headline, cells: pd.DataFrame) -> tuple[Pair, ...]:
    """Return the numbers that were made, each with the published one."""
    run = cells[[_number(value) is not None for value in cells["value"]]]
    found = []
    for cell in headline.cells:
        named = (run["row"] == cell.row) | run["row"].str.endswith(f", {cell.row}")
        rows = run[named & (run["column"] == cell.column)].to_dict("records")
        found += [(cell.label or row["row"], row) for row in rows]
    numbers = [_number(row[key]) for _, row in found for key in ("value", "published")]
    full = headline.full or max((abs(x) for x in numbers if x is not None), default=1.0)
    return tuple(
        Pair(
            label,
            _bar(row, "value", full),
            _in_percent(row["interval"], row["unit"]),
            _bar(row, "published", full) if row["published"] else None,
            f"{int(row['n_test']):,} {row['items']}",
            bool(row["stand_in"]),
        )
        for label, row in found
    )


def _bar(row: Mapping[Hashable, str], key: str, full: float) -> Bar:
    """Return a number of a table as a bar."""
    number, unit = _number(row[key]), row["unit"]
    whole = {"%": 100.0, "fraction": 1.0}.get(unit, full)
    text = _in_percent(row[key], unit)
    text = f"{text} %" if unit in ("%", "fraction") and number is not None else text
    return Bar(text, None if number is None else min(100.0, max(0.0, 100 * number / whole)))


def _in_percent(text: str, unit: str) -> str:
    """Return a printed fraction, or an interval of such, in per cent, with the same digits."""
    parts = text.split("\N{EN DASH}")
    if unit != "fraction" or any(_number(part) is None for part in parts):
        return text
    return "\N{EN DASH}".join(f"{Decimal(part).scaleb(2):f}" for part in parts)


def _number(text: str) -> float | None:
    """Return the value of a printed number, or None where there is none."""
    try:
        return float(text)
    except ValueError:
        return None


def stand_in_list(tables: Iterable[tuple[str, Table]]) -> list[tuple[str, str]]:
    """Return what stands in for a part that cannot be had, and in which tables.

    Parameters
    ----------
    tables
        The tables of a study by their names.
    """
    found: dict[str, list[str]] = {}
    for name, table in tables:
        for text in stand_ins(table.cells):
            found.setdefault(text, []).append(name)
    return [(text[:1].upper() + text[1:], _tables(names)) for text, names in found.items()]


def not_run(tables: Iterable[Table]) -> list[str]:
    """Return the rows of a study's tables that have no number of this run.

    Where no row of a data set has any, as "Carbon-24" of "Carbon-24, FTCP", its name stands for
    them all.
    """
    cells = pd.concat([table.cells for table in tables])
    run = (cells["value"] != NOT_RUN).groupby(cells["row"], sort=False).any()
    of_dataset = run.groupby(run.index.str.partition(", ").get_level_values(0)).any()
    names = [
        row if of_dataset[row.partition(", ")[0]] else row.partition(", ")[0]
        for row in run.index[~run]
    ]
    return list(dict.fromkeys(names))


def _tables(names: Sequence[str]) -> str:
    return f"table{'s' if len(names) > 1 else ''} {listed(names)}"
