"""Completion in zsh."""

from __future__ import annotations

import shlex

from specfast.cli.completion.tree import Command, Option

_HEAD = "#compdef specfast\n# zsh completion of specfast; made by `specfast completion zsh`\n"
_TAIL = """
if [ "$funcstack[1]" = _specfast ]; then
    _specfast "$@"
else
    compdef _specfast specfast
fi
"""


def script(root: Command) -> str:
    """Return the script: a function a command; what it does not know is completed as a file name."""
    return _HEAD + "".join(_function(command) for command in root.walk()) + _TAIL


def _function(command: Command) -> str:
    name = _name(command)
    specs = [spec for option in command.options for spec in _specs(option)]
    if not command.children:
        words = f":({' '.join(map(_escaped, command.choices))})" if command.choices else ":_files"
        return f"\n{name}() {{\n    _arguments {_lines([*specs, f'*:argument{words}'])}\n}}\n"
    nouns = [f"{_escaped(child)}:{_escaped(below.help)}" for child, below in command.children.items()]
    cases = "\n".join(f"                {child}) {_name(below)} ;;" for child, below in command.children.items())
    return f"""
{name}() {{
    local state line
    local -a nouns=({_lines(nouns)})
    _arguments -C {_lines([*specs, "1: :->noun", "*:: :->rest"])}
    case $state in
        noun) _describe command nouns ;;
        rest)
            case $line[1] in
{cases}
            esac ;;
    esac
}}
"""


def _specs(option: Option) -> list[str]:
    values = f"({' '.join(map(_escaped, option.choices))})" if option.choices else "_files"
    text = option.help.replace("[", "\\[").replace("]", "\\]")
    end = "" if not option.values else f":value:{values}" if option.values == 1 else f":*-*:value:{values}"
    return [f"{name}[{text}]{end}" for name in option.names]


def _lines(words: list[str]) -> str:
    return "\\\n        " + " \\\n        ".join(map(shlex.quote, words)) + "\n    "


def _escaped(text: str) -> str:
    return text.replace(":", "\\:")


def _name(command: Command) -> str:
    return "_".join(("_specfast", *command.path)).replace("-", "_")
