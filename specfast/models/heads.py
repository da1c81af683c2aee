"""Light heads: from the encoder's four levels to pixels, or to a whole scene.

Legend: B samples, E encoder width, K outputs, H x W pixels, h x w patches, C bands.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specfast.models.enlarging import to_pixels

PIXEL_HEADS = ("linear", "mlp", "conv")
POOLS = ("mean", "cls", "both")
RANK_TOLERANCE = 1e-12  # of the largest variance; float32 tokens hold nothing below


class PixelHead(nn.Module):
    """Tokens of the four levels, and the spectrum if there is one, to K numbers a pixel.

    The levels are normalized and projected at the patches, where that is cheap, and then interpolated: bilinear
    interpolation and a linear layer change places without changing the result. With ``components``, they are whitened
    in place of normalized: a pre-trained encoder puts most of its variance into few directions, and a head that starts
    from few labels sees little else.

    Args:
        width: E.
        outputs: K.
        kind: ``"linear"``: one linear layer of levels and spectrum. ``"mlp"``: one hidden layer a pixel. ``"conv"``: a
            hidden layer, then ``depth`` residual 3 x 3 convolutions.
        bands: numbers of the spectrum that join; 0 without one.
        tokens: False leaves the levels out: all that the head knows then is the spectrum.
        components: whitened principal components that are kept of the levels (at most 4 E); :meth:`fit_whitening` must
            be called before training. 0 normalizes each level instead.
        hidden: width of the hidden layers.
        depth: number of convolutions.
        dropout: share of hidden channels left out at a pixel in training.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        kind: str,
        *,
        bands: int = 0,
        components: int = 0,
        tokens: bool = True,
        hidden: int = 128,
        depth: int = 3,
        dropout: float = 0.1,
    ):
        super().__init__()
        if kind not in PIXEL_HEADS:
            raise ValueError(f"head: expected one of {', '.join(PIXEL_HEADS)}; got {kind!r}")
        inner = outputs if kind == "linear" else hidden
        if not tokens and not bands:
            raise ValueError("tokens: expected true for a head without spectra, got false")
        if components < 0:
            raise ValueError(f"components: expected at least 0, got {components}")
        if depth < 0:
            raise ValueError(f"depth: expected at least 0, got {depth}")
        _check_hidden(hidden, dropout)
        self.tokens = tokens
        self.components = components = min(components, 4 * width)
        if components:
            self.register_buffer("token_mean", torch.zeros(4 * width))
            self.register_buffer("token_axes", torch.zeros(4 * width, components))
        else:
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.project = nn.Linear(components or 4 * width, inner)
        self.spectrum = nn.Linear(bands, inner) if bands else None
        self.convs = nn.ModuleList(_ResidualConv(hidden) for _ in range(depth if kind == "conv" else 0))
        self.output = None if kind == "linear" else nn.Linear(hidden, outputs)
        self.dropout = dropout

    def forward(
        self, levels: list[Tensor], present: Tensor | None, spectrum: Tensor | None, spacing: float, size
    ) -> Tensor:
        """Return [B, K, H, W].

        Args:
            levels: four maps [B, E, h, w].
            present: bool [B, h, w], False for patches without a valid pixel; None if all have one.
            spectrum: [B, C, H, W] standardized, or None.
            spacing: pixels between patches.
            size: (H, W).
        """
        x = to_pixels(self.project(self._normalized(levels)).movedim(-1, 1), present, spacing, size)
        if self.spectrum is not None:
            x = x + _pointwise(self.spectrum, spectrum)
        return self._after_first(x)

    def from_inputs(self, inputs: Tensor) -> Tensor:
        """Return [B, K, H, W] from what :meth:`inputs` returned, at once or earlier."""
        tokens = self.project.in_features
        x = _pointwise(self.project, inputs[:, :tokens])
        return self._after_first(x if self.spectrum is None else x + _pointwise(self.spectrum, inputs[:, tokens:]))

    def _after_first(self, x: Tensor) -> Tensor:
        if self.output is None:
            return x
        x = F.gelu(x)
        for conv in self.convs:
            x = conv(x)
        return _pointwise(self.output, F.dropout(x, self.dropout, self.training))

    def inputs(
        self, levels: list[Tensor], present: Tensor | None, spectrum: Tensor | None, spacing: float, size
    ) -> Tensor:
        """Return what the first linear layer sees of every pixel, [B, inputs, H, W]: levels, then the spectrum."""
        tokens = to_pixels(self._normalized(levels).movedim(-1, 1), present, spacing, size)
        return tokens if self.spectrum is None else torch.cat([tokens, spectrum], dim=1)

    def parts(self, sides: int) -> list[slice]:
        """Return where the levels, and the spectra of each of so many sides, lie in what :meth:`inputs` returns."""
        tokens = self.project.in_features
        step = 0 if self.spectrum is None else self.spectrum.in_features // sides
        spectra = [slice(tokens + side * step, tokens + (side + 1) * step) for side in range(sides)]
        return [slice(0, tokens), *(spectra if step else ())]

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Set the layer of the ``"linear"`` head: weight [K, inputs] in the order of :meth:`inputs`, bias [K]."""
        tokens = self.project.in_features
        self.project.weight.copy_(weight[:, :tokens])
        self.project.bias.copy_(bias)
        if self.spectrum is not None:
            self.spectrum.weight.copy_(weight[:, tokens:])
            self.spectrum.bias.zero_()

    @torch.no_grad()
    def fit_whitening(self, encoded: Iterable[tuple[list[Tensor], Tensor | None]]) -> None:
        """Take the whitening from (levels, present) of the scenes to be trained on; labels play no part."""
        count, first, second = 0, 0.0, 0.0
        for levels, present in encoded:
            tokens = torch.cat([level.movedim(1, -1) for level in levels], dim=-1)
            tokens = (tokens.flatten(0, 2) if present is None else tokens[present]).double()
            count, first, second = count + len(tokens), first + tokens.sum(dim=0), second + tokens.T @ tokens
        mean = first / count
        covariance = second / count - mean[:, None] * mean
        spread = covariance.diagonal().clamp_min(0).sqrt()
        spread = torch.where(spread > 0, spread, 1.0)
        variance, axes = torch.linalg.eigh(covariance / spread / spread[:, None])
        variance, axes = variance.flip(0)[: self.components], axes.flip(1)[:, : self.components]
        # directions without variance are left at 0
        scale = torch.where(variance > variance[0] * RANK_TOLERANCE, variance.clamp_min(1e-300).rsqrt(), 0.0)
        self.token_mean.copy_(mean)
        self.token_axes.copy_(axes * scale / spread[:, None])

    def _normalized(self, levels: list[Tensor]) -> Tensor:
        """Return the levels side by side, [B, h, w, inputs]."""
        if not self.tokens:
            return levels[0].new_zeros(*levels[0].movedim(1, -1).shape[:-1], self.project.in_features)
        if self.components:
            tokens = torch.cat([level.movedim(1, -1) for level in levels], dim=-1)
            # in float32: small directions are enlarged, and errors with them
            with torch.autocast(tokens.device.type, enabled=False):
                return (tokens.to(self.token_mean.dtype) - self.token_mean) @ self.token_axes
        return torch.cat([norm(level.movedim(1, -1)) for norm, level in zip(self.norms, levels, strict=True)], dim=-1)


class SceneHead(nn.Module):
    """Pooled tokens, and the mean spectrum if there is one, to K numbers a sample.

    Args:
        width: E.
        outputs: K.
        kind: ``"linear"`` or ``"mlp"`` (one hidden layer).
        pool: ``"mean"`` of the last level's tokens, ``"cls"`` token, or ``"both"``.
        bands: C of the mean spectrum that joins; 0 without one.
        hidden: width of the hidden layer.
        dropout: share of hidden units left out in training.
    """

    def __init__(
        self, width: int, outputs: int, kind: str, *, pool: str = "both", bands: int = 0, hidden: int = 128, dropout=0.1
    ):
        super().__init__()
        if kind not in ("linear", "mlp"):
            raise ValueError(f"head: expected linear or mlp; got {kind!r}")
        if pool not in POOLS:
            raise ValueError(f"pool: expected one of {', '.join(POOLS)}; got {pool!r}")
        _check_hidden(hidden, dropout)
        self.pool = pool
        inputs = width * (2 if pool == "both" else 1)
        self.norm = nn.LayerNorm(inputs)
        inputs += bands
        self.layers = (
            nn.Linear(inputs, outputs)
            if kind == "linear"
            else nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))
        )

    def forward(self, cls: Tensor, tokens: Tensor, present: Tensor | None, spectrum: Tensor | None) -> Tensor:
        """Return [B, K] from cls [B, E], tokens [B, N, E] that are 0 where ``present`` bool [B, N] is False."""
        parts = []
        if self.pool != "cls":
            count = tokens.shape[1] if present is None else present.sum(dim=1, keepdim=True).clamp_min(1)
            parts.append(tokens.sum(dim=1) / count)
        if self.pool != "mean":
            parts.append(cls)
        x = self.norm(torch.cat(parts, dim=-1))
        return self.layers(x if spectrum is None else torch.cat([x, spectrum], dim=-1))


class _ResidualConv(nn.Module):
    """GroupNorm, 3 x 3 convolution, GELU, beside the input: statistics of one scene, however small the batch."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.conv(self.norm(x)))


def _check_hidden(hidden: int, dropout: float) -> None:
    """Raise ValueError if the options of a hidden layer are out of range."""
    if hidden < 1:
        raise ValueError(f"hidden: expected at least 1, got {hidden}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a share of at least 0 and below 1, got {dropout}")


def _pointwise(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to the channels of [B, X, H, W]."""
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)
