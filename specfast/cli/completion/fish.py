"""Completion in fish."""

from __future__ import annotations

from specfast.cli.completion.tree import Command

_HEAD = """\
# fish completion of specfast; made by `specfast completion fish`
function __specfast_at
    set -l words (commandline -opc)[2..-1]
    test (count $words) -ge (count $argv); or return 1
    test (count $argv) -eq 0; or test "$words[1..$(count $argv)]" = "$argv"
end
function __specfast_needs_word
    set -l words (commandline -opc)[2..-1]
    test (count $words) -eq (count $argv); and __specfast_at $argv
end
"""


def script(root: Command) -> str:
    """Return the script; what it does not know is completed as a file name."""
    return _HEAD + "\n".join(line for command in root.walk() for line in _lines(command)) + "\n"


def _lines(command: Command) -> list[str]:
    path = "".join(f" {word}" for word in command.path)
    lines = [
        f"complete -c specfast -f -n {_quoted('__specfast_needs_word' + path)} -a {name} -d {_quoted(below.help)}"
        for name, below in command.children.items()
    ]
    where = _quoted("__specfast_at" + path) if command.path else _quoted("__specfast_needs_word")
    if command.choices:
        lines.append(f"complete -c specfast -f -n {where} -a {_quoted(' '.join(command.choices))}")
    for option in command.options:
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
        values = "" if not option.values else f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -r"
        lines.append(f"complete -c specfast -n {where} {names}{values} -d {_quoted(option.help)}")
    return lines


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
