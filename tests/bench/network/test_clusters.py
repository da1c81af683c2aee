"""Clusters, their schedules, and what is measured on which."""

from __future__ import annotations

import pytest

from bench.network.clusters import CLUSTERS, make_cluster
from bench.network.jobs import timing_jobs, training_jobs
from bench.network.schedules import KINDS, fits, schedule_of, topology_of
from specfast.dssync.schedule import ScheduleError, check


@pytest.mark.parametrize(("name", "uplink"), [("racks-4to1", 100), ("racks-8to1", 50)])
def test_uplinks_carry_a_part_of_what_a_rack_could_send(name, uplink):
    cluster = make_cluster(name, 4, 200)
    assert cluster.uplink_mbit == uplink
    assert make_cluster(name, 8, 200).uplink_mbit == 2 * uplink
    assert [cluster.rack_of(rank) for rank in range(4)] == [0, 0, 1, 1]
    assert topology_of(cluster).uplink == (uplink * 125_000.0,) * 2


def test_wrong_clusters_are_refused():
    with pytest.raises(ValueError, match=r"cluster: expected one of unshaped, .*; got 'ring'"):
        make_cluster("ring")
    with pytest.raises(ValueError, match=r"workers: expected an even number of at least 4; got 5"):
        make_cluster("flat", 5)


def test_the_two_phases_are_those_that_were_published():
    cluster = make_cluster("flat")
    assert schedule_of("two-phase", cluster, 1).rounds == (((0, 1), (2, 3)), ((0, 3), (1, 2)))
    assert schedule_of("two-phase", make_cluster("flat", 8), 1).rounds[1] == ((0, 7), (1, 2), (3, 4), (5, 6))


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("workers", [4, 8])
def test_all_schedules_but_the_control_mix(name, workers):
    cluster = make_cluster(name, workers)
    for kind in KINDS:
        if fits(kind, cluster):
            schedule = schedule_of(kind, cluster, 4_000_000)
            if kind == "static":
                with pytest.raises(ScheduleError):
                    check(schedule)
            else:
                check(schedule)
        else:
            with pytest.raises(ValueError, match=f"schedule: '{kind}' needs {KINDS[kind]}"):
                schedule_of(kind, cluster, 4_000_000)


def test_slow_links_are_used_in_every_fourth_round_where_the_name_says_so():
    racks = make_cluster("racks-4to1")
    crossing = [
        any(len({racks.rack_of(rank) for rank in group}) > 1 for group in groups)
        for groups in schedule_of("every4", racks, 1).rounds
    ]
    assert crossing == [False, False, False, True] * (len(crossing) // 4)
    slow = schedule_of("every4", make_cluster("slow-nic"), 1)
    joins = sum(slow.group_of(3, number) != (3,) for number in range(len(slow.rounds)))
    assert joins == len(slow.rounds) / 4


def test_jobs_name_their_rows_once_and_leave_out_what_does_not_fit():
    jobs = timing_jobs(CLUSTERS)
    keys = [(job.cluster.name, job.shape, provider) for job in jobs for provider in job.providers]
    assert len(set(keys)) == len(keys)
    assert ("racks-4to1", "N4-4MB", "dssync-emissary") in keys
    assert ("flat", "N4-4MB", "dssync-emissary") not in keys
    assert not any(provider == "dssync-static" for _, _, provider in keys)
    trained = training_jobs(("racks-4to1",), ("spectra",), (0, 1), "scene.npz")
    assert [job.shape for job in trained] == ["N4-spectra-seed0", "N4-spectra-seed1"]
    assert {"ddp", "dssync-planned", "dssync-static"} <= set(trained[0].providers)
