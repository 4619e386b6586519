"""Atomic writes: write beside, flush, rename, so that nothing half-written is taken for whole."""

import errno
import fcntl
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pandas as pd

from diffractory.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def room_for(what: Path | str) -> Iterator[None]:
    """Say in one sentence that the disk is full on which the block writes ``what``.

    Raises
    ------
    InputError
        If it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # Of two names, those of a copy, the second is the one that is written.
        where = error.filename2 or error.filename or what
        raise InputError(
            f"no space is left to write {where}: make room on its disk, or in your quota, and run "
            "again"
        ) from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends without error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with room_for(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that replaces it when the block ends without error.

    Two folders cannot be exchanged in one step everywhere, so the old one goes first: after a kill
    in between there is no folder rather than a wrong one.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with room_for(path):
            partial.mkdir(parents=True)
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            shutil.rmtree(path, ignore_errors=True)
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write ``table`` to ``path`` atomically, without its index."""
    with atomic_file(path) as partial:
        table.to_parquet(partial, index=False, compression="zstd")


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Let no other process make ``path`` while the block runs.

    The system drops the claim of a process that ends, however it ends.

    Raises
    ------
    InputError
        If another process holds the claim.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    file = _lock(lock, path)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def _lock(lock: Path, path: Path) -> IO[str]:
    """Return the file of a claim, locked, with the holder in it."""
    while True:
        file = lock.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                with file:
                    raise _held(file, path) from error
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            logger.warning(
                "%s has no locks: nothing keeps another run from making %s too", lock.parent, path
            )
            return file
        # The last holder may have removed the file after it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                break
        file.close()
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID", "")
    file.write(f"{platform.node()} {os.getpid()} {job}\n")
    file.flush()
    return file


def _held(file: IO[str], path: Path) -> InputError:
    file.seek(0)
    host, pid, job = (*file.read().split(), "?", "?", "")[:3]
    end = f"scancel {job}" if job.isdecimal() else f"kill {pid}"
    return InputError(
        f"{path} is being made by process {pid} on {host}: wait for it to end, or end it with "
        f"{end}, and run again"
    )
