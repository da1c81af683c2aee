"""Element types the C++ kernels take, by the names the extension gives them."""

from __future__ import annotations

import torch

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
