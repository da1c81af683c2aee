"""The transformer: timm-style pre-norm blocks, and 2-D positions scaled by the ground sampling distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_NORM_EPS = 1e-6


def scaled_positions(rows: int, columns: int, gsd: Tensor, width: int) -> Tensor:
    """2-D sine-cosine positions of every patch, in units of ground distance (Scale-MAE, Reed et al. 2023).

    Args:
        rows, columns: the patch grid.
        gsd: [B] ground sampling distance in m.
        width: a multiple of 4; its first half encodes the column, the second the row.

    Returns:
        float32 [B, rows * columns, width], computed in float64.
    """
    quarter = width // 4
    omega = 10000 ** (-torch.arange(quarter, dtype=torch.float64, device=gsd.device) / quarter)

    def encode(count):
        phase = torch.arange(count, device=gsd.device) * gsd.double()[:, None]
        phase = phase[..., None] * omega
        return torch.cat([phase.sin(), phase.cos()], dim=-1).float()  # [B, count, width / 2]

    x = encode(columns)[:, None].expand(-1, rows, -1, -1)
    y = encode(rows)[:, :, None].expand(-1, -1, columns, -1)
    return torch.cat([x, y], dim=-1).flatten(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if key_mask is None else key_mask[:, None, None]
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm ViT block: x [B, L, width]; key_mask bool [B, L] is False for tokens nobody may attend to."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), key_mask)
        return x + self.mlp(self.norm2(x))
