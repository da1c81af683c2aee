"""Networks for tests; where they cannot be made, the test is skipped with the reason."""

from __future__ import annotations

import pytest

from bench.network.clusters import Cluster
from bench.network.namespaces import EmulatedNetwork, probe


def require(cluster: Cluster) -> None:
    if refusal := probe().refusal(cluster):
        pytest.skip(f"{cluster.name}: {refusal}")


@pytest.fixture
def network():
    """Enter the network of a cluster; it is gone after the test."""
    entered = []

    def enter(cluster: Cluster) -> EmulatedNetwork:
        require(cluster)
        network = EmulatedNetwork(cluster)
        network.__enter__()
        entered.append(network)
        return network

    yield enter
    for network in entered:
        network.__exit__(None, None, None)
