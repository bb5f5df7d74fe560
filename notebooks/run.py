"""Run one notebook of the study headless: ``python notebooks/run.py 03_cross_domain --study smoke --seed 0``.

The parameters are checked first; the executed copy is kept in ``runs/<study>/<seed>/notebooks/``. The exit code is 0
only if the notebook wrote its record. This is the only place that knows papermill.
"""

import argparse
import ctypes
import logging
import os
import re
import signal
import sys
import time
import warnings

import yaml

from b2ma_core.files import PROJECT
from b2ma_core.params import Params, ParamsError, check_params, read_yaml
from b2ma_core.study.arms import branch
from b2ma_core.study.records import STAGES, Run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", choices=STAGES)
    parser.add_argument("--study", default="minicity", help="params/<study>.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-p", dest="values", action="append", default=[], metavar="NAME=VALUE",
                        help="a notebook's own parameter; VALUE is YAML")  # fmt: skip
    args = parser.parse_args()
    end_with_parent()
    try:
        return execute(args.notebook, args.study, args.seed, dict(v.split("=", 1) for v in args.values))
    except (ParamsError, ValueError, OSError) as error:
        return fail(args.notebook, str(error))
    except KeyboardInterrupt:
        return fail(args.notebook, "stopped; the same command goes on from the last saved step")


def execute(name: str, study: str, seed: int, given: dict[str, str]) -> int:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    path = PROJECT / "params" / f"{study}.yaml"
    values = read_yaml(path)
    params = check_params(values, str(path.relative_to(PROJECT)))
    source = PROJECT / "notebooks" / f"{name}.ipynb"
    declared = set(papermill.inspect_notebook(str(source)))
    own = {key: yaml.safe_load(value) for key, value in given.items()}
    unknown = set(own) - declared
    if unknown:
        raise ValueError(
            f"-p {', '.join(sorted(unknown))}: {name} has no such parameter; it has {', '.join(sorted(declared))}"
        )
    for key in set(own) & set(Params.model_fields):
        values[key] = own[key]
    check_params(values, "-p")
    run = Run(params, seed, PROJECT / str(own.get("runs", "runs")))
    output = run.path("notebooks", f"{name}.ipynb")
    branch(run)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        (output.parent / f".{os.getpid()}").touch()
        (output.parent / f".{os.getpid()}").unlink()
    except OSError as error:
        raise OSError(
            f"{output.parent}: cannot be written ({error.strerror}); make the run's folder writable"
        ) from None
    injected = {k: v for k, v in {**values, "seed": seed, **own}.items() if k in declared}
    print(f"[{study} {seed}] {name}", flush=True)
    show_progress(f"[{study} {seed}]")
    started = time.time()
    try:
        papermill.execute_notebook(
            str(source), str(output), injected, kernel_name="python3", cwd=str(PROJECT), progress_bar=False,
            log_output=True, coalesce_streams=True, autosave_cell_every=10,
            extra_arguments=["--IPKernelApp.log_level=40"],  # its warning of plain TCP, which never leaves this machine
        )  # fmt: skip
    except PapermillExecutionError as error:
        return fail(name, f"{error.evalue}\n  (with the code around it: {output})")
    record = run.path("records", f"{name}.json")
    if not record.is_file() or record.stat().st_mtime < started - 1:
        return fail(name, f"the notebook ended without its record {record}: its kernel was stopped; see {output}")
    print(f"[{study} {seed}] {name}: {time.time() - started:.0f} s", flush=True)
    return 0


def fail(name: str, message: str) -> int:
    print(f"\n{name}: {message}\n", file=sys.stderr, flush=True)
    return 1


def show_progress(prefix: str) -> None:
    """Let the notebook's progress bars through to this terminal, one line each time."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage().replace("\r", "\n").strip().splitlines()
            if line and re.search(r"\d+/\d+ \[", line[-1]):
                print(f"{prefix}   {line[-1]}", flush=True)

    logger = logging.getLogger("papermill")
    logger.handlers, logger.propagate = [Lines()], False
    logger.setLevel(logging.INFO)
    warnings.filterwarnings("ignore")


def end_with_parent() -> None:
    """End when asked to, and when the caller was killed: the kernel ends with this process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            raise SystemExit(1)
    # The kernel of this environment, and pictures inside the notebook.
    os.environ.update(JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    for name in ("JUPYTER_PATH", "MPLBACKEND"):
        os.environ.pop(name, None)


if __name__ == "__main__":
    sys.exit(main())
