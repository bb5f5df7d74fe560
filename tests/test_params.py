import re

import pytest

from b2ma_core import params, queries
from b2ma_core.files import PROJECT
from b2ma_core.params import GONE, PUBLISHED, Params, ParamsError, check_params, load_params, read_yaml, unlike
from b2ma_core.report.ablation import read_ablation

STUDIES = sorted({p.stem for p in (PROJECT / "params").glob("*.yaml")} - {"ablation"})
ARMS = read_ablation()["arms"]


@pytest.mark.parametrize("study", [*STUDIES, *(f"minicity+{arm}" for arm in ARMS), "camvid+source_jitter"])
def test_every_study_of_the_project_is_valid(study):
    assert load_params(PROJECT / "params" / f"{study}.yaml").study == study


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"stage1_step": 5}, "stage1_step: unknown parameter; did you mean 'stage1_steps'?"),
        ({"rounds": "two"}, "rounds: .*integer, got 'two'"),
        ({"batch_size": 0}, "batch_size: .*greater than or equal to 1, got 0"),
        ({"ema_alpha": 1.5}, "ema_alpha: .*less than or equal to 1"),
        ({"box": "oracle"}, "box: .*'model', 'folder' or 'service'"),
        ({"crop": [128, 128]}, r"crop: \[128, 128\] is larger than image_size \[64, 128\]"),
        ({"grid": 8}, "grid: .*under 16 pixels"),
        ({"rare_classes": [19]}, "rare_classes: .*leave 0 .. 18"),
        ({"source_dataset": "camvid"}, "source_root: "),
        ({"box": "folder"}, "box_root: "),
        ({"box": "service"}, "box_address: "),
        ({"box": "service", "box_address": "127.0.0.1:8765"}, "box_address: .*such as http://"),
        ({"box": "service", "box_address": "http://127.0.0.1:port"}, "box_address: .*such as http://"),
        ({"box": "service", "box_address": "http://a b/"}, "box_address: .*such as http://"),
        ({"box": "service", "box_address": "http://h", "init": "source"}, "init: .* a service gives labels alone"),
        ({"box": "service", "box_address": "http://h", "box_confidence": True}, "box_confidence: "),
        ({"box_timeout": 0.0}, "box_timeout: "),
        ({"box_requests": 0}, "box_requests: "),
        ({"random_scale": [0.5, 1.0]}, "random_scale: "),
        ({"target_train_images": None}, "target_train_images: MiniCity is endless"),
        ({"source_train_split": "testing"}, "source_train_split: MiniCity has"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(smoke_params, wrong, said):
    with pytest.raises(ParamsError, match=said) as caught:
        check_params({**smoke_params.model_dump(), **wrong}, "params/x.yaml")
    assert str(caught.value).startswith("params/x.yaml: 1 wrong parameter\n")


@pytest.mark.parametrize(
    "secret, wrong",
    [
        ("hunter2", {"box": "service", "box_address": "http://me:hunter2@127.0.0.1:8765"}),
        ("hunter2", {"box": "service", "box_address": "http://h/label?api_key=hunter2&v=2"}),
        ("hunter2", {"box": "service", "box_address": "http://hunter2@h"}),
        ("sk-12ab", {"box_token_variable": "sk-12ab"}),
        ("123456", {"box_token_variable": 123456}),
    ],
)
def test_a_token_among_the_parameters_is_refused_and_not_repeated(smoke_params, secret, wrong):
    with pytest.raises(ParamsError, match="box_(address|token_variable): ") as caught:
        check_params({**smoke_params.model_dump(), **wrong}, "x")
    assert secret not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once(smoke_params):
    with pytest.raises(ParamsError, match="3 wrong parameters"):
        check_params({**smoke_params.model_dump(), "rounds": -1, "seeds": 3, "devices": "all"}, "x")


def test_yaml_1_1_numbers_are_read_as_meant(tmp_path, smoke_params):
    path = tmp_path / "smoke.yaml"
    path.write_text((PROJECT / "params" / "smoke.yaml").read_text() + "stage1_learning_rate: 1e-4\n")
    assert load_params(path).stage1_learning_rate == 1e-4


def test_a_missing_or_broken_file_is_named(tmp_path):
    (tmp_path / "minicity.yaml").write_text("a: [1")
    with pytest.raises(ParamsError, match="minicty.yaml: no such study; did you mean 'minicity'"):
        read_yaml(tmp_path / "minicty.yaml")
    with pytest.raises(ParamsError, match="minicity.yaml: not readable as YAML"):
        read_yaml(tmp_path / "minicity.yaml")
    (tmp_path / "copy.yaml").write_text("study: minicity\n")
    with pytest.raises(ParamsError, match="study is 'minicity', the file is named 'copy'"):
        read_yaml(tmp_path / "copy.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ParamsError, match="name: value"):
        read_yaml(tmp_path / "list.yaml")


def test_speed_settings_make_no_other_run(smoke_params):
    told = smoke_params.model_dump()
    assert unlike({**told, "workers": 3}, told) == [] and unlike({**told, "rounds": 5}, told) == ["rounds"]


def test_a_parameter_of_an_earlier_revision_is_told_what_has_become_of_it(smoke_params):
    for name, said in GONE.items():
        assert name not in Params.model_fields
        with pytest.raises(ParamsError, match=f"{name}: unknown parameter; {re.escape(said)}"):
            check_params({**smoke_params.model_dump(), name: 0.3}, "x")
        for new in re.findall(r"it is (\w+) now", said):
            assert new in Params.model_fields


def test_the_published_method_sets_what_a_file_does_not(smoke_params):
    own = {"study": "smoke", **read_yaml(PROJECT / "params" / "smoke.yaml")}
    published = check_params({**own, "method": "published"}, "x")
    for name, value in PUBLISHED.items():
        assert getattr(published, name) == own.get(name, value), name
        assert value != Params.model_fields[name].default, f"{name}: nothing to switch"
    alone = check_params({**own, "method": "published", "teacher_mode": "eval"}, "x")
    assert alone.teacher_mode == "eval" and alone.ema_buffers == "skip"


def test_params_know_how_many_views_there_are():
    assert params.VIEWS == len(queries.VIEWS)
