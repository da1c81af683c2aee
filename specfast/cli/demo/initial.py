"""The weights that the demo's pre-training starts from, and the untrained encoder of the same kind."""

from __future__ import annotations

import math

import torch

from specfast import SpecAwareEncoder


def initialize_generators(model: torch.nn.Module) -> None:
    """Draw the generators' weights anew so that generated factors have the spread of ordinary layers' weights.

    With every weight at the published 0.02, the factors of a small model start so small that tokens of different
    patches differ by 1e-5 beside positions of size 1, and a short run never leaves the mean spectrum. Fan-in
    initialization of hypernetworks: Chang, Flokas and Lipson (ICLR 2020).
    """
    after_gelu = 0.425  # mean square of gelu(z), z standard normal
    config = model.config
    pixels = config.patch_size**2
    heads = [(model.patch_embed.matrix_generator, pixels)]
    if hasattr(model, "decoder_pred"):
        heads.append((model.decoder_pred.matrix_generator, config.decoder_embed_dim))
    for generators, inner in heads:
        for layers, fan_in in ((generators.v_generator, inner), (generators.u_generator, config.rank)):
            first, second, last = (layer for layer in layers if isinstance(layer, torch.nn.Linear))
            for layer, variance in (
                (first, 1 / first.in_features),  # follows a LayerNorm
                (second, 1 / (after_gelu * second.in_features)),
                (last, 1 / (after_gelu * last.in_features * fan_in)),
            ):
                torch.nn.init.normal_(layer.weight, std=math.sqrt(variance))


class DemoEncoder(SpecAwareEncoder):
    """An encoder whose fresh weights are drawn as those that the demo's pre-training starts from.

    The probe's random control draws a fresh encoder of the same class: so it is a fair one.
    """

    def initialize(self) -> None:
        super().initialize()
        initialize_generators(self)

    @classmethod
    def load(cls, folder) -> DemoEncoder:
        """Load the encoder of a model saved in ``folder``."""
        saved = SpecAwareEncoder.from_pretrained(folder)
        encoder = cls(saved.config)
        encoder.load_state_dict(saved.state_dict())
        return encoder
