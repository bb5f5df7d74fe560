import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from b2ma_core.augmentations import jitter_and_blur
from b2ma_core.class_shares import ClassShares
from b2ma_core.distillation import (
    SelfDistillation,
    Sharing,
    class_weights,
    consistency_loss,
    cross_domain_step,
    ema_update,
    label_loss,
    make_teacher,
    mix_batch,
    pixel_cross_entropy,
    self_distillation_step,
    teach,
)
from b2ma_core.hard_patches import HardPatch, Patches, cut_patches, paste
from b2ma_core.models import build_model, freeze_batch_norm
from b2ma_core.params import check_params

PARAMS = check_params(
    {"study": "t", "label_space": "cityscapes", "image_size": [64, 128], "source_dataset": "minicity",
     "source_train_images": 1, "source_val_images": 1, "target_dataset": "minicity", "target_train_images": 1,
     "target_val_images": 1}, "test")  # fmt: skip


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("step", [0, 1, 5, 98, 99, 500])
def test_the_average_equals_a_plain_loop_buffers_included(step):
    teacher, student = net(), net()
    student(torch.rand(4, 3, 8, 8))
    alpha = min(1 - 1 / (step + 1), 0.99)
    before, theirs = copy.deepcopy(teacher.state_dict()), student.state_dict()
    ema_update(teacher, student, step)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, alpha * before[name] + (1 - alpha) * theirs[name])
        else:
            assert value == theirs[name]


def test_the_teacher_starts_as_the_student_and_skipping_buffers_is_the_published_way():
    teacher, student = net(), net()
    student(torch.rand(4, 3, 8, 8))
    ema_update(teacher, student, 0, buffers=False)
    assert torch.equal(teacher[0].weight, student[0].weight)
    assert not torch.equal(teacher[1].running_mean, student[1].running_mean)
    ema_update(teacher, student, 0)
    assert torch.equal(teacher[1].running_mean, student[1].running_mean)


def test_a_teacher_has_no_gradient_and_uses_running_statistics():
    student = net()
    teacher = make_teacher(student)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    before = copy.deepcopy(teacher.state_dict())
    teach(teacher, torch.rand(2, 3, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), teacher.state_dict().values(), strict=True))


def test_confidence_is_a_probability_or_the_published_logit():
    images = torch.rand(2, 3, 8, 8)
    teacher = make_teacher(net())
    labels, probability = teach(teacher, images)
    same, logit = teach(teacher, images, "logit")
    logits = teacher(images)
    assert torch.equal(labels, logits.argmax(1)) and torch.equal(same, labels)
    torch.testing.assert_close(probability, torch.softmax(logits, 1).max(1).values)
    torch.testing.assert_close(logit, logits.max(1).values)


def answers(share: float) -> torch.Tensor:
    """``(1, 2, 40, 40)`` logits of two classes, the first the likelier one in a share of the rows."""
    first = (torch.arange(40) < 40 * share).float().view(1, 1, 40, 1).expand(1, 1, 40, 40)
    return torch.cat([first, 1 - first], 1) * 3


def shares_after(share: float, target: float, **options) -> ClassShares:
    """The teacher says the first of two classes in one share of the pixels, the pseudo labels in another."""
    shares = ClassShares(np.array([target, 1 - target]), **{"weight": 1.0, "exponent": 1.0, "limit": 9.0, **options})
    shares.update(shares.count(answers(share)))
    return shares


def test_the_teachers_class_shares_are_drawn_to_those_of_the_pseudo_labels():
    change = shares_after(0.9, 0.6).change()
    assert change.tolist() == pytest.approx([math.log(0.6 / 0.9), math.log(0.4 / 0.1)], abs=1e-3)
    assert shares_after(0.9, 0.6, limit=0.2).change().tolist() == pytest.approx([-0.2, 0.2])
    assert shares_after(0.9, 0.6, weight=0.0).change().tolist() == [0, 0]
    half = shares_after(0.9, 0.8, exponent=0.5).target
    assert (half[0] / half[1]).item() == pytest.approx(2.0, abs=1e-3)  # sqrt(0.8 / 0.2)


def test_a_class_that_no_label_names_is_left_alone():
    shares = ClassShares(np.array([0.7, 0.3, 0.0, 1e-6]), 1.0)
    shares.update(torch.tensor([60, 30, 10, 0]))
    change = shares.change().tolist()
    assert change[2] == 0 and change[3] == 3 and change[0] > 0


def test_teaching_says_what_it_cannot_do():
    images = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="kind: 'probability' or 'logit', got 'softmax'"):
        teach(lambda images: torch.zeros(1, 2, 4, 4), images, "softmax")
    with pytest.raises(ValueError, match="box_share: needs train_ids"):
        teach(lambda images: torch.zeros(1, 2, 4, 4), images, box_share=0.3)


def test_the_teachers_logits_are_changed_by_the_steps_before_and_counted_unchanged():
    shares, logits, images = shares_after(0.5, 0.1), answers(0.9), torch.zeros(1, 3, 40, 40)
    before = shares.change()
    labels, confidence = teach(lambda images: logits.bfloat16(), images, "probability", shares)
    expected = (logits + before.view(1, 2, 1, 1)).softmax(1).max(1)
    assert confidence.dtype == torch.float32 and torch.equal(labels, expected.indices)
    torch.testing.assert_close(confidence, expected.values)
    assert int(shares.steps) == 2 and shares.running.tolist() == pytest.approx([0.7, 0.3])  # mean of 0.5 and 0.9
    first = ClassShares(np.array([0.6, 0.4]), 1.0, 1.0, 9.0)
    assert first.change().tolist() == [0, 0]  # nothing is known at the first step


def test_logits_of_half_precision_are_made_float_before_anything_else():
    logits = (torch.randn(2, 5, 40, 40, generator=torch.Generator().manual_seed(0)) * 4).bfloat16()
    said = torch.zeros(2, 40, 40, dtype=torch.long)
    shares = ClassShares(np.full(5, 0.2), 1.0, 1.0, 9.0)
    labels, confidence = teach(lambda images: logits, torch.zeros(2, 3, 40, 40), "probability", shares, said, 0.3)
    scores = logits.double().softmax(1) * 0.7
    scores[:, 0] += 0.3
    assert torch.equal(labels, scores.argmax(1))
    torch.testing.assert_close(confidence.double(), scores.amax(1), atol=1e-6, rtol=0)
    counts = torch.bincount(logits.double()[..., ::4, ::4].argmax(1).flatten(), minlength=5)
    torch.testing.assert_close(shares.running, counts / counts.sum())
    target = torch.randint(0, 5, (2, 40, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(label_loss(logits, target), F.cross_entropy(logits.float(), target))


@pytest.mark.parametrize("classes", [7, 15, 16, 19])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_cross_entropy_is_that_of_a_plain_loop_for_few_and_many_classes(classes, memory):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 3, 4, generator=generator).to(memory_format=memory).requires_grad_()
    labels = torch.randint(0, classes, (2, 3, 4), generator=generator)
    labels[0, 1, 2] = 255
    loss = pixel_cross_entropy(logits, labels, 0.1)
    for n, i, j in np.ndindex(2, 3, 4):
        log_p = logits[n, :, i, j].detach().log_softmax(0)
        c = int(labels[n, i, j])
        expected = 0.0 if c == 255 else -float(0.9 * log_p[c] + 0.1 * log_p.mean())
        assert float(loss[n, i, j].detach()) == pytest.approx(expected, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient[0, :, 1, 2].any()
    target = 0.9 * F.one_hot(labels.clamp(max=classes - 1), classes) + 0.1 / classes
    expected = (logits.detach().softmax(1) - target.permute(0, 3, 1, 2)) * (labels != 255)[:, None]
    torch.testing.assert_close(gradient, expected)


def test_the_pull_weakens_as_the_shares_come_near():
    """Unlike a fixed change of the logits, which goes on and on once the student learns from it."""
    far, near, there = (shares_after(share, 0.8).change()[1].item() for share in (0.975, 0.9, 0.8))
    assert far > near > there == pytest.approx(0, abs=1e-3)


def test_the_running_shares_are_a_mean_that_forgets():
    shares = shares_after(0.9, 0.5)
    shares.update(shares.count(answers(0.5)))
    assert shares.running.tolist() == pytest.approx([0.7, 0.3])  # of two steps
    assert set(shares.state_dict()) == {"target", "named", "running", "steps"}  # all that a checkpoint has to keep


def test_the_consistency_loss_by_hand():
    logits, labels = torch.randn(2, 3, 2, 2), torch.randint(0, 3, (2, 2, 2))
    confidence = torch.tensor([[[0.99, 0.5], [0.97, 0.2]], [[0.1, 0.1], [0.1, 0.968]]])
    ce = F.cross_entropy(logits, labels, reduction="none")
    by_image = (0.5 * ce[0].sum() + 0.25 * ce[1].sum()) / 8
    torch.testing.assert_close(consistency_loss(logits, labels, confidence, 0.968), by_image)


def test_class_weights_have_mean_one_over_pixels():
    frequencies = np.array([0.64, 0.36, 0.0])
    weights = class_weights(frequencies).numpy()
    assert weights[2] == 0 and weights[1] / weights[0] == pytest.approx(0.8 / 0.6)
    assert (weights * frequencies).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="no class has a pixel"):
        class_weights(np.zeros(3))


def test_wholly_ignored_labels_give_no_loss():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = label_loss(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_reducing_first_and_mixing_then_is_mixing_the_logits():
    logits = torch.randn(4, 19, 64, 128)
    confidence, labels = logits.softmax(1).max(1)
    images = torch.rand(4, 3, 64, 128)
    _, mixed_labels, mixed_confidence, _ = mix_batch(
        images, labels, confidence, SelfDistillation(), torch.Generator().manual_seed(0)
    )
    from b2ma_core.spatial_mix import draw_cuts, spatial_mix

    cuts = draw_cuts(4, 64, 128, 0.25, torch.Generator().manual_seed(0))

    c, m = spatial_mix(logits, cuts).softmax(1).max(1)
    flipped = not torch.equal(m, mixed_labels)
    assert torch.equal(m.flip(-1) if flipped else m, mixed_labels)
    torch.testing.assert_close(c.flip(-1) if flipped else c, mixed_confidence)


def test_image_labels_and_confidence_share_the_draw():
    still = SelfDistillation(jitter_probability=0.0, blur_probability=0.0)
    code = torch.arange(4.0).view(4, 1, 1).expand(4, 64, 128)
    for seed in range(6):
        images = code[:, None].expand(4, 3, 64, 128) / 4
        mixed = mix_batch(images, code.long(), code, still, torch.Generator().manual_seed(seed))
        assert torch.equal(mixed.pseudo_labels.float(), mixed.confidence)
        assert torch.equal(mixed.images[:, 0] * 4, mixed.confidence)
        assert len(set(mixed.pseudo_labels[0].unique().tolist())) > 1  # it is a mix


def test_frozen_statistics_stay_while_the_rest_trains():
    model = build_model("deeplab_small", 5)
    freeze_batch_norm(model)
    before = {k: v.clone() for k, v in model.named_buffers()}
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
    assert model.training


def test_the_box_is_overruled_only_where_the_teacher_is_sure():
    # Three pixels, worked by hand: the teacher says class 0 with probability 0.9, 0.6, 0.9; the box says class 1, class 1
    # and nothing.
    p = torch.tensor([0.9, 0.6, 0.9])
    logits = torch.stack([p, 1 - p]).log().view(1, 2, 1, 3)
    said, images = torch.tensor([[[1, 1, 255]]]), torch.zeros(1, 3, 1, 3)
    labels, confidence = teach(lambda _: logits, images, train_ids=said, box_share=0.3)
    assert labels.tolist() == [[[0, 1, 0]]]
    torch.testing.assert_close(confidence, torch.tensor([[[0.63, 0.58, 0.9]]]))  # 0.7 p, 0.7 (1 - p) + 0.3, p
    labels, confidence = teach(lambda _: logits, images, train_ids=said)
    assert labels.tolist() == [[[0, 0, 0]]]
    torch.testing.assert_close(confidence, p.view(1, 1, 3))


def test_patches_are_cut_as_they_are_or_enlarged_into_a_frame():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    labels = np.arange(2 * 32 * 64, dtype=np.uint32).reshape(2, 32, 64).astype(np.uint8)
    patches = [HardPatch(1, 0, 3, (1,)), HardPatch(0, 2, 1, (1,))]
    alone = cut_patches(images, labels, patches, 4)
    assert alone.places.tolist() == [[0, 48], [16, 16]]
    assert np.array_equal(alone.train_ids[0], labels[1, :8, 48:])
    assert np.array_equal(alone.images[1].permute(1, 2, 0), images[0, 16:24, 16:32])
    for frame in ((32, 64), (16, 32)):
        h, w = frame[0] // 4, frame[1] // 4
        large = cut_patches(images, labels, patches, 4, frame)
        assert large.images.shape == (2, 3, 2 * h, 2 * w)
        # About the middle of their cells; the first, in a corner, as near to it as the frame has room.
        assert large.places.tolist() == [[0, 2 * w], [2 * h - h // 2, w - w // 2]]
        if frame == (32, 64):
            assert np.array_equal(large.train_ids[1], alone.train_ids[1].numpy().repeat(2, 0).repeat(2, 1))
        pasted = paste(torch.zeros(3, *frame, dtype=torch.uint8), large.train_ids, large.places)
        assert torch.equal(pasted[0, : 2 * h, 2 * w :], large.train_ids[0]) and not pasted[0, :, : 2 * w].any()
        assert not pasted[2].any()


@pytest.mark.parametrize("count, parts, ranks", [(4, 1, 1), (4, 4, 1), (5, 2, 2), (3, 4, 2), (7, 3, 1), (11, 3, 3)])
def test_a_batch_is_shared_out_whole_and_evenly(count, parts, ranks):
    slices = [[list(range(count))[part] for part in Sharing(parts, rank, ranks).slices(count)] for rank in range(ranks)]
    assert sum((part for own in slices for part in own), []) == list(range(count))
    assert {len(own) for own in slices} == {min(parts, count // ranks)}  # batch norm over processes waits for all
    for own in slices:
        sizes = [len(part) for part in own]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def problem():
    """A step of stage 2 with all its parts: networks, four images, five patches (two half ignored), labels, shares."""
    torch.manual_seed(0)
    student, teacher = (build_model("deeplab_small", 5) for _ in range(2))
    freeze_batch_norm(student)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 32, 64, generator=generator)
    hard = Patches(
        torch.rand(5, 3, 16, 16, generator=generator),
        torch.randint(0, 5, (5, 16, 16), generator=generator),
        torch.tensor([[0, 0], [16, 48], [3, 7], [0, 0], [0, 0]]),
    )
    hard.train_ids[:2, 8:] = 255
    said = torch.randint(0, 5, (4, 32, 64), generator=generator)
    said[:, :3] = 255
    shares = ClassShares(np.array([0.5, 0.2, 0.1, 0.1, 0.1]), 1.0, 0.8, 1.0)
    return student, make_teacher(teacher), images, hard, said, shares


def gradients(student, losses) -> tuple[torch.Tensor, float]:
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    return torch.cat([p.grad.flatten() for p in student.parameters()]), total


RECIPE = SelfDistillation(confidence_threshold=0.4, hard_patch_weight=0.5, box_share=0.4)


WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0])


@pytest.mark.parametrize("pasted", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4, 9])
def test_a_step_in_parts_has_the_gradients_of_the_batch_by_a_plain_loop(parts, pasted):
    student, teacher, images, hard, said, shares = problem()
    sharing, recipe = Sharing(parts), replace(RECIPE, paste_patches=pasted)
    if pasted:  # one on each image at the most
        hard = Patches(*(values[:3] for values in hard))
    for seed in range(2):  # at the second step the shares change the teacher's logits
        change = shares.change().clone()
        student.zero_grad()
        generator = torch.Generator().manual_seed(seed)
        step = self_distillation_step(student, teacher, images, said, hard, recipe, generator, shares, sharing)
        ours, loss = gradients(student, step)

        # The same by the images' whole logits: mixed first and reduced then, means taken at the end.
        generator, logits = torch.Generator().manual_seed(seed), teacher(images).permute(0, 2, 3, 1) + change
        weight = 0.4 * (said != 255)[..., None]
        scores = (1 - weight) * logits.softmax(-1) + weight * F.one_hot(said.clamp(max=4), 5)
        mixed = mix_batch(images, scores.argmax(-1), scores.amax(-1), recipe, generator, hard if pasted else None)
        seen = torch.cat(
            [jitter_and_blur(mixed.images[i : i + 1], mixed.changes.of(slice(i, i + 1))) for i in range(4)]
        )
        entropy = F.cross_entropy(student(seen), mixed.pseudo_labels, ignore_index=255, reduction="none")
        sure = (mixed.confidence >= 0.4).float().mean((1, 2))
        expected = (entropy.mean((1, 2)) * sure).mean()
        if not pasted:
            expected = expected + 0.5 * F.cross_entropy(student(hard[0]), hard[1], ignore_index=255)
        student.zero_grad()
        theirs, _ = gradients(student, [expected])
        assert loss == pytest.approx(expected.item(), rel=1e-5) and (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert int(shares.steps) == 2


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_stage_1_in_parts_has_the_gradients_of_the_batch(parts):
    student, _, images, _, _, _ = problem()
    labels = torch.randint(0, 5, (4, 32, 64), generator=torch.Generator().manual_seed(2))
    labels[0], labels[1, 5:] = 255, 255
    ours, loss = gradients(student, cross_domain_step(student, images, labels, WEIGHTS, 0.1, Sharing(parts)))
    student.zero_grad()
    log_p, total, weight = student(images).log_softmax(1), 0.0, 0.0
    for n, h, w in (labels != 255).nonzero().tolist():  # smoothing is alike for all classes, the weight is the label's
        p, label = log_p[n, :, h, w], labels[n, h, w]
        total = total - WEIGHTS[label] * (0.9 * p[label] + 0.1 * p.mean())
        weight += WEIGHTS[label].item()
    expected = total / weight
    theirs, _ = gradients(student, [expected])
    assert loss == pytest.approx(expected.item(), rel=1e-5) and (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_a_batch_without_any_label_teaches_nothing():
    student, _, images, _, _, _ = problem()
    nothing = torch.full((4, 32, 64), 255)
    ours, loss = gradients(student, cross_domain_step(student, images, nothing, torch.ones(5), 0.1, Sharing(2)))
    assert loss == 0 and not ours.any()


def test_what_cannot_be_averaged_or_is_no_class_is_refused():
    with pytest.raises(ValueError, match="networks of different shapes"):
        ema_update(nn.Linear(3, 4), nn.Linear(3, 1), 0)
    with pytest.raises(RuntimeError, match="out of bounds"):
        teach(nn.Conv2d(3, 7, 1), torch.rand(1, 3, 4, 4), train_ids=torch.full((1, 4, 4), 7), box_share=0.3)


def test_a_batch_without_a_pixel_says_nothing_of_the_class_shares():
    shares = ClassShares(np.array([0.5, 0.5]), 1.0)
    shares.update(torch.zeros(2, dtype=torch.long))
    assert shares.change().tolist() == [0, 0] and int(shares.steps) == 0
