"""Which parameters decay."""

from __future__ import annotations

import pytest
import torch

from specfast import create_model
from specfast.train.optimizer import make_optimizer, parameter_groups


@pytest.fixture(scope="module")
def model():
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    return create_model("specaware_tiny_patch8", image_size=32, **sizes, **decoder)


def names_of(model, group) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_only_weight_matrices_decay(model):
    decayed, kept = (names_of(model, group) for group in parameter_groups(model, 0.05))
    assert decayed | kept == {name for name, _ in model.named_parameters()}
    assert not decayed & kept
    assert {"cls_token", "mask_token", "patch_embed.scaler", "norm.weight"} <= kept
    assert "patch_embed.spectral_embedding.fusion_weights" in kept
    assert all(name.endswith("weight") for name in decayed)
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)}
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    attention = {name for name in decayed if name.endswith("in_proj_weight")}
    assert decayed == linear | attention
    assert norms <= kept


def test_a_step_without_gradient_decays_matrices_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = names_of(model, optimizer.param_groups[0])
    for name, value in model.state_dict().items():
        assert torch.allclose(value, before[name] * (0.95 if name in decayed else 1.0)), name
    model.load_state_dict(before)


def test_frozen_parameters_are_left_out(model):
    model.cls_token.requires_grad_(False)
    try:
        assert "cls_token" not in set().union(*(names_of(model, group) for group in parameter_groups(model, 0.05)))
    finally:
        model.cls_token.requires_grad_(True)
