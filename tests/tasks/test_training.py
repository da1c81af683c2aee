"""fit: exact resume, what is trained and what is not, learning rates, refusals."""

from __future__ import annotations

import copy

import pytest
import torch

from specfast import SpecAwareSegmenter
from specfast.errors import CheckpointError
from specfast.tasks import FitOptions, fit
from specfast.tasks.training import NAMES, learning_groups
from specfast.train import NonFiniteLossError, TrainingInterrupted, read_log
from tests.tasks.scenes import make_encoder, make_scene

OPTIONS = FitOptions(steps=6, lr=1e-2, encoder_lr=1e-3, tuned_blocks=-1, log_every=1, checkpoint_every=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SpecAwareSegmenter.from_encoder(make_encoder(), ("a", "b", "c"), "mlp", hidden=16)


@pytest.fixture(scope="module")
def scene():
    sample, labels = make_scene()
    return sample, torch.as_tensor(labels - 1)[None]


def losses(model, scene, spoil=None):
    """The loss of a step; it draws pixels from torch's generator."""
    sample, target = scene
    batch = model.batch_of([sample])

    def loss_of_step(step):
        if step == spoil:
            raise KeyboardInterrupt
        drawn = torch.rand(target.shape) < 0.5
        return torch.nn.functional.cross_entropy(model(batch).movedim(1, -1)[drawn], target[drawn])

    return loss_of_step


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_loss_falls_and_the_log_tells(model, scene, tmp_path):
    options = FitOptions(steps=40, lr=1e-2, tuned_blocks=0, log_every=10)
    result = fit(model, losses(model, scene), options, out=tmp_path)
    rows = read_log(tmp_path / "log.csv", NAMES)
    assert rows == result.history
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert not model.training


def test_a_resumed_run_is_bitwise_the_same(model, scene, tmp_path):
    other = copy.deepcopy(model)
    fit(model, losses(model, scene), OPTIONS, seed=3, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(other, losses(other, scene, spoil=5), OPTIONS, seed=3, out=tmp_path / "part")
    torch.manual_seed(12345)
    result = fit(other, losses(other, scene), OPTIONS, seed=3, out=tmp_path / "part")
    assert same(model.state_dict(), other.state_dict())
    whole = [(row["step"], row["loss"]) for row in read_log(tmp_path / "whole" / "log.csv", NAMES)]
    assert [(row["step"], row["loss"]) for row in result.history] == whole
    assert len(list((tmp_path / "part" / "checkpoints").iterdir())) == 1


def test_a_signal_saves_the_state(model, scene, tmp_path):
    import os
    import signal

    inner = losses(model, scene)

    def loss_of_step(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(step)

    with pytest.raises(TrainingInterrupted) as stop:
        fit(model, loss_of_step, OPTIONS, out=tmp_path)
    assert (stop.value.step, stop.value.signal) == (3, signal.SIGTERM)
    assert stop.value.checkpoint.is_file()


def test_random_state_is_left_alone_and_the_seed_decides(model, scene):
    other, third = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(model, losses(model, scene), OPTIONS, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    fit(other, losses(other, scene), OPTIONS, seed=1)
    assert same(model.state_dict(), other.state_dict())
    fit(third, losses(third, scene), OPTIONS, seed=2)
    assert not same(model.state_dict(), third.state_dict())


@pytest.mark.parametrize("tuned", [0, 1, -1])
def test_frozen_parts_stay(model, scene, tuned):
    before = state_of(model)
    fit(model, losses(model, scene), FitOptions(steps=2, lr=1e-2, encoder_lr=1e-2, tuned_blocks=tuned))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    encoder = {name for name in changed if name.startswith("encoder.")}
    if tuned == 1:
        assert encoder
        assert all(name.startswith(("encoder.blocks.1.", "encoder.norm.")) for name in encoder)
    else:
        assert bool(encoder) == (tuned == -1)
        assert tuned == 0 or any(name.startswith("encoder.patch_embed.") for name in encoder)
    assert any(name.startswith("head.") for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_parts_of_a_loss_add_up(model, scene):
    """A loss that comes in parts trains as its sum does."""
    other = copy.deepcopy(model)
    sample, target = scene

    def whole(step):
        return torch.nn.functional.cross_entropy(model(model.batch_of([sample])), target)

    def parts(step):
        for rows in (slice(0, 9), slice(9, None)):
            logits = other(other.batch_of([sample]))[:, :, rows]
            yield torch.nn.functional.cross_entropy(logits, target[:, rows], reduction="sum") / target.numel()

    options = FitOptions(steps=1, lr=1e-2, clip_norm=0.0, precision="float32")
    for each in (model, other):
        each.head.dropout = 0.0
    one, two = fit(model, whole, options), fit(other, parts, options)
    assert one.history[0]["loss"] == pytest.approx(two.history[0]["loss"], rel=1e-6)
    assert one.history[0]["grad_norm"] == pytest.approx(two.history[0]["grad_norm"], rel=1e-5)


def test_learning_rates(model):
    groups = learning_groups(model, FitOptions(lr=1.0, encoder_lr=0.1, layer_decay=0.5, weight_decay=0.3))
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    expected = {
        "head.project.weight": (1.0, 0.3),
        "head.project.bias": (1.0, 0.0),
        "encoder.norm.weight": (0.1, 0.0),
        "encoder.blocks.1.attn.qkv.weight": (0.1, 0.3),
        "encoder.blocks.0.attn.qkv.weight": (0.05, 0.3),
        "encoder.patch_embed.feature_fusion.modal1_proj.weight": (0.025, 0.3),
        "encoder.cls_token": (0.025, 0.0),
    }
    named = dict(model.named_parameters())
    assert len(found) == len(named)
    for name, (peak, decay) in expected.items():
        group = found[id(named[name])]
        assert (group["peak"], group["weight_decay"]) == (pytest.approx(peak), decay), name


def test_a_loss_that_is_not_finite_changes_nothing(model, scene):
    inner = losses(model, scene)
    seen = []

    def loss_of_step(step):
        seen.append(state_of(model))
        return inner(step) * (float("nan") if step == 2 else 1.0)

    with pytest.raises(NonFiniteLossError, match="step 3: loss is nan"):
        fit(model, loss_of_step, OPTIONS)
    assert same(model.state_dict(), seen[-1])


def test_another_run_in_the_folder_is_refused(model, scene, tmp_path):
    fit(model, losses(model, scene), OPTIONS, out=tmp_path)
    with pytest.raises(ValueError, match="made with other seed"):
        fit(model, losses(model, scene), OPTIONS, seed=1, out=tmp_path)
    with pytest.raises(ValueError, match=r"resume: .* is there"):
        fit(model, losses(model, scene), OPTIONS, out=tmp_path, resume=False)
    (path,) = (tmp_path / "checkpoints").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        fit(model, losses(model, scene), OPTIONS, out=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps: expected at least 0, got -1"),
        ({"lr": -1.0}, "lr: expected a number of at least 0"),
        ({"lr": float("nan")}, "lr: expected a number"),
        ({"layer_decay": 0.0}, "layer_decay: expected above 0"),
        ({"warmup": 2.0}, "warmup: expected a share"),
        ({"precision": "fp16"}, "precision: expected auto, bf16 or float32"),
        ({"tuned_blocks": -2}, "tuned_blocks: expected at least -1"),
    ],
)
def test_bad_options(values, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**values)


def test_more_blocks_than_there_are(model, scene):
    with pytest.raises(ValueError, match="tuned_blocks: the encoder has 2 blocks; got 3"):
        fit(model, losses(model, scene), FitOptions(steps=1, tuned_blocks=3))
