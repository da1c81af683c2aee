"""The sweep over world sizes: every strategy at every size, and what is known of each."""

from __future__ import annotations

import pytest

from specfast.dssync import scaling
from specfast.dssync.scaling import Cluster, sweep
from specfast.dssync.simulate import Compute


def test_last_rack_may_be_smaller():
    topology = Cluster(rack=4, nic=1.0, oversubscription=2.0).topology(10)
    assert topology.racks == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
    assert topology.uplink == (2.0, 2.0, 1.0)
    assert Cluster(rack=16).topology(8).oversubscription() == 1.0


def test_sweep():
    told = []
    points = {(p.world, p.strategy): p for p in sweep(Cluster(rack=8, every=4), (4, 16, 32), progress=told.append)}
    assert told == ["4 workers", "16 workers", "32 workers"]
    strategies = (scaling.RING, scaling.HIERARCHICAL, scaling.LOCAL, scaling.GRID, scaling.PLANNED)
    assert set(points) == {(world, name) for world in (4, 16, 32) for name in strategies}
    for world in (4, 16, 32):
        ring, hierarchical, local, grid, planned = (points[world, name] for name in strategies)
        assert ring.disagreement == hierarchical.disagreement == 0
        assert local.seconds == pytest.approx(ring.seconds / 4)
        assert local.disagreement == pytest.approx(1.5 * (1 - 1 / world))
        assert planned.seconds <= min(grid.seconds, ring.seconds) * 1.031
        assert 0 < grid.disagreement <= planned.disagreement < local.disagreement
    assert points[4, scaling.GRID].detail == "2 x 2"
    assert points[4, scaling.RING].to_json()["world"] == 4


def test_jitter_slows_all_reduce_more_than_pairs():
    calm = {p.strategy: p.seconds for p in sweep(Cluster(nbytes=1e3, compute=Compute(0.1)), (16,), steps=200)}
    jitter = Compute(0.1, jitter=0.3)
    rough = {p.strategy: p.seconds for p in sweep(Cluster(nbytes=1e3, compute=jitter, group_size=2), (16,), steps=200)}
    assert rough[scaling.RING] / calm[scaling.RING] > rough[scaling.GRID] / calm[scaling.GRID] > 1.05


def test_overlap_hides_the_averaging_and_costs_agreement():
    points = {p.strategy: p for p in sweep(Cluster(nbytes=50e6, compute=Compute(0.1)), (16,))}
    hidden, planned = points[scaling.OVERLAPPED], points[scaling.PLANNED]
    assert hidden.seconds == pytest.approx(0.1)
    assert planned.seconds > 0.13
    assert hidden.disagreement > 1 - 1 / 16


def test_worlds_of_one():
    with pytest.raises(ValueError, match="worlds: expected 2 workers or more; got 1"):
        sweep(Cluster(), (4, 1))
