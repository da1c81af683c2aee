"""Options: where they come from, what is refused and how."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
import yaml

from specfast.cli import main
from specfast.cli import pretrain as command
from specfast.train.config import PUBLISHED, PretrainConfig, read_yaml, resume_conflicts


def test_published_defaults_are_marked_and_no_others():
    fields = {field.name: field for field in dataclasses.fields(PretrainConfig)}
    published = {name for name, field in fields.items() if field.metadata["origin"] == PUBLISHED}
    assert published == {"model", "crop", "mask_ratio", "bands"}
    config = PretrainConfig()
    assert (config.crop, config.mask_ratio, config.bands) == (224, 0.75, 100)
    assert config.model.endswith("patch8")


def test_dict_round_trip_through_yaml():
    config = PretrainConfig(data="a", bands=[20, 80], model_options={"depth": 3}, betas=[0.8, 0.99], compile=True)
    assert config.data == ("a",)
    assert PretrainConfig.from_dict(config.to_dict()) == config
    assert PretrainConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_yaml_reads_exponents_without_a_dot(tmp_path):
    (tmp_path / "run.yaml").write_text("lr: 1e-4\nsteps: 1e3\n")
    config = PretrainConfig.from_dict(read_yaml(tmp_path / "run.yaml"))
    assert config.lr == 1e-4
    assert config.steps == 1000
    assert isinstance(config.steps, int)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("crop", 0, "a whole number of at least 1"),
        ("steps", 1.5, "a whole number"),
        ("batch_size", True, "a whole number"),
        ("lr", 0, "a number above 0"),
        ("lr", "fast", "a number above 0"),
        ("lr", float("nan"), "a number above 0"),
        ("mask_ratio", 1.0, "at most 0.999"),
        ("warmup", 1.5, "at most 1"),
        ("bands", [9, 4], "smallest, largest"),
        ("bands", "many", "smallest, largest"),
        ("betas", [0.9], "two numbers"),
        ("betas", [0.9, 1.0], "two numbers"),
        ("flips", "yes", "true or false"),
        ("precision", "fp16", "auto, float32, bf16"),
        ("resume", "always", "auto, never"),
        ("data", 3, "a list of paths"),
        ("out", "", "a name or path"),
        ("model_options", ["depth"], "names with values"),
        ("model_options", {"gradient_checkpointing": True}, "option of its own"),
    ],
)
def test_a_bad_value_is_named_with_what_is_expected(key, value, expected):
    with pytest.raises(ValueError, match=f"^{key}: expected .*{expected}.*; got") as caught:
        PretrainConfig(**{key: value})
    assert repr(value) in str(caught.value)


def test_options_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"final_lr: expected at most lr=0\.001"):
        PretrainConfig(lr=1e-3, final_lr=1e-2)


def test_an_unknown_option_names_the_file_and_the_nearest(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("batchsize: 4\n")
    with pytest.raises(ValueError, match=r"run\.yaml: unknown option 'batchsize'; did you mean 'batch_size'"):
        read_yaml(path)
    with pytest.raises(ValueError, match=r"unknown option 'xyzzy'; expected one of data, out"):
        PretrainConfig.from_dict({"xyzzy": 1})


@pytest.mark.parametrize("text", ["lr: [1", "- lr", "lr"])
def test_yaml_that_holds_no_options(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml: (not valid YAML|expected lines)"):
        read_yaml(path)


def _parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


def _printed(capsys, *argv: str) -> dict:
    assert main(["pretrain", *argv, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_win_over_the_file(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("lr: 1.0e-3\nsteps: 7\nflips: false\nmodel_options: {depth: 3, rank: 8}\nbands: 50\n")
    printed = _printed(capsys, str(path), "--lr", "2e-3", "--model-options", "depth=2", "--data", "a", "b")
    assert printed["lr"] == 2e-3
    assert printed["steps"] == 7
    assert printed["flips"] is False
    assert printed["model_options"] == {"depth": 2, "rank": 8}
    assert printed["bands"] == 50
    assert printed["data"] == ["a", "b"]


def test_every_option_has_a_flag_with_the_same_default(capsys):
    assert PretrainConfig.from_dict(_printed(capsys)) == PretrainConfig()
    flags = vars(_parse())
    assert not set(flags) & {field.name for field in dataclasses.fields(PretrainConfig)}  # none given, none set


@pytest.mark.parametrize(("flag", "bands"), [(["all"], None), (["30"], 30), (["20", "40"], [20, 40])])
def test_bands_flag(capsys, flag, bands):
    assert _printed(capsys, "--bands", *flag)["bands"] == bands


def test_boolean_flags(capsys):
    assert _printed(capsys, "--no-flips", "--tensorboard")["flips"] is False
    assert _printed(capsys, "--tensorboard")["tensorboard"] is True


def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path):
    assert main(["pretrain", "--lr", "-1"]) == 2
    assert capsys.readouterr().err == "specfast pretrain: options: lr: expected a number above 0; got '-1'\n"
    assert main(["pretrain", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such configuration file" in capsys.readouterr().err
    assert main(["pretrain"]) == 2
    assert "data: expected at least one store" in capsys.readouterr().err


def test_resume_conflicts_name_what_defines_the_result():
    before = PretrainConfig(batch_size=4, lr=1e-3)
    assert resume_conflicts(before.to_dict(), 1, dataclasses.replace(before, out="b", workers=0, keep=9), 1) == []
    assert resume_conflicts(before.to_dict(), 1, dataclasses.replace(before, batch_size=1, accumulate=2), 2) == []
    lines = resume_conflicts(before.to_dict(), 1, dataclasses.replace(before, lr=2e-3), 2)
    assert lines == ["lr is 0.002 now and was 0.001", "batch_size x accumulate x processes is 8 now and was 4"]
