"""Processes that end with the one that started them, and commands that say in one message what is wrong."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

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


def run_command(name: str, command: Callable[[], None]) -> int:
    """Run a command line's work; the exit code. What it cannot do becomes one message on stderr, without traceback."""
    try:
        command()
    except (ValueError, OSError) as error:
        print(f"\n{name}: {error}\n", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"\n{name}: stopped; the same command starts again\n", file=sys.stderr, flush=True)
        return 1
    return 0
