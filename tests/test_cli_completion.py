"""``specfast completion``: what the scripts know, and what the shells that are here make of them."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from specfast import cli
from specfast.cli.completion import SHELLS
from specfast.cli.completion.tree import command_tree
from specfast.cli.options import long_names, takes_value


@pytest.fixture
def script(capsys, tmp_path):
    """``script(shell)`` writes the script of a shell that is installed, and returns the shell's path and the file."""

    def write(shell: str):
        program = shutil.which(shell)
        if program is None:
            pytest.skip(f"{shell} is not installed")
        assert cli.main(["completion", shell]) == 0
        file = tmp_path / f"specfast.{shell}"
        file.write_text(capsys.readouterr().out)
        return program, file

    return write


def output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_tree_holds_all_commands_and_options():
    tree = command_tree()
    assert list(tree.children) == list(cli.COMMANDS)
    for name, command in tree.children.items():
        parser = cli.load(name)[1]
        known = {n: option for option in command.options for n in option.names}
        for action in parser._actions:
            for option in long_names(action):
                assert (known[option].values > 0) == takes_value(action)
                assert known[option].choices == tuple(map(str, action.choices or ()))
    plan = tree.children["dssync"].children["plan"]
    assert plan.path == ("dssync", "plan")
    assert plan.help == "the best schedule for a network, and whether it beats all-reduce"
    assert tree.children["completion"].choices == SHELLS


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_the_script(script, shell):
    program, file = script(shell)
    output(program, "-n", str(file))


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_need_no_shell_to_be_printed(capsys, shell):
    assert cli.main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert "specfast completion" in out.splitlines()[0] + out.splitlines()[1]
    assert err == ""


CASES = [
    (["prob"], ["probe"]),
    (["probe", "--sp"], ["--splits"]),
    (["probe", "--splits", "random", "fi"], ["field"]),
    (["dssync", ""], ["measure", "plan", "simulate"]),
    (["dssync", "plan", "--wor"], ["--world"]),
    (["completion", ""], ["bash", "fish", "zsh"]),
    (["info", "--out-of-range", "dr"], ["drop"]),
]


@pytest.mark.parametrize(("words", "expected"), CASES)
def test_bash_completes(script, words, expected):
    program, file = script("bash")
    typed = shlex.join(["specfast", *words])
    code = f"source {shlex.quote(str(file))}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _specfast"
    assert sorted(output(program, "-c", f'{code}; printf "%s\\n" "${{COMPREPLY[@]}}"').split()) == expected


def test_bash_leaves_values_that_can_be_anything_to_file_names(script):
    program, file = script("bash")
    code = f"source {shlex.quote(str(file))}; COMP_WORDS=(specfast completion --config b); COMP_CWORD=3; _specfast"
    assert output(program, "-c", f'{code}; echo "${{#COMPREPLY[@]}}"') == "0\n"


@pytest.mark.parametrize(
    ("words", "expected"), [case for case in CASES if case[0] != ["probe", "--splits", "random", "fi"]]
)
def test_fish_completes(script, words, expected):
    program, file = script("fish")
    code = f"source {shlex.quote(str(file))}; complete -C {shlex.quote('specfast ' + ' '.join(words))}"
    lines = output(program, "--no-config", "-c", code).splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == expected


def test_zsh_describes_options_and_choices(script):
    program, file = script("zsh")
    seen = "compdef() { : }; _arguments() { print -rl -- $@ }; _describe() { print -rl -- $@ }"
    code = f"{seen}; source {shlex.quote(str(file))}; "
    probe = output(program, "-f", "-c", code + "_specfast_probe").splitlines()
    (splits,) = [line for line in probe if line.startswith("--splits[")]
    assert splits.endswith("]:*-*:value:(random field tile)")
    assert "*:argument:_files" in probe
    assert "*:argument:(bash zsh fish)" in output(program, "-f", "-c", code + "_specfast_completion").splitlines()
