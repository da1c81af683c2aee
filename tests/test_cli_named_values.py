"""NAME=VALUE on the command line: one reader for the options of models and of heads."""

from __future__ import annotations

import argparse

import pytest

from specfast import cli
from specfast.cli.named_values import pair


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("hidden=64", 64), ("dropout=1e-4", 1e-4), ("dropout=-2.5E+3", -2500.0), ("dropout=.1", 0.1)),
        *(("sides=[1,3]", [1, 3]), ("sides=[1e-1, 3]", [0.1, 3]), ("pool=cls", "cls"), ("pool='1e-4'", "1e-4")),
        *(("flag=yes", True), ("flag=false", False), ("name=", None), ("name=a=b", "a=b"), ("name=e4", "e4")),
    ],
)
def test_values(text, value):
    name, read = pair(text)
    assert name == text.partition("=")[0]
    assert read == value
    assert type(read) is type(value)


def test_hyphens_are_underscores():
    assert pair("spectral-sides=[1]") == ("spectral_sides", [1])


@pytest.mark.parametrize("text", ["hidden", "=3", ""])
def test_what_is_no_pair(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=VALUE, got"):
        pair(text)


@pytest.mark.parametrize(
    "command",
    [["pretrain", "--model-options"], ["finetune", "segment", "scene.hdr", "--head-options"]],
    ids=lambda words: words[0],
)
def test_values_that_are_no_yaml(command, capsys):
    assert cli.main([*command, "sides=[1,3"]) == 2
    option = command[-1]
    assert capsys.readouterr().err.endswith(f"argument {option}: sides: expected a value in YAML, got '[1,3'\n")


def test_model_options_of_a_run(capsys):
    options = ["mlp-ratio=1e0", "depth=2"]
    assert cli.main(["pretrain", "--data", "store", "--model-options", *options, "--print-config"]) == 0
    assert "model_options:\n  depth: 2\n  mlp_ratio: 1.0\n" in capsys.readouterr().out
