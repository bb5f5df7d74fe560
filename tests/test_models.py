import pickle

import pytest
import torch
from safetensors.torch import save_file

from b2ma_core.models import MODELS, build_model, load_weights, save_weights


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(0)
    return build_model("deeplabv2_resnet101", 19).eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_the_images_size_also_under_autocast_and_channels_last(name):
    model = build_model(name, 7).eval().to(memory_format=torch.channels_last)
    images = torch.rand(1, 3, 66, 98).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert model(images).shape == (1, 7, 66, 98)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(images).shape == (1, 7, 66, 98)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_in_float64_is_a_reference_for_float32_on_the_cpu(name):
    model = build_model(name, 4).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        seen, reference = model(images), model.double()(images.double())
    assert reference.dtype == torch.float64
    assert torch.allclose(seen.double(), reference, atol=1e-3)


def test_a_small_network_trains_on_one_image():
    build_model("deeplab_small", 3)(torch.rand(1, 3, 32, 32)).sum().backward()


def test_deeplabv2_takes_bgr_minus_the_mean_and_sums_two_or_four_branches(deeplab):
    seen = {}
    hook = deeplab.conv1.register_forward_pre_hook(lambda m, x: seen.update(x=x[0]))
    with torch.no_grad():
        deeplab(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 65, 65))
    hook.remove()
    expected = [0 - 104.00698793, 127.5 - 116.66876762, 255 - 122.67891434]
    torch.testing.assert_close(seen["x"][0, :, 0, 0], torch.tensor(expected))
    x = torch.rand(1, 2048, 9, 9)
    branches = [conv(x) for conv in deeplab.layer5.conv2d_list]
    torch.testing.assert_close(deeplab.layer5(x), branches[0] + branches[1])
    full = build_model("deeplabv2_resnet101_full", 19)
    full.layer5.load_state_dict(deeplab.layer5.state_dict())
    torch.testing.assert_close(full.layer5(x), sum(branches))


def test_deeplabv2_has_output_stride_8_and_frozen_scale_and_shift(deeplab):
    sizes = {}
    hook = deeplab.layer5.register_forward_hook(lambda m, x, y: sizes.update(y=y.shape))
    with torch.no_grad():
        deeplab(torch.rand(1, 3, 65, 129))
    hook.remove()
    assert sizes["y"][-2:] == (9, 17)  # ceil_mode: (65 + 1) / 8 rounded up
    assert not deeplab.bn1.weight.requires_grad and deeplab.conv1.weight.requires_grad


@pytest.mark.parametrize("form", ["plain", "module", "scale", "nested", "lightning", "layer6", "multi", "safetensors"])
def test_published_forms_of_weights_load(deeplab, tmp_path, form):
    state = {k: v.clone() for k, v in deeplab.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        forms = {
            "plain": state,
            "module": {f"module.{k}": v for k, v in state.items()},
            "scale": {f"Scale.{k}": v for k, v in state.items()},
            "nested": {"state_dict": state, "epoch": 3},
            "lightning": {"state_dict": {f"net.{k}": v for k, v in state.items()}},
            "layer6": {**state, **{k.replace("layer5", "layer6"): v + 1 for k, v in state.items() if "layer5" in k}},
            "multi": {
                **{k: v for k, v in state.items() if "layer5" not in k},
                **{k.replace("layer5", "layer6"): v for k, v in state.items() if "layer5" in k},
                **{k: v[:, :1024] if v.ndim == 4 else v for k, v in state.items() if "layer5" in k},
            },
        }
        torch.save(forms[form], path)
    other = build_model("deeplabv2_resnet101", 19)
    load_weights(other, path)
    for name, value in other.state_dict().items():
        if name in state:
            assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "student.", "teacher.", "ema.", "module._orig_mod.", "model.ema.module."]
)
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "teacher", "ema"])
def test_prefixes_and_keys_of_other_trainings_load(tmp_path, prefix, key):
    state, other = (build_model("deeplab_small", 5).state_dict() for _ in range(2))
    named = {prefix + name: value for name, value in state.items()}
    torch.save(named if key is None else {key: named, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "w.pth")
    model = build_model("deeplab_small", 5)
    model.load_state_dict(other)
    load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_parts_that_were_compiled_and_a_running_average_load(tmp_path):
    model, path = build_model("deeplab_small", 5), tmp_path / "w.pth"
    state = model.state_dict()
    torch.save({name.replace("deep.", "deep._orig_mod."): value for name, value in state.items()}, path)
    load_weights(build_model("deeplab_small", 5), path)
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), path)
    load_weights(build_model("deeplab_small", 5), path)


@pytest.mark.parametrize("flat", [True, False])
def test_a_file_with_student_and_teacher_is_refused(tmp_path, flat):
    state = build_model("deeplab_small", 5).state_dict()
    both = {"student": state, "teacher": {name: value * 2 for name, value in state.items()}}
    if flat:
        both = {f"{which}.{name}": value for which, values in both.items() for name, value in values.items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(ValueError, match=r"both\.pth: holds several networks \(student\.?, teacher\.?\)"):
        load_weights(build_model("deeplab_small", 5), tmp_path / "both.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["stem.0.weight", "stem.1.running_var"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_refused_and_change_nothing(tmp_path, value, name, suffix):
    model, path = build_model("deeplab_small", 5), tmp_path / f"w.{suffix}"
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = {k: v.clone() for k, v in state.items()}
    state[name].view(-1)[3] = value
    torch.save(state, path) if suffix == "pth" else save_weights(state, path)
    with pytest.raises(ValueError, match=rf"w\.{suffix}: {name} holds 1 values that are not finite"):
        load_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path):
    small, path = build_model("deeplab_small", 5), tmp_path / "other.pth"
    torch.save(build_model("deeplab_small", 6).state_dict(), path)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    with pytest.raises(ValueError, match=r"other\.pth: these weights do not fit DeepLabSmall: other shape"):
        load_weights(small, path)
    torch.save({"something.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="missing .* left over 1"):
        load_weights(small, path)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was run",))


def test_pickled_code_is_never_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": {"a": Evil()}}, path)
    with pytest.raises(ValueError, match=r"evil\.pth: cannot be read as weights.*never run"):
        load_weights(build_model("deeplab_small", 5), path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"evil\.pth"):
        load_weights(build_model("deeplab_small", 5), path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_and_missing_files_are_named(tmp_path, suffix):
    model, path = build_model("deeplab_small", 5), tmp_path / f"cut.{suffix}"
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        load_weights(model, path)
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_weights(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"cut.{suffix}: cannot be read as weights: truncated"):
        load_weights(model, path)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="holds no state_dict"):
        load_weights(model, tmp_path / "none.pth")


def test_the_same_weights_give_the_same_bytes(tmp_path):
    model = build_model("deeplab_small", 5)
    for name in ("a", "b"):
        save_weights(model.state_dict(), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown network 'no_such', allowed are deeplab_small"):
        build_model("no_such", 19)
    with pytest.raises(ValueError, match="no ImageNet weights"):
        build_model("deeplab_small", 19, "imagenet")


def test_imagenet_weights_of_mobilenet_come_from_torchvision(monkeypatch):
    from pathlib import Path

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(cache.glob("mobilenet_v2-*.pth")):
        pytest.skip(f"no MobileNetV2 weights in {cache}: set TORCH_HOME to a folder that has them")
    a, b = (build_model("deeplab_mobilenet_v2", 11, "imagenet") for _ in range(2))
    first = next(iter(a.fine.parameters()))
    assert torch.equal(first, next(iter(b.fine.parameters())))


@pytest.mark.parametrize("network", ["deeplab_mobilenet_v2", "deeplabv2_resnet101"])
@pytest.mark.parametrize("content", ["empty", "cut", "html", "another network"])
def test_a_broken_file_of_imagenet_weights_is_named(tmp_path, monkeypatch, network, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    names = {"deeplab_mobilenet_v2": "mobilenet_v2-b0353104.pth",
             "deeplabv2_resnet101": "resnet101-63fe2227.pth"}  # fmt: skip
    file = tmp_path / "hub" / "checkpoints" / names[network]
    file.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(1000)}, file)
    if content != "another network":
        file.write_bytes({"empty": b"", "cut": file.read_bytes()[:700], "html": b"<html>404"}[content])
    with pytest.raises(OSError, match=f"{names[network]}: broken, .* Remove the file"):
        build_model(network, 19, "imagenet")


def test_torchvisions_resnet_answers_alike_in_our_input_format():
    """Random weights stand for the real ones: the first layer's answers agree away from the border."""
    from torchvision.models import ResNet101_Weights, resnet101

    from b2ma_core.models.deeplab_v2 import DeepLabV2, from_torchvision

    torch.manual_seed(0)
    theirs, ours = resnet101().eval(), DeepLabV2(19, 2).eval()
    theirs.bn1.running_mean.normal_()
    missing, left_over = ours.load_state_dict(from_torchvision(theirs.state_dict()), strict=False)
    assert not left_over and all(name.startswith("layer5.") for name in missing)
    assert torch.equal(ours.layer3[5].conv2.weight, theirs.layer3[5].conv2.weight)
    images = torch.rand(1, 3, 64, 64)
    weights = ResNet101_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (weights.mean, weights.std))
    expected = theirs.bn1(theirs.conv1((images - mean) / std))
    answer = ours.bn1(ours.conv1(images.flip(1) * 255 - ours.bgr_mean))
    torch.testing.assert_close(answer[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["holds itself", "numbers as names", "meta", "sparse", "complex", "too large"])
def test_hostile_checkpoints_are_refused_and_change_nothing(tmp_path, case):
    model = build_model("deeplab_small", 7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, name, path = model.state_dict(), "head.out.1.bias", tmp_path / "weights.pth"
    if case == "holds itself":
        state = {}
        state["state_dict"] = state
    elif case == "numbers as names":
        state = {0: torch.ones(2), (1, 2): torch.ones(3)}
    else:
        changed = {"meta": state[name].to("meta"), "sparse": state[name].to_sparse(), "complex": state[name].cfloat(),
                   "too large": torch.full_like(state[name], 1e300, dtype=torch.float64)}  # fmt: skip
        state[name] = changed[case]
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"{path}: "):
        load_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
