"""Calls of hyper_linear's and the losses' Triton launchers for the compile tests, as in launches.py."""

from __future__ import annotations

import torch

from specfast.kernels import triton as kernels
from tests.kernels.launches import BATCHES, SIZES


def _linear_inputs(dtype, size, bands, tokens):
    p, r, k, d = size["pixels"], size["rank"], size["hidden"], size["width"]
    s = sum(bands)
    shapes = [(len(bands), tokens, d), (s, k), (r, d, k), (r, d), (s, p, r), (s, p)]
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


def _target(dtype, size, bands, tokens):
    pixels = size["pixels"]
    target = torch.zeros(sum(bands), tokens, pixels, dtype=dtype)
    valid = torch.zeros(len(bands), tokens, pixels, dtype=torch.bool)
    return target, valid, torch.tensor([0, *bands]).cumsum(0).to(torch.int32)


def hyper_linear(dtype, size):
    for bands, tokens in BATCHES:
        arguments = *_linear_inputs(dtype, SIZES[size], bands, tokens), _target(dtype, SIZES[size], bands, tokens)[2]
        for form in ("reassociated", "direct"):
            prediction, *saved = kernels.hyper_linear_fwd(*arguments, form)
            kernels.hyper_linear_bwd(torch.zeros_like(prediction), *arguments, *saved, form)
        yield


def hyper_linear_loss(dtype, size):
    for bands, tokens in BATCHES:
        inputs = _linear_inputs(dtype, SIZES[size], bands, tokens)
        arguments = *inputs, *_target(dtype, SIZES[size], bands, tokens)
        for form in ("reassociated", "direct"):
            spectral, charbonnier, _, *saved = kernels.hyper_linear_loss_fwd(*arguments, form)
            kernels.hyper_linear_loss_bwd(spectral, charbonnier, *arguments, *saved, form)
        yield


def spectral_loss(dtype, size):
    for bands, tokens in BATCHES:
        target, *others = _target(dtype, SIZES[size], bands, tokens)
        arguments = target, target, *others
        spectral, charbonnier, _, sums = kernels.spectral_loss_fwd(*arguments)
        kernels.spectral_loss_bwd(spectral, charbonnier, *arguments, sums)
        yield


LAUNCHES = {"hyper_linear": hyper_linear, "hyper_linear_loss": hyper_linear_loss, "spectral_loss": spectral_loss}
WITHOUT_DOT = {"pixel_coefficients_kernel", "spectral_loss_bwd_kernel", "spectral_loss_fwd_kernel"}
