"""Run one notebook of the study headless: ``python notebooks/run.py 03_cross_domain --study smoke --seed 0``.

The parameters are checked first; the executed copy is kept in ``runs/<study>/<seed>/notebooks/``, without red lines and
with small pictures (``b2ma_core/report/executed.py``); one that failed is left as it is. The exit code is 0 only if the
notebook wrote its record. This is the only place that knows papermill.
"""

import argparse
import ast
import logging
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import yaml

from b2ma_core.files import PROJECT, write_bytes
from b2ma_core.params import Params, check_params, read_yaml, study_file
from b2ma_core.processes import end_with_parent, run_command
from b2ma_core.study.arms import branch
from b2ma_core.study.records import STAGES, Run

GOES_ON = "the same command goes on from the last saved step"
# Their messages say all; any other error is told by its name too.
SAID = ("ParamsError", "ValueError", "OSError", "FileNotFoundError", "RuntimeError", "AssertionError")
# A kernel ends with this process, at once; its warning of plain TCP, which never leaves this machine, is left out.
KERNEL = [
    "--IPKernelApp.log_level=50",
    "--IPKernelApp.exec_lines=__import__('b2ma_core.processes').processes.end_with_parent(9)",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", choices=STAGES)
    parser.add_argument("--study", default="minicity", help="params/<study>.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-p", dest="values", action="append", default=[], metavar="NAME=VALUE",
                        help="a notebook's own parameter; VALUE is YAML")  # fmt: skip
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop ends the kernel too, and says how to go on
    end_with_parent(signal.SIGKILL)
    # The kernel of this environment, and pictures inside the notebook.
    os.environ.update(JUPYTER_PREFER_ENV_PATH="1", PYDEVD_DISABLE_FILE_VALIDATION="1")
    for name in ("JUPYTER_PATH", "MPLBACKEND"):
        os.environ.pop(name, None)
    return run_command(args.notebook, lambda: execute(args.notebook, args.study, args.seed, args.values), GOES_ON)


def told(name: str, given: Sequence[str], declared: dict[str, str]) -> dict[str, Any]:
    """The parameters that ``-p NAME=VALUE`` give to a notebook.

    Args:
        name: of the notebook.
        given: ``NAME=VALUE`` each, VALUE in YAML.
        declared: the notebook's parameters, name -> default as Python.

    Raises:
        ValueError: naming the one that is not of this form, unknown, given twice, or of another type than its default.
    """
    own = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"-p {text}: must be NAME=VALUE")
        if key in ("study", "seed"):
            raise ValueError(f"-p {text}: say --{key} {value}")
        if key not in declared:
            raise ValueError(f"-p {key}: {name} has no such parameter; it has {', '.join(sorted(declared))}")
        if key in own:
            raise ValueError(f"-p {key}: given twice")
        try:
            own[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"-p {text}: {value!r} cannot be read as YAML") from None
        if key not in Params.model_fields and not alike(own[key], ast.literal_eval(declared[key])):
            raise ValueError(f"-p {text}: must be of the form of {declared[key]}")
    return own


def alike(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default, a list its elements' too."""
    if isinstance(default, list):
        return isinstance(value, list) and bool(value) and all(alike(v, default[0]) for v in value)
    return type(value) is type(default) and not (isinstance(value, int) and value < 0)


def execute(name: str, study: str, seed: int, given: Sequence[str]) -> None:
    """Execute a notebook and keep the copy; ValueError or OSError says what was wrong and the way out."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from b2ma_core.report.executed import clean

    path = study_file(study)
    values = read_yaml(path)
    params = check_params(values, str(path.relative_to(PROJECT)))
    source = PROJECT / "notebooks" / f"{name}.ipynb"
    declared = {key: found["default"] for key, found in papermill.inspect_notebook(str(source)).items()}
    own = told(name, given, declared)
    values |= {key: own[key] for key in set(own) & set(Params.model_fields)}
    check_params(values, "-p")
    runs = PROJECT / own.get("runs", "runs")
    if "runs" in own and not runs.is_dir():
        raise ValueError(f"-p runs: no folder {runs}")
    run = Run(params, seed, runs)
    output = run.path("notebooks", f"{name}.ipynb")
    if name in STAGES[:7]:
        branch(run)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output.parent).close()
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
            log_output=True, coalesce_streams=True, autosave_cell_every=10, extra_arguments=[*KERNEL],
        )  # fmt: skip
    except OSError as error:
        raise OSError(f"{output}: cannot be written ({error.strerror or error}); free some space, {GOES_ON}") from None
    except PapermillExecutionError as error:
        said = error.evalue if error.ename in SAID and error.evalue else f"{error.ename}: {error.evalue}"
        raise ValueError(f"{said}\n  (with the code around it: {output})") from None
    except RuntimeError:  # of a kernel that is gone, at its start or later
        raise ChildProcessError(f"its kernel was killed, perhaps because memory ran out; {GOES_ON} (what was done is "
                                f"in {output})") from None  # fmt: skip
    record = run.path("records", f"{name}.json")
    if not record.is_file() or record.stat().st_mtime < started - 1:
        raise OSError(f"the notebook ended without its record {record}: its kernel was stopped; see {output}")
    write_bytes(output, nbformat.writes(clean(nbformat.read(output, 4))).encode())
    print(f"[{study} {seed}] {name}: {time.time() - started:.0f} s", flush=True)


def show_progress(prefix: str) -> None:
    """Let the notebook's progress bars through to this terminal, one line each time, and its lines "note: ..."."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines = record.getMessage().replace("\r", "\n").strip().splitlines()
            for line in lines:
                if line.startswith("note: ") or (line is lines[-1] and re.search(r"\d+/\d+ \[", line)):
                    print(f"{prefix}   {line}", flush=True)

    logger = logging.getLogger("papermill")
    logger.handlers, logger.propagate = [Lines()], False
    logger.setLevel(logging.INFO)
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    sys.exit(main())
