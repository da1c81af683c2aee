"""python -m bench: measure, print a table, and write bench/results/<device>-<suite>.json as the rows come.

An interrupted run loses nothing: every row is on disk once measured, and --resume goes on after those that were
measured at this commit. Draw the files with `python -m bench.plot`, compare two with `python -m bench.compare`, and
renew the tables of README.md and docs/performance.md with `python -m bench.table`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from bench.cases import MODES, forget_compiled
from bench.machine import commit, measure_peaks, slug
from bench.measure import measure
from bench.plan import KERNELS, SUITES, UNITS, Builder, Choice, effort, plan
from bench.results import FOLDER, ResultFile
from bench.shapes import name_of
from bench.summary import LABELS
from bench.timing import Clock

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if "float16" in (args.dtypes or ()) and "step" in (args.suites or SUITES):
        parser().error("--dtypes: the training step runs in float32 or bfloat16; leave out float16 or the suite step")
    if args.resume and commit().endswith("+"):
        parser().error("--resume: files differ from the last commit, so what was measured before may be of others")
    device = torch.device(args.device)
    choice = Choice(
        quick=args.quick,
        kernels=args.operators and tuple(args.operators),
        units=args.units and tuple(args.units),
        modes=args.modes and tuple(args.modes),
        dtypes=args.dtypes and tuple(DTYPES[name] for name in args.dtypes),
        providers=args.providers and tuple(args.providers),
        batch=args.batch,
        bands=args.bands and tuple(args.bands),
        side=args.side,
    )
    folder = args.out or (Path("runs", "bench") if args.quick else FOLDER)
    suites = {suite: plan(suite, device, choice) for suite in args.suites or SUITES}
    dtypes = sorted({job.dtype for jobs in suites.values() for job in jobs}, key=name_of)
    if not dtypes:
        parser().error("nothing to measure: no job of these suites has such an operator and unit")
    clock, builder, failed = Clock(device), Builder(device), 0
    peaks = measure_peaks(device, dtypes, quick=args.quick)
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name_of(dtype)}" for dtype, rate in peaks.flops.items())
    print(f"{slug(device)}: {rates}, {peaks.bandwidth / 1e9:.3g} GB/s", flush=True)
    for suite, jobs in suites.items():
        name = slug(device) if device.type == "cuda" else f"{slug(device)}-{suite}"
        results = ResultFile(folder / f"{name}.json")
        print(f"\n{results.path}\n{HEADER}")
        for job in jobs:
            for mode, work in builder.works(job):
                names = {"unit": work.unit, "kernel": work.kernel, "mode": mode, "shape": str(work.shape)}
                names["dtype"] = name_of(work.dtype)
                if args.resume and all(results.has(commit(), provider=p, **names) for p in work.providers):
                    continue
                rows = measure(work, device, clock, peaks, effort(job, device, args.quick))
                results.add(rows)
                failed += sum("relative error" in row.get("failed", "") for row in rows)
                print("\n".join(line(row, rows) for row in rows), flush=True)
            forget_compiled()
    return 1 if failed else 0


HEADER = (
    f"{'unit':9} {'kernel':17} {'mode':8} {'shape':14} {'dtype':8} {'provider':17} {'p50 ms':>10} {'speed-up':>8} "
    f"{'floor':>6} {'MB':>8} {'error':>8}"
)


def line(row: dict, rows: list[dict]) -> str:
    """One row as text; the speed-up is over the reference measured beside it."""
    start = (
        f"{row['unit']:9} {row['kernel']:17} {row['mode']:8} {row['shape']:14} {row['dtype']:8} {row['provider']:17} "
    )
    if "p50_ms" not in row:
        return start + row["failed"]
    base = next((other["p50_ms"] for other in rows if other["provider"] == "reference" and "p50_ms" in other), None)
    floor = f"{row['percent_of_floor']:.0f}%" if "percent_of_floor" in row else ""
    memory = "" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.1f}"
    speedup = f"{base / row['p50_ms']:.2f}" if base else ""
    error = f"{row['relative_error']:.1e}" if "relative_error" in row else ""
    return f"{start}{row['p50_ms']:10.3f} {speedup:>8} {floor:>6} {memory:>8} {error:>8}"


def _suite(name: str) -> str:
    if name not in SUITES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(SUITES)}; got {name!r}")
    return name


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suites", nargs="*", type=_suite, help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few runs, into runs/bench: tries the tool")
    parser.add_argument("--operators", nargs="+", choices=KERNELS)
    parser.add_argument("--units", nargs="+", choices=UNITS)
    parser.add_argument("--modes", nargs="+", choices=MODES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES)
    parser.add_argument("--providers", nargs="+", choices=LABELS)
    parser.add_argument("--batch", type=int, help="samples (CPU: 2, GPU: 64)")
    parser.add_argument("--bands", nargs="+", type=int, help="bands of a sample (100 202 425)")
    parser.add_argument("--side", type=int, help="side of the image in pixels (224)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder of the result files (bench/results)")
    parser.add_argument("--resume", action="store_true", help="skip what was measured at this commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
