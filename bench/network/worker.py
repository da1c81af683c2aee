"""A worker of an emulated cluster: python -m bench.network.worker SWITCH JOB, started by bench.network.launch."""

from __future__ import annotations

import datetime
import json
import sys

import torch
import torch.distributed as dist

from bench.network import timing, training
from bench.network.launch import end_with_the_launcher

JOBS = {"timing": timing.run, "training": training.run}


def _report(row: dict) -> None:
    print(json.dumps(row), flush=True)


def main() -> None:
    end_with_the_launcher()
    switch, job = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    try:
        JOBS[job.pop("job")](**job, switch=switch, report=_report)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
