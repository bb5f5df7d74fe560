"""Processes that end with the one that started them, and commands that say in one message what is wrong."""

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

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
