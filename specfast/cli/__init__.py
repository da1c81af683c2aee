"""The command line: ``specfast COMMAND ...``. One file a command, imported only when that command is asked for.

A command's module offers ``HELP`` (text), ``add_arguments(parser)`` and ``run(args) -> exit code``.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys

from specfast import __version__
from specfast.errors import SpecfastError

COMMANDS = {
    "info": "show what a scene's file holds, and what was assumed about it",
    "sensors": "list the known sensors and their bands",
    "prepare": "tile scenes into a training store",
    "pretrain": "pre-train a SpecAware model on a store",
    "dssync": "plan, simulate and measure group averaging on a network",
    "probe": "measure frozen features on a labeled scene",
    "demo": "run the main job on a real scene and write a report",
}

OK, MISUSED, INTERRUPTED = 0, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 a mistake in the call or its files, 130 stopped.

    A mistake is one line on stderr; with SPECFAST_DEBUG=1 it is a traceback. Other exceptions leave as they are.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
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
        ]
    )


def _run(name: str, argv: list[str]) -> int:
    command = importlib.import_module(f"specfast.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"specfast {name}", description=command.HELP)
    command.add_arguments(parser)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else MISUSED
    try:
        return command.run(args) or OK
    except KeyboardInterrupt:
        print(f"specfast {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output, as in `specfast info FILE | head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
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
