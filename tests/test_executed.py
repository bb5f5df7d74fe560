"""Executed notebooks as they are shown and committed."""

import base64
import io
import json
import platform

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

from b2ma_core.files import PROJECT
from b2ma_core.report import executed
from b2ma_core.study.records import STAGES

KERNEL = {"name": "python3", "display_name": "Python 3"}


def png(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def photo(size: int = 400) -> str:
    return png(np.random.default_rng(0).integers(0, 256, (size, size, 4), np.uint8) | np.uint8([0, 0, 0, 255]))


def stream(text: str, name: str = "stdout"):
    return new_output("stream", text=text, name=name)


def book(*outputs) -> nbformat.NotebookNode:
    cell = new_code_cell("x", outputs=list(outputs), metadata={"tags": ["parameters"], "papermill": {"duration": 1}})
    return new_notebook(cells=[cell], metadata={"papermill": {"input_path": "/tmp"}, "kernelspec": KERNEL})


def outputs(cleaned) -> list:
    return cleaned.cells[0].outputs


def test_red_lines_times_and_paths_are_removed():
    dirty = book(
        stream("Using bfloat16 Automatic Mixed Precision (AMP)\n", "stderr"),
        stream("source: 100%|####| 9/9\n", "stderr"),
        stream("\n"),
        stream(f"in {PROJECT}/runs/smoke/0 and /usr/lib/python3/site.py, 3 / 4, https://a.org/b/c\n"),
        new_output("execute_result", {"text/html": "<td>1</td><td>/home/me/x.png</td>"}),
    )
    cleaned = executed.clean(dirty)
    assert [o.get("text") or o.data["text/html"] for o in outputs(cleaned)] == [
        "in runs/smoke/0 and site.py, 3 / 4, https://a.org/b/c\n",
        "<td>1</td><td>x.png</td>",
    ]
    assert cleaned.metadata == {"kernelspec": KERNEL}
    assert cleaned.cells[0].metadata == {"tags": ["parameters"]}
    assert len(outputs(dirty)) == 5, "the notebook that was given is changed"
    assert executed.clean(cleaned) == cleaned
    executed.refuse("x", cleaned)


def test_a_plot_keeps_its_colours_and_a_photograph_is_fitted_under_the_limit():
    colours = np.random.default_rng(1).integers(0, 256, (19, 3), np.uint8)
    plot = colours[np.arange(380)[:, None] // 20 * np.ones(100, int)]
    cleaned = executed.clean(book(new_output("display_data", {"image/png": png(plot)})))
    kept = Image.open(io.BytesIO(base64.b64decode(outputs(cleaned)[0].data["image/png"])))
    assert kept.mode == "P" and (np.asarray(kept.convert("RGB")) == plot).all()
    many = book(*[new_output("display_data", {"image/png": photo()}) for _ in range(3)])
    cleaned = executed.clean(many)
    assert all(list(output.data) == ["image/jpeg"] for output in outputs(cleaned))
    assert len(nbformat.writes(cleaned)) < executed.LIMIT < len(nbformat.writes(many))
    assert executed.clean(cleaned) == cleaned


def test_what_is_too_large_or_failed_or_names_the_machine_is_not_published():
    with pytest.raises(ValueError, match=r"^05: \d+ kB, more than 400: show fewer or smaller pictures$"):
        executed.refuse("05", executed.clean(book(new_output("display_data", {"image/png": photo(1600)}))))
    with pytest.raises(ValueError, match="05: ended with an error"):
        executed.refuse("05", executed.clean(book(new_output("error", ename="A", evalue="b", traceback=[]))))
    executed.refuse("05", book(new_output("display_data", {"text/html": f'<b class="{platform.node()}">x</b>'})))
    with pytest.raises(ValueError, match="05: an output names this machine"):
        executed.refuse("05", executed.clean(book(stream(f"ran on {platform.node()}\n"))))


def test_a_whole_run_is_published_unless_it_shows_photographs(tmp_path):
    run, into = tmp_path / "runs" / "smoke" / "0", tmp_path / "notebooks"
    for folder in ("records", "notebooks"):
        (run / folder).mkdir(parents=True)
    for stage in STAGES[:7]:
        with pytest.raises(FileNotFoundError, match=f"no record of {stage}; make study STUDY=smoke SEEDS=0"):
            executed.publish("smoke", 0, into, tmp_path / "runs")
        (run / "records" / f"{stage}.json").write_text("{}")
        nbformat.write(book(stream("red", "stderr")), run / "notebooks" / f"{stage}.ipynb")
    params = {"source_dataset": "minicity", "target_dataset": "camvid"}
    (run / "params.json").write_text(json.dumps(params))
    with pytest.raises(ValueError, match="photographs, which stay where their licence keeps them"):
        executed.publish("smoke", 0, into, tmp_path / "runs")
    assert not into.exists()
    (run / "params.json").write_text(json.dumps({**params, "target_dataset": "minicity"}))
    assert executed.publish("smoke", 0, into, tmp_path / "runs") == list(STAGES[:7])
    assert "red" not in (into / "06_evaluation.ipynb").read_text()
