"""Measuring on real process groups: the same topology on every rank, whatever each of them saw."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from specfast.dssync.measure import device_of, measure_topology
from specfast.dssync.planner import plan
from specfast.dssync.topology import Topology, TopologyError
from tests.dssync.processes import run

B = 1.25e9


def measured(rank: int) -> dict:
    return measure_topology(nbytes=1 << 18, repeats=2).to_json()


@pytest.mark.parametrize("world", [2, 3])
def test_real_links(world, tmp_path):
    first, *others = run(world, measured, tmp_path=tmp_path)
    assert all(other == first for other in others)
    topology = Topology.from_json(first)
    assert topology.world == world
    assert all(1e5 < bandwidth < 1e12 for bandwidth in topology.bandwidth)
    assert 0 < topology.latency < 1
    assert plan(topology, 1e6).schedule.world == world


class _Model:
    """Times as on a declared network, each rank with an error of its own; the messages do travel."""

    def __init__(self, topology: Topology, rank: int):
        self.topology, self.rank = topology, rank
        self.generator = torch.Generator().manual_seed(rank)

    def __call__(self, pairs, partner, nbytes):
        sent = torch.full((16,), self.rank, dtype=torch.int64)
        received = torch.empty_like(sent)
        work = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
        )
        for one in work:
            one.wait()
        assert received.eq(partner).all()
        rack = self.topology.rack_of
        rate = min(self.topology.bandwidth[self.rank], self.topology.bandwidth[partner])
        if rack[self.rank] != rack[partner]:
            sharing = sum(rack[a] != rack[b] for a, b in pairs)
            rate = min(rate, min(self.topology.uplink) / sharing)
        noise = 1 + 0.1 * torch.rand(1, generator=self.generator).item()
        return (self.topology.latency + nbytes / rate) * noise


def modelled(rank: int, content: dict) -> dict:
    topology = Topology.from_json(content)
    return measure_topology(exchange=_Model(topology, rank)).to_json()


@pytest.mark.parametrize("racks", [((0, 1), (2, 3)), ((0, 2), (1, 3))])
def test_racks_on_four_processes(racks, tmp_path):
    declared = Topology(racks, (B,) * 4, (B / 2, B / 2))
    results = run(4, modelled, declared.to_json(), tmp_path=tmp_path)
    assert all(result == results[0] for result in results)
    topology = Topology.from_json(results[0])
    assert topology.racks == racks
    assert topology.uplink == pytest.approx((B / 2, B / 2), rel=0.15)
    assert topology.bandwidth == pytest.approx((B,) * 4, rel=0.15)
    assert plan(topology, 100e6).schedule.kind == "emissary"


def test_slow_nic_on_four_processes(tmp_path):
    declared = Topology(((0, 1, 2, 3),), (B, B, B / 4, B), (math.inf,))
    results = run(4, modelled, declared.to_json(), tmp_path=tmp_path)
    topology = Topology.from_json(results[0])
    assert topology.slow_ranks() == {2: pytest.approx(4, rel=0.2)}
    assert plan(topology, 100e6).gain > 3


class _Group:
    """As much of a process group as tells its backends."""

    def __init__(self, **backends: str):
        self._backends = backends
        self._device_types = [torch.device(kind) for kind in backends]

    def _get_backend(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(name=lambda: self._backends[device.type])


def test_messages_lie_on_the_gpu_where_the_group_has_nccl(monkeypatch):
    both = _Group(cpu="gloo", cuda="nccl")  # as without a backend, whose name is "undefined" then
    assert device_of(both) == torch.device("cpu")  # no GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device_of(both) == device_of(_Group(cuda="nccl")) == torch.device("cuda", 1)
    assert device_of(_Group(cpu="gloo", cuda="gloo")) == device_of(_Group(cpu="gloo")) == torch.device("cpu")


def refused(rank: int) -> str:
    with pytest.raises(TopologyError) as caught:
        measure_topology(nbytes=0)
    return str(caught.value)


def test_wrong_arguments(tmp_path):
    with pytest.raises(TopologyError, match="expected an initialized process group"):
        measure_topology()
    message = "measure_topology: expected positive numbers; got 0, 5, 192"
    assert run(2, refused, tmp_path=tmp_path) == [message] * 2
    assert run(1, refused, tmp_path=tmp_path) == ["measure_topology: expected two processes or more; got 1"]
