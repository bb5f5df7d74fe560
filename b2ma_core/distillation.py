"""The method: distillation across domains from the box's labels, then from itself with SpatialMix and hard patches.

One step of each stage is one function, :func:`cross_domain_step` and :func:`self_distillation_step`. Each yields the
losses of a batch's parts, so that a whole training step is ::

    for loss in self_distillation_step(student, teacher, images, train_ids, hard, recipe, generator):
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    ema_update(teacher, student, step)
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from b2ma_core.augmentations import Changes, coin, draw_changes, jitter_and_blur
from b2ma_core.class_shares import ClassShares
from b2ma_core.hard_patches import Patches, paste
from b2ma_core.mixes import mix


def class_weights(frequencies: np.ndarray) -> Tensor:
    """``(C,)`` float32 weights 1 / sqrt(frequency), scaled so that the mean over pixels is 1.

    Args:
        frequencies: ``(C,)`` share of the pixels, 0 .. 1. Shares below 1e-4 count as 1e-4, absent classes get 0.

    Raises:
        ValueError: if all are 0.
    """
    if not (frequencies > 0).any():
        raise ValueError("frequencies: no class has a pixel")
    weights = np.where(frequencies > 0, 1 / np.sqrt(np.maximum(frequencies, 1e-4)), 0.0)
    return torch.from_numpy(weights / (weights * frequencies).sum()).float()


def pixel_cross_entropy(logits: Tensor, train_ids: Tensor, smoothing: float = 0.0) -> Tensor:
    """``(N, H, W)`` float32 cross-entropy of ``(N, C, H, W)`` logits and ``(N, H, W)`` int64 train ids, 0 where 255.

    A CPU is quicker with rows, one a pixel, where a row fills a vector register of 16 values, and with planes, one a
    class, where it does not: half the time for 7 and 11 classes.
    """
    options = dict(ignore_index=255, label_smoothing=smoothing, reduction="none")
    if logits.shape[1] < 16:
        return F.cross_entropy(logits.float().contiguous(), train_ids, **options)
    rows = logits.float().permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(rows, train_ids.flatten(), **options).view_as(train_ids)


def label_loss(logits: Tensor, train_ids: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy against labels; the loss of the source model, stage 1, hard patches and the oracle.

    Args:
        logits: ``(N, C, H, W)`` float.
        train_ids: ``(N, H, W)`` int64; 255 is ignored.
        weights: ``(C,)`` class weights.
        smoothing: label smoothing, 0 .. 1.

    Returns:
        Scalar mean over the pixels, each weighing ``weights`` of its label; 0 if every pixel is ignored. PyTorch's own
        ``weight`` also weighs the smoothed part of a label, by class: with rare classes 12% of a road pixel's target
        may then be "sign", and the network stays unsure of everything.
    """
    weight = pixel_weights(train_ids, weights)
    return (weight * pixel_cross_entropy(logits, train_ids, smoothing)).sum() / weight.sum().clamp(min=1e-12)


def pixel_weights(train_ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """What each pixel weighs in :func:`label_loss`, float32 as ``train_ids``: its class's weight, or 1; ignored 0."""
    known = train_ids != 255
    if weights is None:
        return known.float()
    return known * weights[train_ids.clamp(max=len(weights) - 1)]


def consistency_loss(logits: Tensor, pseudo_labels: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    """Cross-entropy against the teacher's labels; every pixel of an image weighs the image's share of sure pixels.

    The published code has one share for all images of a batch.

    Args:
        logits: ``(N, C, H, W)`` float, the student's.
        pseudo_labels: ``(N, H, W)`` int64, the teacher's arg max; 255 is ignored.
        confidence: ``(N, H, W)`` float, the teacher's.
        threshold: confidence that counts as sure (published 0.968).

    Returns:
        Scalar: mean over all pixels of weight x cross-entropy.

    Source: Luo et al., CROTS (IJCV 2024), self distillation, after DACS (Tranheden et al., WACV 2021); the share of
    each image is ours.
    """
    weight = (confidence >= threshold).float().mean((1, 2), keepdim=True)
    return (weight * pixel_cross_entropy(logits, pseudo_labels)).mean()


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, step: int, alpha: float = 0.99, buffers: bool = True) -> None:
    """Move the teacher towards the student, in place: ``t <- a t + (1 - a) s``, ``a = min(1 - 1 / (step + 1), alpha)``.

    Args:
        teacher: the average.
        student: a network of the same make.
        step: 0, 1, 2 ..; the teacher becomes the student at step 0.
        alpha: the largest share that the teacher keeps, 0 .. 1.
        buffers: average floating-point buffers (batch-norm statistics) too, and copy counters; False leaves all
            buffers alone, as the published code does.

    Raises:
        ValueError: if the two are not of the same make.

    Source: Tarvainen and Valpola, Mean teachers (NeurIPS 2017); the warm-up from the published code.
    """
    alpha = min(1 - 1 / (step + 1), alpha)
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    if any(t.shape != s.shape for t, s in pairs):
        raise ValueError("teacher and student: networks of different shapes")
    if buffers:
        pairs += list(zip(teacher.buffers(), student.buffers(), strict=True))
    floating = [(t, s) for t, s in pairs if t.is_floating_point()]
    if floating:
        ours, theirs = zip(*floating, strict=True)
        torch._foreach_lerp_(list(ours), list(theirs), 1 - alpha)
    for t, s in pairs:
        if not t.is_floating_point():
            t.copy_(s)


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of the student that no gradient reaches, in eval mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@dataclass(frozen=True)
class Sharing:
    """How the work of one batch is shared, among processes and in parts where memory is short.

    Draws are for the whole batch and every mean is over the whole batch, so that sharing changes no gradient (but for
    batch norm in training mode, whose statistics are a part's).

    Attributes:
        parts: how many parts a process computes its samples in, one after another.
        rank, ranks: which process this is, and of how many that hold the same batch.
        total: sums a tensor over the processes, and may do so in place.
    """

    parts: int = 1
    rank: int = 0
    ranks: int = 1
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor

    def slices(self, count: int) -> list[slice]:
        """Of ``count`` samples, at least ``ranks``, those of this process, in parts as even as can be and never empty.

        Every process has as many parts as the others, since batch norm over processes waits for all of them.
        """
        start, stop = count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks
        parts = min(self.parts, max(count // self.ranks, 1), stop - start)
        ends = [start + (stop - start) * k // parts for k in range(parts + 1)] if parts else []
        return [slice(*pair) for pair in zip(ends[:-1], ends[1:], strict=True)]


ALONE = Sharing()


@torch.no_grad()
def teach(
    teacher: nn.Module,
    images: Tensor,
    kind: str = "probability",
    shares: ClassShares | None = None,
    train_ids: Tensor | None = None,
    box_share: float = 0.0,
    sharing: Sharing = ALONE,
) -> tuple[Tensor, Tensor]:
    """The teacher's labels and confidences on clean images.

    Args:
        teacher: the network.
        images: ``(N, 3, H, W)`` float in [0, 1].
        kind: confidence as softmax "probability", or as the raw "logit" (the published fault).
        shares: changes the logits by what it knew before, then takes in the batch's labels without the change; None:
            as published.
        train_ids: ``(N, H, W)`` int64, what the box says to the images; 255: nothing. Needed for a box_share.
        box_share: of the probabilities p become ``(1 - w) p + w [the box's label]``, w this share, so that the teacher
            overrules the box only where it is sure and cannot drift far from what the box said. 0: as published.
        sharing: each process answers its own images, then all get all answers.

    Returns:
        ``(N, H, W)`` int64 labels and ``(N, H, W)`` float32 confidences.

    Raises:
        ValueError: for another kind, or a box_share without train ids.
        RuntimeError: by torch, for train ids beside 255 that are no classes of the network.
    """
    if kind not in ("probability", "logit"):
        raise ValueError(f"kind: 'probability' or 'logit', got {kind!r}")
    if box_share > 0 and train_ids is None:
        raise ValueError("box_share: needs train_ids, what the box says")
    size = (len(images), *images.shape[-2:])
    pseudo_labels = torch.zeros(size, dtype=torch.uint8, device=images.device)
    confidence = torch.zeros(size, device=images.device)
    if shares is not None:
        change, counts = shares.change(), torch.zeros_like(shares.target, dtype=torch.long)
    for part in sharing.slices(len(images)):
        logits = teacher(images[part]).float()  # at once: bf16 knows 2 to 3 digits
        if shares is not None:
            counts += shares.count(logits)
        logits = logits if shares is None else logits + change.view(-1, 1, 1)
        scores = logits.softmax(1) if kind == "probability" else logits
        if box_share > 0:
            said = train_ids[part][:, None]
            weight = box_share * (said != 255).float()
            scores = (scores * (1 - weight)).scatter_add_(1, said.where(said != 255, 0), weight)
        confidence[part], pseudo_labels[part] = scores.max(1)
    if shares is not None:
        shares.update(sharing.total(counts))
    return sharing.total(pseudo_labels).long(), sharing.total(confidence)  # zeros where another process answers


@dataclass(frozen=True)
class SelfDistillation:
    """What one step of stage 2 is told. Defaults are the published values, but for the confidence; a study's own recipe
    is made of its parameters, by ``study.stages.self_distillation_of``.

    Attributes:
        mix: of the images, see :func:`mixes.mix`; "none" leaves them whole.
        position_beta: of SpatialMix's cuts, see :func:`spatial_mix.draw_cuts`.
        jitter, jitter_probability, blur_probability: see :func:`augmentations.jitter_and_blur`.
        confidence: "probability", or "logit", the published code's fault.
        confidence_threshold: see :func:`consistency_loss`.
        hard_patch_weight: of the loss of hard patches that stand alone.
        box_share: of the box's labels beside the teacher's, see :func:`teach`.
        paste_patches: lay them over the mixed images, one on each, at their own place; False: they stand alone.
    """

    mix: str = "spatial"
    position_beta: float = 0.25
    jitter: float = 0.25
    jitter_probability: float = 0.8
    blur_probability: float = 0.5
    confidence: str = "probability"
    confidence_threshold: float = 0.968
    hard_patch_weight: float = 0.1
    paste_patches: bool = False
    box_share: float = 0.0


class Mixed(NamedTuple):
    """A mixed batch: what the student is to see, once jittered and blurred, and what it should say.

    Attributes:
        images: ``(N, 3, H, W)`` float.
        pseudo_labels: ``(N, H, W)`` int64.
        confidence: ``(N, H, W)`` float.
        changes: jitter and blur of the N images, drawn and not done yet.
    """

    images: Tensor
    pseudo_labels: Tensor
    confidence: Tensor
    changes: Changes


def mix_batch(
    images: Tensor,
    pseudo_labels: Tensor,
    confidence: Tensor,
    recipe: SelfDistillation,
    generator: torch.Generator,
    pasted: Patches | None = None,
) -> Mixed:
    """The mix of a whole batch, hard patches laid over it, and all its draws.

    Images, labels and confidences share one draw of the mix, and one coin that mirrors the whole batch. Only the
    image is jittered and blurred later. A pasted label counts as sure, an ignored one as unsure.
    """
    tensors = (images, pseudo_labels, confidence)
    mixed = mix(tensors, pseudo_labels, recipe.mix, recipe.position_beta, generator)
    if pasted is not None:
        sure = (pasted.train_ids != 255).float()
        values = (pasted.images, pasted.train_ids, sure)
        mixed = [paste(tensor, patches, pasted.places) for tensor, patches in zip(mixed, values, strict=True)]
    if coin(0.5, generator):
        mixed = [tensor.flip(-1) for tensor in mixed]
    changes = draw_changes(len(images), recipe.jitter, recipe.jitter_probability, recipe.blur_probability, generator)
    return Mixed(*mixed, changes)


def cross_domain_step(
    student: nn.Module,
    images: Tensor,
    train_ids: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    sharing: Sharing = ALONE,
) -> Iterator[Tensor]:
    """One step of stage 1, up to its losses: the student learns the box's labels.

    Source model and oracle learn their labels by the same step.

    Args:
        student: trained.
        images: ``(N, 3, H, W)`` float in [0, 1].
        train_ids: ``(N, H, W)`` int64; 255 is ignored.
        weights, smoothing: see :func:`label_loss`.
        sharing: which images this process computes, in how many parts. Where each process has images of its own, rank
            0 of 1 and a total over the processes.

    Yields:
        A scalar for each part; their sum over parts and processes is the mean over the labelled pixels of all images.
        Call ``backward`` on each before the next is taken: memory then holds one part.
    """
    parts = sharing.slices(len(images))
    own = sum((pixel_weights(train_ids[part], weights).sum() for part in parts), torch.zeros((), device=images.device))
    count = sharing.total(own).clamp(min=1e-12)
    for part in parts:
        loss = label_loss(student(images[part]), train_ids[part], weights, smoothing)
        yield loss * pixel_weights(train_ids[part], weights).sum() / count


def self_distillation_step(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    train_ids: Tensor,
    hard: Patches | None,
    recipe: SelfDistillation,
    generator: torch.Generator,
    shares: ClassShares | None = None,
    sharing: Sharing = ALONE,
) -> Iterator[Tensor]:
    """One step of stage 2, up to its losses: the student says on mixed images what the teacher says on clean ones.

    Args:
        student: trained.
        teacher: its average.
        images: ``(N, 3, H, W)`` float in [0, 1], target images: the whole batch, in every process.
        train_ids: ``(N, H, W)`` int64, the box's labels of them; 255 where there are none. Read with a box_share alone.
        hard: patches, float in [0, 1] and int64; None without patches. To be pasted, at most N.
        recipe: what stage 2 is told.
        generator: source of all randomness, on the CPU; the same in every process.
        shares: the teacher's class shares, see :func:`teach`.
        sharing: which images and patches this process computes, in how many parts.

    Yields:
        A scalar for each part of the images, then of the patches; their sum over parts and processes is the step's
        loss. Call ``backward`` on each before the next is taken: memory then holds one part.
    """
    pseudo_labels, confidence = teach(teacher, images, recipe.confidence, shares, train_ids, recipe.box_share, sharing)
    pasted, apart = (hard, None) if recipe.paste_patches else (None, hard)
    mixed = mix_batch(images, pseudo_labels, confidence, recipe, generator, pasted)
    for part in sharing.slices(len(images)):
        seen = jitter_and_blur(mixed.images[part], mixed.changes.of(part))
        logits, sure = student(seen), mixed.confidence[part]
        loss = consistency_loss(logits, mixed.pseudo_labels[part], sure, recipe.confidence_threshold)
        yield loss * len(seen) / len(images)
    patches, said = apart[:2] if apart is not None else ((), ())
    for part in sharing.slices(len(patches)):
        loss = label_loss(student(patches[part]), said[part])
        share = pixel_weights(said[part]).sum() / pixel_weights(said).sum().clamp(min=1)
        yield recipe.hard_patch_weight * loss * share
