"""Processes that end with the one that started them, and commands that say in one message what is wrong."""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from tqdm import tqdm

PARENT = "B2MA_PARENT"  # environment variable: process id of whoever starts a process that ends with it


def end_with_parent(sign: int, parent: int | None = None) -> None:
    """Get a signal when the process that started this one ends, however it ends: nothing works on unseen.

    The processes that this one starts, and that call this function too, end with this one.

    Args:
        sign: the signal.
        parent: process id of the one that started this one. None: as the environment says; where it says nothing, this
            process was started by hand and stays.
    """
    parent = parent or int(os.environ.get(PARENT) or 0)
    os.environ[PARENT] = str(os.getpid())
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, sign)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before that
            os.kill(os.getpid(), sign)
    else:
        threading.Thread(target=_watch, args=(sign, parent), daemon=True).start()


def _watch(sign: int, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), sign)


def in_parallel(function: Callable, items: list, workers: int, title: str) -> Iterator:
    """The function's results in order, computed by processes that end with this one where the items are many.

    Args:
        function: of one item; it and the items have to be picklable.
        items: what it is called with.
        workers: how many processes.
        title: of the progress bar.

    Raises:
        OSError: if one of the processes was killed.
    """
    bar = partial(tqdm, total=len(items), desc=title, unit="image", mininterval=5)
    if workers < 2 or len(items) < 64:
        yield from bar(map(function, items))
        return
    # Fresh processes: a fork of a notebook's kernel would inherit its threads' locks.
    context, ends = multiprocessing.get_context("spawn"), (signal.SIGKILL, os.getpid())
    with ProcessPoolExecutor(workers, context, end_with_parent, ends) as pool:
        try:
            yield from bar(in_order(pool, function, items, ahead=4 * workers))
        except BrokenProcessPool:
            raise OSError(f"{title}: a process that reads images was killed, perhaps for want of memory; take fewer of "
                          "them (OMP_NUM_THREADS=1)") from None  # fmt: skip


def in_order(pool: Executor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """The results of ``pool.map``, of which never more than ``ahead`` wait for who takes them."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def cpuinfo() -> str:
    """What Linux tells of the processors; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def run_command(name: str, command: Callable[[], None], stopped: str = "the same command starts again") -> int:
    """Run a command line's work; the exit code. What it cannot do becomes one message on stderr, without traceback.

    Args:
        name: what the message begins with.
        command: does the work.
        stopped: what the message says after Ctrl-C.
    """
    try:
        command()
        return 0
    except (ValueError, OSError) as error:
        said = re.sub(r"^\[Errno \d+\] ", "", str(error))
    except KeyboardInterrupt:
        said = f"stopped; {stopped}"
    print(f"\n{name}: {said}\n", file=sys.stderr, flush=True)
    return 1
