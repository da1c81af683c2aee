"""What is exchanged: the parameters of transformers of given sizes, and how to exchange them without computing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# width and depth of transformers with about so many megabytes of float32 parameters, twelve tensors a block
SIZES = {"1MB": (64, 5), "4MB": (96, 9), "40MB": (256, 13)}
HEAD_WIDTH = 32
TOKENS = 32


class Trainee(nn.Module):
    """A model whose forward returns a loss, so that wrappers see all of a step.

    Without a batch the loss is the sum of all parameters times ``scale``: its backward fills every gradient with
    ``scale`` at next to no cost, which leaves the exchange of gradients alone to be timed.
    """

    def forward(self, *batch, scale: float = 1.0) -> Tensor:
        if batch:
            return self.loss(*batch)
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * scale

    def loss(self, *batch) -> Tensor:
        raise NotImplementedError


class Transformer(Trainee):
    """A plain transformer encoder; its loss is the mean square of its output."""

    def __init__(self, size: str):
        super().__init__()
        self.width, depth = SIZES[size]
        layer = nn.TransformerEncoderLayer(
            self.width, self.width // HEAD_WIDTH, 4 * self.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def loss(self, tokens: Tensor) -> Tensor:
        return self.encoder(tokens).square().mean()

    def random_batch(self, samples: int = 2) -> tuple[Tensor]:
        return (torch.randn(samples, TOKENS, self.width),)


def parameter_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
