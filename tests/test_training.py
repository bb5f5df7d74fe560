import pickle
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import same_tree

from b2ma_core.data import conversion, datasets
from b2ma_core.models import build_model, save_weights
from b2ma_core.params import check_params
from b2ma_core.study import stages, training
from b2ma_core.study.asking import ask_for_labels, open_box
from b2ma_core.study.batches import Batches, indices_of
from b2ma_core.study.preflight import preflight
from b2ma_core.study.records import Run


@pytest.fixture
def prepared(smoke_params, tmp_path, monkeypatch):
    """Runs by name whose data are ready; all of them share the data."""
    conversion.prepare(smoke_params, 1, tmp_path / "data")
    load = datasets.load
    monkeypatch.setattr(stages, "load", lambda params, name: load(params, name, tmp_path / "data"))

    def make(name, seed=0, **changes):
        run = Run(smoke_params.model_copy(update=changes), seed, tmp_path / name)
        run.claim()
        return run

    return make


class Stop(Exception):
    pass


def test_a_training_stopped_at_any_step_ends_with_the_same_bits(prepared, monkeypatch):
    whole, stopped = prepared("whole"), prepared("stopped")
    history = stages.train_source(whole)
    save = training._save
    for stop_at in (5, 15, 30):

        def stopping(path, step, *rest, stop_at=stop_at):
            save(path, step, *rest)
            if step == stop_at:
                raise Stop

        monkeypatch.setattr(training, "_save", stopping)
        with pytest.raises(Stop):
            stages.train_source(stopped)
    monkeypatch.setattr(training, "_save", save)
    assert stages.train_source(stopped) == history
    same_tree(whole.path("source"), stopped.path("source"), "*.[sj]*")
    assert not stopped.path("source", "progress.pt").exists()


def test_a_network_that_draws_goes_on_after_a_stop_as_if_there_was_none(prepared, tmp_path, monkeypatch):
    params = prepared("x").params.model_copy(update={"precision": "32-true"})
    images = np.random.default_rng(0).integers(0, 256, (9, 64, 128, 3), dtype=np.uint8)
    save = training._save

    def train(folder, state):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fabric = training.make_fabric(params)
            network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Dropout(0.5), torch.nn.Conv2d(8, 1, 1))
            model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
            torch.manual_seed(state)  # what has drawn before in this process
            batches = Batches(images, images[..., 0], params, 0, "s", False)
            losses = lambda step, images, _: iter([model(images).square().mean()])  # noqa: E731
            return training.fit(fabric, {"m": network}, model, optimizer, losses, batches, tmp_path / folder,
                                result=network, steps=10, rate=lambda step: 0.1)  # fmt: skip

    def stopping(*values):
        save(*values)
        raise Stop

    whole = train("whole", 1)
    monkeypatch.setattr(training, "_save", stopping)
    with pytest.raises(Stop):
        train("stopped", 2)
    monkeypatch.setattr(training, "_save", save)
    assert train("stopped", 3) == whole
    same_tree(tmp_path / "whole", tmp_path / "stopped", "*.safetensors")


def test_a_finished_training_is_not_repeated(prepared, monkeypatch):
    run = prepared("run")
    history = stages.train_source(run)
    monkeypatch.setattr(training, "_save", lambda *_: pytest.fail("trained again"))
    assert stages.train_source(run) == history


def test_the_seed_decides(prepared):
    histories = [stages.train_source(prepared(name, seed))["loss"] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert histories[0] == histories[1] != histories[2]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"])
def test_a_broken_checkpoint_is_named(prepared, content):
    run = prepared("run")
    run.path("source").mkdir()
    run.path("source", "progress.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"progress\.pt: this checkpoint is truncated or of another network.*Remove"):
        stages.train_source(run)


def test_an_epoch_sees_each_image_once_and_resumes_anywhere():
    seen = [indices_of(range(4 * step, 4 * step + 4), 10, 0, "s") for step in range(5)]
    flat = [i for batch in seen for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert indices_of(range(12, 16), 10, 0, "s") == seen[3]
    assert indices_of(range(12, 16), 10, 1, "s") != seen[3]


def test_batches_are_the_same_with_loader_processes(smoke_params):
    images = np.random.default_rng(0).integers(0, 256, (9, 64, 128, 3), dtype=np.uint8)
    labels = images[..., 0] % 19
    both = []
    for workers in (0, 2):
        params = smoke_params.model_copy(update={"workers": workers, "random_scale": [1.0, 1.5]})
        both.append(list(Batches(images, labels, params, 0, "s", True).from_step(1, 4)))
    for (a, b), (c, d) in zip(*both, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d) and a.shape == (4, 3, 64, 128)


def test_image_and_labels_are_cut_and_mirrored_alike(smoke_params):
    labels = np.random.default_rng(0).integers(0, 19, (3, 64, 128)).astype(np.uint8)
    images = np.repeat(labels[..., None], 3, axis=-1)
    params = smoke_params.model_copy(update={"crop": [32, 48], "random_scale": [1.0, 1.0]})
    for step in range(5):
        a, b = Batches(images, labels, params, 0, "s", True)[step]
        assert a.shape == (4, 3, 32, 48) and torch.equal(a[:, 0], b)


def test_loader_processes_get_the_names_of_mapped_files_and_not_their_content(smoke_params, tmp_path):
    arrays = {name: np.random.default_rng(0).integers(0, 19, (20, 64, 128, *more), dtype=np.uint8)
              for name, more in (("images", (3,)), ("labels", ()))}  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in arrays]
    batches = Batches(*mapped, smoke_params, 0, "s", True)
    pickled = pickle.dumps(batches)
    assert len(pickled) < 10_000
    plain = Batches(*arrays.values(), smoke_params, 0, "s", True)
    for ours, theirs in zip(pickle.loads(pickled)[3], plain[3], strict=True):
        assert torch.equal(ours, theirs)
    for part in (mapped[0][3:], mapped[0][::-1], mapped[0][[5, 1]]):  # not the file as it is
        again = pickle.loads(pickle.dumps(Batches(part, part[..., 0], smoke_params, 0, "s", False)))
        assert np.array_equal(again.images, part)


def test_there_are_no_more_loaders_than_shared_memory_has_room_for(prepared, monkeypatch, capsys):
    images = np.zeros((9, 64, 128, 3), np.uint8)
    params = prepared("x").params.model_copy(update={"workers": 8})
    batches = Batches(images, images[..., 0], params, 0, "s", False)
    assert batches.workers() == 8
    usage = shutil.disk_usage("/")
    room = 3 * 4 * 64 * 128 * 4  # three batches of four images, four bytes a pixel
    for free, processes, expected in ((64 * room, 1, 8), (64 * room, 16, 4), (2 * room + 1, 1, 2), (room - 1, 1, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert batches.workers(processes) == expected
    plain = stages.train_source(prepared("plain", source_steps=4))
    assert stages.train_source(prepared("short", source_steps=4, workers=2)) == plain
    assert "workers: 2 loader processes need more shared memory" in capsys.readouterr().out


def test_weights_are_used_as_they_are_without_source_data(prepared, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        owner = build_model("deeplab_small", 19)
    save_weights(owner.state_dict(), tmp_path / "owner.safetensors")
    changes = {"source_dataset": "none", "source_steps": 0, "source_start": str(tmp_path / "owner.safetensors")}
    run = prepared("run", **changes)
    check_params(run.params.model_dump(), "the values that the message recommends")
    preflight(run)
    assert stages.train(run, "source")["loss"] == []
    kept = stages.trained_model(run, "source", "source", "source.safetensors").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in owner.state_dict().items())
    run.record("01_source_model", {})
    assert open_box(run).predict(np.zeros((1, 64, 128, 3), np.uint8)).shape == (1, 64, 128)


def test_the_published_recipe_trains_the_target_by_adam_without_warm_up_or_changes(smoke_params):
    values = {k: v for k, v in smoke_params.model_dump(exclude_unset=True).items() if k != "warmup_steps"}
    params = check_params({**values, "method": "published"}, "x")
    _, optimizer = training.set_up(
        params, training.make_fabric(params), build_model("deeplab_small", 19), params.target_optimizer,
        params.weight_decay, params.backbone_rate,
    )  # fmt: skip
    assert type(optimizer.optimizer) is torch.optim.Adam and optimizer.param_groups[0]["weight_decay"] == 0
    assert (params.warmup_steps, params.random_scale, params.target_jitter, params.target_noise) == (0, [1, 1], 0, 0)
    assert training.learning_rate(0, 100, 1.0, params.warmup_steps) == 1.0
    owner = smoke_params  # the same: source-only is what both are compared with
    assert all(getattr(params, n) == getattr(owner, n) for n in type(params).model_fields if n.startswith("source_"))


def test_bf16_is_chosen_where_the_device_has_units_for_it_and_not_where_it_is_emulated(smoke_params, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    chosen = []
    monkeypatch.setattr(training, "Fabric", lambda **options: chosen.append(options["precision"]))
    training.make_fabric(smoke_params.model_copy(update={"accelerator": "cuda", "precision": "auto"}))
    assert chosen == ["32-true"]


def test_the_rate_rises_and_falls_to_zero():
    rates = [training.learning_rate(step, 100, 1.0, 10) for step in range(101)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == rates[10] == 1.0 and rates[100] == pytest.approx(0)


def test_scores_are_taken_at_the_labels_own_size(smoke_params):
    class Half(torch.nn.Module):
        def forward(self, images):
            score = torch.zeros(len(images), 2, *images.shape[-2:])
            score[..., :, : images.shape[-1] // 2] = torch.tensor([1.0, 0]).view(1, 2, 1, 1)
            score[..., :, images.shape[-1] // 2 :] = torch.tensor([0, 1.0]).view(1, 2, 1, 1)
            return score

    labels = np.zeros((1, 32, 64), np.uint8)
    labels[:, :, 32:] = 1
    data = datasets.Data("x", ["x"], np.zeros((1, 16, 32, 3), np.uint8), labels, ["val"], [(16, 32)])
    scores = training.score(Half(), training.make_fabric(smoke_params), data, 2)
    assert scores.miou() == 1.0 and scores.matrix.sum() == 32 * 64


def test_a_network_sees_images_enlarged_and_answers_at_their_size(smoke_params):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 5, 3)  # without padding: the answer is brought to the size that is wanted
    params = smoke_params.model_copy(update={"precision": "32-true"})
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 32, 3), dtype=np.uint8)
    for scale, size in ((1.0, None), (1.5, None), (1.5, (20, 40))):
        said = training.predict(network, training.make_fabric(params), images, size, scale)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        enlarged = [round(side * scale) for side in (16, 32)]
        with torch.no_grad():
            logits = network(F.interpolate(pixels, enlarged, mode="bilinear"))
        expected = F.interpolate(logits, size or (16, 32), mode="bilinear").argmax(1)
        assert said.shape == expected.shape and (said == expected.numpy()).mean() > 0.999  # but for ties in rounding


def test_a_training_gives_the_mean_of_its_weights(prepared):
    """After one step the mean is the network; after three it is another, and what is scored."""
    for steps in (1, 3):
        runs = [prepared(f"{steps} {mean}", average_weights=mean, oracle_steps=steps, warmup_steps=0, evaluate_every=1)
                for mean in (False, True)]  # fmt: skip
        histories = [stages.train_oracle(run) for run in runs]
        last, mean = (stages.trained_model(run, "target", "oracle", "student.safetensors").state_dict() for run in runs)
        same = all(torch.equal(last[k], mean[k]) for k in last)
        assert same == (steps == 1) and histories[0]["loss"] == histories[1]["loss"]
        fabric, val = training.make_fabric(runs[1].params), stages.load(runs[1].params, "target_val")
        model = stages.trained_model(runs[1], "target", "oracle", "student.safetensors")
        scores = training.score(model, fabric, val, 19, runs[1].params.predict_scale)
        assert histories[1]["miou"][-1][1] == pytest.approx(scores.miou(), abs=1e-6)


def test_two_processes_share_each_batch(prepared):
    seen = [indices_of(range(4 * step, 4 * step + 4), 24, 0, "stage1") for step in range(3)]
    params = prepared("x").params
    images = np.random.default_rng(0).integers(0, 256, (24, 64, 128, 3), dtype=np.uint8)
    whole = Batches(images, images[..., 0], params, 0, "stage1", True)
    halves = [Batches(images, images[..., 0], params, 0, "stage1", True, rank, 2) for rank in range(2)]
    for step in range(len(seen)):
        joined = torch.stack([h[step][0] for h in halves], dim=1).flatten(0, 1)
        assert torch.equal(joined, whole[step][0])


def test_a_network_without_a_known_classifier_is_refused_where_its_rate_is_another(smoke_params):
    for kind, backbone_rate in (("sgd", 1.0), ("adamw", 0.3)):
        with pytest.raises(ValueError, match="no parameter of this network begins with head."):
            training.set_up(smoke_params, training.make_fabric(smoke_params), torch.nn.Conv2d(3, 2, 1), kind, 0.0,
                            backbone_rate)  # fmt: skip


def test_weights_that_do_not_fit_show_before_any_training(prepared, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="w.pth: cannot be read as weights"):
        preflight(prepared("a", init=str(tmp_path / "w.pth")))
    with pytest.raises(ValueError, match="target_network: no network 'deeplab_smal'; did you mean 'deeplab_small'"):
        preflight(prepared("b", target_network="deeplab_smal"))
    with pytest.raises(FileNotFoundError, match="box_root"):
        preflight(prepared("c", box="folder", box_root=str(tmp_path / "none")))


def test_a_batch_smaller_than_the_number_of_processes_shows_before_any_training(prepared):
    with pytest.raises(ValueError, match="source_batch_size: 1 samples a step cannot be shared by 2 processes"):
        preflight(prepared("a", accelerator="cpu", devices=2, source_batch_size=1))
    with pytest.raises(
        ValueError, match="^batch_size: 4 samples .* raise batch_size to 5 at least, or lower devices to 4"
    ):
        preflight(prepared("b", accelerator="cpu", devices=5, source_batch_size=8))
    preflight(prepared("c", accelerator="cpu", devices=2, source_batch_size=1, source_steps=0))  # never read
    alone = dict(accelerator="cpu", devices=2, source_batch_size=8, hard_patch_batch=1, paste_patches=False)
    with pytest.raises(ValueError, match="hard_patch_batch: 1 samples a step cannot be shared by 2 processes"):
        preflight(prepared("d", rounds=1, **alone))
    preflight(prepared("e", rounds=0, **alone))
    preflight(prepared("f", rounds=1, **{**alone, "paste_patches": True}))


def test_fewer_gpus_than_asked_for_show_before_any_training(prepared, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="devices: 2 asked for, this machine has 1 CUDA devices: lower devices"):
        preflight(prepared("a", accelerator="cuda", devices=2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="devices: 2 asked for"):
        preflight(prepared("b", devices=2, accelerator="auto"))


def test_where_torch_compile_does_not_work_training_goes_on_without(prepared, monkeypatch, capsys):
    plain = stages.train_source(prepared("plain"))
    monkeypatch.setattr(torch, "compile", lambda model: (_ for _ in ()).throw(RuntimeError("no C++ compiler\nat all")))
    assert stages.train_source(prepared("uncompiled", compile=True)) == plain
    assert "compile: does not work here, training goes on without (no C++ compiler)" in capsys.readouterr().out


def test_a_compiled_network_trains_the_same_weights(prepared, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile(model, backend="eager"))  # traced, not translated
    run = prepared("compiled", compile=True)
    torch.testing.assert_close(stages.train_source(run)["loss"], stages.train_source(prepared("plain"))["loss"])
    assert stages.trained_model(run, "source", "source", "source.safetensors") is not None  # names without a prefix


def test_the_box_answers_every_image_once(prepared, smoke_params, tmp_path):
    run = prepared("run", box_queries=1)
    data = datasets.load(smoke_params, "target_val", tmp_path / "data")
    asked = []

    class Box:
        def predict(self, images, names=None):
            asked.extend(names)
            return np.zeros(images.shape[:3], np.uint8)

    assert ask_for_labels(run, Box(), data).shape == (8, 64, 128)
    ask_for_labels(run, Box(), data)
    assert asked == data.names


def test_sgd_gives_the_classifier_ten_times_the_rate_and_decays_as_a_polynomial(smoke_params):
    model = build_model("deeplab_small", 19)
    _, optimizer = training.set_up(smoke_params, training.make_fabric(smoke_params), model, "sgd", 5e-4, 1.0)
    body, classifier = optimizer.param_groups
    assert (body["factor"], classifier["factor"], body["momentum"], body["weight_decay"]) == (1, 10, 0.9, 5e-4)
    assert {id(p) for p in classifier["params"]} == {id(p) for p in model.head.parameters()}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    _, slower = training.set_up(smoke_params, training.make_fabric(smoke_params), model, "adamw", 5e-4, 0.3)
    assert [(g["factor"], len(g["params"])) for g in slower.param_groups] == [
        (0.3, len(body["params"])), (1, len(classifier["params"]))]  # fmt: skip
    assert training.polynomial(0, 10, 2.0) == 2.0 and training.polynomial(5, 10, 2.0) == pytest.approx(2 * 0.5**0.9)


def test_a_source_model_learns_by_sgd_with_a_batch_and_a_size_of_its_own(smoke_params, tmp_path, monkeypatch):
    from b2ma_core.data import conversion, datasets
    from b2ma_core.params import check_params
    from b2ma_core.study import stages
    from b2ma_core.study.records import Run

    values = {
        **smoke_params.model_dump(), "source_optimizer": "sgd", "source_learning_rate": 5e-3, "source_batch_size": 2,
        "source_weight_decay": 5e-4, "source_image_size": [48, 96], "source_steps": 12,
    }  # fmt: skip
    params = check_params(values, "x")
    conversion.prepare(params, 1, tmp_path / "data")
    monkeypatch.setattr(stages, "load", lambda params, name: datasets.load(params, name, tmp_path / "data"))
    data = datasets.load(params, "source_train", tmp_path / "data")
    assert data.images.shape[1:3] == (48, 96)
    history = stages.train_source(Run(params, 0, tmp_path / "runs"))
    assert history["loss"][-1] < history["loss"][0]
