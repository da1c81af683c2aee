"""spectral_loss by the C++ passes over tiles of predicted pixels, which hyper_linear_loss shares.

Legend: B samples, C bands of one sample, S all bands, M tokens, P pixels a patch.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from specfast import _native
from specfast.ops.native.cpu.dtypes import DTYPES
from specfast.ops.native.cpu.tiles import groups


def with_adjacent_rows(pixels: Tensor) -> Tensor:
    """[S, M, P] whose last two dimensions are adjacent; a slice of the tokens of all patches needs no copy."""
    tokens, width = pixels.shape[1:]
    adjacent = (width < 2 or pixels.stride(2) == 1) and (tokens < 2 or pixels.stride(1) == width)
    return pixels if adjacent else pixels.contiguous()


def _tile(prediction: Tensor, target: Tensor, bias: Tensor | None) -> dict:
    return {
        "prediction": prediction.data_ptr(),
        "dtype": DTYPES[prediction.dtype],
        "target": target.data_ptr(),
        "target_dtype": DTYPES[target.dtype],
        "shape": tuple(prediction.shape),
        "strides": (prediction.stride(0), target.stride(0)),
        "bias": 0 if bias is None else bias.data_ptr(),
        "bias_stride": 0 if bias is None else bias.stride(0),
        "threads": torch.get_num_threads(),
    }


class SampleSums:
    """pred^2, pred * target, target^2 (into ``sums`` [3, M, P]) and Charbonnier, summed over the bands of a sample."""

    def __init__(self, sums: Tensor):
        self.sums = sums.zero_()
        self.charbonnier = torch.zeros_like(sums[0])

    def add(self, prediction: Tensor, target: Tensor, bias: Tensor | None = None, first_token: int = 0) -> None:
        """Take in a tile of bands and tokens, both [c, m, P] with adjacent rows; bias [c, P] is added to prediction."""
        _native.extension().pixel_sums(
            **_tile(prediction, target, bias),
            sums=self.sums[0, first_token:].data_ptr(),
            plane=self.charbonnier.numel(),
            charbonnier=self.charbonnier[first_token:].data_ptr(),
        )

    def reduce(self, valid: Tensor, bands: int, loss: Tensor) -> None:
        """Write spectral sum, Charbonnier sum and number of valid pixels to ``loss`` [3]."""
        _native.extension().loss_of_sums(
            sums=self.sums.data_ptr(),
            charbonnier=self.charbonnier.data_ptr(),
            valid=valid.data_ptr(),
            shape=(bands, *valid.shape),
            loss=loss.data_ptr(),
        )


class SampleGradient:
    """d loss / d prediction of one sample, from the sums of its forward pass."""

    def __init__(self, sums: Tensor, valid: Tensor, bands: int, dspectral: float, dcharbonnier: float):
        self.coefficients = sums.new_empty(3, *valid.shape)
        self.slope = dcharbonnier / max(bands, 1)
        _native.extension().loss_coefficients(
            sums=sums.data_ptr(),
            valid=valid.data_ptr(),
            shape=(bands, *valid.shape),
            dspectral=dspectral,
            coefficients=self.coefficients.data_ptr(),
        )

    def replace(
        self,
        prediction: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        first_token: int = 0,
        dbias: Tensor | None = None,
    ) -> None:
        """Turn a tile of predictions into their gradient, and add its sum over tokens to dbias, float32 [c, P]."""
        _native.extension().pixel_gradient(
            **_tile(prediction, target, bias),
            coefficients=self.coefficients[0, first_token:].data_ptr(),
            plane=self.coefficients[0].numel(),
            slope=self.slope,
            dbias=0 if dbias is None else dbias.data_ptr(),
        )


def spectral_loss_fwd(
    prediction: Tensor, target: Tensor, valid: Tensor, cu_bands: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return spectral sum, Charbonnier sum, valid pixels (all [B]) and, for backward, sums [B, 3, M, P]."""
    prediction, target, valid = with_adjacent_rows(prediction), with_adjacent_rows(target), valid.contiguous()
    sums = prediction.new_empty(valid.shape[0], 3, *valid.shape[1:], dtype=torch.float32)
    losses = sums.new_empty(valid.shape[0], 3)
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        of_sample = SampleSums(sums[b])
        of_sample.add(prediction[start:end], target[start:end])
        of_sample.reduce(valid[b], end - start, losses[b])
    return *(column.clone() for column in losses.unbind(1)), sums


def spectral_loss_bwd(
    dspectral: Tensor,
    dcharbonnier: Tensor,
    prediction: Tensor,
    target: Tensor,
    valid: Tensor,
    cu_bands: Tensor,
    sums: Tensor,
) -> Tensor:
    """Return dprediction [S, M, P]."""
    target, valid, sums = with_adjacent_rows(target), valid.contiguous(), sums.contiguous()
    tokens, pixels = prediction.shape[1:]
    dprediction = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    dspectral, dcharbonnier = dspectral.tolist(), dcharbonnier.tolist()
    for b, (start, end) in enumerate(itertools.pairwise(cu_bands.tolist())):
        gradient = SampleGradient(sums[b], valid[b], end - start, dspectral[b], dcharbonnier[b])
        for bands in groups(slice(start, end), tokens * pixels * prediction.itemsize):
            gradient.replace(dprediction[bands].copy_(prediction[bands]), target[bands])
    return dprediction
