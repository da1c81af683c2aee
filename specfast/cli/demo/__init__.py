"""``specfast demo``: the main job on a real scene, from raw data to a report."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path

HELP = (
    "Run the main job on the real Indian Pines scene: prepare it as two sensors' data, pre-train a tiny SpecAware, "
    "fill in removed patches, probe the frozen features beside baselines, and write report.html. A stage that is "
    "finished with the same settings is reused, one that was interrupted goes on; --fresh starts over."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--steps", type=int, metavar="N", help="pre-training steps (default: what takes a few minutes)")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything drawn at random (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a run of seconds that shows the parts work; no result")
    parser.add_argument("--fresh", action="store_true", help="do every stage anew")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--json", action="store_true", help="print where the results are as a JSON object")


def run(args: argparse.Namespace) -> int:
    from specfast.cli.demo.pipeline import run_demo
    from specfast.cli.demo.work import Settings

    settings = Settings(seed=args.seed)
    if args.quick:
        settings = settings.made_quick()
    if args.steps is not None:
        settings = settings.with_steps(args.steps)
    told = sys.stderr if args.json else sys.stdout
    try:
        with contextlib.redirect_stdout(told):
            report = run_demo(settings, args.out, fresh=args.fresh, progress=not args.quiet)
    except KeyboardInterrupt as stop:
        print("specfast demo: interrupted; run the same command again to go on", file=sys.stderr)
        return 128 + getattr(stop, "signal", signal.SIGINT)
    if args.json:
        print(json.dumps({"report": str(report), "probe": str(args.out / "probe.json")}))
    else:
        print(f"\nThe report: {report}")
    return 0
