"""Scoring by one command: a checkpoint or a folder of predictions, at the labels' own size."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import photo
from PIL import Image

from b2ma_core.data import conversion, datasets
from b2ma_core.files import PROJECT
from b2ma_core.labels import CITYSCAPES
from b2ma_core.metrics import ConfusionMatrix
from b2ma_core.models import build_model, save_weights
from b2ma_core.report import score
from b2ma_core.study.training import make_fabric, predict


@pytest.fixture
def command(folder_params, tmp_path, monkeypatch):
    """``score`` on the street folder, whose labels are twice as large as the study's images."""
    params = folder_params.model_copy(update={"image_size": [32, 64]})
    conversion.prepare(params, 1, tmp_path / "data")
    monkeypatch.setattr(score, "load_params", lambda path: params)
    monkeypatch.setattr(score, "load", lambda params, name: datasets.load(params, name, tmp_path / "data"))

    def call(*words) -> int:
        return score.main(["--study", "folder", *map(str, words)])

    call.val = datasets.load(params, "target_val", tmp_path / "data")
    call.params = params
    return call


def test_a_folder_of_predictions_is_scored_as_by_hand(command, tmp_path, capsys):
    folder, scores = tmp_path / "predictions", ConfusionMatrix(19)
    folder.mkdir()
    for name, truth in zip(command.val.names, command.val.labels, strict=True):
        labels = np.roll(truth, 5, 1)
        Image.fromarray(labels).save(folder / f"{name}.png")
        scores.update(labels, np.array(truth))
    assert command("--predictions", folder, "--out", tmp_path / "result") == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["mIoU19"] == pytest.approx(scores.miou(), abs=1e-12)
    assert found["mIoU16"] == pytest.approx(scores.miou([c for c in range(19) if c not in (9, 14, 16)]), abs=1e-12)
    line = f"mIoU19 | {100 * scores.miou():.1f}"
    for text in ((tmp_path / "result.md").read_text(), capsys.readouterr().out):
        assert line in re.sub(" +", " ", text)
    assert r"\begin{tabular}" in (tmp_path / "result.tex").read_text()


def test_a_checkpoint_is_scored_and_sent_as_label_ids(command, tmp_path):
    torch.manual_seed(0)  # some random networks are undecided over whole images, and bf16 then decides otherwise
    model = build_model(command.params.target_network, 19)
    save_weights(model.state_dict(), tmp_path / "student.safetensors")
    words = ("--checkpoint", tmp_path / "student.safetensors", "--submission", tmp_path / "sent")
    assert command(*words, "--out", tmp_path / "result") == 0
    labels = predict(model, make_fabric(command.params), command.val.images, (64, 128))
    scores = ConfusionMatrix(19)
    scores.update(labels, np.array(command.val.labels))
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] == pytest.approx(scores.accuracy(), abs=2e-3)
    sent = photo(tmp_path / "sent" / "seq_0_pred_labelIds.png")
    assert sent.shape == (64, 128) and set(np.unique(sent)) <= set(CITYSCAPES.label_ids)
    assert (CITYSCAPES.encode(sent) == labels[0]).mean() > 0.99


def test_a_checkpoint_of_another_network_than_the_studys_is_scored_as_that(command, tmp_path, capsys):
    weights = tmp_path / "public.safetensors"
    save_weights(build_model("deeplab_mobilenet_v2", 19).state_dict(), weights)
    assert command("--checkpoint", weights) == 1 and "do not fit" in capsys.readouterr().err
    assert command("--checkpoint", weights, "--network", "deeplab_mobilenet_v2", "--scales", 1) == 0


def test_the_benchmark_servers_names():
    name = "berlin_000000_000019_leftImg8bit"
    assert score.server_name(name) == "berlin_000000_000019_pred_labelIds.png"


def test_scales_and_flip_average_probabilities(command):
    """Against a plain loop; a network that is blind to mirroring gives the mirror image the mirrored labels."""
    torch.manual_seed(0)
    model = build_model(command.params.target_network, 19).eval()
    fabric = make_fabric(command.params.model_copy(update={"precision": "32-true"}))
    image = np.array(command.val.images[0])
    x, total = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, 0
    with torch.no_grad():
        for view, back in ((x, lambda t: t), (x.flip(-1), lambda t: t.flip(-1))):
            for side in ((32, 64), (64, 128)):
                scaled = view if side == (32, 64) else torch.nn.functional.interpolate(
                    view, side, mode="bilinear", antialias=True
                )  # fmt: skip
                logits = torch.nn.functional.interpolate(model(scaled), (64, 128), mode="bilinear")
                total = total + back(logits).softmax(1)
    ours = score.predict_scales(model, fabric, image, (64, 128), (1.0, 2.0), True)
    assert (ours == total.argmax(1)[0].numpy()).mean() > 0.999
    mirrored = score.predict_scales(model, fabric, image[:, ::-1], (64, 128), (1.0, 2.0), True)
    assert (mirrored[:, ::-1] == ours).mean() > 0.999


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda path: path.unlink(), "seq_1.png: no prediction for the image"),
        (lambda path: path.write_bytes(b"no"), "seq_1.png: cannot be read as a picture"),
        (lambda path: Image.new("L", (16, 16)).save(path), r"the prediction is \(16, 16\), the labels are \(64, 128\)"),
        (lambda path: Image.new("L", (128, 64), 33).save(path), "these look like label ids"),
    ],
)
def test_a_prediction_that_does_not_fit_is_named(command, tmp_path, capsys, damage, said):
    import re

    folder = tmp_path / "predictions"
    folder.mkdir()
    for name, truth in zip(command.val.names, command.val.labels, strict=True):
        Image.fromarray(np.array(truth)).save(folder / f"{name}.png")
    damage(folder / "seq_1.png")
    assert command("--predictions", folder, "--out", tmp_path / "result") == 1
    assert re.search(said, capsys.readouterr().err) and not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ("--study smok --checkpoint x", "did you mean 'smoke'"),
        ("--study ../smoke --checkpoint x", "'../smoke' is no name"),
        ("--study smoke --checkpoint x --scales 0", "--scales: each must lie between 0.1 and 4, got 0"),
        ("--study smoke --checkpoint x --scales 1 -1", "got 1 -1"),
        ("--study smoke --checkpoint x --scales nan", "got nan"),
        ("--study smoke --checkpoint x --scales 1e9", "got 1e+09"),
        ("--study smoke --predictions x --scales 2", "--flip and --network: belong to --checkpoint"),
        ("--study smoke --predictions x --flip", "--flip and --network: belong to --checkpoint"),
        ("--study smoke --predictions x --network deeplab_small", "--flip and --network: belong to --checkpoint"),
        ("--study smoke --checkpoint x --out pyproject.toml/x", "pyproject.toml: cannot be written"),
        ("--study smoke --checkpoint x --submission pyproject.toml", "--submission goes there"),
    ],
)
def test_what_is_told_wrong_is_said_before_anything_is_read(capsys, monkeypatch, words, said):
    monkeypatch.chdir(PROJECT)
    assert score.main(words.split()) == 1
    assert said in capsys.readouterr().err


def test_a_missing_folder_is_named(command, tmp_path, capsys):
    assert command("--predictions", tmp_path / "nowhere") == 1
    assert "--predictions: no folder" in capsys.readouterr().err
