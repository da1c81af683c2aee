"""load_published, initialize_from_vit, the registry, and save/from_pretrained."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

import specfast
from specfast.errors import CheckpointError
from specfast.models.pretrained import WEIGHTS_FILE
from specfast.testing import assert_close
from tests.models.conftest import TINY, make_model


@pytest.fixture
def state():
    return {name: value.clone() for name, value in make_model().state_dict().items()}


HEADS = {"num_heads": 2, "decoder_num_heads": 2}


def test_sizes_are_inferred(state):
    model = specfast.load_published(state, **HEADS)
    assert model.config == make_model().config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_default_heads_are_the_base_models():
    sizes = {"depth": 1, "decoder_depth": 1, "image_size": 32, "rank": 2}
    state = specfast.create_model("specaware_base_patch8", **sizes).state_dict()
    config = specfast.load_published(state).config
    assert (config.num_heads, config.decoder_num_heads) == (12, 16)


def test_sources(tmp_path, state):
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 3}, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    for source in (tmp_path / "a.pth", str(tmp_path / "b.safetensors"), {"state_dict": state}):
        model = specfast.load_published(source, **HEADS)
        assert torch.equal(model.cls_token, state["cls_token"])


def test_a_pickle_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: cannot be read as a file of tensors alone: Weights only"):
        specfast.load_published(tmp_path / "evil.pth")


@pytest.mark.parametrize("name", ["half.pth", "half.safetensors"])
def test_a_truncated_file_is_named(tmp_path, state, name):
    (torch.save if name.endswith("pth") else save_file)(state, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read"):
        specfast.load_published(tmp_path / name)


def test_encoder_only_checkpoints(state):
    encoder_state = {k: v for k, v in state.items() if not k.startswith(("decoder_", "mask_token"))}
    encoder = specfast.load_published(encoder_state, task="encoder", num_heads=2)
    assert isinstance(encoder, specfast.SpecAwareEncoder)
    with pytest.raises(CheckpointError, match="encoder-only checkpoint cannot serve task 'pretrain'"):
        specfast.load_published(encoder_state, **HEADS)
    assert isinstance(specfast.load_published(state, task="encoder", num_heads=2), specfast.SpecAwareEncoder)
    with pytest.raises(ValueError, match="task: must be one of pretrain, encoder, segmentation; got 'regression'"):
        specfast.load_published(state, task="regression")


def test_every_wrong_key_is_named_in_one_error(state):
    state["surplus"] = torch.zeros(3)
    state["norm.weight"] = torch.zeros(7)
    del state["decoder_norm.bias"]
    with pytest.raises(CheckpointError) as error:
        specfast.load_published(state, **HEADS)
    for part in (
        "missing decoder_norm.bias [32]",
        "unexpected surplus [3]",
        "misshapen norm.weight [7], expected [32]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("patch_embed.matrix_generator.u_generator.6.weight", (7, 64), "expected a multiple of 32 rows"),
        (
            "patch_embed.matrix_generator.v_generator.6.weight",
            (64 * 60, 64),
            "its pixels a patch to be a square, got 60",
        ),
        ("cls_token", (), "expected 3 dimensions"),
        ("decoder_pred.matrix_generator.u_generator.6.weight", (9, 64), r"\[9, 64\], expected \[1024, 64\]"),
    ],
)
def test_shapes_that_tell_no_size_are_named(state, key, shape, message):
    state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=f"misshapen {key} .*{message}"):
        specfast.load_published(state, patch_size=4, **HEADS)


def test_other_files_and_dicts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
        specfast.load_published(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"missing cls_token; .*missing norm\.bias; unexpected conv\.weight"):
        specfast.load_published({"conv.weight": torch.zeros(3)}, task="encoder")
    with pytest.raises(CheckpointError, match="expected a state dict of tensors"):
        specfast.load_published({"lr": 0.1})


@pytest.mark.parametrize("patch_size", [4, 16])
def test_patch_size_change_resamples_the_factors(state, patch_size, batch):
    model = specfast.load_published(state, patch_size=patch_size, **HEADS).eval()
    assert model.config.patch_size == patch_size
    assert model.config.gsd_scale == patch_size / 8
    assert model.config.content_grid == 4
    # V(patch) of the new model is the bilinear resampling of V of the old one, for any condition
    old, condition = make_model().eval(), torch.randn(5, 128)
    v = {}
    for m in (old, model):
        generators = m.patch_embed.matrix_generator
        v[m.config.patch_size] = generators.v_generator(condition).unflatten(-1, (64, m.config.patch_size, -1))
    resampled = torch.nn.functional.interpolate(
        v[8], size=(patch_size, patch_size), mode="bilinear", align_corners=False
    )
    assert_close(v[patch_size], resampled, 1e-5)
    factors = {}
    for m in (old, model):
        generators, p = m.decoder_pred.matrix_generator, m.config.patch_size
        u = generators.u_generator(condition).unflatten(-1, (p, p, 64)).permute(0, 3, 1, 2)
        factors[p] = torch.cat([u, generators.bias_generator(condition).unflatten(-1, (1, p, p))], dim=1)
    resampled = torch.nn.functional.interpolate(
        factors[8], size=(patch_size, patch_size), mode="bilinear", align_corners=False
    )
    assert_close(factors[patch_size], resampled, 1e-5)
    assert torch.isfinite(model(batch).loss)


def test_initialize_from_a_plain_vit(state):
    vit = {k: torch.randn_like(v) for k, v in state.items() if k.startswith(("blocks.", "norm.", "cls_token"))}
    vit |= {"pos_embed": torch.zeros(1, 197, 32), "patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)}
    model = make_model()
    loaded = specfast.models.initialize_from_vit(model, {"model": vit})
    assert len(loaded) == 12 * 2 + 3
    assert torch.equal(model.blocks[1].mlp.fc2.weight, vit["blocks.1.mlp.fc2.weight"])
    assert torch.equal(model.decoder_embed.weight, state["decoder_embed.weight"])
    del vit["blocks.0.norm1.bias"]
    with pytest.raises(CheckpointError, match=r"missing blocks\.0\.norm1\.bias"):
        specfast.models.initialize_from_vit(model, vit)


def test_registry():
    names = specfast.list_models()
    assert {"specaware_base_patch8", "specaware_large_patch8", "specaware_tiny_patch8"} <= set(names)
    with torch.device("meta"):
        parameters = {name: specfast.create_model(name).config for name in names}
        base = specfast.create_model("specaware_base_patch8")
    assert parameters["specaware_base_patch8"] == specfast.SpecAwareConfig()
    assert (parameters["specaware_large_patch8"].embed_dim, parameters["specaware_large_patch8"].depth) == (1024, 24)
    assert len(base.blocks) == 12
    with pytest.raises(ValueError, match="did you mean specaware_base_patch8"):
        specfast.create_model("specaware_bas_patch8")
    with pytest.raises(ValueError, match="unknown model option width"):
        specfast.create_model("specaware_tiny_patch8", width=3)
    with pytest.raises(ValueError, match="num_heads: must be at least 1; got 0"):
        specfast.create_model("specaware_tiny_patch8", num_heads=0)
    with pytest.raises(ValueError, match=r"num_heads: must divide embed_dim=192; got 5"):
        specfast.create_model("specaware_tiny_patch8", num_heads=5)


def test_save_and_load_round_trip(tmp_path, batch):
    model = make_model().eval()
    folder = model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = specfast.SpecAwareMAE.from_pretrained(folder).eval()
    noise = torch.rand(2, 16)
    assert torch.equal(again(batch, mask_noise=noise).loss, model(batch, mask_noise=noise).loss)
    encoder = specfast.SpecAwareEncoder.from_pretrained(folder).eval()
    assert torch.equal(encoder(batch).tokens, model.encoder()(batch).tokens)
    assert specfast.SpecAwareMAE.from_pretrained(folder, gradient_checkpointing=True).config.gradient_checkpointing


def test_an_interrupted_save_leaves_the_older_model(tmp_path, monkeypatch):
    folder = make_model().save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(state, path, **_):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("specfast.models.pretrained.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        make_model(embed_dim=64).save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_loading_errors_name_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        specfast.SpecAwareMAE.from_pretrained(tmp_path / "missing" / "model")
    folder = make_model("encoder").save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="holds a SpecAwareEncoder, expected a SpecAwareMAE"):
        specfast.SpecAwareMAE.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"depth": TINY["depth"] + 1}))
    with pytest.raises(CheckpointError, match=r"missing blocks\.2\.norm1\.weight"):
        specfast.SpecAwareEncoder.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not a model's configuration"):
        specfast.SpecAwareEncoder.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read, is it complete"):
        specfast.SpecAwareEncoder.from_pretrained(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        specfast.SpecAwareEncoder.from_pretrained(folder)
