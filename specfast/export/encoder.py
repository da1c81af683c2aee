"""FoldedEncoder: SpecAware's encoder for one sensor, in operations that every exporter knows.

Legend: B images, C bands, H x W pixels, p patch size, P = p * p, h x w patches, N = h * w, E width, R rank, g content
grid, w condition width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from specfast.data.bands import BandTable
from specfast.models import SpecAwareEncoder
from specfast.models.vit import scaled_positions


class FoldedEncoder(nn.Module):
    """An encoder that takes plain images of one sensor; make it with :func:`specfast.export.fold`.

    Every pixel must be valid: there is no mask, and a NaN spreads to the whole image.

    Attributes:
        bands: the table of the bands that images must hold, in this order.
        patch_size: p.
        image_size: (H, W) that images must have, or None if any multiples of p will do, up to ``MAX_SIDE`` patches.
        exact: whether it computes what the encoder does for every image.
        outputs: names of the outputs.
    """

    MAX_SIDE = 1024  # patches; positions are a table
    outputs = ("cls", "level_1", "level_2", "level_3", "level_4")

    def __init__(
        self,
        encoder: SpecAwareEncoder,
        embedding: nn.Module,
        bands: BandTable,
        image_size: tuple[int, int] | None,
        exact: bool,
    ):
        super().__init__()
        config = encoder.config
        self.bands, self.image_size, self.exact = bands, image_size, exact
        self.patch_size = config.patch_size
        self.embedding = embedding
        self.cls_token = nn.Parameter(encoder.cls_token.detach().clone())
        self.blocks, self.norm = copy.deepcopy(encoder.blocks), copy.deepcopy(encoder.norm)
        # either axis of the grid has the same table: half of the width encodes the column, half the row
        gsd = torch.tensor([bands.gsd * config.gsd_scale])
        longest = self.MAX_SIDE if image_size is None else max(image_size) // self.patch_size
        table = scaled_positions(1, longest, gsd, config.embed_dim)[0, :, : config.embed_dim // 2]
        self.register_buffer("axis", table.to(self.cls_token))
        depth = len(self.blocks)
        self._wanted = [-(-depth * quarter // 4) for quarter in range(1, 5)]
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode images [B, C, H, W].

        Returns:
            cls [B, E], then the four levels [B, E, H/p, W/p] of :class:`specfast.models.SpecAwareFeatures`.

        Raises:
            ValueError: the number of bands or the size does not fit.
        """
        self._check(image)
        rows, columns = image.shape[2] // self.patch_size, image.shape[3] // self.patch_size
        x = self.embedding(image) + self._positions(rows, columns)
        x = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), x], dim=1)
        levels = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number == len(self.blocks):
                x = self.norm(x)
            # a shallow encoder's quarters can end at the same block
            levels += [x[:, 1:].mT.unflatten(-1, (rows, columns))] * self._wanted.count(number)
        return x[:, 0], *levels

    def _positions(self, rows: int, columns: int) -> Tensor:
        x = self.axis[:columns][None].expand(rows, -1, -1)
        y = self.axis[:rows][:, None].expand(-1, columns, -1)
        return torch.cat([x, y], dim=-1).flatten(0, 1)

    def _check(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != len(self.bands):
            raise ValueError(f"image: expected [B, {len(self.bands)}, H, W]; got {list(image.shape)}")
        height, width = image.shape[2:]
        if self.image_size is not None:
            if (height, width) != self.image_size:
                expected = " x ".join(map(str, self.image_size))
                raise ValueError(f"image: expected {expected} pixels; got {height} x {width}")
            return
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image: expected multiples of {self.patch_size} pixels; got {height} x {width}")
        if max(height, width) > self.MAX_SIDE * self.patch_size:
            raise ValueError(f"image: expected at most {self.MAX_SIDE} patches a side; got {height} x {width} pixels")


class ConvolutionEmbedding(nn.Module):
    """The embedding as one convolution: [B, C, H, W] -> [B, N, E].

    Args:
        weight: [E, C, p, p].
        bias: [E].
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        width, bands, patch_size, _ = weight.shape
        self.convolution = nn.Conv2d(bands, width, patch_size, stride=patch_size).to(weight)
        with torch.no_grad():
            self.convolution.weight.copy_(weight)
            self.convolution.bias.copy_(bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.convolution(image).flatten(2).mT


class ContentEmbedding(nn.Module):
    """The embedding with the metadata folded in, and the factors generated from each image's content.

    Args:
        encoder: its modules are copied.
        meta: [C, w], what the metadata say of each band.
        image_size: (H, W).
    """

    def __init__(self, encoder: SpecAwareEncoder, meta: Tensor, image_size: tuple[int, int]):
        super().__init__()
        embed = encoder.patch_embed
        self.patch_size, self.rank = embed.patch_size, embed.rank
        self.register_buffer("meta", meta)
        self.pooling = AdaptivePooling(image_size, embed.content_grid)
        self.content_feature_extractor = copy.deepcopy(embed.content_feature_extractor)
        self.feature_fusion = copy.deepcopy(embed.feature_fusion)
        self.matrix_generator = copy.deepcopy(embed.matrix_generator)
        self.scaler = nn.Parameter(embed.scaler.detach().clone())
        self.to(meta.device)

    def forward(self, image: Tensor) -> Tensor:
        meta = self.meta.expand(image.shape[0], -1, -1)
        condition = self.feature_fusion(meta, self.content_feature_extractor(*self.pooling(image))) + meta
        generators, p = self.matrix_generator, self.patch_size
        factors_u = generators.u_generator(condition).unflatten(-1, (-1, self.rank))
        factors_v = generators.v_generator(condition).unflatten(-1, (self.rank, -1))
        kernel = factors_u @ factors_v  # [B, C, E, P]
        tiles = image.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, h, p, w, p]
        patches = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, N, C P]
        tokens = patches @ kernel.mT.flatten(1, 2)
        bias = generators.bias_generator(condition.mean(dim=1))
        return self.scaler * (tokens + bias[:, None])


class AdaptivePooling(nn.Module):
    """Adaptive average and maximum over a g x g grid of images of one size: [B, C, H, W] -> two [B, C, g * g].

    As matrix products and gathers, which every exporter knows; torch's own adaptive pooling is not exported for all
    sizes. Window i of g over n pixels spans floor(i n / g) to ceil((i + 1) n / g).
    """

    def __init__(self, image_size: tuple[int, int], grid: int):
        super().__init__()
        for name, pixels in zip(("rows", "columns"), image_size, strict=True):
            windows = [range(i * pixels // grid, -(-(i + 1) * pixels // grid)) for i in range(grid)]
            longest = max(map(len, windows))
            share = torch.zeros(grid, pixels)
            for number, window in enumerate(windows):
                share[number, list(window)] = 1 / len(window)
            # a window shorter than the longest names its last pixel again, which changes no maximum
            members = [[*window, *[window[-1]] * (longest - len(window))] for window in windows]
            self.register_buffer(f"{name}_share", share)
            self.register_buffer(f"{name}_members", torch.tensor(members))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        average = self.rows_share.to(image.dtype) @ image @ self.columns_share.to(image.dtype).mT
        maximum = image[:, :, self.rows_members].amax(dim=3)
        maximum = maximum[..., self.columns_members].amax(dim=-1)
        return average.flatten(2), maximum.flatten(2)
