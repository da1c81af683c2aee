"""specfast.patch: the published code's model through our operators, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import specfast
from specfast.models.patching import PatchedEmbedding, PatchedHead
from specfast.testing import assert_close
from tests.models import published_code
from tests.models.conftest import make_model


def make_published(**overrides) -> published_code.Model:
    ours = make_model(**overrides)
    model = published_code.Model(ours.config)
    model.load_state_dict(ours.state_dict())
    return model.eval()


def inputs(bands: int = 12, dtype: torch.dtype = torch.float32, side: int = 32) -> dict:
    generator = torch.Generator().manual_seed(bands)
    wavelength = torch.linspace(400, 2400, bands).expand(2, -1)
    values = {
        "images": torch.rand(2, bands, side, side, generator=generator),
        "gsd": torch.tensor([4.0, 18.0]),
        "wavelength": wavelength,
        "fwhm": torch.full_like(wavelength, 9.0) + torch.rand(2, bands, generator=generator),
        "sensor_name": "av3",
        "data_level": "L2",
        "noise": torch.rand(2, (side // 8) ** 2, generator=generator),
    }
    return {key: value.to(dtype) if isinstance(value, torch.Tensor) else value for key, value in values.items()}


def step(model: nn.Module, values: dict):
    """Loss, prediction, and gradients by name."""
    model.zero_grad()
    torch.manual_seed(3)  # dropout
    loss, prediction = model(**values)
    loss.backward()
    return loss, prediction, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("bands", [7, 80])  # the planner takes either form
@pytest.mark.parametrize("grid", [4, 6], ids=["own-grid", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_outputs_and_gradients_agree(bands, grid, training, dtype):
    model, values = make_published(content_grid=grid).train(training).to(dtype), inputs(bands, dtype)
    loss, prediction, gradients = step(model, values)
    assert specfast.patch(model) is model
    patched_loss, patched_prediction, patched_gradients = step(model, values)
    # wavelengths are encoded in float32 either way; in float32, gradients that nearly cancel keep few digits
    tolerance, of_gradients = (1e-10, 1e-9) if dtype == torch.float64 else (1e-5, 1e-3)
    assert_close(patched_loss, loss, tolerance, "loss")
    assert_close(patched_prediction, prediction, tolerance, "prediction")
    assert set(patched_gradients) == set(gradients)
    for name, gradient in gradients.items():
        assert_close(patched_gradients[name], gradient, of_gradients, name)


def test_published_numbers(golden_mae):
    """The golden numbers come from the published code itself."""
    model = published_code.Model(specfast.load_published(golden_mae.section("state"), **heads(golden_mae)).config)
    model.load_state_dict(golden_mae.section("state"))
    given = golden_mae.section("in")
    samples = len(given["image"])
    values = {
        "images": given["image"],
        "gsd": given["gsd_m"].expand(samples),
        "wavelength": given["wavelength_nm"].expand(samples, -1),
        "fwhm": given["fwhm_nm"].expand(samples, -1),
        "sensor_name": golden_mae.config["sensor"],
        "data_level": golden_mae.config["level"],
        "noise": given["mask_noise"],
        "mask_ratio": golden_mae.config["mask_ratio"],
    }
    loss, prediction, gradients = step(specfast.patch(model.eval()), values)
    assert_close(loss, golden_mae.section("out")["loss"], 1e-6, "loss")
    assert_close(prediction, golden_mae.section("out")["pred"], 1e-5, "prediction")
    for name, expected in golden_mae.section("grad").items():
        assert_close(gradients[name], expected, 1e-4, name)


def heads(golden) -> dict:
    return {name: golden.config[name] for name in ("num_heads", "decoder_num_heads")}


def test_parameters_are_the_same_objects_under_the_same_names():
    model = make_published()
    before, modules = dict(model.named_parameters()), dict(model.named_modules())
    specfast.patch(model)
    assert isinstance(model.patch_embed, PatchedEmbedding)
    assert isinstance(model.decoder_pred, PatchedHead)
    assert "in the place of Embedding" in repr(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert specfast.unpatch(model) is model
    assert {name: id(module) for name, module in model.named_modules()} == {n: id(m) for n, m in modules.items()}


def test_an_optimizer_made_before_goes_on():
    plain, patched = make_published(), make_published()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (plain, patched)]
    for number in range(3):
        if number == 1:
            specfast.patch(patched)
        if number == 2:
            specfast.unpatch(patched)
        for model, optimizer in zip((plain, patched), optimizers, strict=True):
            step(model, inputs())
            optimizer.step()
    for (name, one), other in zip(plain.named_parameters(), patched.parameters(), strict=True):
        assert_close(other, one, 1e-5, name)


def test_what_is_done_to_the_patched_model_stays_after_unpatch():
    model, calls = make_published(), []
    model.patch_embed.register_forward_hook(lambda *_: calls.append("hook"))
    specfast.patch(model)
    model.double().train()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    replaced = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    model.patch_embed.scaler = replaced
    specfast.unpatch(model)
    assert isinstance(model.patch_embed, published_code.Embedding)
    assert model.patch_embed.scaler is replaced
    assert model.patch_embed.training
    assert model.norm.weight.dtype == torch.float64
    model(**inputs(dtype=torch.float64))
    assert calls == ["hook"]


def test_a_copy_is_independent():
    model = specfast.patch(make_published())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.patch_embed.scaler.fill_(7.0)
    assert model.patch_embed.scaler.item() == pytest.approx(0.3)
    assert specfast.unpatch(twin).patch_embed.scaler.item() == 7.0


def test_calls_that_the_published_code_takes():
    model = make_published()
    values = inputs()
    embedding = (values["images"], values["wavelength"], values["fwhm"])
    expected = model.patch_embed(*embedding, "av3", "L2")
    specfast.patch(model)
    as_numpy = values["wavelength"].double().numpy()
    actual = model.patch_embed(values["images"], as_numpy, values["fwhm"], ["av3", "av3"], ["L2", "L2"])
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, 1e-5)


def test_modules_at_the_root_and_below():
    embedding = make_published().patch_embed
    patched = specfast.patch(embedding)
    assert isinstance(patched, PatchedEmbedding)
    assert specfast.unpatch(patched) is embedding
    nested = nn.ModuleDict({"encoder": nn.ModuleList([make_published().patch_embed, nn.Identity()])})
    assert isinstance(specfast.patch(nested)["encoder"][0], PatchedEmbedding)


def test_patching_twice_changes_nothing():
    model = specfast.patch(make_published())
    embedding = model.patch_embed
    assert specfast.patch(model).patch_embed is embedding


def test_checking_leaves_mode_and_random_numbers_alone():
    model = make_published().train()
    model.patch_embed.feature_fusion.eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    specfast.patch(model)
    assert torch.equal(torch.rand(3), expected)
    assert not model.patch_embed.feature_fusion.training
    assert model.patch_embed.matrix_generator.training


def test_models_without_published_modules_are_named():
    with pytest.raises(ValueError, match="patch: Linear holds no module of the published code"):
        specfast.patch(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="none that is not specfast's has a matrix_generator"):
        specfast.patch(make_model())
    with pytest.raises(ValueError, match=r"unpatch: no module of Linear was replaced"):
        specfast.unpatch(nn.Linear(2, 2))


def test_every_reason_is_named_and_nothing_is_replaced():
    model = make_published()
    embedding = model.patch_embed
    embedding.feature_fusion.gate = nn.Linear(2, 2)
    embedding.content_feature_extractor.layer_norm = nn.LayerNorm(3)
    del model.decoder_pred.x_attention_pool.key_proj
    with pytest.raises(ValueError, match=r"^patch: nothing was replaced; patch_embed: ") as error:
        specfast.patch(model)
    for part in (
        "unexpected feature_fusion.gate.weight [2, 2]",
        "misshapen content_feature_extractor.layer_norm.weight [3], expected [128]",
        "decoder_pred: missing x_attention_pool.key_proj.weight [64, 32]",
    ):
        assert part in str(error.value)
    assert model.patch_embed is embedding


def test_generators_of_another_kind_are_named():
    model = make_published()
    model.patch_embed.matrix_generator.u_generator = nn.Identity()
    with pytest.raises(ValueError, match="patch_embed: its sizes cannot be read off its generators"):
        specfast.patch(model)


class Scaled(published_code.Head):
    """Same names and shapes, another computation."""

    def forward(self, *arguments):
        return super().forward(*arguments) * 1.01


class Wrapped(published_code.Head):
    def forward(self, *arguments):
        return super().forward(*arguments)[:, 1:]


class Renamed(published_code.Head):
    def forward(self, x, *, meta):
        return super().forward(x, meta)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Scaled, r"names and shapes match, but it computes something else \(relative difference 9\.9e-03"),
        (Wrapped, r"decoder_pred: it returns \[1, 4, 192\]; expected \[1, 5, 192\]"),
        (Renamed, "calling it as the published module is called failed"),
    ],
)
def test_what_computes_something_else_is_left_alone(head, message):
    model = make_published()
    ours = make_model()
    model.decoder_pred = head(ours.config)
    model.decoder_pred.load_state_dict(ours.decoder_pred.state_dict())
    with pytest.raises(ValueError, match=message):
        specfast.patch(model)
    assert type(model.patch_embed) is published_code.Embedding


def test_a_forward_exchanged_on_the_instance_is_named():
    model = make_published()
    model.patch_embed.forward = lambda *_: None
    with pytest.raises(ValueError, match="patch_embed: its forward was exchanged on the instance"):
        specfast.patch(model)


def test_a_model_on_meta_is_patched_by_structure_alone():
    with torch.device("meta"):
        model = make_published()
    specfast.patch(model)
    assert isinstance(model.decoder_pred, PatchedHead)
