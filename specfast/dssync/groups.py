"""The process groups of a schedule: made once, in one order on all ranks, as many a rank as it has groups."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from specfast.dssync import liveness
from specfast.dssync.schedule import Group, Schedule
from specfast.dssync.symmetric import SymmetricMean


class GroupPool:
    """A process group for each of this rank's groups in a schedule, and one of all.

    A communicator costs memory (hundreds of megabytes on a GPU) and time to make, so there are no others: a grid of d
    rounds has d + 1 a rank, and with NCCL each comes into being when it is first used. Only members make a group; all
    make theirs in the order of ``schedule.groups()``, so that nobody waits in a circle.

    Args:
        schedule: its ranks are places in ``ranks``.
        process_group: whose backend, store and members are used; the default group, where None.
        timeout: seconds after which a collective in these groups fails, or making one.
        name: unique among the pools of a program's life, the same on all ranks.
        generation: number of the world; its groups never meet those of another one.
        ranks: which places in ``process_group`` take part; all of them, where None.
        symmetric: device of tensors to be averaged through symmetric memory, in groups that have it; None: nowhere.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        process_group: dist.ProcessGroup | None = None,
        timeout: float = 300.0,
        name: str = "dssync",
        generation: int = 0,
        ranks: tuple[int, ...] | None = None,
        symmetric: torch.device | None = None,
    ):
        parent = dist.group.WORLD if process_group is None else process_group
        places = tuple(range(parent.size())) if ranks is None else ranks
        if schedule.world != len(places):
            raise ValueError(f"schedule: expected one of {len(places)} ranks; got one of {schedule.world}")
        self._schedule = schedule
        self._rank = places.index(parent.rank())
        everyone = tuple(range(schedule.world))
        self._groups: dict[Group, dist.ProcessGroup] = {}
        self._symmetric: dict[dist.ProcessGroup, SymmetricMean] = {}
        members = dist.get_process_group_ranks(parent)
        try:
            for group in dict.fromkeys((*schedule.groups(), everyone)):
                if self._rank in group and len(group) > 1:
                    ranks_of_world = [members[places[rank]] for rank in group]
                    label = f"specfast.{name}.{generation}.{'-'.join(map(str, group))}"
                    self._groups[group] = _make_group(parent, ranks_of_world, label, timeout)
                    if symmetric is not None:
                        made = SymmetricMean(self._groups[group], symmetric, timeout=timeout)
                        self._symmetric |= {} if made.reason else {self._groups[group]: made}
        except BaseException:
            self.abort()
            raise
        self._everyone = everyone

    @property
    def world(self) -> dist.ProcessGroup | None:
        """The group of all; None if there is only one."""
        return self._groups.get(self._everyone)

    def members(self, round: int) -> Group:
        """Return the ranks that average with this one in a round."""
        return self._schedule.group_of(self._rank, round)

    def of(self, round: int) -> dist.ProcessGroup | None:
        """Return this rank's group in a round; None if it is alone."""
        return self._groups.get(self.members(round))

    def symmetric(self, group: dist.ProcessGroup) -> SymmetricMean | None:
        """Return what averages in one of the groups through symmetric memory; None if nothing does."""
        return self._symmetric.get(group)

    @property
    def nbytes(self) -> int:
        """Symmetric memory held; a backend's own is not counted."""
        return sum(mean.extra_bytes for mean in self._symmetric.values())

    @property
    def groups(self) -> list[dist.ProcessGroup]:
        return list(self._groups.values())

    def abort(self) -> None:
        """Leave the groups so that members who wait in them learn it at once."""
        for group in self._groups.values():
            liveness.close_group(group)
        self.close()

    def close(self) -> None:
        """Give the groups up. What is under way in them fails."""
        for group in self._groups.values():
            # already gone if the program has destroyed the default group
            if group in c10d._world.pg_map:
                with contextlib.suppress(RuntimeError):  # a broken connection may fail once more as it is closed
                    dist.destroy_process_group(group)
        self._groups, self._symmetric = {}, {}


def _make_group(parent: dist.ProcessGroup, ranks: list[int], name: str, timeout: float) -> dist.ProcessGroup:
    """Make a group of the given global ranks; its members, and nobody else, call this.

    ``dist.new_group`` cannot serve: with local synchronization it derives the group's name, under which members look
    for each other, from the number of groups a process has, which differs between members when some of them sat a
    round out; and without it, every process of the world would have to make every group of every pool.
    """
    backend, store = c10d._world.pg_map[parent]
    # A group split off the parent's NCCL communicator would need every rank of the parent; a fresh one does not.
    with _unbound(c10d._get_default_group()):
        group, _ = c10d._new_process_group_helper(
            len(ranks),
            ranks.index(dist.get_rank()),
            ranks,
            c10d.Backend(backend),
            store,
            name,
            timeout=timedelta(seconds=timeout),
            group_desc=name,
        )
    c10d._world.pg_group_ranks[group] = {rank: place for place, rank in enumerate(ranks)}
    return group


@contextlib.contextmanager
def _unbound(group: dist.ProcessGroup):
    device = group.bound_device_id
    if device is None:
        yield
        return
    group.bound_device_id = None
    try:
        yield
    finally:
        group.bound_device_id = device
