"""Task models: the published segmentation example, light heads, images of any size, saving and loading."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import specfast
from specfast import SpecAwareClassifier, SpecAwareRegressor, SpecAwareSegmenter, SpectralBatch, load_model
from specfast.errors import CheckpointError
from specfast.models.enlarging import on_patch_grid, to_pixels
from specfast.models.spectral_skip import SpectralSkip
from specfast.testing import assert_close
from tests.models.conftest import TINY, make_model, make_sample

NAMES = ("water", "soil", "trees")
EVERY_HEAD = [
    (cls, head) for cls in (SpecAwareSegmenter, SpecAwareClassifier, SpecAwareRegressor) for head in cls.HEADS
]


def make_task_model(cls, head, **options):
    torch.manual_seed(1)
    return cls.from_encoder(make_model("encoder"), NAMES, head, **options).eval()


def published_segmenter(golden):
    config = golden.config
    model = specfast.load_published(
        golden.section("state"), task="segmentation", image_size=config["image_size"], num_heads=config["num_heads"]
    )
    values = golden.section("in")
    batch = SpectralBatch.from_arrays(
        values["image"],
        values["wavelength_nm"],
        values["fwhm_nm"],
        values["gsd_m"],
        config["sensor"],
        config["level"],
    )
    return model.eval(), batch


def test_published_example(golden_segmentation):
    model, batch = published_segmenter(golden_segmentation)
    expected = golden_segmentation.section("out")
    with torch.no_grad():
        encoded = model.encode(batch)
        for number, level in enumerate(encoded.levels):
            assert_close(level, expected[f"level_{number}"], 1e-5, f"level {number}")
        assert_close(model(batch), expected["logits"], 1e-5, "logits")
    state = golden_segmentation.section("state")
    assert {name: value.shape for name, value in model.state_dict().items()} == {n: v.shape for n, v in state.items()}


def test_published_names_of_classes(golden_segmentation):
    state, config = golden_segmentation.section("state"), golden_segmentation.config
    options = {"task": "segmentation", "image_size": config["image_size"], "num_heads": config["num_heads"]}
    names = [f"crop {k}" for k in range(config["classes"])]
    assert specfast.load_published(state, **options, outputs=names).config.outputs == tuple(names)
    with pytest.raises(ValueError, match="outputs: expected 5 names"):
        specfast.load_published(state, **options, outputs=["one"])
    del state["decoder.psp.out_conv.0.weight"]
    with pytest.raises(CheckpointError, match=r"missing decoder\.psp\.out_conv\.0\.weight \[24, 48, 1, 1\]"):
        specfast.load_published(state, **options)
    encoder = {name: value for name, value in state.items() if name.startswith("encoder.")}
    with pytest.raises(CheckpointError, match="holds no segmentation head"):
        specfast.load_published(encoder, **options)


@pytest.mark.parametrize(("cls", "head"), EVERY_HEAD)
def test_images_of_any_size_and_saving(cls, head, tmp_path):
    skip = {} if head == "upernet" else {"spectral_skip": 12}
    model = make_task_model(cls, head, upsample=2, **skip)
    sample = make_sample(12, 19, 30)
    if model.skip is not None:
        model.skip.fit([sample])
    batch = model.batch_of([sample])
    scene = cls is SpecAwareClassifier or head == "scene"
    with torch.no_grad():
        out = model(batch)
        assert out.shape == ((1, 3) if scene else (1, 3, 19, 30))
        assert torch.isfinite(out).all()
        again = load_model(model.save_pretrained(tmp_path)).eval()
        assert type(again) is cls
        assert again.config == model.config
        assert torch.equal(again(batch), out)
    encoder = specfast.SpecAwareEncoder.from_pretrained(tmp_path)
    assert torch.equal(encoder.cls_token, model.encoder.cls_token)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "upernet"])
def test_every_trainable_parameter_gets_a_gradient(head):
    skip = {} if head == "upernet" else {"spectral_skip": 12}
    model = make_task_model(SpecAwareSegmenter, head, **skip).train()
    if skip:
        model.skip.fit([make_sample(12)])
    model(model.batch_of([make_sample(12)])).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_one_scene_is_enough_to_train_the_published_head():
    """Pooled to one number a channel, a single scene has no batch statistics."""
    model = make_task_model(SpecAwareSegmenter, "upernet", pyramid_channels=8, segmentation_channels=4).train()
    first = model.decoder.psp.blocks[0][1][1]
    before = first.running_mean.clone()
    model(model.batch_of([make_sample(5)])).mean().backward()
    assert torch.equal(first.running_mean, before)
    model(model.batch_of([make_sample(5), make_sample(5, seed=1)]))
    assert not torch.equal(first.running_mean, before)


@pytest.mark.parametrize("cls", [SpecAwareSegmenter, SpecAwareClassifier])
def test_invalid_pixels_do_not_matter(cls):
    model = make_task_model(cls, "mlp", upsample=2, spectral_skip=12)
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[:16, 8:] = False
    sample = make_sample(12, valid=valid)
    model.skip.fit([sample])
    spoiled = replace(sample, image=torch.where(valid, sample.image, 1e4))
    with torch.no_grad():
        one, other = (model(model.batch_of([each])) for each in (sample, spoiled))
    where = valid if cls is SpecAwareSegmenter else ...
    assert torch.equal(one[..., where], other[..., where])
    fitted = model.skip.mean.clone()
    model.skip.fit([spoiled])
    assert torch.equal(model.skip.mean, fitted)


def test_a_batch_gives_what_its_samples_give_alone():
    model = make_task_model(SpecAwareSegmenter, "conv", upsample=2)
    samples = [make_sample(12), make_sample(7, seed=1, sensor="avc", level="L1")]
    with torch.no_grad():
        together = model(model.batch_of(samples))
        alone = torch.cat([model(model.batch_of([sample])) for sample in samples])
    assert_close(together, alone, 2e-6)


def test_on_patch_grid():
    batch = SpectralBatch.from_samples([make_sample(3, 16, 16)], patch_size=8)
    assert on_patch_grid(batch, 8) is batch
    made = on_patch_grid(SpectralBatch.from_samples([make_sample(3, 7, 10)], patch_size=1), 8, 2)
    assert made.image.shape == (3, 16, 24)
    assert float(made.gsd) == pytest.approx(float(make_sample(3).gsd) / 2)
    assert torch.equal(made.image[:, :, 20:], made.image[:, :, 19:20].expand(-1, -1, 4))  # repeated, not zero
    flat = replace(make_sample(3, 8, 8), image=torch.full((3, 8, 8), 0.3))
    made = on_patch_grid(SpectralBatch.from_samples([flat]), 8, 2)
    assert_close(made.image, torch.full_like(made.image, 0.3), 1e-6)


def test_to_pixels_keeps_a_ramp_in_place():
    """A map that is linear in the place of patches stays that function at the pixels between their centers."""
    spacing, patches = 4, 6
    centers = (torch.arange(patches) + 0.5) * spacing
    maps = centers.expand(1, 1, patches, patches)
    pixels = to_pixels(maps, None, spacing, (22, 22))
    expected = (torch.arange(22) + 0.5).clamp(2.0, 22.0)
    assert_close(pixels[0, 0, 5], expected, 1e-6)
    present = torch.ones(1, patches, patches, dtype=torch.bool)
    present[..., 0] = False
    spoiled = torch.where(present[:, None], maps, -1e6)
    assert (to_pixels(spoiled, present, spacing, (22, 22))[0, 0, 5, 2:] >= 6 - 1e-4).all()


def test_spectral_skip_is_standardized_and_serves_one_sensor():
    skip = SpectralSkip(12)
    sample = make_sample(12)
    with pytest.raises(ValueError, match=r"call model\.skip\.fit"):
        skip(SpectralBatch.from_samples([sample]))
    skip.fit([sample, make_sample(12, seed=3)])
    batch = SpectralBatch.from_samples([sample, make_sample(12, seed=3)])
    values = skip(batch)
    assert_close(values.mean(dim=(0, 2, 3)) + 1, torch.ones(12), 1e-5)
    assert_close(values.std(dim=(0, 2, 3), correction=0), torch.ones(12), 1e-5)
    with pytest.raises(ValueError, match=r"expected 12 bands in every sample.*got \[5\]"):
        skip(SpectralBatch.from_samples([make_sample(5)]))
    moved = replace(sample, wavelength=sample.wavelength + 3)
    with pytest.raises(ValueError, match=r"sample 0: band 0 lies at 403\.0 nm; expected 400\.0 nm"):
        skip(SpectralBatch.from_samples([moved]))
    with pytest.raises(ValueError, match="at least one valid pixel"):
        SpectralSkip(12).fit([replace(sample, valid=torch.zeros(32, 32, dtype=torch.bool))])


def test_spectra_around_a_pixel():
    """Averages over squares leave out invalid pixels and what lies beyond the image."""
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[4, 5] = False
    sample = make_sample(12, valid=valid)
    plain, both = SpectralSkip(12), SpectralSkip(12, [1, 3])
    for skip in (plain, both):
        skip.fit([sample])
    batch = SpectralBatch.from_samples([sample])
    one, averaged = plain(batch)[0], both(batch)[0]
    assert torch.equal(averaged[:12], one)
    assert_close(averaged[12:, 10, 20], one[:, 9:12, 19:22].mean(dim=(1, 2)), 1e-5)
    assert_close(averaged[12:, 0, 0], one[:, :2, :2].mean(dim=(1, 2)), 1e-5)
    assert_close(averaged[12:, 5, 5], one[:, 4:7, 4:7].sum(dim=(1, 2)) / 8, 1e-5)  # one neighbor is invalid
    assert (averaged[:, 4, 5] == 0).all()
    with pytest.raises(ValueError, match=r"spectral_sides: expected odd numbers of pixels, at least one; got \[2\]"):
        SpectralSkip(12, [2])


def test_shapes_of_spectra_do_not_know_brightness():
    """Beside the spectra stand the same ones of length 1, standardized; a shaded pixel keeps its shape."""
    valid = torch.ones(32, 32, dtype=torch.bool)
    valid[4, 5] = False
    sample = make_sample(12, valid=valid)
    plain, both = SpectralSkip(12, [1, 3]), SpectralSkip(12, [1, 3], shape=True)
    for skip in (plain, both):
        skip.fit([sample])
    assert both.channels == 48
    batch = SpectralBatch.from_samples([sample])
    spectra, shapes = both(batch)[0].unflatten(0, (2, 2, 12)).transpose(0, 1).flatten(1, 2)
    assert torch.equal(spectra, plain(batch)[0])
    unit = sample.image / sample.image.norm(dim=0)
    known = unit[:, valid].double()
    wanted = (unit - known.mean(dim=1)[:, None, None]) / known.std(dim=1, correction=0)[:, None, None]
    assert_close(shapes[:12, valid], wanted[:, valid].float(), 1e-4)
    around = sample.image[:, 9:12, 19:22].mean(dim=(1, 2))
    wanted = (around / around.norm() - known.mean(dim=1)) / known.std(dim=1, correction=0)
    assert_close(shapes[12:, 10, 20], wanted.float(), 1e-4)
    assert (shapes[:, 4, 5] == 0).all()
    shaded = SpectralBatch.from_samples([replace(sample, image=0.3 * sample.image)])
    darker, same = both(shaded)[0].unflatten(0, (2, 2, 12)).transpose(0, 1).flatten(1, 2)
    assert_close(same, shapes, 1e-4)
    assert not torch.allclose(darker, spectra, atol=0.1)
    dark = sample.image.clone()
    dark[:, 12:20, 12:20] = 0.0
    dark[:, 22:30, 22:30] *= 1e-6
    found = both(SpectralBatch.from_samples([replace(sample, image=dark)]))[0].unflatten(0, (2, 2, 12))[:, 1]
    nothing = -known.mean(dim=1) / known.std(dim=1, correction=0)  # a spectrum of zeros has the length 0
    for side in found:
        assert_close(side[:, 15, 15], nothing.float(), 1e-4)
    assert_close(found[:, :, 26, 26].flatten(), shapes[:, 26, 26], 1e-3)


def test_whitened_levels_are_uncorrelated():
    model = make_task_model(SpecAwareSegmenter, "linear", components=5, spectral_skip=12)
    samples = [make_sample(12), make_sample(12, seed=2)]
    model.skip.fit(samples)
    batch = model.batch_of(samples)
    with torch.no_grad():
        encoded = model.encode(batch)
        model.head.fit_whitening([(encoded.levels, encoded.present)])
        tokens = model.head._normalized(encoded.levels).flatten(0, 2).double()
        assert_close(tokens.T @ tokens / len(tokens), torch.eye(5, dtype=torch.float64), 1e-3)
        weight, bias = torch.randn(3, 17), torch.randn(3)
        model.head.set_linear(weight, bias)
        inputs = model.head.inputs(encoded.levels, encoded.present, model.spectrum(batch), model.spacing, (32, 32))
        expected = torch.einsum("kf,bfhw->bkhw", weight, inputs) + bias[:, None, None]
        assert_close(model(batch), expected, 1e-5)


def test_targets_come_in_their_units():
    model = make_task_model(SpecAwareRegressor, "linear")
    targets = torch.randn(500, 3, dtype=torch.float64) * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([0.0, 300.0, -5])
    targets[::7, 1] = torch.nan
    model.fit_targets(targets)
    assert_close(model.target_mean.double(), targets.nanmean(dim=0), 1e-6)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        out = model(model.batch_of([make_sample(5)]))
    assert_close(out[0, :, 3, 3].double(), targets.nanmean(dim=0), 1e-6)
    with pytest.raises(ValueError, match="no value is given for soil"):
        model.fit_targets(torch.tensor([[1.0, torch.nan, 2.0]]))


def test_abundances_are_shares():
    model = make_task_model(SpecAwareRegressor, "mlp", constraint="abundance")
    with torch.no_grad():
        out = model(model.batch_of([make_sample(5)]))
    assert (out >= 0).all()
    assert_close(out.sum(dim=1), torch.ones(1, 32, 32), 1e-6)
    with pytest.raises(ValueError, match="constraint: expected one of none, abundance; got 'sum'"):
        make_task_model(SpecAwareRegressor, "mlp", constraint="sum")
    with pytest.raises(ValueError, match="constraint: abundance needs at least two targets that sum to 1; got one"):
        SpecAwareRegressor.from_encoder(make_model("encoder"), ("soil",), "mlp", constraint="abundance")


def test_from_encoder_copies():
    pretrained = make_model()
    model = SpecAwareSegmenter.from_encoder(pretrained, NAMES)
    assert model.config.head == "mlp"
    assert torch.equal(model.encoder.norm.weight, pretrained.norm.weight)
    with torch.no_grad():
        model.encoder.norm.weight.add_(1)
    assert not torch.equal(model.encoder.norm.weight, pretrained.norm.weight)


def test_from_a_folder_of_any_model(tmp_path):
    make_model().save_pretrained(tmp_path / "mae")
    one = SpecAwareSegmenter.from_encoder(tmp_path / "mae", NAMES, "linear")
    one.save_pretrained(tmp_path / "task")
    other = SpecAwareClassifier.from_encoder(tmp_path / "task", NAMES)
    assert torch.equal(other.encoder.cls_token, one.encoder.cls_token)


def test_create_model_for_a_task():
    model = specfast.create_model(
        "specaware_tiny_patch8", task="segmentation", outputs=NAMES, head="conv", head_options={"hidden": 8}, **TINY
    )
    assert isinstance(model, SpecAwareSegmenter)
    assert model.config.options == {
        "upsample": 1,
        "spectral_skip": 0,
        "spectral_shape": False,
        "spectral_sides": [1],
        "components": 0,
        "tokens": True,
        "hidden": 8,
        "depth": 3,
        "dropout": 0.1,
    }
    with pytest.raises(ValueError, match="task: must be one of pretrain, encoder, segmentation"):
        specfast.create_model("specaware_tiny_patch8", task="x")
    with pytest.raises(ValueError, match="outputs: task 'segmentation' needs the names"):
        specfast.create_model("specaware_tiny_patch8", task="segmentation", **TINY)
    with pytest.raises(ValueError, match="only for the task models"):
        specfast.create_model("specaware_tiny_patch8", head="mlp", **TINY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "unet"}, "head: expected one of upernet, linear, mlp, conv; got 'unet'"),
        ({"hiden": 3}, "options: hiden unknown to head 'mlp'; it has components, dropout, hidden, spectral_shape"),
        ({"upsample": 3}, "upsample: expected a divisor of the patch size 8; got 3"),
        ({"outputs": ()}, "outputs: expected the names of at least one"),
        ({"outputs": ("a", "a")}, "outputs: expected different names"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpecAwareSegmenter.from_encoder(make_model("encoder"), **{"outputs": NAMES, **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": "big"}, "hidden: expected int, got 'big'"),
        ({"hidden": True}, "hidden: expected int, got True"),
        ({"hidden": 8.0}, r"hidden: expected int, got 8\.0"),
        ({"components": None}, "components: expected int, got None"),
        ({"dropout": "1e-1"}, "dropout: expected float, got '1e-1'"),
        ({"upsample": "2"}, "upsample: expected int, got '2'"),
        ({"spectral_sides": 3}, "spectral_sides: expected list of int, got 3"),
        ({"spectral_sides": [1, "a"]}, r"spectral_sides: expected list of int, got \[1, 'a'\]"),
        ({"spectral_sides": [3.5]}, r"spectral_sides: expected list of int, got \[3\.5\]"),
        ({"constraint": False}, "constraint: expected str, got False"),
    ],
)
def test_options_of_a_wrong_kind(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_task_model(SpecAwareRegressor, "mlp", **{"spectral_skip": 12, **options})


def test_options_of_a_kind_that_serves():
    """A tuple for a list, a whole number for a fraction, NumPy's numbers; and every default."""
    options = {"spectral_sides": (1, 3), "dropout": 0, "hidden": np.int64(8), "spectral_skip": 12}
    assert make_task_model(SpecAwareSegmenter, "mlp", **options).skip.sides == (1, 3)
    for cls, head in EVERY_HEAD:
        make_task_model(cls, head, **cls.HEADS[head])


def test_loading_says_what_is_wrong(tmp_path):
    folder = make_task_model(SpecAwareClassifier, "linear").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a SpecAwareClassifier, expected a SpecAwareSegmenter"):
        SpecAwareSegmenter.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="holds a SpecAwareClassifier, expected a SpecAwareMAE"):
        specfast.SpecAwareMAE.from_pretrained(folder)
    assert load_model(folder, gradient_checkpointing=True).encoder.config.gradient_checkpointing
    values = json.loads((folder / "config.json").read_text())
    for content, message in (
        ([1], "is not a model's configuration: holds a list"),
        ({**values, "architecture": "Other"}, "holds architecture 'Other'; expected one of SpecAwareMAE"),
    ):
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            load_model(folder)
    (folder / "config.json").write_text(json.dumps({**values, "encoder": 3}))
    with pytest.raises(ValueError, match="expected the encoder's options under 'encoder'"):
        load_model(folder)


@pytest.mark.parametrize(("task", "name"), [("pretrain", "SpecAwareMAE"), ("encoder", "SpecAwareEncoder")])
def test_load_model_reads_other_models_too(task, name, tmp_path):
    make_model(task).save_pretrained(tmp_path)
    assert type(load_model(tmp_path)).__name__ == name
