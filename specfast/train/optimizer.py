"""AdamW for SpecAware: weight matrices decay, everything else does not."""

from __future__ import annotations

import torch
from torch import nn

_TOKENS = ("cls_token", "mask_token")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split trainable parameters in two groups: with decay (weight matrices) and without.

    Biases, norms, the scaler and fusion_weights have fewer than two dimensions and are not decayed; nor are the cls and
    mask tokens.
    """
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.rpartition(".")[2] in _TOKENS
            (kept if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def make_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """Return AdamW over :func:`parameter_groups`, in torch's fused implementation."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, fused=True)
