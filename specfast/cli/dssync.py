"""``specfast dssync plan | simulate | measure``: which schedule for which network, before and beside a training run."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from specfast.errors import SpecfastError

HELP = "Plan DS-Sync for a network, simulate it for up to thousands of workers, or measure the network."


class UsageError(SpecfastError, ValueError):
    """The arguments do not fit each other."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    plan = actions.add_parser("plan", help="the best schedule for a network, and whether it beats all-reduce")
    plan.add_argument("--world", type=int, metavar="N", help="number of workers (default: the topology's)")
    plan.add_argument("--group", type=int, metavar="N", help="workers that average together (default: the best)")
    plan.add_argument(
        "--topology", type=Path, metavar="FILE", help="JSON; see docs/dssync.md (default: a flat network)"
    )
    _add_network(plan)
    plan.add_argument(
        "--max-disagreement",
        type=float,
        metavar="V",
        help="bound on the workers' mean squared distance to their mean, in units of one step's noise (default: 1.5)",
    )
    plan.add_argument("--overlap", action="store_true", help="the averaging runs during forward and backward")
    plan.add_argument("--json", action="store_true", help="print JSON, with all rounds")

    simulate = actions.add_parser("simulate", help="step time and disagreement against the number of workers")
    simulate.add_argument("--worlds", type=int, nargs="+", metavar="N", help="default: 4, 8, ... 4096")
    simulate.add_argument("--group", type=int, metavar="N", help="group size of the grid (default: sqrt(N))")
    simulate.add_argument("--rack", type=int, default=16, metavar="N", help="workers in a rack (default: %(default)s)")
    simulate.add_argument(
        "--oversubscription",
        type=float,
        default=4.0,
        metavar="X",
        help="how many times the NICs of a rack exceed its uplink (default: %(default)s)",
    )
    _add_network(simulate)
    simulate.add_argument(
        "--jitter", type=float, default=0.0, metavar="S", help="spread of the workers' compute times, as 0.1"
    )
    simulate.add_argument(
        "--stall",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("P", "X"),
        help="a worker's step takes X times as long with probability P",
    )
    simulate.add_argument(
        "--every", type=int, default=8, metavar="H", help="steps between averages of local SGD (default: %(default)s)"
    )
    simulate.add_argument("--seed", type=int, default=0, help="fixes what is drawn at random (default: %(default)s)")
    simulate.add_argument("--out", type=Path, metavar="PNG", help='draw it (needs "specfast[plot]")')
    simulate.add_argument("--json", action="store_true", help="print JSON instead of the table")

    measure = actions.add_parser("measure", help="time the links between the processes that torchrun started")
    measure.add_argument("--out", type=Path, metavar="FILE", help="write the topology for `specfast dssync plan`")
    measure.add_argument("--mbytes", type=float, default=4.0, metavar="MB", help="size of a message (default: 4)")
    measure.add_argument("--repeats", type=int, default=5, metavar="N", help="messages a pair (default: 5)")
    measure.add_argument("--device", default="auto", help="auto, cpu or cuda")
    measure.add_argument("--json", action="store_true", help="print the topology on stdout, also with --out")


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nic-gbit", type=float, metavar="X", help="Gbit/s of every NIC (default: 10)")
    parser.add_argument("--latency-us", type=float, metavar="X", help="microseconds a hop (default: 50)")
    parser.add_argument(
        "--mbytes", type=float, default=100.0, metavar="MB", help="size of the parameters (default: %(default)s)"
    )
    parser.add_argument(
        "--compute-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="forward and backward; DDP hides its all-reduce behind backward (default: synchronization alone)",
    )


def run(args: argparse.Namespace) -> int:
    if args.mbytes <= 0:
        raise UsageError(f"--mbytes: expected a positive number; got {args.mbytes:g}")
    return {"plan": _plan, "simulate": _simulate, "measure": _measure}[args.action](args)


def _plan(args: argparse.Namespace) -> int:
    from specfast.dssync import planner

    topology = _topology(args)
    bound = {} if args.max_disagreement is None else {"max_disagreement": args.max_disagreement}
    made = planner.plan(
        topology,
        args.mbytes * 1e6,
        group_size=args.group,
        compute=args.compute_ms / 1e3,
        overlap="snapshot" if args.overlap else "none",
        **bound,
    )
    print(json.dumps(made.to_json(), indent=2) if args.json else as_text(made, args.mbytes))
    return 0


def _topology(args: argparse.Namespace):
    from specfast.dssync.topology import GBIT, Topology

    if args.topology is None:
        if args.world is None:
            raise UsageError("plan: expected --world N, --topology FILE or both; got neither")
        if args.world < 1:
            raise UsageError(f"--world: expected one worker or more; got {args.world}")
        return Topology.uniform(
            1, args.world, _or(args.nic_gbit, 10.0) * GBIT, latency=_or(args.latency_us, 50.0) / 1e6
        )
    if given := [name for name in ("nic_gbit", "latency_us") if getattr(args, name) is not None]:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{flags}: {args.topology} says it already; give one of them")
    topology = Topology.load(args.topology)
    if args.world not in (None, topology.world):
        raise UsageError(f"--world: expected {topology.world}, the workers in {args.topology}; got {args.world}")
    return topology


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def as_text(plan, mbytes: float, longest: int = 12) -> str:
    """Return a plan as lines for people; of long periods the first rounds."""
    schedule = plan.schedule
    rounds = [
        f"  round {number:<3}  " + " ".join("{" + ",".join(map(str, group)) + "}" for group in partition)
        for number, partition in enumerate(schedule.rounds[:longest])
    ]
    if len(schedule.rounds) > longest:
        rounds.append(f"  ... {len(schedule.rounds) - longest} more (--json has all)")
    groups = schedule.groups()
    most = max((sum(rank in group for group in groups) for rank in range(schedule.world)), default=0)
    lines = [
        ("network", plan.topology.describe()),
        ("message", f"{mbytes:g} MB"),
        ("schedule", f"{plan.label} ({len(schedule.rounds)} rounds, up to {most} communicators a worker)"),
        *(("", note) for note in schedule.notes),
        ("contraction", f"{_exact(plan.contraction)} a period (second singular value; below 1 it mixes)"),
        ("disagreement", f"{plan.disagreement:.3g} (mean squared distance to the mean; one step's noise is 1)"),
        ("step", f"{_ms(plan.seconds)}; DDP's all-reduce {_ms(plan.ring_seconds)}: {plan.gain:.2f} times as fast"),
    ]
    if len(plan.topology.racks) > 1:
        lines.append(("", f"all-reduce that knows the racks {_ms(plan.hierarchical_seconds)}"))
    text = [f"{name:<13} {value}" for name, value in lines]
    return "\n".join([*text, *rounds, plan.reason])


def _exact(value: float) -> str:
    return "0 (exact)" if value < 1e-9 else f"{value:.3g}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _simulate(args: argparse.Namespace) -> int:
    from specfast.dssync import scaling
    from specfast.dssync.simulate import Compute
    from specfast.dssync.topology import GBIT

    if args.rack < 1 or args.oversubscription < 1 or args.every < 1:
        raise UsageError(
            "--rack, --oversubscription, --every: expected 1 or more; "
            f"got {args.rack}, {args.oversubscription:g}, {args.every}"
        )
    cluster = scaling.Cluster(
        rack=args.rack,
        nic=_or(args.nic_gbit, 10.0) * GBIT,
        oversubscription=args.oversubscription,
        latency=_or(args.latency_us, 50.0) / 1e6,
        nbytes=args.mbytes * 1e6,
        compute=Compute(args.compute_ms / 1e3, args.jitter, tuple(args.stall)),
        group_size=args.group,
        every=args.every,
    )

    def progress(text: str) -> None:
        print(f"\rsimulating {text} ...", end="", file=sys.stderr, flush=True)

    shown = sys.stderr.isatty()
    points = scaling.sweep(
        cluster, args.worlds or scaling.WORLDS, seed=args.seed, **({"progress": progress} if shown else {})
    )
    if shown:
        print(file=sys.stderr)
    rows = [point.to_json() for point in points]
    print(json.dumps(rows, indent=2) if args.json else as_table(rows))
    if args.out is not None:
        from specfast.files import write_atomic
        from specfast.report.scaling import scaling as draw
        from specfast.report.style import to_png

        write_atomic(args.out, to_png(draw(rows, title_of(cluster)), dpi=110))
        if not args.json:
            print(f"written to {args.out}")
    return 0


def title_of(cluster) -> str:
    """Return a line that says what was simulated."""
    from specfast.dssync.topology import GBIT

    text = f"{cluster.nbytes / 1e6:g} MB, NIC {cluster.nic / GBIT:g} Gbit/s, {cluster.latency * 1e6:g} us a hop"
    if not math.isclose(cluster.oversubscription, 1.0):
        text += f", racks of {cluster.rack} at {cluster.oversubscription:g}:1"
    if cluster.compute.seconds:
        text += f", compute {cluster.compute.seconds * 1e3:g} ms, jitter {cluster.compute.jitter:g}"
    return text


def as_table(rows: list[dict]) -> str:
    """Return the simulated points as a table: a line a world, milliseconds and disagreement of every strategy."""
    names = list(dict.fromkeys(row["strategy"] for row in rows))
    cells = {(row["world"], row["strategy"]): f"{1e3 * row['seconds']:.4g}/{row['disagreement']:.2g}" for row in rows}
    lines = ["milliseconds a step / disagreement", f"{'workers':>7}" + "".join(f"{name:>18}" for name in names)]
    for world in dict.fromkeys(row["world"] for row in rows):
        lines.append(f"{world:>7}" + "".join(f"{cells[world, name]:>18}" for name in names))
    return "\n".join(lines)


def _measure(args: argparse.Namespace) -> int:
    from specfast.dssync.measure import measure_topology
    from specfast.train.distributed import connect

    with connect(args.device) as world:
        topology = measure_topology(nbytes=round(args.mbytes * 1e6), repeats=args.repeats)
        if world.is_main:
            printed = args.json or args.out is None
            told = sys.stderr if printed else sys.stdout
            for line in (topology.describe(), *topology.notes):
                print(line, file=told)
            if args.out is not None:
                print(f"written to {topology.save(args.out)}", file=told)
            if printed:
                print(json.dumps(topology.to_json(), indent=2))
    return 0
