"""Completion in bash (3.2 or newer)."""

from __future__ import annotations

import shlex

from specfast.cli.completion.tree import Command

_SCRIPT = """\
# bash completion of specfast; made by `specfast completion bash`
_specfast() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} at= flag= words= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${{COMP_WORDS[i]}}" in
            {paths}) at="$at ${{COMP_WORDS[i]}}" ;;
            *) break ;;
        esac
    done
    for ((i = COMP_CWORD - 1; i > 0; i--)); do  # the option whose values these are
        if [[ ${{COMP_WORDS[i]}} == -* ]]; then flag=${{COMP_WORDS[i]}}; break; fi
    done
    if [[ $cur == -* ]]; then
        case "$at" in
{options}
        esac
    else
        case "$at $flag $((COMP_CWORD - i))" in
{values}
            *)
                case "$at" in
{nouns}
                esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _specfast specfast
"""


def script(root: Command) -> str:
    """Return the script; what it does not know is completed as a file name."""
    commands = list(root.walk())
    options, values, nouns = [], [], []
    for command in commands:
        at = shlex.quote(_at(command))
        names = " ".join(name for option in command.options for name in option.names)
        options.append(f"            {at}) words={shlex.quote(names)} ;;")
        if words := " ".join(command.children) or " ".join(command.choices):
            nouns.append(f"                    {at}) words={shlex.quote(words)} ;;")
        by_choices: dict[tuple, list[str]] = {}
        for option in command.options:
            if option.values:
                ends = "1" if option.values == 1 else "*"
                patterns = [f"{shlex.quote(f'{_at(command)} {name} ')}{ends}" for name in option.names]
                by_choices.setdefault(option.choices, []).extend(patterns)
        for choices, patterns in by_choices.items():
            values.append(f"            {'|'.join(patterns)}) words={shlex.quote(' '.join(choices))} ;;")
    paths = "|".join(shlex.quote(_at(command)) for command in commands if command.path)
    return _SCRIPT.format(paths=paths, options="\n".join(options), values="\n".join(values), nouns="\n".join(nouns))


def _at(command: Command) -> str:
    return "".join(f" {word}" for word in command.path)
