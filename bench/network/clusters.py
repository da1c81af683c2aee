"""The networks that are emulated: who sits in which rack, and how fast each link is."""

from __future__ import annotations

from dataclasses import dataclass

OVERSUBSCRIPTION = {"racks-4to1": 4, "racks-8to1": 8}
SLOW_FACTOR = 4
DELAY_MS = 2.0
CLUSTERS = ("unshaped", "flat", *OVERSUBSCRIPTION, "slow-nic", "delay")


@dataclass(frozen=True)
class Cluster:
    """Workers, their links, and the links between their racks; every rate holds in each direction.

    Attributes:
        name: one of ``CLUSTERS``.
        racks: ranks by rack.
        nic_mbit: rate of each rank's link in Mbit/s; None does not limit it.
        uplink_mbit: rate of each rack's link to the others; None where there is one rack.
        delay_ms: one-way delay of every worker's link, on top of what the machine takes.
    """

    name: str
    racks: tuple[tuple[int, ...], ...]
    nic_mbit: tuple[float | None, ...]
    uplink_mbit: float | None = None
    delay_ms: float = 0.0

    @property
    def workers(self) -> int:
        return len(self.nic_mbit)

    @property
    def shaped(self) -> bool:
        return self.uplink_mbit is not None or any(rate is not None for rate in self.nic_mbit)

    def rack_of(self, rank: int) -> int:
        return next(number for number, rack in enumerate(self.racks) if rank in rack)

    def halves(self) -> tuple[tuple[int, ...], ...]:
        """The fast domains for methods that want some: the racks, or two halves where there is one rack."""
        if len(self.racks) > 1:
            return self.racks
        middle = self.workers // 2
        return tuple(range(middle)), tuple(range(middle, self.workers))


def make_cluster(name: str, workers: int = 4, nic_mbit: float = 200.0) -> Cluster:
    """Return one of ``CLUSTERS``.

    unshaped: as fast as the machine; flat: one switch; racks-4to1, racks-8to1: two racks whose uplink carries a
    fourth or an eighth of what their links could send; slow-nic: flat, the last rank's link is four times slower;
    delay: flat, with 2 ms each way.

    Raises:
        ValueError: an unknown name, or a number of workers that is odd or below 4.
    """
    if workers < 4 or workers % 2:
        raise ValueError(f"workers: expected an even number of at least 4; got {workers}")
    everyone = (tuple(range(workers)),)
    links = (nic_mbit,) * workers
    if name == "unshaped":
        return Cluster(name, everyone, (None,) * workers)
    if name == "flat":
        return Cluster(name, everyone, links)
    if name in OVERSUBSCRIPTION:
        half = workers // 2
        racks = (tuple(range(half)), tuple(range(half, workers)))
        return Cluster(name, racks, links, uplink_mbit=half * nic_mbit / OVERSUBSCRIPTION[name])
    if name == "slow-nic":
        return Cluster(name, everyone, (*links[:-1], nic_mbit / SLOW_FACTOR))
    if name == "delay":
        return Cluster(name, everyone, links, delay_ms=DELAY_MS)
    raise ValueError(f"cluster: expected one of {', '.join(CLUSTERS)}; got {name!r}")
