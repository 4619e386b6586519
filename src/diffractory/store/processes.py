"""Worker processes for stages whose items are independent."""

import multiprocessing
import multiprocessing.util
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from diffractory.errors import InputError

_LONGEST_SOCKET_FOLDER = 70
"""Characters of a folder whose sockets the system accepts: 107, less the names of their own."""


@contextmanager
def worker_pool(
    processes: int, module: str, prepare: Callable[[], None], advice: str
) -> Iterator[Executor]:
    """Yield a pool of processes that share one import of a module, to map functions over items.

    They import the main module too, so that a script must use this under
    ``if __name__ == "__main__"``. One process alone is this one: to start another takes seconds.

    Parameters
    ----------
    module
        Imported once, before the processes fork from it.
    prepare
        Called at the start of each process.
    advice
        What the error says if a process is killed, most likely for want of memory.

    Raises
    ------
    InputError
        If a process is killed.
    """
    if processes == 1:
        prepare()
        yield _ThisProcess()
        return
    keep_socket_paths_short()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    start = partial(_start, prepare)
    try:
        with ProcessPoolExecutor(processes, mp_context=context, initializer=start) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise InputError(
            f"A process was killed, most likely for want of memory: {advice}"
        ) from error


class _ThisProcess(Executor):
    """Works here, and on an item of a map when that is asked for."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future

    def map(self, fn: Callable[..., Any], *iterables: Any, **_: Any) -> Iterator[Any]:
        return map(fn, *iterables)


def one_thread() -> None:
    """Keep a worker process to one thread: the processes share the cores."""
    # Here, as stages import this module that need neither.
    import numba
    from threadpoolctl import threadpool_limits

    numba.set_num_threads(1)
    threadpool_limits(1)


def keep_socket_paths_short() -> None:
    """Have processes yet to start speak through /tmp if TMPDIR is long, as a cluster's may be."""
    folder = tempfile.gettempdir()
    if len(folder) > _LONGEST_SOCKET_FOLDER:
        tempfile.tempdir = "/tmp"
        multiprocessing.util.get_temp_dir()  # which is then kept
        tempfile.tempdir = folder


def _start(prepare: Callable[[], None]) -> None:
    """Prepare a process, and let it end with the one that started it, even if that is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
