"""Worker processes for stages whose items are independent."""

import multiprocessing
import multiprocessing.util
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

from diffractory.errors import InputError

_LONGEST_SOCKET_FOLDER = 70
"""Characters of a folder whose sockets the system accepts: 107, less the names of their own."""


@contextmanager
def worker_pool(
    processes: int, module: str, prepare: Callable[[], None], advice: str
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that share one import of a module.

    They import the main module too, so that a script must use this under
    ``if __name__ == "__main__"``.

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
