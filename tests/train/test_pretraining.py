"""The loop in this process: what it leaves behind, resuming, refusals."""

from __future__ import annotations

import dataclasses
import signal

import pytest
import torch
import yaml

from specfast import SpecAwareEncoder, SpecAwareMAE, create_model
from specfast.data import prepare
from specfast.errors import CheckpointError
from specfast.train import (
    NonFiniteLossError,
    PretrainConfig,
    TrainingInterrupted,
    pretrain,
    read_log,
)
from specfast.train import logging as train_logging
from specfast.train.checkpoint import checkpoints, load_latest

TIMES = ("samples_per_second", "seconds")


def numbers(rows):
    """Rows without what depends on the clock."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def run(options, **changes):
    return pretrain(PretrainConfig(**{**options, **changes}), progress=False)


@pytest.fixture
def stop_after(monkeypatch):
    """Return a function that makes a signal come while the given step is logged."""

    def install(step, number=signal.SIGINT):
        write = train_logging.CsvLog.write

        def write_and_raise(log, row):
            write(log, row)
            if row.step == step:
                signal.raise_signal(number)

        monkeypatch.setattr(train_logging.CsvLog, "write", write_and_raise)

    yield install
    monkeypatch.undo()


def test_what_a_run_leaves_behind(options, tmp_path):
    result = run(options, steps=6, checkpoint_every=2, keep=2)
    out = tmp_path / "run"
    assert result.out_dir == out
    assert result.seconds > 0
    assert result.history == read_log(out / "log.csv")
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert [row["samples"] for row in result.history] == [2, 4, 6, 8, 10, 12]
    for row in result.history:
        assert row["loss"] == pytest.approx(row["loss_spectral"] + 2 * row["loss_charbonnier"], rel=1e-6)
        assert row["grad_norm"] > 0
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step_000000006.pt", "step_000000004.pt"]
    assert PretrainConfig.from_dict(yaml.safe_load((out / "config.yaml").read_text())) == PretrainConfig(
        **{**options, "steps": 6, "checkpoint_every": 2, "keep": 2}
    )
    loaded = SpecAwareMAE.from_pretrained(out / "model")
    for name, value in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    SpecAwareEncoder.from_pretrained(out / "model")
    assert not result.model.training


def test_training_learns(options):
    rows = run(options, steps=30, batch_size=4).history
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_two_runs_are_bitwise_the_same_and_leave_torch_as_it_was(options, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = run(options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = run(options, out=str(tmp_path / "again"), workers=0, prefetch=0)
    assert numbers(first.history) == numbers(second.history)
    other = run(options, out=str(tmp_path / "other"), seed=1)
    assert numbers(first.history) != numbers(other.history)


def test_gradient_checkpointing_changes_no_number(options, tmp_path):
    plain = run(options)
    less_memory = run(options, out=str(tmp_path / "again"), gradient_checkpointing=True)
    assert numbers(plain.history) == numbers(less_memory.history)
    assert SpecAwareMAE.from_pretrained(tmp_path / "again" / "model").config.gradient_checkpointing is False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_next_run_goes_on_bitwise(options, tmp_path, stop_after, monkeypatch, number):
    whole = run(options, out=str(tmp_path / "whole"), steps=6)
    handler = signal.getsignal(number)
    stop_after(3, number)
    with pytest.raises(TrainingInterrupted, match=f"{signal.Signals(number).name} after step 4") as caught:
        run(options, steps=6, checkpoint_every=100)  # the update after the signal agrees on it
    assert caught.value.signal == number
    assert caught.value.step == 4
    assert caught.value.checkpoint.is_file()
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    resumed = run(options, steps=6, checkpoint_every=100)
    assert numbers(resumed.history) == numbers(whole.history)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_second_interrupt_ends_at_once(options, tmp_path, stop_after, monkeypatch):
    stop_after(2)
    raise_signal = signal.raise_signal
    monkeypatch.setattr(signal, "raise_signal", lambda number: (raise_signal(number), raise_signal(number)))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(options)
    assert not isinstance(caught.value, TrainingInterrupted)
    assert checkpoints(tmp_path / "run" / "checkpoints") == []


def test_a_damaged_last_checkpoint_costs_only_its_steps(options, tmp_path, stop_after, monkeypatch):
    whole = run(options, out=str(tmp_path / "whole"), steps=6)
    stop_after(4)
    with pytest.raises(TrainingInterrupted):
        run(options, steps=6, checkpoint_every=3)
    monkeypatch.undo()
    last, before = checkpoints(tmp_path / "run" / "checkpoints")
    assert (last.name, before.name) == ("step_000000005.pt", "step_000000003.pt")
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match=r"step_000000005\.pt: damaged"):
        resumed = run(options, steps=6, checkpoint_every=3)
    assert numbers(resumed.history) == numbers(whole.history)


def test_a_finished_run_is_loaded(options):
    first = run(options)
    again = run(options)
    assert again.history == first.history
    assert again.seconds == first.seconds
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_resume_never_refuses_a_folder_with_a_run(options):
    first = run(options, resume="never")
    with pytest.raises(ValueError, match=r"resume: never was asked for, but .*step_000000004\.pt is there"):
        run(options, resume="never")
    assert run(options).history == first.history


def test_resume_names_options_that_changed(options):
    run(options)
    with pytest.raises(ValueError, match=r"other options: crop is 24 now and was 32; lr is 0\.01 now and was 0\.001\."):
        run(options, crop=24, lr=0.01)
    with pytest.raises(ValueError, match="batch_size x accumulate x processes is 6 now and was 2"):
        run(options, batch_size=3, accumulate=2)


def test_resume_refuses_other_data(options, tmp_path, store):
    from specfast.data import SpectralImage

    run(options)
    image = SpectralImage.from_array(
        torch.rand(6, 40, 40), wavelength=range(450, 750, 50), fwhm=[8.0] * 6, gsd=5, sensor="avng", level="L2"
    )
    prepare([image], tmp_path / "other", tile=40)
    with pytest.raises(ValueError, match="other data"):
        run(options, data=(str(tmp_path / "other"),))


def test_resume_with_samples_spread_otherwise(options, no_dropout, tmp_path, stop_after):
    whole = run(options, out=str(tmp_path / "whole"), precision="float32")
    stop_after(1)
    with pytest.raises(TrainingInterrupted):
        run(options, precision="float32")
    with pytest.warns(UserWarning, match="samples and masks stay the same, dropout does not"):
        resumed = run(options, precision="float32", batch_size=1, accumulate=2)
    for before, after in zip(whole.history, resumed.history, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-4)
        assert after["samples"] == before["samples"]


def test_accumulation_gives_the_large_batch_losses(options, no_dropout, tmp_path):
    whole = run(options, precision="float32", batch_size=4)
    spread = run(options, precision="float32", batch_size=2, accumulate=2, out=str(tmp_path / "spread"))
    assert [r["samples"] for r in whole.history] == [r["samples"] for r in spread.history]
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3)):
        for before, after in zip(whole.history, spread.history, strict=True):
            assert after[name] == pytest.approx(before[name], rel=tolerance), (name, before["step"])


def test_a_loss_that_is_not_finite_is_named_and_nothing_is_lost(options, tmp_path):
    broken = {**options, "lr": 1e25, "clip_norm": 0.0, "warmup": 0.0}
    with pytest.raises(NonFiniteLossError, match=r"step (\d+): loss is (nan|inf).*nothing was updated") as caught:
        run(broken)
    path, state = load_latest(tmp_path / "run" / "checkpoints")
    assert str(path) in str(caught.value)
    assert f"step {state.step + 1}: " in str(caught.value)
    rows = read_log(tmp_path / "run" / "log.csv")
    assert [row["step"] for row in rows] == list(range(1, state.step + 1))
    assert all(bool(torch.isfinite(value).all()) for value in state.model.values())
    assert state.loader["samples"] == state.step * options["batch_size"]  # the failed update's are to be drawn again
    with pytest.raises(NonFiniteLossError, match=f"^step {state.step + 1}: "):  # as exactly resumed
        run(broken)


def test_log_every_and_the_last_step(options):
    assert [row["step"] for row in run(options, steps=5, log_every=2).history] == [2, 4, 5]


def test_learning_rates_follow_the_schedule(options):
    rows = run(options, steps=5, warmup=0.4, lr=1e-3, final_lr=1e-4).history
    assert [row["lr"] for row in rows[:2]] == pytest.approx([5e-4, 1e-3])
    assert rows[2]["lr"] == pytest.approx(1e-3)
    assert rows[3]["lr"] == pytest.approx(1e-4 + 0.5 * 9e-4 * 1.5)


def test_bf16_learns_alike(options, tmp_path):
    full = run(options, precision="float32", steps=6).history
    low = run(options, precision="bf16", steps=6, out=str(tmp_path / "low")).history
    assert numbers(full) != numbers(low)
    for a, b in zip(full, low, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.1)


class TestInitialModel:
    def test_a_saved_model(self, options, tmp_path):
        saved = create_model("specaware_tiny_patch8", image_size=32, **options["model_options"])
        saved.save_pretrained(tmp_path / "start")
        tiny = {**options, "model": str(tmp_path / "start"), "model_options": {}, "lr": 1e-12}
        result = run(tiny, steps=1)
        for name, value in saved.state_dict().items():
            assert torch.allclose(result.model.state_dict()[name], value, atol=1e-9), name

    def test_a_published_checkpoint(self, options, tmp_path):
        saved = create_model("specaware_tiny_patch8", image_size=32, **options["model_options"])
        torch.save({"model": saved.state_dict()}, tmp_path / "start.pth")
        heads = {"num_heads": 2, "decoder_num_heads": 2}
        result = run({**options, "model": str(tmp_path / "start.pth"), "model_options": heads, "lr": 1e-12}, steps=1)
        for name, value in saved.state_dict().items():
            assert torch.allclose(result.model.state_dict()[name], value, atol=1e-9), name

    def test_image_net_weights_of_the_vit(self, options, tmp_path):
        torch.manual_seed(9)
        vit = create_model("specaware_tiny_patch8", image_size=32, **options["model_options"]).state_dict()
        vit = {name: value for name, value in vit.items() if name.startswith(("blocks.", "norm.", "cls_token"))}
        torch.save({"model": vit}, tmp_path / "vit.pth")
        started = run({**options, "lr": 1e-12, "vit": str(tmp_path / "vit.pth")}, steps=1).model.state_dict()
        plain = run({**options, "lr": 1e-12, "out": str(tmp_path / "plain")}, steps=1).model.state_dict()
        for name, value in started.items():
            expected = vit.get(name, plain[name])
            assert torch.allclose(value, expected, atol=1e-9), name
        assert not torch.allclose(started["blocks.0.attn.qkv.weight"], plain["blocks.0.attn.qkv.weight"], atol=1e-4)

    def test_a_vit_that_does_not_fit(self, options, tmp_path):
        torch.save({"norm.weight": torch.ones(8)}, tmp_path / "vit.pth")
        with pytest.raises(CheckpointError, match=r"missing cls_token.*misshapen norm\.weight \[8\], expected \[32\]"):
            run(options, vit=str(tmp_path / "vit.pth"))

    @pytest.mark.parametrize(
        ("model", "error", "message"),
        [
            ("specaware_tiny_patch9", ValueError, "did you mean specaware_tiny_patch8"),
            ("nowhere/model", FileNotFoundError, "nowhere/model"),
            ("nowhere.pth", FileNotFoundError, r"nowhere\.pth: no such checkpoint file"),
        ],
    )
    def test_a_model_that_is_not_there(self, options, model, error, message, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(error, match=message):
            run(options, model=model, model_options={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 36}, "crop: expected a multiple of patch_size 8, got 36"),
        ({"device": "tpu9"}, "device: expected auto, cpu, cuda"),
        ({"data": ()}, "data: expected at least one store"),
        ({"model_options": {"embed_dims": 8}}, "unknown model option embed_dims"),
    ],
)
def test_options_that_do_not_fit(options, changes, message):
    with pytest.raises(ValueError, match=message):
        run({**options, "model_options": {**options["model_options"], "image_size": 32}, **changes})


def test_nothing_is_written_before_the_options_are_known_to_fit(options, tmp_path):
    with pytest.raises(ValueError, match="crop"):
        run({**options, "model_options": {**options["model_options"], "image_size": 32}}, crop=36)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compiled_model_learns_the_same(options, no_dropout, tmp_path):
    plain = run(options, precision="float32", steps=3)
    compiled = run(options, precision="float32", steps=3, compile=True, out=str(tmp_path / "compiled"))
    for a, b in zip(plain.history, compiled.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(options, tmp_path):
    history = run(options, device="cuda", precision="float32").history
    on_cpu = run(options, device="cpu", precision="float32", out=str(tmp_path / "cpu")).history
    assert [row["samples"] for row in history] == [row["samples"] for row in on_cpu]
    assert history[0]["loss"] == pytest.approx(on_cpu[0]["loss"], rel=0.1)  # dropout is drawn differently
    assert run(options, device="cuda", precision="float32").history == history
    assert dataclasses.asdict(PretrainConfig(**options))["device"] == "cpu"
