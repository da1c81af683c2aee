"""The head of the published segmentation example: a pyramid neck and UPerNet, with its parameter names.

Source: Xiao et al. 2018 (UPerNet), Zhao et al. 2017 (pyramid pooling), as Ji et al. 2026 put them together. Legend: B
samples, E encoder width, F pyramid channels, S channels before the classifier. All resizes are bilinear.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NECK_SCALES = (4.0, 2.0, 1.0, 0.5)  # of the four levels, earliest first
POOL_SIDES = (1, 2, 3, 6)


class PyramidNeck(nn.Module):
    """Four levels of one size become a pyramid: four [B, E, h, w] -> [B, F, 4h, 4w], 2h, h and h/2."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in NECK_SCALES)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in NECK_SCALES)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        pyramid = []
        for level, scale, lateral, conv in zip(levels, NECK_SCALES, self.lateral_convs, self.convs, strict=True):
            size = [max(1, int(side * scale)) for side in level.shape[-2:]]
            pyramid.append(conv(_resize(lateral(level), size)))
        return pyramid


class UPerDecoder(nn.Module):
    """A pyramid, finest first, becomes one map: [B, F, ...] -> [B, S, rows, columns] at ``scale`` times the finest."""

    def __init__(self, channels: int, out_channels: int, scale: int):
        super().__init__()
        self.scale = scale
        self.psp = PyramidPooling(channels)
        self.fpn_stages = nn.ModuleList(_FusionStage(channels) for _ in NECK_SCALES[1:])
        self.fpn_bottleneck = _conv_norm(len(NECK_SCALES) * channels, out_channels, 3)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        results = [self.psp(pyramid[-1])]
        for stage, finer in zip(self.fpn_stages, reversed(pyramid[:-1]), strict=True):
            results.append(stage(results[-1], finer))
        size = [side * self.scale for side in pyramid[0].shape[-2:]]
        return self.fpn_bottleneck(torch.cat([_resize(result, size) for result in results], dim=1))


class PyramidPooling(nn.Module):
    """Averages over 1, 4, 9 and 36 parts of the map join the map: [B, F, h, w] -> [B, F, h, w]."""

    def __init__(self, channels: int):
        super().__init__()
        part = channels // 4
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), _conv_norm(channels, part, 1)) for side in POOL_SIDES
        )
        self.out_conv = _conv_norm(channels + len(POOL_SIDES) * part, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [_resize(block(x), x.shape[-2:]) for block in self.blocks]
        return self.out_conv(torch.cat([x, *pooled], dim=1))


class _FusionStage(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.skip_conv = _conv_norm(channels, channels, 1)

    def forward(self, coarser: Tensor, finer: Tensor) -> Tensor:
        return _resize(coarser, finer.shape[-2:]) + self.skip_conv(finer)


class _Norm(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a channel holds one value: a scene pooled to one number."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def _conv_norm(inputs: int, outputs: int, side: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), _Norm(outputs), nn.ReLU())


def _resize(x: Tensor, size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
