"""How sure a network may be: a temperature from labels that are noisy, without the truth."""

from torch import Tensor


def mean_confidence(logits: Tensor, temperature: float) -> float:
    """Mean over the pixels of the largest softmax probability of ``(N, C, H, W)`` logits / temperature, 0 .. 1."""
    return (logits.float() / temperature).softmax(1).amax(1).mean().item()


def agreement_temperature(logits: Tensor, pseudo_labels: Tensor) -> float:
    """The temperature T at which softmax(logits / T) is as sure, on the mean, as it agrees with the pseudo labels.

    A network that learnt with class weights and label smoothing may be right far more often than its probabilities say.
    Thresholds, votes and class shares that are then compared with them mean something else for each network; at T they
    mean the same.

    Args:
        logits: ``(N, C, H, W)`` float.
        pseudo_labels: ``(N, H, W)`` int64 train ids; 255 is left out of the agreement.

    Returns:
        T within 0.05 .. 20, the nearer end if it lies outside; 1 if no pixel is labelled.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).T.view(1, 2, 1, 4)
        >>> t = agreement_temperature(logits, torch.tensor([[[0, 0, 0, 0]]]))  # three of four agree
        >>> round(mean_confidence(logits, t), 3)
        0.75

    Source: Guo et al., On calibration of modern neural networks (ICML 2017), temperature scaling; there fitted to true
    labels by likelihood. The agreement with the box's labels in place of the accuracy is ours.
    """
    known = pseudo_labels != 255
    if not known.any():
        return 1.0
    wanted = (logits.argmax(1) == pseudo_labels)[known].float().mean().item()
    low, high = 0.05, 20.0
    for _ in range(30):
        middle = (low * high) ** 0.5  # confidence falls with T
        low, high = (middle, high) if mean_confidence(logits, middle) > wanted else (low, middle)
    return (low * high) ** 0.5
