"""Pictures to explore, and who is there to move a slider."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from jupyter_client.manager import KernelManager

from b2ma_core.files import PROJECT
from b2ma_core.labels import CITYSCAPES
from b2ma_core.report import explore


def shown(axis) -> np.ndarray:
    return np.asarray(axis.images[0].get_array())


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_the_answers_errors_are_counted_without_ignored_pixels():
    truth = np.array([[0, 0, 1, 255]] * 2, np.uint8)
    answer, pseudo = np.array([[0, 2, 1, 1]] * 2, np.uint8), np.array([[0, 0, 0, 1]] * 2, np.uint8)
    seen = np.zeros((2, 4, 3), np.uint8)
    figure = explore.answer_to_view(seen, answer, pseudo, truth, CITYSCAPES, "as it is")
    assert titles(figure)[::3] == ["what the box saw: as it is", "its answer is not the truth: 33.3%"]
    assert (shown(figure.axes[1]) == CITYSCAPES.colorize(answer)).all()
    figure = explore.answer_to_view(seen, answer, pseudo, None, CITYSCAPES, "as it is")
    assert titles(figure)[3] == "its answer is not the pseudo label: 50.0%"


def test_the_patches_of_a_class_are_counted_by_place():
    labels = np.zeros((3, 8, 16), np.uint8)
    labels[:2, 6, 1] = 5
    images = np.zeros((3, 8, 16, 3), np.uint8)
    figure = explore.patches_of_class(images, labels, 5, 2, 0.0, CITYSCAPES)
    assert figure.get_suptitle() == "pole, 2 x 2 cells: 2 in 2 of 3 images"
    assert shown(figure.axes[0]).tolist() == [[0, 0], [2, 0]]
    figure = explore.patches_of_class(images, labels, 6, 4, 0.0, CITYSCAPES)
    assert figure.get_suptitle() == "traffic light, 4 x 4 cells: 0 in 0 of 3 images"


def test_a_mix_cut_by_hand_holds_four_parts_at_their_places():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(16, 2).repeat(3, 3)
    labels, sure = images[..., 0].astype(np.int64), images[..., 0] / 3
    figure = explore.mix_by_hand(images, labels, sure, 0.25, 0.25, 1, 0.5, CITYSCAPES)
    mixed, donors = shown(figure.axes[0])[..., 0], [shown(axis)[0, 0, 0] for axis in figure.axes[4:]]
    corners = [mixed[:2, :4], mixed[:2, 4:], mixed[2:, :4], mixed[2:, 4:]]
    assert all((corner == donor).all() for corner, donor in zip(corners, donors, strict=True)) and donors[0] == 0
    assert figure.axes[2].get_title() == f"sure: {(mixed >= 2).mean():.0%}"
    drawn = [explore.mix_by_hand(images, labels, sure, 0.25, None, seed, 0.5, CITYSCAPES) for seed in (1, 1, 2)]
    same, again, other = (shown(figure.axes[0]) for figure in drawn)
    assert (same == again).all() and (same != other).any()


LOOK = """
from b2ma_core.report import explore
def look(x=3):
    print("drawn with", x)
explore.at_hand(look, x=(0, 9))
"""


def test_sliders_are_for_readers_and_one_picture_for_nobody():
    """Said as JupyterLab says that somebody is there, and as papermill and nbval say that nobody is."""
    manager = KernelManager(kernel_cmd=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    manager.start_kernel(cwd=str(PROJECT))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=300)
        for somebody in (True, False, True):
            told = []
            client.execute_interactive(LOOK, allow_stdin=somebody, timeout=300, output_hook=told.append)
            kinds = {kind for m in told for kind in m["content"].get("data", {})}
            assert ("application/vnd.jupyter.widget-view+json" in kinds) == somebody
            assert any(m["msg_type"] == "comm_open" for m in told) == somebody
            assert "drawn with 3\n" in [m["content"].get("text") for m in told]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
