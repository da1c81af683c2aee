"""A stand-in for the published code's model, which is not ours to ship: written from the paper's equations.

What :func:`specfast.patch` relies on is as published: names and shapes of parameters, and how the embedding and the
prediction head are called. The arithmetic is :mod:`bench.published`'s: everything is stored, nothing of specfast.ops.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench import published
from specfast.attributes import attribute_vectors
from specfast.models import SpecAwareConfig, condition
from specfast.models.decoder import AttentionPool, HyperLinearHead
from specfast.models.embedding import HyperEmbedding
from specfast.models.vit import BLOCK_NORM_EPS, Block, scaled_positions


class Spectral(condition.SpectralEmbedding):
    """wavelengths [B, C], fwhm [B, C], two names -> [B, C, w]."""

    def forward(self, wavelengths: Tensor, fwhm: Tensor, sensor_name: str, data_level: str) -> Tensor:
        if isinstance(sensor_name, list):
            (sensor_name,), (data_level,) = set(sensor_name), set(data_level)
        share = self.fusion_weights.softmax(dim=0)
        encoded = self.wavelength_encoding(wavelengths.flatten()).to(share).unflatten(0, wavelengths.shape)
        widths = self.fwhm_encoder(fwhm.flatten()).unflatten(0, fwhm.shape)
        spectral = self.spectral_enhancement_mlp(share[0] * encoded + share[1] * widths)
        attributes = self.attribute_encoder(attribute_vectors([sensor_name], [data_level]))
        return self.cross_modal_fusion(spectral, attributes.expand_as(spectral)) + spectral


class Bands(condition.BandTransformer):
    def forward(self, meta: Tensor) -> Tensor:
        return self.transformer_encoder(meta) + meta


class Embedding(nn.Module):
    def __init__(self, config: SpecAwareConfig):
        super().__init__()
        ours, width = HyperEmbedding(config), config.condition_dim
        self.kernel_size, self.grid = config.patch_size, config.content_grid
        self.spectral_embedding, self.spectral_aware_transformer = Spectral(width), Bands(width)
        for name in ("content_feature_extractor", "feature_fusion", "matrix_generator", "scaler"):
            setattr(self, name, getattr(ours, name))

    def forward(self, x, wavelengths, fwhm, sensor_name, data_level):
        if not isinstance(wavelengths, Tensor):
            wavelengths = torch.from_numpy(wavelengths).float()
        meta = self.spectral_aware_transformer(self.spectral_embedding(wavelengths, fwhm, sensor_name, data_level))
        pools = (nn.functional.adaptive_avg_pool2d, nn.functional.adaptive_max_pool2d)
        content = self.content_feature_extractor(*(pool(x, self.grid).flatten(2) for pool in pools))
        fused = self.feature_fusion(meta, content) + meta
        generators = self.matrix_generator
        factors = published.factors(generators, fused, rows=generators.bias_generator[-1].out_features)
        tokens = published.embed(published.unfolded(x, self.kernel_size), *factors)
        return self.scaler * (tokens + generators.bias_generator(fused.mean(dim=1))[:, None]), meta


class Attention(AttentionPool):
    """Query, key and value are arguments; the weights are returned as well."""

    def forward(self, query, key, value):
        weights = (self.query_proj(query) @ self.key_proj(key).mT * self.query_proj.out_features**-0.5).softmax(dim=-1)
        return weights @ self.value_proj(value), weights


class Head(nn.Module):
    def __init__(self, config: SpecAwareConfig):
        super().__init__()
        ours = HyperLinearHead(config)
        self.x_attention_pool = Attention(config.decoder_embed_dim)
        for name in ("x_feature_extractor", "feature_fusion", "matrix_generator"):
            setattr(self, name, getattr(ours, name))

    def forward(self, x, wavelengths_embedding):
        attended, _ = self.x_attention_pool(x.mean(dim=1, keepdim=True), x, x)
        content = self.x_feature_extractor(attended).expand_as(wavelengths_embedding)
        fused = self.feature_fusion(wavelengths_embedding, content) + content
        generators = self.matrix_generator
        factors = published.factors(generators, fused, rows=generators.bias_generator[-1].out_features)
        return published.predict(x, *factors, generators.bias_generator(fused))


class Model(nn.Module):
    """The masked autoencoder: images [B, C, H, W] -> loss, prediction [B, N, P * C]."""

    def __init__(self, config: SpecAwareConfig):
        super().__init__()
        self.patch_size, self.gsd_scale = config.patch_size, config.gsd_scale
        self.patch_embed = Embedding(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=BLOCK_NORM_EPS)
        width = config.decoder_embed_dim
        self.decoder_embed = nn.Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.decoder_num_heads, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.decoder_pred = Head(config)

    def forward(self, images, gsd, wavelength, fwhm, sensor_name, data_level, noise, mask_ratio=0.75):
        tokens, meta = self.patch_embed(images, wavelength, fwhm, sensor_name, data_level)
        side = images.shape[-1] // self.patch_size
        tokens = tokens + scaled_positions(side, side, gsd * self.gsd_scale, tokens.shape[-1]).to(tokens)
        kept = int(noise.shape[1] * (1 - mask_ratio))
        place = noise.argsort(dim=1).argsort(dim=1)
        order = noise.argsort(dim=1)
        x = tokens.gather(1, order[:, :kept, None].expand(-1, -1, tokens.shape[-1]))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = published.block(block, x)
        x = self.decoder_embed(self.norm(x))
        filled = torch.cat([x[:, 1:], self.mask_token.expand(len(x), noise.shape[1] - kept, -1)], dim=1)
        filled = filled.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))
        filled = filled + scaled_positions(side, side, gsd * self.gsd_scale, x.shape[-1]).to(x)
        x = torch.cat([x[:, :1], filled], dim=1)
        for block in self.decoder_blocks:
            x = published.block(block, x)
        prediction = self.decoder_pred(self.decoder_norm(x), meta)[:, 1:]
        mask = (place >= kept).float()
        counted = published.pixels_of(mask, self.patch_size)
        as_image = published.image_from_patches(prediction, images.shape[1], self.patch_size)
        spectral, charbonnier, pixels = published.pixel_losses(as_image, images, counted)
        return (spectral.sum() + 2 * charbonnier.sum()) / (pixels.sum() + 1e-6), prediction
