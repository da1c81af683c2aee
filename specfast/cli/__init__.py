"""The command line: ``specfast COMMAND ...``. One file a command, imported only when that command is asked for.

A command's module offers ``HELP`` (text), ``add_arguments(parser)`` and ``run(args) -> exit code``; the parser adds
``--config`` and ``--print-config``. A command that reports something declares ``--json`` and then prints one JSON
value on stdout, and everything else on stderr.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType

from specfast import __version__
from specfast.cli.options import leaves
from specfast.cli.parser import Parser
from specfast.errors import SpecfastError

COMMANDS = {
    "info": "show what a scene's file holds, and what was assumed about it",
    "sensors": "list the known sensors and their bands",
    "prepare": "tile scenes into a training store",
    "pretrain": "pre-train a SpecAware model on a store",
    "dssync": "plan, simulate and measure group averaging on a network",
    "probe": "measure frozen features on a labeled scene",
    "finetune": "train a model for a task on labeled scenes, beside baselines",
    "segment": "map classes or targets of whole scenes with a fine-tuned model",
    "embed": "write an encoder's features of whole scenes",
    "change": "map what changed between two dates",
    "detect": "map anomaly scores of whole scenes",
    "show": "draw a scene, a map, an embedding, a table or a run as PNG, SVG or HTML",
    "export": "write the encoder for one sensor as ONNX, AOTInductor or torch.export",
    "demo": "run the main job on a real scene and write a report",
    "completion": "print a script that completes commands and options in your shell",
}

# What main returns: done; a check that was asked for failed; a mistake in the call or its files; stopped.
# A signal other than SIGINT gives 128 + its number where a command catches it, and a bug leaves as Python's 1.
OK, CHECK_FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code, one of those above.

    A mistake is one line on stderr; with SPECFAST_DEBUG=1 it is a traceback. Other exceptions leave as they are.
    """
    return until_nobody_reads(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def until_nobody_reads(work: Callable[[], int]) -> int:
    """Return what ``work`` returns, or OK if the reader of its output goes first, as in `specfast info FILE | head`."""
    try:
        code = work()
        sys.stdout.flush()  # what is left is written here, and not when Python ends and can only complain
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return OK if argv else MISUSED
    if argv[0] in ("-V", "--version"):
        print(f"specfast {__version__}")
        return OK
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}."
        print(f"specfast: unknown command {name!r}; {hint}", file=sys.stderr)
        return MISUSED
    return _run(name, rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: specfast COMMAND [arguments]",
            "",
            "commands:",
            *lines,
            "",
            "specfast COMMAND --help describes one; python -m specfast shows what is installed.",
            "exit codes: 0 done, 1 a check failed, 2 a mistake in the call or its files, 130 interrupted",
        ]
    )


def load(name: str) -> tuple[ModuleType, Parser]:
    """Import the command ``name``; return its module and its parser with all options."""
    command = importlib.import_module(f"specfast.cli.{name}")
    parser = Parser(prog=f"specfast {name}", description=command.HELP)
    command.add_arguments(parser)
    for leaf in leaves(parser):
        leaf.add_configuration()
    return command, parser


def _run(name: str, argv: list[str]) -> int:
    try:
        command, parser = load(name)
        try:
            args = parser.parse_args(argv)
        except SystemExit as stop:  # argparse has said why, or printed what was asked for
            return stop.code if isinstance(stop.code, int) else MISUSED
        return command.run(args) or OK
    except KeyboardInterrupt:
        print(f"specfast {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # an OSError, and no mistake: main ends it
        raise
    except (SpecfastError, OSError, ValueError, ImportError) as error:
        if os.environ.get("SPECFAST_DEBUG", "0") not in ("", "0") or not _is_mistake(error):
            raise
        print(f"specfast {name}: {error}", file=sys.stderr)
        return MISUSED


def _is_mistake(error: Exception) -> bool:
    """Whether the message alone helps: ours, or the file system's. A ValueError from within a library is a bug."""
    if isinstance(error, (SpecfastError, OSError)):
        return True
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "specfast"
