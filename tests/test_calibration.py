"""The temperature that makes a network as sure as it agrees with its pseudo labels."""

import numpy as np
import pytest
import torch

from b2ma_core.calibration import agreement_temperature, mean_confidence
from b2ma_core.data.datasets import Data
from b2ma_core.distillation import SelfDistillation, self_distillation_step, teach
from b2ma_core.params import check_params
from b2ma_core.study.stages import start_temperature
from b2ma_core.study.training import make_fabric


def some_logits(generator=7):
    return torch.randn(3, 5, 16, 24, generator=torch.Generator().manual_seed(generator))


def test_confidence_becomes_the_agreement():
    logits = some_logits()
    labels = logits.argmax(1)
    labels[:, :4] = 255  # nobody said anything there
    labels[:, 4:7] = (labels[:, 4:7] + 1) % 5  # 3 of 12 rows disagree
    temperature = agreement_temperature(logits, labels)
    assert mean_confidence(logits, temperature) == pytest.approx(0.75, abs=1e-4)


def test_a_scale_of_the_logits_is_taken_out():
    logits = some_logits()
    labels = torch.where(torch.arange(16)[None, :, None] < 12, logits.argmax(1), 0)
    once = agreement_temperature(logits, labels)
    assert agreement_temperature(logits * 0.3, labels) == pytest.approx(0.3 * once, rel=1e-5)


def test_what_cannot_be_fitted_ends_at_a_bound_or_at_one():
    logits = some_logits()
    assert agreement_temperature(logits, torch.full((3, 16, 24), 255)) == 1.0
    assert agreement_temperature(logits, logits.argmin(1)) == pytest.approx(20, rel=1e-6)  # right nowhere
    assert agreement_temperature(logits, logits.argmax(1)) == pytest.approx(0.05, rel=1e-6)  # everywhere


def test_teacher_and_student_are_divided_by_it():
    recipe = SelfDistillation(jitter_probability=0.0, blur_probability=0.0)
    images, hard = torch.rand(2, 3, 32, 32), (torch.rand(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long))
    network = torch.nn.Conv2d(3, 5, 1)

    def loss(net, temperature):
        generator = torch.Generator().manual_seed(1)
        return sum(self_distillation_step(net, net, images, hard, recipe, generator, temperature=temperature))

    torch.testing.assert_close(loss(network, 0.25), loss(lambda x: network(x) * 4, 1.0))
    assert not torch.isclose(loss(network, 0.25), loss(network, 1.0))
    labels, confidence = teach(network, images, temperature=0.25)
    assert torch.equal(labels, network(images).argmax(1))
    torch.testing.assert_close(confidence, (network(images) * 4).softmax(1).amax(1))


def test_a_round_takes_it_from_the_network_that_it_starts_with(smoke_params):
    params = check_params({**smoke_params.model_dump(), "accelerator": "cpu", "precision": "32-true"}, "")
    fabric, network = make_fabric(params), torch.nn.Conv2d(3, 5, 1)
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), np.uint8)  # more than are looked at
    data = Data("target_train", [str(i) for i in range(70)], images, None, ["train"] * 70, [(16, 16)] * 70)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        labels = network(pixels).argmax(1)
        labels[:, :8] = (labels[:, :8] + 1) % 5
        chosen = np.linspace(0, 69, 64).astype(int)
        logits = network(pixels[chosen])[..., ::4, ::4]
    found = start_temperature(params, fabric, network, data, labels.numpy().astype(np.uint8))
    assert mean_confidence(logits, found) == pytest.approx(0.5, abs=1e-4)
    off = params.model_copy(update={"stage2_calibration": False})
    assert start_temperature(off, fabric, network, data, labels.numpy().astype(np.uint8)) == 1.0
