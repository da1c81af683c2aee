"""The command line's dispatcher, and ``python -m specfast``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import specfast
from specfast import cli, environment
from specfast.batch import check_bands
from specfast.data import SpectralImage, prepare
from specfast.errors import DataError


@pytest.fixture
def add_command(monkeypatch):
    """Call ``add_command(run)``: registers the command ``fake`` that runs the function."""

    def add(run):
        module = types.ModuleType("specfast.cli.fake")
        module.HELP = "a command for this test"
        module.add_arguments = lambda parser: parser.add_argument("--size", type=int, default=1)
        module.run = run
        monkeypatch.setitem(sys.modules, "specfast.cli.fake", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", module.HELP)

    return add


def own_value_error(args):
    check_bands(torch.tensor([0.6]), torch.tensor([10.0]))


def raising(error):
    def run(args):
        raise error

    return run


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"specfast {specfast.__version__}\n"


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["--help"], 0)])
def test_overview_lists_every_command(capsys, argv, code):
    assert cli.main(argv) == code
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and text in out for name, text in cli.COMMANDS.items())


def test_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["pretrian"]) == 2
    assert capsys.readouterr().err == "specfast: unknown command 'pretrian'; did you mean 'pretrain'?\n"


def test_unknown_command_like_none_lists_all(capsys):
    assert cli.main(["xyzzy"]) == 2
    assert ", ".join(cli.COMMANDS) in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_command_has_help(capsys, name):
    assert cli.main([name, "--help"]) == 0
    assert f"usage: specfast {name}" in capsys.readouterr().out


def test_arguments_reach_the_command(add_command):
    add_command(lambda args: args.size)
    assert cli.main(["fake", "--size", "5"]) == 5
    assert cli.main(["fake", "--size", "0"]) == 0


def test_wrong_argument(add_command, capsys):
    add_command(lambda args: 0)
    assert cli.main(["fake", "--size", "five"]) == 2
    assert "invalid int value: 'five'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (raising(DataError("scene.hdr: no bands")), "scene.hdr: no bands"),
        (raising(FileNotFoundError(2, "No such file", "scene.hdr")), "[Errno 2] No such file: 'scene.hdr'"),
        (own_value_error, "wavelength: band 0 is 0.6; expected 350 to 2550 nm (micrometers? multiply by 1000)"),
    ],
)
def test_mistake_is_one_line(add_command, capsys, monkeypatch, run, message):
    monkeypatch.delenv("SPECFAST_DEBUG", raising=False)
    add_command(run)
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == f"specfast fake: {message}\n"


def test_debug_shows_the_traceback(add_command, monkeypatch):
    monkeypatch.setenv("SPECFAST_DEBUG", "1")
    add_command(raising(DataError("scene.hdr: no bands")))
    with pytest.raises(DataError):
        cli.main(["fake"])


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("not from our modules")])
def test_other_errors_are_not_hidden(add_command, error):
    add_command(raising(error))
    with pytest.raises(type(error)):
        cli.main(["fake"])


def test_interrupt(add_command, capsys):
    add_command(raising(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == "specfast fake: interrupted\n"


def test_overview_names_the_exit_codes(capsys):
    cli.main(["--help"])
    shown = "exit codes: 0 done, 1 a check failed, 2 a mistake in the call or its files, 130 interrupted"
    assert capsys.readouterr().out.splitlines()[-1] == shown
    assert (cli.OK, cli.CHECK_FAILED, cli.MISUSED, cli.INTERRUPTED) == (0, 1, 2, 130)


def test_a_failed_check_is_told_by_its_exit_code(tmp_path, capsys):
    cube = np.random.default_rng(0).random((3, 8, 8), dtype=np.float32)
    tables = {"wavelength": [500, 600, 700], "fwhm": [10, 10, 10]}
    store = tmp_path / "store"
    prepare([SpectralImage.from_array(cube, **tables, gsd=1, sensor="others", level="L2")], store, tile=8)
    assert cli.main(["prepare", "--verify", "--json", "--quiet", str(store)]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tiles"] == 1
    assert err == "all 1 tiles verified\n"
    (tiles,) = [path for path in (store / "scenes").iterdir() if path.suffix != ".json"]
    content = bytearray(tiles.read_bytes())
    content[0] ^= 1
    tiles.write_bytes(content)
    assert cli.main(["prepare", "--verify", "--json", "--quiet", str(store)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "is damaged: checksum differs" in err


def test_sensors_as_json(capsys):
    assert cli.main(["sensors", "--json"]) == 0
    listed = {sensor["key"]: sensor for sensor in json.loads(capsys.readouterr().out)}
    assert cli.main(["sensors", "aviris_ng", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["bands"] == len(one["wavelength"]) == len(one["fwhm"]) == len(one["good_bands"]) == 425
    assert {key: one[key] for key in listed["aviris_ng"]} == listed["aviris_ng"]


def test_module_prints_the_report_and_the_commands():
    out = subprocess.run([sys.executable, "-m", "specfast"], capture_output=True, text=True, check=True).stdout
    assert f"specfast  {specfast.__version__}" in out
    for name in (*environment.VARIABLES, *environment.EXTRAS, *cli.COMMANDS, "specfast._C", "torch", "numpy"):
        assert f"\n  {name} " in out


def test_module_takes_commands():
    done = subprocess.run([sys.executable, "-m", "specfast", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"specfast {specfast.__version__}\n")


@pytest.mark.parametrize("words", [[], ["--help"], ["sensors"], ["sensors", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_mistake(words):
    read, write = os.pipe()
    os.close(read)  # as head does once it has its lines
    try:
        command = [sys.executable, "-m", "specfast", *words]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
