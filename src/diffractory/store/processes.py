"""Worker processes for stages whose items are independent."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from diffractory.errors import InputError


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    try:
        with ProcessPoolExecutor(processes, mp_context=context, initializer=prepare) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise InputError(
            f"A process was killed, most likely for want of memory: {advice}"
        ) from error
