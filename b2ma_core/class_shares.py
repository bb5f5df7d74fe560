"""Distribution alignment: the teacher's class shares are held near those of the pseudo labels."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn


def class_frequencies(labels: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """``(C,)`` float64 share of the labelled pixels per class, 0 .. 1, of ``(H, W)`` uint8 maps of train ids."""
    counts = sum(np.bincount(np.asarray(m).ravel(), minlength=256)[:num_classes] for m in labels)
    return counts / max(counts.sum(), 1)


class ClassShares(nn.Module):
    """Keeps the teacher's class shares near those of the pseudo labels, by a change of its logits.

    Self-training feeds on itself: a class that the teacher predicts a little too seldom is soon no longer predicted,
    one that it predicts too often spreads. The change is ``weight * (log target - log running)``, within ``+- limit``:
    ``running`` are the shares of the teacher's own labels, unchanged, so that the pull weakens as they come near.
    Labels and not probabilities: what a network that learnt with class weights gives a rare class in probability may be
    far from how often it says it.

    Args:
        frequencies: ``(C,)`` share of the pseudo-labelled pixels, 0 .. 1. A class that no label names is left alone:
            nothing is known of how often it should be said.
        weight: 0 changes nothing, 1 asks for the target's shares.
        exponent: the target is ``(frequencies + 1e-4) ** exponent``, scaled to sum 1; below 1 rare classes may be more
            than in the pseudo labels, which miss them most.
        limit: largest change of a logit.
        momentum: share of the running mean that a step keeps, after a warm-up.

    Source: Berthelot et al., ReMixMatch (ICLR 2020), distribution alignment, there of probabilities; exponent, limit
    and shares of labels are ours.
    """

    def __init__(
        self, frequencies: np.ndarray, weight: float, exponent: float = 0.8, limit: float = 3.0, momentum: float = 0.99
    ):
        super().__init__()
        self.weight, self.limit, self.momentum = weight, limit, momentum
        target = torch.from_numpy(frequencies + 1e-4).float() ** exponent
        self.register_buffer("target", target / target.sum())
        self.register_buffer("named", torch.from_numpy(frequencies > 0))
        self.register_buffer("running", torch.zeros_like(self.target))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def count(self, logits: Tensor) -> Tensor:
        """``(C,)`` int64: pixels of each class by ``(N, C, H, W)`` logits; every fourth row and column says enough."""
        return torch.bincount(logits[..., ::4, ::4].argmax(1).flatten(), minlength=len(self.target))

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Take in ``(C,)`` pixels of a whole batch, once a step."""
        if not counts.any():  # a batch without a pixel says nothing
            return
        keep = min(1 - 1 / (int(self.steps) + 1), self.momentum)
        self.running.lerp_(counts / counts.sum(), 1 - keep)
        self.steps += 1

    def change(self) -> Tensor:
        """``(C,)`` what to add to the logits; nothing before the first update."""
        pull = self.weight * (self.target.log() - self.running.clamp(min=1e-6).log())
        return pull.clamp(-self.limit, self.limit) * self.named * (self.steps > 0)
