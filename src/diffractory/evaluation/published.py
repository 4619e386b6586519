"""The published values, read from the one file that holds them."""

from functools import cache
from importlib.resources import files

import pandas as pd

NOT_GIVEN = "\N{EN DASH}"
"""How the papers print a cell without a value."""


@cache
def published_values() -> pd.DataFrame:
    """Return every published value as printed.

    The columns are study, table, row, column, value and unit, all text. A table named
    ``"4 (text)"`` holds what the running text says of cells of Table 4 where it differs.
    """
    with (files("diffractory.evaluation") / "data" / "published.csv").open(
        encoding="utf-8"
    ) as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def published_column(study: str, table: int | str, column: str) -> "pd.Series[str]":
    """Return the printed values of one column of a table, by row name in printed order."""
    values = published_values()
    chosen = values[
        (values["study"] == study) & (values["table"] == str(table)) & (values["column"] == column)
    ]
    return chosen.set_index("row")["value"]


def text_differences(study: str, table: int) -> str:
    """Return a sentence on the cells that the running text of the paper gives otherwise."""
    values = published_values()
    text = values[(values["study"] == study) & (values["table"] == f"{table} (text)")]
    cells = [
        f"{column}, {row}: {value}, not {published_column(study, table, column)[row]}"
        for row, column, value in zip(text["row"], text["column"], text["value"], strict=True)
    ]
    return f"The running text of the paper differs from its Table {table}: {'; '.join(cells)}."
