"""Where the workers sit and how fast their links are: declared in JSON, or clustered from measured links.

Two levels: workers in racks, each worker behind its NIC, each rack behind its uplink. A "rack" is whatever is fast
inside and shares a slower way out: a row of machines behind a switch, or one machine with several GPUs. Bandwidths are
bytes a second in each direction at a time, latencies seconds a hop; the JSON has Gbit/s and microseconds.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specfast.dssync.partitions import Group
from specfast.errors import SpecfastError
from specfast.files import write_atomic

GBIT = 125_000_000.0  # bytes
_KEYS = ("racks", "nic_gbit_s", "slow_nics_gbit_s", "uplink_gbit_s", "latency_us", "latency_across_us", "notes")


class TopologyError(SpecfastError, ValueError):
    """A topology cannot be used as it is; the message names the key, what it holds and what is expected."""


@dataclass(frozen=True)
class Topology:
    """Racks of workers.

    Attributes:
        racks: the ranks in each.
        bandwidth: of each rank's NIC, bytes/s.
        uplink: of each rack, bytes/s; infinite where the racks are not a bottleneck.
        latency: seconds a hop within a rack; latency_across: between racks.
        notes: what was assumed.

    Raises:
        TopologyError: the racks do not hold every rank once, or a number is not positive.
    """

    racks: tuple[Group, ...]
    bandwidth: tuple[float, ...]
    uplink: tuple[float, ...]
    latency: float = 50e-6
    latency_across: float = 50e-6
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        racks = tuple(sorted(tuple(sorted(map(int, rack))) for rack in self.racks))
        ranks = sorted(rank for rack in racks for rank in rack)
        if not ranks or () in racks or ranks != list(range(len(ranks))):
            raise TopologyError(
                f"racks: expected each of the ranks 0 to {len(ranks) - 1} in one rack; got {self.racks}"
            )
        # the uplinks belong to the racks in the order given
        order = sorted(range(len(racks)), key=lambda number: sorted(self.racks[number]))
        for name, values, count in (("bandwidth", self.bandwidth, len(ranks)), ("uplink", self.uplink, len(racks))):
            if len(values) != count:
                raise TopologyError(f"{name}: expected {count} numbers, one for each; got {len(values)}")
            if not all(value > 0 for value in values):
                raise TopologyError(f"{name}: expected positive numbers; got {min(values)}")
        for name in ("latency", "latency_across"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TopologyError(f"{name}: expected 0 seconds or more; got {getattr(self, name)}")
        object.__setattr__(self, "racks", racks)
        object.__setattr__(self, "uplink", tuple(float(self.uplink[number]) for number in order))
        object.__setattr__(self, "bandwidth", tuple(map(float, self.bandwidth)))
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def world(self) -> int:
        """Number of ranks."""
        return len(self.bandwidth)

    @functools.cached_property
    def rack_of(self) -> tuple[int, ...]:
        """The number of each rank's rack."""
        numbers = {rank: number for number, rack in enumerate(self.racks) for rank in rack}
        return tuple(numbers[rank] for rank in range(self.world))

    def slow_ranks(self, factor: float = 1.5) -> dict[int, float]:
        """Return the ranks whose NIC has less than 1/factor of the median, and how many times less."""
        usual = float(np.median(self.bandwidth))
        return {rank: usual / own for rank, own in enumerate(self.bandwidth) if own * factor < usual}

    def oversubscription(self) -> float:
        """Return how many times the NICs of a rack exceed its uplink, at worst; 1 where they do not."""
        if len(self.racks) == 1:
            return 1.0
        nics = (sum(self.bandwidth[rank] for rank in rack) for rack in self.racks)
        return max(1.0, *(total / uplink for total, uplink in zip(nics, self.uplink, strict=True)))

    def subset(self, ranks: Sequence[int]) -> Topology:
        """Return the topology of some ranks, renumbered in the order of their ranks: the survivors of a fault."""
        number = {rank: new for new, rank in enumerate(sorted(set(ranks)))}
        if not number or not set(number) <= set(range(self.world)):
            raise TopologyError(f"ranks: expected some of 0 to {self.world - 1}; got {list(ranks)}")
        kept = [
            (tuple(number[r] for r in rack if r in number), up)
            for rack, up in zip(self.racks, self.uplink, strict=True)
        ]
        kept = [(rack, uplink) for rack, uplink in kept if rack]
        return Topology(
            tuple(rack for rack, _ in kept),
            tuple(self.bandwidth[rank] for rank in number),
            tuple(uplink for _, uplink in kept),
            self.latency,
            self.latency_across,
            self.notes,
        )

    @classmethod
    def uniform(
        cls,
        racks: int,
        members: int,
        bandwidth: float,
        uplink: float = math.inf,
        latency: float = 50e-6,
        latency_across: float | None = None,
    ) -> Topology:
        """Return equal racks of neighboring ranks; one rack is a flat network."""
        return cls(
            tuple(tuple(range(rack * members, (rack + 1) * members)) for rack in range(racks)),
            (bandwidth,) * (racks * members),
            (uplink,) * racks,
            latency,
            latency if latency_across is None else latency_across,
        )

    @classmethod
    def from_json(cls, content: Mapping, name: str = "topology") -> Topology:
        """Return what a JSON object declares.

        Keys: ``racks`` (lists of ranks, or the numbers of workers in racks of neighboring ranks), ``nic_gbit_s`` (one
        number or one a rank), and optionally ``slow_nics_gbit_s`` (rank -> number), ``uplink_gbit_s`` (one number or
        one a rack; null: no bottleneck), ``latency_us``, ``latency_across_us``, ``notes``.

        Raises:
            TopologyError: a key is missing, unknown or wrong.
        """
        if not isinstance(content, Mapping):
            raise TopologyError(f"{name}: expected a JSON object; got {type(content).__name__}")
        if unknown := sorted(set(content) - set(_KEYS)):
            raise TopologyError(f"{name}: unknown key {', '.join(unknown)}; expected {', '.join(_KEYS)}")
        if missing := [key for key in ("racks", "nic_gbit_s") if key not in content]:
            raise TopologyError(f"{name}: expected the keys racks and nic_gbit_s; got no {' and no '.join(missing)}")
        try:
            racks = _racks(content["racks"])
            world = sum(map(len, racks))
            bandwidth = _per(content["nic_gbit_s"], world, "nic_gbit_s")
            for rank, value in content.get("slow_nics_gbit_s", {}).items():
                if not 0 <= int(rank) < world:
                    raise TopologyError(f"slow_nics_gbit_s: expected ranks 0 to {world - 1}; got {rank}")
                bandwidth[int(rank)] = float(value) * GBIT
            uplink = _per(content.get("uplink_gbit_s"), len(racks), "uplink_gbit_s")
            latency = float(content.get("latency_us", 50.0)) / 1e6
            across = content.get("latency_across_us")
            across = latency if across is None else float(across) / 1e6
            return cls(racks, tuple(bandwidth), tuple(uplink), latency, across, tuple(content.get("notes", ())))
        except TopologyError as error:
            raise TopologyError(f"{name}: {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise TopologyError(f"{name}: expected lists and numbers as in the documentation; {error}") from None

    @classmethod
    def load(cls, path: str | os.PathLike) -> Topology:
        """Read a JSON file; see :meth:`from_json`."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise TopologyError(f"{path}: not JSON: {error}") from None
        return cls.from_json(content, str(path))

    def to_json(self) -> dict:
        """Return the topology as :meth:`from_json` reads it."""
        return {
            "racks": [list(rack) for rack in self.racks],
            "nic_gbit_s": [value / GBIT for value in self.bandwidth],
            "uplink_gbit_s": [None if math.isinf(value) else value / GBIT for value in self.uplink],
            "latency_us": self.latency * 1e6,
            "latency_across_us": self.latency_across * 1e6,
            "notes": list(self.notes),
        }

    def save(self, path: str | os.PathLike) -> Path:
        """Write the JSON file."""
        return write_atomic(path, (json.dumps(self.to_json(), indent=2) + "\n").encode())

    def describe(self) -> str:
        """Return a line for people."""
        nic = _span(self.bandwidth, "Gbit/s", 1 / GBIT)
        text = f"{self.world} workers, NIC {nic}, latency {self.latency * 1e6:.3g} us"
        if len(self.racks) > 1:
            sizes = _span([len(rack) for rack in self.racks], "workers")
            text += f"; {len(self.racks)} racks of {sizes}, uplink {_span(self.uplink, 'Gbit/s', 1 / GBIT)}"
            text += f" ({self.oversubscription():.3g}:1), latency {self.latency_across * 1e6:.3g} us across"
        return text


def _racks(given) -> tuple[Group, ...]:
    if given and all(isinstance(size, int) and not isinstance(size, bool) for size in given):
        ends = np.cumsum(given).tolist()
        return tuple(tuple(range(end - size, end)) for end, size in zip(ends, given, strict=True))
    return tuple(tuple(rack) for rack in given)


def _per(given, count: int, name: str) -> list[float]:
    values = list(given) if isinstance(given, (list, tuple)) else [given] * count
    if len(values) != count:
        raise TopologyError(f"{name}: expected one number, or {count}; got {len(values)}")
    return [math.inf if value is None else float(value) * GBIT for value in values]


def _span(values: Sequence[float], unit: str, scale: float = 1.0) -> str:
    low, high = min(values) * scale, max(values) * scale
    if math.isinf(high):
        return "not a bottleneck" if math.isinf(low) else f"{low:.3g} {unit} or more"
    return f"{low:.3g} {unit}" if low == high else f"{low:.3g} to {high:.3g} {unit}"
