"""``--config`` and ``--print-config``: for every command alike, and what they refuse."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import pytest
import yaml

from specfast import cli
from specfast.cli.options import leaves, long_names, settings, takes_value

# Texts of which every argument with a type of its own must take one.
TEXTS = ("7", "0.25", "text", "3,4", "name=1", "2:5", "1/2")


def parsers(name: str) -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """The parsers of a command and of its sub-commands, by the words that lead to them."""
    return {tuple(leaf.prog.split()[1:]): leaf for leaf in leaves(cli.load(name)[1])}


def example(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """Words on the command line that set an argument to something that is not its default."""
    name = long_names(action)[:1]
    if isinstance(action, argparse.BooleanOptionalAction):
        return [long_names(action)[1 if action.default else 0]]
    if not takes_value(action):
        return name
    if action.choices is not None:
        text = str(list(action.choices)[-1])
    else:
        text = next(text for text in TEXTS if accepts(parser, action, text))
    count = action.nargs if isinstance(action.nargs, int) else 2 if action.nargs in ("+", "*") else 1
    return [*name, *[text] * count]


def accepts(parser: argparse.ArgumentParser, action: argparse.Action, text: str) -> bool:
    try:
        parser._get_value(action, text)
    except argparse.ArgumentError:
        return False
    return True


def all_arguments(parser: argparse.ArgumentParser) -> list[str]:
    """A command line that sets everything that can be set at once."""
    left_out = {action for group in parser._mutually_exclusive_groups for action in group._group_actions[1:]}
    actions = [action for action in settings(parser).values() if action not in left_out]
    actions.sort(key=lambda action: bool(action.option_strings))  # positional arguments first
    return [word for action in actions for word in example(parser, action)]


def plain(values: dict) -> dict:
    """Tuples (defaults) and lists (what was parsed) are the same to a command."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def printed(capsys, *argv: str) -> str:
    assert cli.main([*argv, "--print-config"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_defaults_survive_the_way_through_a_file(capsys, tmp_path, name):
    file = tmp_path / "options.yaml"
    for path in parsers(name):
        file.write_text(printed(capsys, *path))
        assert printed(capsys, *path, "--config", str(file)) == file.read_text()


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "pretrain"])  # which checks its values
def test_arguments_survive_the_way_through_a_file(capsys, tmp_path, name):
    file = tmp_path / "options.yaml"
    for path, parser in parsers(name).items():
        argv = all_arguments(parser)
        file.write_text(printed(capsys, *path, *argv))
        given = cli.load(name)[1].parse_args([*path[1:], *argv])
        from_file = cli.load(name)[1].parse_args([*path[1:], "--config", str(file)])
        assert plain(vars(from_file)) == plain(vars(given))
        assert printed(capsys, *path, "--config", str(file)) == file.read_text()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_argument_is_explained(capsys, name):
    for path, parser in parsers(name).items():
        lines = printed(capsys, *path).splitlines()
        for key, action in settings(parser).items():
            assert action.help, f"{' '.join(path)} {key}: has no help"
        for number, line in enumerate(lines):
            if line and not line.startswith("#"):
                assert lines[number - 1].startswith("# "), f"{' '.join(path)}: {line} has no comment"


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "completion"])  # its result is a script
def test_every_command_that_reports_has_json(name):
    for path, parser in parsers(name).items():
        assert "--json" in parser._option_string_actions, f"specfast {' '.join(path)} has no --json"


def test_pretraining_takes_its_file_either_way(capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch-size: 3\nbands: null\n")
    assert printed(capsys, "pretrain", str(file)) == printed(capsys, "pretrain", "--config", str(file))
    assert yaml.safe_load(printed(capsys, "pretrain", "--config", str(file)))["batch_size"] == 3
    assert cli.main(["pretrain", str(file), "--config", str(file)]) == 2
    assert "--config: expected one file of options; got" in capsys.readouterr().err


@pytest.fixture
def fake(monkeypatch, tmp_path, capsys):
    """``fake(yaml, *argv)`` runs a command ``fake`` with that file; returns (exit code, what run got or stderr)."""
    got = []

    def add_arguments(parser):
        parser.add_argument("scene", type=Path, help="a file")
        parser.add_argument("others", nargs="*", type=Path, help="more files")
        parser.add_argument("--labels", nargs="+", required=True, help="label maps")
        parser.add_argument("--pair", nargs=2, type=float, default=(0.0, 1.0), help="two numbers")
        parser.add_argument("--mode", choices=("on", "off"), default="on", help="a word that YAML takes for a truth")
        parser.add_argument("--lr-decay", type=float, help="a number")
        parser.add_argument("--point", action="append", type=point, help="a place, several times")
        parser.add_argument("--fast", action="store_true", help="a switch")
        parser.add_argument("--flips", action=argparse.BooleanOptionalAction, default=True, help="another switch")
        parser.add_argument("--sizes", nargs="+", type=pair, default=[], help="NAME=VALUE")
        for name in ("nearest", "bilinear"):
            parser.add_argument(f"--{name}", action="store_const", const=name, dest="resampling", help="one of two")
        either = parser.add_mutually_exclusive_group()
        either.add_argument("--size", type=int, help="a size")
        either.add_argument("--whole", action="store_true", help="no size")

    def run(args):
        got.append(vars(args))
        return 0

    def call(text: str, *argv: str):
        file = tmp_path / "run.yaml"
        file.write_text(text)
        code = cli.main(["fake", *argv, "--config", str(file)])
        return code, (got.pop() if code == 0 else capsys.readouterr().err.replace(str(file), "run.yaml"))

    module = types.ModuleType("specfast.cli.fake")
    module.HELP, module.add_arguments, module.run = "a command for this test", add_arguments, run
    monkeypatch.setitem(sys.modules, "specfast.cli.fake", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", module.HELP)
    monkeypatch.delenv("SPECFAST_DEBUG", raising=False)
    return call


def point(text: str) -> tuple[int, int]:
    row, col = text.split(",")
    return int(row), int(col)


def pair(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError
    return name, yaml.safe_load(value)


MINIMAL = "scene: a.npy\nlabels: [l.npy]\n"


def test_a_file_gives_required_and_positional_arguments(fake):
    code, values = fake("scene: a.npy\nothers: [b.npy, c.npy]\nlabels: l.npy\npoint: ['1,2', '3,4']\nfast: true\n")
    assert code == 0
    assert (values["scene"], values["others"]) == (Path("a.npy"), [Path("b.npy"), Path("c.npy")])
    assert (values["labels"], values["point"], values["fast"]) == (["l.npy"], [(1, 2), (3, 4)], True)
    assert not {"config", "print_config"} & set(values)


def test_the_command_line_wins(fake):
    text = MINIMAL + "lr-decay: 1e-3\nmode: 'off'\nflips: false\npoint: ['1,2']\npair: [2, 3]\n"
    code, values = fake(text, "b.npy", "--lr-decay", "0.5", "--point", "5,6", "--flips", "--labels", "x", "y")
    assert code == 0
    assert (values["scene"], values["labels"]) == (Path("b.npy"), ["x", "y"])
    assert (values["lr_decay"], values["mode"], values["flips"]) == (0.5, "off", True)
    assert (values["point"], values["pair"]) == ([(5, 6)], [2.0, 3.0])
    assert fake(text)[1]["lr_decay"] == 1e-3


def test_names_with_values(fake):
    sizes = [("depth", 3), ("heads", [1, 2]), ("fast", True), ("name", "a: b")]
    text = MINIMAL + "sizes: {depth: 3, heads: [1, 2], fast: true, name: 'a: b'}\n"
    assert fake(text)[1]["sizes"] == sizes
    assert fake(MINIMAL + "sizes: [depth=3, 'heads=[1, 2]', fast=true, 'name=\"a: b\"']\n")[1]["sizes"] == sizes
    assert "sizes: invalid pair value: 'depth'" in fake(MINIMAL + "sizes: depth\n")[1]


def test_switches_with_one_destination(fake, capsys):
    assert fake(MINIMAL + "bilinear: true\nnearest: false\n")[1]["resampling"] == "bilinear"
    assert fake(MINIMAL + "bilinear: true\n", "--nearest")[1]["resampling"] == "nearest"
    assert "nearest: false\n" in (out := printed(capsys, "fake", "--bilinear"))
    assert "bilinear: true\n" in out


def test_what_excludes_each_other(fake):
    assert fake(MINIMAL + "size: 3\n")[1]["size"] == 3
    values = fake(MINIMAL + "size: 3\n", "--whole")[1]
    assert (values["size"], values["whole"]) == (None, True)
    assert fake(MINIMAL + "whole: false\n", "--size", "3")[0] == 0
    code, error = fake(MINIMAL + "size: 3\nwhole: true\n")
    assert (code, error) == (2, "specfast fake: run.yaml: size and whole exclude each other; give one of them\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr_deca: 1\n", "unknown option 'lr_deca'; did you mean 'lr_decay'?"),
        ("zzz: 1\n", "unknown option 'zzz'; expected one of scene, others, labels"),
        ("lr_decay: fast\n", "lr_decay: invalid float value: 'fast'"),
        ("lr_decay: [1, 2]\n", "lr_decay: expected one value; got [1, 2]"),
        ("mode: off\n", "mode: expected one value, in quotes if that is a word; got False"),
        ("mode: maybe\n", "mode: invalid choice: 'maybe' (choose from"),
        ("fast: 1\n", "fast: expected true or false; got 1"),
        ("pair: [1, 2, 3]\n", "pair: expected a list of 2; got [1, 2, 3]"),
        ("labels: []\n", "labels: expected a list of at least one; got []"),
        ("point: ['1']\n", "point: invalid point value: '1'"),
        ("labels: [a\n", "not valid YAML:"),
        ("- fast\n", "expected lines of 'option: value', got a list"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(fake, text, message):
    code, error = fake(text, "a.npy", "--labels", "l.npy")
    assert code == 2
    assert error.startswith("specfast fake: run.yaml: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there(fake, capsys):
    assert cli.main(["fake", "--config", "nowhere.yaml", "a.npy", "--labels", "l"]) == 2
    assert capsys.readouterr().err == "specfast fake: nowhere.yaml: no such configuration file\n"


def test_what_is_required_stays_required(fake, capsys):
    code, error = fake("fast: true\n", "a.npy")
    assert code == 2
    assert "the following arguments are required: --labels" in error


def test_printing_needs_nothing_and_refuses_what_is_unknown(fake, capsys):
    out = printed(capsys, "fake", "--lr-decay", "0.5", "--point", "5,6")
    values = yaml.safe_load(out)
    assert (values["scene"], values["lr_decay"], values["point"]) == (None, 0.5, ["5,6"])
    assert "# label maps [required]\nlabels: null\n" in out
    assert "mode: 'on'\n" in out
    assert cli.main(["fake", "--print-config", "--nothing"]) == 2
    assert "unrecognized arguments: --nothing" in capsys.readouterr().err
