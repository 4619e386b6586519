"""Progress: a bar with rate and time left on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

LOG_INTERVAL = 10.0
"""Seconds between two lines in the log."""

logger = logging.getLogger(__name__)


def track(
    items: Iterable[Item],
    label: str,
    total: int,
    unit: str,
    weight: int | Callable[[Item], int] = 1,
) -> Iterator[Item]:
    """Yield ``items`` while reporting how many are done, how fast, and how long is left.

    Parameters
    ----------
    items
        What is worked on.
    label
        What is being done, such as ``"Simulating"``.
    total
        Number of units in all.
    unit
        Name of a unit, in the plural.
    weight
        Units that an item stands for (the last one may stand for fewer), or what tells them.
    """
    start = last_line = time.monotonic()
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )
    done = 0
    with bar:
        task = bar.add_task(label, total=total, rate="")
        for item in items:
            yield item
            units = weight if isinstance(weight, int) else weight(item)
            done = min(done + units, total)
            now = time.monotonic()
            rate = done / max(now - start, 1e-9)
            bar.update(task, completed=done, rate=f"{rate:,.0f} {unit}/s")
            if now - last_line > LOG_INTERVAL:
                left = (total - done) / max(rate, 1e-9)
                logger.info(
                    "%s: %d of %d %s, %.0f a second, %.0f s left",
                    label, done, total, unit, rate, left,
                )  # fmt: skip
                last_line = now
    seconds = time.monotonic() - start
    logger.info("%s: %d %s in %.1f s", label, done, unit, seconds)
