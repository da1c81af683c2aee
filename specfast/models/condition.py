"""The meta-content aware module: what the model knows of each band, from metadata and from the image.

All per-band tensors are packed, [S, w] with S the bands of all samples. Parameter names are those of the published
checkpoint. Source: Ji et al. 2026, section 3.2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specfast.attributes import ATTRIBUTE_DIM
from specfast.batch import WAVELENGTH_RANGE, SpectralBatch

FUSION_DROPOUT = 0.1
GELU_MEAN_SQUARE = 0.425  # of gelu(z), z standard normal


def over_bands(per_sample: Tensor, batch: SpectralBatch) -> Tensor:
    """Repeat [B, ...] for each sample's bands: [S, ...].

    The gradient is a sum over bands, which torch adds in the dtype that was repeated: in bfloat16 the small ones of
    hundreds of bands would be lost, so it is float32 that is repeated.
    """
    wide = per_sample
    if per_sample.is_floating_point():
        wide = per_sample.to(torch.promote_types(per_sample.dtype, torch.float32))
    repeated = wide.repeat_interleave(batch.cu_bands.diff(), dim=0, output_size=batch.wavelength.shape[0])
    return repeated.to(per_sample.dtype)


def by_sample(per_band: Tensor, batch: SpectralBatch) -> tuple[Tensor, Tensor | None]:
    """Lay [S, w] out as [B, C, w], C the most bands of a sample, with a mask bool [B, C] (None: all are bands).

    Only for what mixes the bands of a sample at the condition's small width. Works from shapes and offsets alone, so
    that nothing waits for a GPU and a compiled model serves every band layout.
    """
    samples, most = len(batch), batch.max_bands
    if samples * most == per_band.shape[0]:
        return per_band.unflatten(0, (samples, most)), None
    slot = torch.arange(most, device=per_band.device)
    mask = slot < batch.cu_bands.diff()[:, None]
    place = (batch.cu_bands[:-1, None] + slot).clamp_max(per_band.shape[0] - 1)
    return per_band[place], mask


def by_band(per_sample: Tensor, batch: SpectralBatch) -> Tensor:
    """Undo :func:`by_sample`: [B, C, w] -> [S, w]."""
    bands = batch.wavelength.shape[0]
    if per_sample.shape[0] * per_sample.shape[1] == bands:
        return per_sample.flatten(0, 1)
    sample = over_bands(torch.arange(len(batch), device=per_sample.device), batch)
    slot = torch.arange(bands, device=per_sample.device) - batch.cu_bands[sample]
    return per_sample[sample, slot]


def mean_over_bands(per_band: Tensor, batch: SpectralBatch) -> Tensor:
    """Average [S, w] over the bands of each sample: [B, w]."""
    bands, mask = by_sample(per_band, batch)
    if mask is None:
        return bands.mean(dim=1)
    total = bands.masked_fill(~mask[..., None], 0.0).sum(dim=1, dtype=torch.promote_types(bands.dtype, torch.float32))
    return (total / batch.cu_bands.diff()[:, None]).to(bands.dtype)


class Fusion(nn.Module):
    """Fuse two descriptions [S, w] of the same bands; the first is carried through."""

    def __init__(self, width: int):
        super().__init__()
        self.modal1_proj = nn.Linear(width, width)
        self.modal2_proj = nn.Linear(width, width)
        self.fusion = nn.Sequential(
            nn.Linear(2 * width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(FUSION_DROPOUT)
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        first, second = self.modal1_proj(first), self.modal2_proj(second)
        return self.fusion(torch.cat([first, second], dim=-1)) + first


class WavelengthEncoding(nn.Module):
    """Sines and cosines of the wavelength (nm) at log-spaced periods of 350 to 2550 nm: [S] -> [S, w]."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, wavelength: Tensor) -> Tensor:
        low, high = (math.log(edge) for edge in WAVELENGTH_RANGE)
        periods = torch.linspace(low, high, self.width // 2, dtype=torch.float64, device=wavelength.device).exp()
        phase = wavelength.double()[:, None] * (2 * math.pi / periods)
        return torch.cat([phase.sin(), phase.cos()], dim=-1).float()


class FwhmEncoder(nn.Module):
    """The full width at half maximum (nm), scaled so that 5 to 15 nm is 0 to 1: [S] -> [S, w]."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, width // 2), nn.GELU(), nn.Linear(width // 2, width))

    def forward(self, fwhm: Tensor) -> Tensor:
        return self.mlp(((fwhm - 5) / 10)[:, None].to(self.mlp[0].weight.dtype))


class AttributeEncoder(nn.Module):
    """The sentence vectors of sensor and level: [B, 2, 384] -> [B, w]."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Linear(ATTRIBUTE_DIM, width // 2)

    def forward(self, attributes: Tensor) -> Tensor:
        return self.fc(attributes.to(self.fc.weight.dtype)).flatten(1)


class ResidualMLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + x


class SpectralEmbedding(nn.Module):
    """Wavelength, FWHM, sensor and level of every band: SpectralBatch -> meta0 [S, w]."""

    def __init__(self, width: int):
        super().__init__()
        self.wavelength_encoding = WavelengthEncoding(width)
        self.fwhm_encoder = FwhmEncoder(width)
        self.attribute_encoder = AttributeEncoder(width)
        self.fusion_weights = nn.Parameter(torch.tensor([0.8, 0.2]))
        self.spectral_enhancement_mlp = ResidualMLP(width)
        self.cross_modal_fusion = Fusion(width)

    def forward(self, batch: SpectralBatch) -> Tensor:
        share = self.fusion_weights.softmax(dim=0)
        wavelength = self.wavelength_encoding(batch.wavelength).to(share.dtype)
        spectral = self.spectral_enhancement_mlp(share[0] * wavelength + share[1] * self.fwhm_encoder(batch.fwhm))
        attributes = over_bands(self.attribute_encoder(batch.attributes), batch)
        return self.cross_modal_fusion(spectral, attributes) + spectral


class BandTransformer(nn.Module):
    """One transformer layer over the bands of each sample: [S, w] -> meta [S, w]."""

    def __init__(self, width: int, num_heads: int = 4):
        super().__init__()
        # torch's own layer, for its parameter names and initialization; only its attention is done here, per sample
        layer = nn.TransformerEncoderLayer(
            width, num_heads, width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)

    def forward(self, meta: Tensor, batch: SpectralBatch) -> Tensor:
        layer = self.transformer_encoder.layers[0]
        x = meta + self._attention(layer.self_attn, layer.norm1(meta), batch)
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        return x + meta

    @staticmethod
    def _attention(attention: nn.MultiheadAttention, x: Tensor, batch: SpectralBatch) -> Tensor:
        projected, mask = by_sample(F.linear(x, attention.in_proj_weight, attention.in_proj_bias), batch)
        q, k, v = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        key_mask = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask).transpose(1, 2).flatten(2)
        return attention.out_proj(by_band(mixed, batch))


class ContentFeatureExtractor(nn.Module):
    """The image's content, band by band, from its pooled maps: two [S, g * g] -> [S, w]."""

    def __init__(self, windows: int, width: int):
        super().__init__()
        self.avg_feature_encoder = self._encoder(windows, width)
        self.max_feature_encoder = self._encoder(windows, width)
        self.feature_fusion = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Dropout(FUSION_DROPOUT), nn.Linear(2 * width, width)
        )
        self.layer_norm = nn.LayerNorm(width)

    @staticmethod
    def _encoder(windows: int, width: int) -> nn.Sequential:
        inner = max(windows // 4, 1)
        return nn.Sequential(nn.Linear(windows, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, average: Tensor, maximum: Tensor) -> Tensor:
        content = torch.cat([self.avg_feature_encoder(average), self.max_feature_encoder(maximum)], dim=-1)
        return self.layer_norm(self.feature_fusion(content))


def generator(width: int, out_features: int) -> nn.Sequential:
    """The published factor generator: condition [S, w] -> [S, out_features]; its last layer is linear."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, width),
        nn.GELU(),
        nn.Dropout(FUSION_DROPOUT),
        nn.Linear(width, width // 2),
        nn.GELU(),
        nn.Linear(width // 2, out_features),
    )


def bias_generator(width: int, out_features: int) -> nn.Sequential:
    """The published bias generator: condition [*, w] -> [*, out_features]."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, out_features)
    )


class MatrixGenerator(nn.Module):
    """The generators of one factor pair U [rows, R], V [R, columns] and its bias."""

    def __init__(self, width: int, rows: int, rank: int, columns: int):
        super().__init__()
        self.rank, self.columns = rank, columns
        self.u_generator = generator(width, rows * rank)
        self.v_generator = generator(width, rank * columns)
        self.bias_generator = bias_generator(width, rows)

    def initialize_by_fan_in(self) -> None:
        """Draw the factors' generators so that U and V start with the spread of ordinary layers' weights.

        With every weight at the published 0.02 the factors start so small that the tokens of different patches differ
        by 1e-5 beside positions of size 1, and a short run never leaves the mean spectrum. Fan-in initialization of
        hypernetworks: Chang, Flokas and Lipson (ICLR 2020).
        """
        for layers, fan_in in ((self.v_generator, self.columns), (self.u_generator, self.rank)):
            first, second, last = (layer for layer in layers if isinstance(layer, nn.Linear))
            for layer, variance in (
                (first, 1 / first.in_features),  # follows a LayerNorm
                (second, 1 / (GELU_MEAN_SQUARE * second.in_features)),
                (last, 1 / (GELU_MEAN_SQUARE * last.in_features * fan_in)),
            ):
                nn.init.normal_(layer.weight, std=math.sqrt(variance))


def hidden_and_last(layers: nn.Sequential, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split a generator before its last layer: hidden [S, k], and that layer's weight [out, k] and bias [out]."""
    return layers[:-1](condition), layers[-1].weight, layers[-1].bias
