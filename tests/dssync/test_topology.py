"""Topologies: declared in JSON, described, cut down to survivors."""

from __future__ import annotations

import json
import math

import pytest

from specfast.dssync.topology import GBIT, Topology, TopologyError


def test_json_of_people():
    topology = Topology.from_json(
        {
            "racks": [2, 3],
            "nic_gbit_s": 10,
            "slow_nics_gbit_s": {"4": 2.5},
            "uplink_gbit_s": [5, None],
            "latency_us": 20,
            "latency_across_us": 80,
        }
    )
    assert topology.racks == ((0, 1), (2, 3, 4))
    assert topology.bandwidth == (*(10 * GBIT,) * 4, 2.5 * GBIT)
    assert topology.uplink == (5 * GBIT, math.inf)
    assert (topology.latency, topology.latency_across) == (20e-6, 80e-6)
    assert topology.rack_of == (0, 0, 1, 1, 1)
    assert topology.slow_ranks() == {4: 4.0}
    assert topology.oversubscription() == 4.0
    assert topology.describe() == (
        "5 workers, NIC 2.5 to 10 Gbit/s, latency 20 us; 2 racks of 2 to 3 workers, uplink 5 Gbit/s or more (4:1), "
        "latency 80 us across"
    )


def test_defaults():
    topology = Topology.from_json({"racks": [4], "nic_gbit_s": 1})
    assert topology.uplink == (math.inf,)
    assert topology.latency == topology.latency_across == 50e-6
    assert topology.slow_ranks() == {}
    assert topology.oversubscription() == 1.0
    assert topology == Topology.uniform(1, 4, GBIT)


def test_racks_by_rank_in_any_order_keep_their_uplinks():
    topology = Topology.from_json({"racks": [[3, 1], [2, 0]], "nic_gbit_s": [1, 2, 3, 4], "uplink_gbit_s": [7, 8]})
    assert topology.racks == ((0, 2), (1, 3))
    assert topology.uplink == (8 * GBIT, 7 * GBIT)


def test_file_round_trip(tmp_path):
    topology = Topology.from_json({"racks": [[0, 2], [1]], "nic_gbit_s": [1, 2.5, 40], "notes": ["a guess"]})
    path = topology.save(tmp_path / "topology.json")
    assert Topology.load(path) == topology
    assert Topology.load(path).notes == ("a guess",)
    assert "Infinity" not in path.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object; got list"),
        ({"racks": [2]}, "expected the keys racks and nic_gbit_s; got no nic_gbit_s"),
        ({"racks": [2], "nic_gbit_s": 1, "nic": 2}, "unknown key nic; expected racks, nic_gbit_s, "),
        ({"racks": [[0, 1], [1]], "nic_gbit_s": 1}, "racks: expected each of the ranks 0 to 2 in one rack"),
        ({"racks": [[1, 2]], "nic_gbit_s": 1}, "racks: expected each of the ranks 0 to 1 in one rack"),
        ({"racks": [], "nic_gbit_s": 1}, "racks: expected each of the ranks"),
        ({"racks": [2], "nic_gbit_s": [1, 2, 3]}, "nic_gbit_s: expected one number, or 2; got 3"),
        ({"racks": [2], "nic_gbit_s": 0}, "bandwidth: expected positive numbers; got 0"),
        ({"racks": [2], "nic_gbit_s": "fast"}, "expected lists and numbers"),
        ({"racks": 2, "nic_gbit_s": 1}, "expected lists and numbers"),
        ({"racks": [2], "nic_gbit_s": 1, "slow_nics_gbit_s": {"2": 1}}, "slow_nics_gbit_s: expected ranks 0 to 1"),
        ({"racks": [2], "nic_gbit_s": 1, "latency_us": -1}, "latency: expected 0 seconds or more; got -1e-06"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, content, message):
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TopologyError) as caught:
        Topology.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_not_json(tmp_path):
    path = tmp_path / "topology.json"
    path.write_text("racks: 2")
    with pytest.raises(TopologyError, match="not JSON"):
        Topology.load(path)


def test_survivors_are_renumbered():
    topology = Topology(((0, 1, 2), (3, 4, 5), (6,)), tuple(map(float, range(1, 8))), (10.0, 20.0, 30.0), 1e-6, 2e-6)
    left = topology.subset([5, 0, 2, 4])
    assert left.racks == ((0, 1), (2, 3))
    assert left.bandwidth == (1.0, 3.0, 5.0, 6.0)
    assert left.uplink == (10.0, 20.0)
    assert (left.latency, left.latency_across) == (1e-6, 2e-6)
    assert topology.subset(range(7)) == topology
    with pytest.raises(TopologyError, match="ranks: expected some of 0 to 6"):
        topology.subset([7])
