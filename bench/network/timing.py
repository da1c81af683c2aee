"""How long an exchange takes, how long a whole step, and how many bytes go over the wires."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from bench.network.clusters import make_cluster
from bench.network.messages import Transformer, parameter_bytes
from bench.network.namespaces import traffic
from bench.network.providers import Provider, make_provider
from bench.timing import quantiles

MIN_CYCLES = 3  # of each provider, however long its cycle


def run(
    *,
    cluster: str,
    workers: int,
    nic_mbit: float,
    message: str,
    providers: list[str],
    steps: int,
    whole_steps: bool,
    switch: str,
    report: Callable[[dict], None],
) -> None:
    """Time all providers in turns on this network; rank 0 reports a row for each and for each kind of time."""
    network = make_cluster(cluster, workers, nic_mbit)
    benches = [_Bench(name, message, network, switch) for name in providers]
    for bench in benches:
        bench.warm_up()
    for bench in _turns(benches, steps, least=MIN_CYCLES):
        bench.time_exchange()
    for bench in _turns(benches, steps // 2, least=2) if whole_steps else ():
        bench.time_steps()
    for bench in benches:
        for row in bench.rows():
            if dist.get_rank() == 0:
                report(row)
        bench.provider.close()


def _turns(benches: list[_Bench], steps: int, least: int) -> Iterator[_Bench]:
    """Each provider for as many cycles as ``steps`` take, spread evenly over the same stretch of time."""
    wanted = [max(least, -(-steps // bench.provider.cycle)) for bench in benches]
    turns = max(wanted)
    for turn in range(turns):
        for bench, cycles in zip(benches, wanted, strict=True):
            if (turn + 1) * cycles // turns > turn * cycles // turns:
                yield bench


class _Bench:
    """One provider with its own copy of the model, and its times on this rank."""

    def __init__(self, name: str, message: str, network, switch: str):
        torch.manual_seed(0)
        self.name, self.switch, self.rank = name, switch, dist.get_rank()
        self.model = Transformer(message)
        self.bytes = parameter_bytes(self.model)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.provider: Provider = make_provider(name, self.model, optimizer, network)
        self.batch = self.model.random_batch()
        self.exchanges: list[list[float]] = []
        self.steps: list[float] = []
        self.wire: list[tuple[int, int]] = []
        self.error = None

    def warm_up(self) -> None:
        """Bring it to the start of a cycle, and check what the exchanges of one cycle make of known numbers."""
        provider = self.provider
        values = torch.arange(1.0, 1.0 + dist.get_world_size()).square()
        # whole cycles, so that what comes next is the first exchange of one
        for _ in range(-(-provider.warm_up // provider.cycle) * provider.cycle):
            provider.prepare()
            provider.exchange()
        if self.name == "ddp-powersgd":
            return  # approximates on purpose
        self.error = 0.0
        initial = [parameter.detach().clone() for parameter in self.model.parameters()]
        for number in range(provider.cycle):
            provider.set_values(values[self.rank].item())
            provider.exchange()
            expected = provider.expected(values, number)[self.rank]
            self.error = max(self.error, relative_error(provider.observed(), expected))
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), initial, strict=True):
                parameter.copy_(value)

    def time_exchange(self) -> None:
        """Time one cycle, all workers starting each exchange together."""
        before = traffic(self.switch) if self.rank == 0 else None
        times = []
        for _ in range(self.provider.cycle):
            self.provider.prepare()
            dist.barrier()
            start = time.perf_counter()
            self.provider.exchange()
            times.append(time.perf_counter() - start)
        dist.barrier()
        self.exchanges.append(times)
        if before:
            used = traffic(self.switch) - before
            self.wire.append((used.workers, used.uplinks))

    def time_steps(self) -> None:
        """Time a cycle of whole steps in one go, each worker waiting only for whom it needs."""
        dist.barrier()
        start = time.perf_counter()
        for _ in range(self.provider.cycle):
            self.provider.step(*self.batch)
        self.steps.append((time.perf_counter() - start) / self.provider.cycle)

    def rows(self) -> list[dict]:
        """One row for the exchange, one for the step: ms a step by the slowest worker, medians over cycles."""
        cycle = self.provider.cycle
        exchange = _slowest(torch.tensor(self.exchanges)).mean(dim=1)
        error = torch.tensor(self.error or 0.0)
        dist.all_reduce(error, op=dist.ReduceOp.MAX)
        common = {"provider": self.name, "message_bytes": self.bytes, "cycle": cycle}
        if self.error is not None:
            common["relative_error"] = float(f"{error.item():.3g}")
        found = [{"kernel": "exchange", **common, **_times(exchange)}]
        if self.wire:
            sent, crossed = torch.tensor(self.wire, dtype=torch.float64).median(dim=0).values.div(cycle).tolist()
            found[0] |= {"wire_bytes": round(sent), "uplink_bytes": round(crossed)}
        if self.steps:
            found.append({"kernel": "step", **common, **_times(_slowest(torch.tensor(self.steps)))})
        return found


def relative_error(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest one; of what is not finite a number so large that it fails every check, and that JSON can hold."""
    worst = torch.finfo(torch.float32).max
    return (observed / expected - 1).abs().nan_to_num(nan=worst, posinf=worst).max().item()


def _slowest(times: torch.Tensor) -> torch.Tensor:
    """The largest of all workers, element by element."""
    times = times.double()
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return times


def _times(seconds: torch.Tensor) -> dict:
    p20, p50, p80 = quantiles((1e3 * seconds).tolist())
    return {"p20_ms": round(p20, 3), "p50_ms": round(p50, 3), "p80_ms": round(p80, 3), "runs": len(seconds)}
