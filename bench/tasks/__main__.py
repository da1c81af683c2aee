"""python -m bench.tasks --data FOLDER: pre-train, fine-tune with few labels, and record every score.

FOLDER holds indian_pines, enmap_potsdam, cd_semisynthetic and casi_muufl. Stores and weights go to --work; what is
finished there, and cases that the result files hold at this commit, are not done again. ``python -m bench.tasks.report
--write`` puts the tables into the documents.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from bench.machine import commit, versions
from bench.tasks import cases
from bench.tasks.pretraining import QUICK, Settings, pretrain
from bench.tasks.report import RESULTS
from specfast.files import write_atomic


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="the scenes")
    parser.add_argument("--cases", nargs="+", choices=cases.CASES, default=list(cases.CASES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="into runs/bench/tasks-quick: tries the tool")
    parser.add_argument("--work", type=Path, help="folder of stores and weights (runs/bench/tasks)")
    parser.add_argument("--out", type=Path, help="folder of the result files (bench/results/tasks)")
    args = parser.parse_args(argv)
    if not (args.data / "indian_pines").is_dir():
        parser.error(f"--data: expected a folder with indian_pines, enmap_potsdam and so on; got {args.data}")
    work = args.work or Path("runs", "bench", "tasks-quick" if args.quick else "tasks")
    out = args.out or (work / "results" if args.quick else RESULTS)
    model, pretraining = pretrain(args.data, work, QUICK if args.quick else Settings())
    write_atomic(out / "pretraining.json", (json.dumps(pretraining, indent=1) + "\n").encode())
    effort = cases.QUICK if args.quick else cases.Effort()
    identity = {"encoder": digest_of(model), "effort": str(effort), "versions": versions(torch.device("cpu"))}
    for name in args.cases:
        path = out / f"{name}.json"
        if is_current(path, identity):
            print(f"{name}: measured at this commit with this encoder, left as it is")
            continue
        start = time.perf_counter()
        table = cases.CASES[name](args.data, model, effort)
        write_atomic(path, _written(identity, table.to_dict(), time.perf_counter() - start))
        print(f"{name}: {path}\n{table.verdict()}", flush=True)
    return 0


def digest_of(model: Path) -> str:
    """The first digits of the SHA-256 of a saved model's weights."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:16]


def is_current(path: Path, identity: dict) -> bool:
    """Whether a result was made by this commit, without changes to it, of this encoder and with this effort."""
    if not path.exists() or commit().endswith("+"):
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    return {key: found.get(key) for key in identity} == identity


def _written(identity: dict, table: dict, seconds: float) -> bytes:
    """A case's result as JSON, a row a line. Confusion matrices and the scores of classes are left out."""
    left_out = ("per_class", "classes", "confusion", "seconds")
    rows = [{key: value for key, value in row.items() if key not in left_out} for row in table["rows"]]
    head = {
        **identity,
        "seconds": round(seconds, 1),
        "settings": table["settings"],
        "notes": table["notes"],
        "verdict": table["verdict"].split("\n"),
        "comparisons": table.get("comparisons", []),
    }
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n]}}\n'.encode()


if __name__ == "__main__":
    sys.exit(main())
