"""Racks, uplinks and slow NICs found from exchanges on a modelled network, with noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from specfast.dssync.links import clusters, survey, tournament
from specfast.dssync.topology import Topology

NBYTES = 4 << 20
B = 1.25e9


class Network:
    """Exchanges as a network would time them: pairs of a round share NICs and uplinks, with noise on every time."""

    def __init__(self, topology: Topology, noise: float = 0.0, seed: int = 0):
        self.topology = topology
        self.noise = noise
        self.draw = np.random.default_rng(seed)
        self.rounds = 0

    def __call__(self, rounds, nbytes):
        self.rounds += len(rounds)
        seconds = np.full((len(rounds), self.topology.world), np.nan)
        for row, pairs in zip(seconds, rounds, strict=True):
            assert len(set(itertools.chain(*pairs))) == 2 * len(pairs), "a rank exchanges with one partner at a time"
            rack = self.topology.rack_of
            crossing = np.bincount(
                [rack[r] for p in pairs if rack[p[0]] != rack[p[1]] for r in p], minlength=len(set(rack))
            )
            for a, b in pairs:
                rate = min(self.topology.bandwidth[a], self.topology.bandwidth[b])
                latency = self.topology.latency
                if rack[a] != rack[b]:
                    latency = self.topology.latency_across
                    rate = min(rate, *(self.topology.uplink[rack[r]] / crossing[rack[r]] for r in (a, b)))
                for rank in (a, b):
                    row[rank] = (latency + nbytes / rate) * math.exp(self.noise * abs(self.draw.standard_normal()))
        return seconds


def found(topology: Topology, noise: float = 0.0, seed: int = 0, **options) -> Topology:
    return survey(topology.world, Network(topology, noise, seed), NBYTES, **options)


@pytest.mark.parametrize("players", range(2, 18))
def test_everybody_meets_everybody_once(players):
    rounds = tournament(players)
    assert len(rounds) == players - 1 + players % 2
    for pairs in rounds:
        assert len(set(itertools.chain(*pairs))) == 2 * len(pairs) == players - players % 2
    assert sorted(itertools.chain(*rounds)) == list(itertools.combinations(range(players), 2))


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
@pytest.mark.parametrize(
    ("racks", "members", "uplink"),
    [(2, 2, 0.5), (2, 2, 1.0), (2, 4, 1.0), (2, 8, 2.0), (2, 8, 0.5), (4, 4, 1.0), (3, 8, 2.0), (8, 8, 1.0)],
)
def test_racks_behind_oversubscribed_uplinks(racks, members, uplink, noise):
    topology = Topology.uniform(racks, members, B, uplink * B, 20e-6)
    for seed in range(5 if noise else 1):
        measured = found(topology, noise, seed)
        assert measured.racks == topology.racks
        np.testing.assert_allclose(measured.uplink, topology.uplink, rtol=0.01 + 2 * noise)
        np.testing.assert_allclose(measured.bandwidth, topology.bandwidth, rtol=0.01 + 2 * noise)
        assert measured.latency == pytest.approx(20e-6, rel=0.01 + 2 * noise)
        assert not measured.slow_ranks()
        assert measured.notes == ()


def test_racks_need_not_be_neighboring_ranks():
    topology = Topology(((0, 3, 5, 6), (1, 2, 4, 7)), (B,) * 8, (B, B), 20e-6, 20e-6)
    assert found(topology, 0.05).racks == topology.racks


def test_racks_of_different_sizes():
    topology = Topology(((0, 1, 2, 3, 4), (5, 6, 7)), (B,) * 8, (B, B / 2), 20e-6, 20e-6)
    measured = found(topology)
    assert measured.racks == topology.racks
    # three pairs are all that can cross at a time, and the slower uplink is what both see
    np.testing.assert_allclose(measured.uplink, B / 2, rtol=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("world", [2, 3, 4, 7, 16, 33])
def test_flat_network(world, noise):
    for seed in range(10):
        measured = found(Topology.uniform(1, world, B), noise, seed)
        assert measured.racks == (tuple(range(world)),)
        assert measured.uplink == (math.inf,)
        assert not measured.slow_ranks()


@pytest.mark.parametrize("world", [4, 8, 16])
def test_slow_nics_on_a_flat_network(world):
    bandwidth = [B] * world
    bandwidth[1] = B / 4
    if world > 4:
        bandwidth[world - 1] = B / 3
    topology = Topology((tuple(range(world)),), tuple(bandwidth), (math.inf,))
    for seed in range(5):
        measured = found(topology, 0.1, seed)
        assert measured.racks == topology.racks
        assert set(measured.slow_ranks()) == set(topology.slow_ranks())
        assert measured.slow_ranks()[1] == pytest.approx(4, rel=0.2)


def test_slow_nic_is_put_into_the_rack_it_is_near_to():
    racks = ((0, 1, 2, 3), (4, 5, 6, 7))
    bandwidth = (B, B, B, B / 4, B, B, B, B)
    near = found(Topology(racks, bandwidth, (B, B), 20e-6, 60e-6), 0.05)
    assert near.racks == racks
    assert set(near.slow_ranks()) == {3}
    assert near.notes == ()
    assert near.latency_across == pytest.approx(60e-6, rel=0.1)
    guessed = found(Topology(racks, bandwidth, (B, B), 20e-6, 20e-6))
    assert guessed.racks in (racks, ((0, 1, 2), (3, 4, 5, 6, 7)))
    assert "rank 3 has a slow NIC: its rack is a guess" in guessed.notes[0]


def test_racks_that_are_no_bottleneck_are_not_made_up():
    """Two switches with a wide link between them: farther, but nothing to plan around."""
    topology = Topology.uniform(2, 4, B, 10 * B, 20e-6, 60e-6)
    measured = found(topology, 0.05)
    assert measured.racks == (tuple(range(8)),)


def test_latency_finds_racks_whose_uplink_pairs_alone_hardly_fill():
    topology = Topology.uniform(2, 8, B, 4 * B, 20e-6, 60e-6)  # 2:1
    measured = found(topology, 0.05)
    assert measured.racks == topology.racks
    np.testing.assert_allclose(measured.uplink, 4 * B, rtol=0.1)


def test_large_worlds_are_sampled():
    topology = Topology.uniform(8, 16, B, 4 * B, 20e-6)
    network = Network(topology, 0.05)
    measured = survey(128, network, NBYTES, most_rounds=24)
    assert measured.racks == topology.racks
    assert network.rounds == 24 + 8 + 7
    np.testing.assert_allclose(measured.uplink, topology.uplink, rtol=0.1)


def test_clusters_by_the_largest_jump():
    points = np.array([0.0, 0.1, 0.2, 3.0, 3.1, 9.0])
    distance = np.abs(points[:, None] - points[None, :])
    assert clusters(distance) == [[0, 1, 2, 3, 4], [5]]
    assert clusters(distance[:5, :5]) == [[0, 1, 2], [3, 4]]
    assert clusters(distance[:3, :3]) == [[0, 1, 2]]
    assert clusters(np.zeros((1, 1))) == [[0]]
    hidden = distance[:5, :5].copy()
    hidden[0, 4] = hidden[4, 0] = np.nan
    assert clusters(hidden) == [[0, 1, 2], [3, 4]]
