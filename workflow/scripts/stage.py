"""What every script does around the one function that it calls."""

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from diffractory.store import InputError
from diffractory.store.files import room_for


@contextmanager
def stage(log: str) -> Iterator[None]:
    """Log to a file, and to stderr where no progress bar is; end on bad input with one sentence."""
    logging.raiseExceptions = False  # a full disk has no room for the log either
    try:
        with room_for(f"results, or temporary files in {tempfile.gettempdir()}"):
            _log_to(log)
            yield
    except InputError as error:
        logging.getLogger(__name__).critical("%s", error)
        sys.exit(f"\nError: {error}\n")
    except Exception:
        logging.getLogger(__name__).exception("This is a fault of Diffractory, please report it.")
        sys.exit(1)


def _log_to(log: str) -> None:
    handlers: list[logging.Handler] = [logging.FileHandler(log, mode="w", encoding="utf-8")]
    if not sys.stderr.isatty():
        handlers.append(logging.StreamHandler())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    logging.captureWarnings(True)
