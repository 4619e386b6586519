"""The form of every table: one line per number, beside the published one, and what it rests on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from diffractory.store import InputError, atomic_file, write_text

NOT_RUN = "not run"
"""Value of a cell whose model was not run."""

COLUMNS = (
    "study", "table", "row", "column", "unit", "value", "interval", "published",
    "n_train", "n_test", "items", "dataset", "scale", "seed", "stand_in",
)  # fmt: skip
"""Columns of a table file.

``value`` and ``published`` are printed numbers; ``interval`` is the 95 % interval of ``value``;
``unit`` is ``%``, ``fraction``, ``count`` or empty; ``n_train`` and ``n_test`` count ``items``;
``stand_in`` has what stands in for a part of the published work, joined by "; ".
"""


@dataclass(frozen=True)
class Table:
    """A table to show: its cells (``COLUMNS``, all text) and the words around them."""

    cells: pd.DataFrame
    caption: str
    stub: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of the wide form: per column (value, interval, published), per item kind a size."""

    label: str
    entries: tuple[tuple[str, str, str], ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The wide form of a table: one column per column name, one size column per item kind.

    ``published`` says of each column whether a row of it has a published value.
    """

    columns: tuple[str, ...]
    published: tuple[bool, ...]
    sizes: tuple[str, ...]
    rows: tuple[Row, ...]


def write_table(table: Table, csv: Path, markdown: Path) -> None:
    """Write the cells as CSV and the table with its words as Markdown."""
    with atomic_file(csv) as partial:
        table.cells[list(COLUMNS)].to_csv(partial, index=False, lineterminator="\n")
    write_text(markdown, _markdown(table))


def read_table(csv: Path) -> Table:
    """Read a table file and the Markdown file beside it.

    Raises
    ------
    InputError
        If a file is missing or does not have the form that ``write_table`` gives it.
    """
    try:
        cells = pd.read_csv(csv, dtype=str, keep_default_na=False)
        lines = csv.with_suffix(".md").read_text(encoding="utf-8").splitlines()
        caption = lines[0].partition(".** ")[2]
        stub = next(line for line in lines if line.startswith("|")).split("|")[1].strip()
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise InputError(
            f"the table {csv} cannot be read ({error!r}): make it again, with the .md beside it"
        ) from error
    if missing := [name for name in COLUMNS if name not in cells]:
        raise InputError(f"the table {csv} has no column {missing[0]}: make it again")
    notes = tuple(line.removeprefix("- ") for line in lines if line.startswith("- "))
    return Table(cells, caption, stub, notes)


def grid(cells: pd.DataFrame) -> Grid:
    """Arrange cells as rows and columns, in order of first appearance."""
    units = dict(zip(cells["column"], cells["unit"], strict=True))
    # Where cells count things themselves, sizes beside them would only repeat them.
    kinds = [] if "count" in units.values() else list(dict.fromkeys(cells["items"]))
    rows = []
    for label, line in cells.groupby("row", sort=False):
        shown = {
            cell["column"]: (
                _shown(cell["value"], cell["unit"]),
                cell["interval"],
                _shown(cell["published"], cell["unit"]),
            )
            for cell in line.to_dict("records")
        }
        entries = tuple(shown.get(column, ("", "", "")) for column in units)
        sizes = tuple(_sizes(line[line["items"] == kind]) for kind in kinds)
        rows.append(Row(str(label), entries, sizes))
    columns = tuple(f"{column} (%)" if unit == "%" else column for column, unit in units.items())
    compared = set(cells.loc[cells["published"] != "", "column"])
    published = tuple(column in compared for column in units)
    return Grid(columns, published, tuple(f"train / test {kind}" for kind in kinds), tuple(rows))


def _sizes(line: pd.DataFrame) -> str:
    pairs = zip(line["n_train"], line["n_test"], strict=True)
    return "; ".join(
        dict.fromkeys(f"{_shown(a, 'count')} / {_shown(b, 'count')}" for a, b in pairs)
    )


def _shown(value: str, unit: str) -> str:
    return f"{int(value):,}" if unit == "count" and value.isdecimal() else value


def _markdown(table: Table) -> str:
    cells = table.cells.astype(str)
    shape = grid(cells)
    header = [table.stub]
    for column, compared in zip(shape.columns, shape.published, strict=True):
        header += [column, "published"] if compared else [column]
    lines = [header + list(shape.sizes), ["---"] + ["---:"] * (len(header) - 1 + len(shape.sizes))]
    for row in shape.rows:
        line = [row.label]
        for (value, interval, published), compared in zip(
            row.entries, shape.published, strict=True
        ):
            line.append(f"{value} ({interval})" if interval else value)
            line += [published] if compared else []
        lines.append(line + list(row.sizes))
    body = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]
    first = cells.iloc[0]
    title = f"**{heading('Table', first['table'])}.** {table.caption}"
    return "\n".join([title, "", *body, "", *(f"- {note}" for note in table.notes)]) + "\n"


def heading(kind: str, name: str) -> str:
    """Return what a table or figure is called: by its number, or in words where it has none."""
    numbered = name.removeprefix("S").isdecimal()
    return f"{kind} {name}" if numbered else f"{kind}: {name.replace('_', ' ')}"


def stand_ins(cells: pd.DataFrame) -> list[str]:
    """Return each thing that the cells name as standing in for another, once."""
    joined = "; ".join(dict.fromkeys(cells["stand_in"]))
    return list(filter(None, dict.fromkeys(joined.split("; "))))


def provenance_note(cells: pd.DataFrame) -> str:
    """Return the sentences on the data behind the cells, and on what stands in."""

    def joined(name: str) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in cells[name]))

    data = f"Dataset {joined('dataset')}, scale {joined('scale')}, seed {joined('seed')}."
    found = stand_ins(cells)
    return f"{data} Stand-ins: {'; '.join(found)}." if found else data


def check_name(name: str, known: Collection[str], kind: str, study: str) -> None:
    """Raise InputError if a study has no table or figure of this name."""
    if name not in known:
        has = listed(list(known))
        raise InputError(f"there is no {kind} {name} of the {study} study; it has {has}")


def read_columns(
    path: Path,
    columns: list[str],
    optional: Collection[str] = (),
    gaps: Collection[str] = (),
) -> pd.DataFrame:
    """Read columns, and those of the optional ones that are there.

    Raises
    ------
    InputError
        If a column is missing, or one that may not have gaps has some.
    """
    try:
        columns = columns + [name for name in pq.read_schema(path).names if name in optional]
        table = pd.read_parquet(path, columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a table with {listed(columns)}: {error}") from error
    complete = [name for name in columns if name not in gaps]
    if incomplete := [name for name in complete if table[name].isna().any()]:
        raise InputError(f"{path} has rows without {incomplete[0]}: make it again")
    return table


def listed(names: Sequence[str]) -> str:
    """Return names as they stand in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""
