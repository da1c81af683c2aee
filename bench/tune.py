"""python -m bench.tune: search tile sizes of the Triton kernels on the GPU at hand; nothing else ever does.

Each kernel is tuned inside the operator that launches it, at the base model's sizes: one launch parameter at a time is
halved or doubled, what is faster by more than the noise is kept, until nothing is. A candidate must give the result of
the configuration that is checked in; one that does not compile or does not fit the device is passed over. What was
found is written to kernels/configs/<architecture>.json after every kernel, whole or not at all. Afterwards run
tests/kernels: they compile every entry for every architecture and hold its registers and shared memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.cases import MODES, work_of
from bench.machine import ROOT
from bench.measure import Work, errors_of
from bench.operators import OPERATORS
from bench.shapes import BASE, Shape, name_of
from bench.timing import Clock
from specfast import ops
from specfast.files import write_atomic
from specfast.kernels import configs

GAIN = 0.02  # less is noise
RUNS = 15
# A parameter's smallest and largest value; tl.dot wants 16 where a tile is an operand, which only compiling can tell.
LIMITS = {"num_warps": (1, 16), "num_stages": (1, 6)}
BLOCK_LIMITS = (4, 16384)

Entry = dict[str, int]


def neighbors(values: Entry) -> Iterator[tuple[str, int]]:
    """One changed parameter at a time: twice and half, and one stage more and less."""
    for name, value in values.items():
        low, high = LIMITS.get(name, BLOCK_LIMITS)
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        yield from ((name, step) for step in steps if low <= step <= high)


def search(start: Entry, milliseconds: Callable[[Entry], float | None], log: Callable[[str], None] = print) -> Entry:
    """Walk to a configuration whose neighbors are not faster; ``milliseconds`` is None for one that cannot run."""
    best, time = dict(start), milliseconds(start)
    if time is None:
        raise RuntimeError(f"the checked-in configuration {start} does not run")
    seen = {tuple(sorted(best.items()))}
    improved = True
    while improved:
        improved = False
        for name, value in list(neighbors(best)):
            candidate = best | {name: value}
            mark = tuple(sorted(candidate.items()))
            if mark in seen:
                continue
            seen.add(mark)
            found = milliseconds(candidate)
            if found is not None and found < time * (1 - GAIN):
                log(f"    {name} {best[name]} -> {value}: {time:.4f} -> {found:.4f} ms")
                best, time, improved = candidate, found, True
    return best


def written(known: dict, kernel: str, bits: str, sizes: dict[str, int], best: Entry) -> dict:
    """The file's content with ``best`` for these sizes: each changed value goes where the old one came from."""
    entry = known[kernel][bits]
    for name, value in best.items():
        place = entry
        for bucket, changes in entry.items():
            letter = bucket[:1]
            if isinstance(changes, dict) and name in changes and sizes.get(letter, 0) >= int(bucket[1:]):
                place = changes
        place[name] = value
    return known


def text_of(known: dict) -> str:
    """JSON as it is checked in: a line for each kernel and number of bits."""
    kernels = []
    for kernel, entries in sorted(known.items()):
        lines = ",\n".join(f'    "{bits}": {json.dumps(entry)}' for bits, entry in sorted(entries.items()))
        kernels.append(f'  "{kernel}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(kernels) + "\n}\n"


@contextlib.contextmanager
def asked_for() -> Iterator[dict[str, Entry]]:
    """Collect the kernels that are launched inside, and the configuration each got."""
    seen: dict[str, Entry] = {}
    config = configs.config

    def noting(kernel: str, *arguments, **sizes) -> Entry:
        seen[kernel] = dict(config(kernel, *arguments, **sizes))
        return seen[kernel]

    configs.config = noting
    try:
        yield seen
    finally:
        configs.config = config


def timer(work: Work, kernel: str, clock: Clock) -> Callable[[Entry], float | None]:
    """Return the median time in ms of an operator with one kernel's configuration replaced."""
    provider = work.providers["specfast-triton"]
    expected = provider.outputs(provider.setup()())

    def milliseconds(entry: Entry) -> float | None:
        with configs.override(kernel, **entry):
            try:
                outputs = provider.outputs(provider.setup()())
                if not max(errors_of(outputs, expected).values()) <= 1e-2:
                    print(f"    {entry}: another result; passed over")
                    return None
                return statistics.median(clock(provider.setup()) for _ in range(RUNS))
            except Exception as error:  # out of shared memory or registers, or a tile tl.dot refuses: of many classes
                print(f"    {entry}: {type(error).__name__}; passed over")
                return None

    return milliseconds


def works(shape: Shape, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, str | None, Work]]:
    """Every operator in both forms and all modes, through Triton."""
    for kernel, make in OPERATORS.items():
        case = make(shape, dtype, device)
        forms = ("reassociated", "direct") if kernel.startswith("hyper") else (None,)
        for form in forms:
            for mode in MODES[:2] if case.inputs else MODES[:1]:
                yield (
                    f"{kernel} {mode}",
                    form,
                    work_of(case, "operator", kernel, mode, shape, dtype, ["specfast-triton"]),
                )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    parser.add_argument(
        "--kernels", nargs="+", help="names in kernels/configs (default: all that the operators launch)"
    )
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bands", type=int, default=202)
    parser.add_argument("--out", type=Path, help="file to write (default: that of the device's architecture)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("tuning needs the GPU that is tuned for; torch finds none")
    from specfast.kernels.triton import launch

    device, shape = torch.device("cuda"), Shape(args.batch, args.bands)
    architecture = launch.architecture(device)
    path = args.out or ROOT / "kernels" / "configs" / f"{architecture}.json"
    known = json.loads(json.dumps(configs.all_configs(architecture)))
    clock = Clock(device)
    for dtype in (getattr(torch, name) for name in args.dtypes):
        done: set[str] = set()
        for title, form, work in works(shape, dtype, device):
            with ops.use_form(form):
                with asked_for() as seen:
                    work.providers["specfast-triton"].setup()()
                for kernel, start in seen.items():
                    if kernel in done or (args.kernels and kernel not in args.kernels):
                        continue
                    done.add(kernel)
                    print(f"{kernel}, {name_of(dtype)}, in {title}, {form or ''}: {start}", flush=True)
                    best = search(start, timer(work, kernel, clock))
                    if best != start:
                        sizes = {"P": BASE.pixels, "R": BASE.rank, "k": BASE.hidden, "p": BASE.patch}
                        # some kernels hold their sums in float32 whatever the dtype of the case
                        bits = str(8 * dtype.itemsize) if str(8 * dtype.itemsize) in known[kernel] else "32"
                        write_atomic(path, text_of(written(known, kernel, bits, sizes, best)).encode())
                        print(f"  wrote {best} to {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
