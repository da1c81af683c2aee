"""python -m bench: measure, print a table, and write bench/results/<device>.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

import specfast
from bench.measure import measure
from bench.operators import OPERATORS, SHAPES

RESULTS = Path(__file__).parent / "results"


def machine(device: str) -> dict:
    """Name what the numbers were measured on."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        if info.exists():
            name = next((line.split(":")[1].strip() for line in info.open() if line.startswith("model name")), name)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "specfast": specfast.__version__,
        "commit": commit.stdout.strip() or "unknown",
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS))
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: bench/results/<cpu or cuda>-operators.json")
    args = parser.parse_args(argv)
    rows = []
    print(f"{'operator':18} {'mode':17} {'shape':14} {'dtype':9} {'provider':10} {'p50 ms':>9} {'speed-up':>8}")
    for operator in args.operators:
        for shape in SHAPES:
            for dtype in (getattr(torch, name) for name in args.dtypes):
                for backward in (False, True) if operator != "patch_pool" else (False,):
                    for row in measure(operator, shape, dtype, args.device, backward=backward, repeats=args.repeats):
                        rows.append(row)
                        print(
                            f"{row['operator']:18} {row['mode']:17} {row['shape']:14} {row['dtype']:9} "
                            f"{row['provider']:10} {row['p50_ms']:9.2f} {row['speedup']:8.2f}",
                            flush=True,
                        )
    out = args.out or RESULTS / f"{args.device.split(':')[0]}-operators.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(args.device), "rows": rows}, indent=1) + "\n")
    os.replace(temporary, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
