"""DSSync in processes against plain torch in one: the same bits, and clear errors."""

from __future__ import annotations

import functools
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn

from specfast.dssync import DSSync, Schedule, make_schedule
from specfast.dssync.agreement import MismatchError
from specfast.dssync.averaging import NonFiniteError
from tests.dssync import reference
from tests.dssync.processes import ProcessError, run

TIMEOUT_S = 60.0
RAGGED = Schedule(5, (((0, 1), (2, 3), (4,)), ((0, 2, 4), (1, 3)), ((0,), (1, 4), (2,), (3,))), "random")


def make(rank: int, optimizer: str = "SGD") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(100 + rank)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 2)
    ).to(memory_format=torch.channels_last)
    options = {"lr": 0.1, "momentum": 0.9} if optimizer == "SGD" else {"lr": 0.01}
    return model, getattr(torch.optim, optimizer)(model.parameters(), **options)


def loss(model: nn.Module, rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return model(torch.randn(6, 3, 4, 4, generator=generator)).square().mean()


def values(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in reference.averaged_tensors(model)]


def train(sync: DSSync, model: nn.Module, rank: int, steps: range, local: tuple[int, ...] = ()) -> None:
    for step in steps:
        sync.optimizer.zero_grad()
        loss(model, rank, step).backward()
        if step in local:
            with sync.no_sync():
                sync.step()
        else:
            sync.step()


STEPS = 6


def trained(rank: int, world: int) -> dict[str, list[torch.Tensor]]:
    """Return the values after training, of all cases with so many workers."""
    out = {}
    for name, (schedule, optimizer, local, options) in CASES.items():
        if schedule.world == world:
            model, optimizer = make(rank, optimizer)
            sync = DSSync(model, optimizer, schedule=schedule, timeout=TIMEOUT_S, **options)
            train(sync, model, rank, range(STEPS), local)
            sync.close()
            out[name] = values(model)
    return out


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Values after training, by case and rank; the cases of one world share its processes."""

    @functools.cache
    def trained_in(world: int) -> list[dict]:
        return run(world, trained, world, tmp_path=tmp_path_factory.mktemp("world"))

    return lambda name: [worker[name] for worker in trained_in(CASES[name][0].world)]


CASES = {
    "grid of pairs": (make_schedule("grid", 4, 2), "SGD", (), {}),
    "one group of three": (make_schedule("grid", 3, 3), "SGD", (), {}),
    "ragged with workers alone": (RAGGED, "SGD", (), {}),
    "local steps": (make_schedule("grid", 4, 2), "SGD", (1, 2, 4), {}),
    "momentum": (make_schedule("grid", 4, 2), "SGD", (), {"momentum": True}),
    "moments of Adam": (make_schedule("random", 4, 2, seed=3), "AdamW", (), {"momentum": True}),
    "overlap": (make_schedule("grid", 4, 2), "SGD", (), {"overlap": True}),
    "overlap with momentum and local steps": (
        make_schedule("grid", 4, 2),
        "AdamW",
        (2, 3),
        {"overlap": True, "momentum": True},
    ),
    "not checked": (make_schedule("grid", 4, 2), "SGD", (), {"on_nonfinite": "ignore"}),
    "left out if not finite": (RAGGED, "SGD", (), {"on_nonfinite": "skip"}),
}


@pytest.mark.parametrize("name", CASES)
def test_training_equals_plain_torch_bit_for_bit(name, found):
    schedule, optimizer, local, options = CASES[name]
    workers = found(name)
    expected = reference.train(
        schedule,
        functools.partial(make, optimizer=optimizer),
        loss,
        STEPS,
        local=local,
        momentum=bool(options.get("momentum")),
        overlap=bool(options.get("overlap")),
    )
    for rank, (ours, model) in enumerate(zip(workers, expected, strict=True)):
        for place, (a, b) in enumerate(zip(ours, values(model), strict=True)):
            assert torch.equal(a, b), f"rank {rank}, tensor {place}"
    together = next(group for group in schedule.partition(STEPS - 1 - len(local)) if len(group) > 1)
    if not options.get("overlap"):  # members of a group agree after the round
        assert all(torch.equal(a, b) for a, b in zip(*(workers[rank] for rank in together[:2]), strict=True))


def _consensus(rank: int):
    """Distance, exact mean, global rounds, exit of ``with``, in one world of four."""
    out = {}
    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, group_size=2, global_every=3, timeout=TIMEOUT_S)
    assert (sync.rank, sync.world, sync.round, sync.schedule.kind) == (rank, 4, 0, "grid")
    out["start"] = values(model)
    out["groups"] = []
    out["distances"] = []
    with sync:
        for step in range(4):
            out["groups"].append(sync.group)
            train(sync, model, rank, range(step, step + 1))
            before = values(model)
            out["distances"].append(sync.consensus_distance())
            assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))
            if step == 0:
                out["parameters"] = [parameter.detach().clone() for parameter in model.parameters()]
        out["before"] = values(model)
        out["round"] = sync.round
        out["count"] = model[1].num_batches_tracked.item()
    out["after"] = values(model)
    with pytest.raises(RuntimeError, match="closed"):
        sync.step()
    sync.close()
    return out


def test_consensus_distance_global_rounds_and_exit(tmp_path):
    found = run(4, _consensus, tmp_path=tmp_path)
    first = found[0]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(first["start"], other["start"], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first["after"], other["after"], strict=True))
        assert other["distances"] == first["distances"]
        assert other["count"] == 4  # integer buffers stay local
    schedule = make_schedule("grid", 4, 2)
    for rank, worker in enumerate(found):
        assert worker["groups"] == [
            (0, 1, 2, 3) if number == 2 else schedule.group_of(rank, number) for number in range(4)
        ]
    assert first["distances"][2] == 0.0
    for place in range(len(first["after"])):
        expected = torch.stack([worker["before"][place].double() for worker in found]).mean(0)
        torch.testing.assert_close(first["after"][place].double(), expected, rtol=1e-6, atol=1e-7)
    flat = torch.stack([torch.cat([tensor.flatten().double() for tensor in worker["parameters"]]) for worker in found])
    center = flat.mean(0)
    distance = ((flat - center).square().sum(1).mean().sqrt() / center.norm()).item()
    assert distance > 1e-3
    assert first["distances"][0] == pytest.approx(distance, rel=1e-5)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(300, 400), nn.Linear(400, 300)
        self.second = nn.Linear(300, 400, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.last(self.first(x).relu()))


def _in_place(rank: int):
    """Addresses never change; memory is one copy, two with overlap; tied and frozen parameters; compiled models."""
    torch.manual_seed(rank)
    model = Tied()
    model.first.bias.requires_grad_(False)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    out = {}
    for overlap in (False, True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with DSSync(model, optimizer, overlap=overlap, timeout=TIMEOUT_S) as sync:
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            addresses = [parameter.data_ptr() for parameter in model.parameters()]
            for _ in range(3):
                optimizer.zero_grad()
                compiled(torch.randn(2, 300)).mean().backward()
                sync.step()
            assert addresses == [parameter.data_ptr() for parameter in model.parameters()]
            out[overlap] = sync.extra_bytes / parameters
            model.first.bias.data.fill_(float(rank))  # frozen, but changed by hand: a teacher's weights
            sync.consensus_()
            assert bool((model.first.bias == 0.5).all())
    trainable = DSSync(model, optimizer, average="trainable", timeout=TIMEOUT_S)
    out["trainable"] = trainable.extra_bytes / parameters
    model.first.bias.data.fill_(float(rank))
    trainable.consensus_()
    out["kept"] = model.first.bias[0].item()
    trainable.close()
    return out


def test_memory_addresses_and_compiled_models(tmp_path):
    for rank, out in enumerate(run(2, _in_place, tmp_path=tmp_path)):
        assert 1.0 <= out[False] < 1.01
        assert 2.0 <= out[True] < 2.02
        assert out["trainable"] < out[False] - 400 * 4 / 1e6
        assert out["kept"] == rank


def _mismatch(rank: int, what: str):
    model, optimizer = make(0)
    options: dict = {"group_size": 2, "timeout": TIMEOUT_S}
    if rank == 2:
        if what == "schedule":
            options["schedule"] = make_schedule("static", 4, 2, allow_static=True)
        elif what == "shape":
            model[5] = nn.Linear(7, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        elif what == "dtype":
            model.to(torch.float64)
        elif what == "wire":
            options["wire"] = "bfloat16"
        elif what == "argument":
            options["group_size"] = 9
    try:
        DSSync(model, optimizer, **options)
    except ValueError as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("schedule", "schedule must be the same on all ranks; rank 2 differs from rank 0"),
        ("shape", r"tensors must be the same on all ranks; rank 2 differs.*5.weight.*\[2, 7\].*\[3, 7\].* on rank 2"),
        ("dtype", "tensors must be the same on all ranks; rank 2 differs.*float32.*float64"),
        ("wire", "global_every must be the same|wire must be the same on all ranks; rank 2 differs.*float32.*bfloat16"),
        ("argument", "rank 2 cannot take part: group_size: expected 2 to 4"),
    ],
)
def test_ranks_that_do_not_fit_are_named_by_all(what, message, tmp_path):
    for rank, (kind, text) in enumerate(run(4, _mismatch, what, tmp_path=tmp_path)):
        if what == "argument" and rank == 2:
            assert (kind, text) == ("ScheduleError", "group_size: expected 2 to 4, the number of ranks; got 9")
            continue
        assert kind == MismatchError.__name__
        assert re.search(message, text), text


def _nonfinite(rank: int, on_nonfinite: str, overlap: bool, options: dict):
    """One round of pairs {01} {23} of which rank 1 holds a NaN, one with rank 2 alone in the wrong."""
    model, _ = make(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    pairs = Schedule(4, (((0, 1), (2, 3)), ((0, 2), (1, 3))), "random")
    options = {"on_nonfinite": on_nonfinite, "overlap": overlap, "timeout": TIMEOUT_S, **options}
    sync = DSSync(model, optimizer, schedule=pairs, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(rank))
            parameter.grad = torch.full_like(parameter, 1.0)
        if rank == 1:
            model[3].weight[0, 0] = float("nan")
            model[3].weight.grad[0, 0] = float("inf")
    before = values(model)
    try:
        sync.step()
        if overlap:
            optimizer.zero_grad()
            sync.step()
    except NonFiniteError as error:
        assert len(before) == len(values(model))
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, values(model), strict=True))
        sync.close()
        return error.ranks, str(error)
    state = [value for entries in optimizer.state.values() for value in entries.values()]
    finite = all(bool(value.isfinite().all()) for value in state)
    sync.close()
    return model[3].weight[0, 0].item(), model[3].weight[1, 1].item(), finite


@pytest.mark.parametrize(
    ("overlap", "options"),
    [(False, {}), (True, {"momentum": True}), (False, {"wire": "bfloat16"}), (True, {"wire": "float8"})],
)
def test_a_worker_that_is_not_finite(overlap, options, tmp_path):
    raised = run(4, _nonfinite, "raise", overlap, options, tmp_path=tmp_path)
    assert raised[0][0] == raised[1][0] == (1,)
    assert "values of rank 1 are NaN or infinite" in raised[0][1]
    assert raised[2][:2] == raised[3][:2] == pytest.approx((2.5, 2.5), rel=0.05 if "wire" in options else 0.0)
    skipped = run(4, _nonfinite, "skip", overlap, options, tmp_path=tmp_path)
    assert skipped[0] == skipped[1] == (0.0, 0.0, True)  # rank 1 takes what the others hold; its state is clean
    assert skipped[2] == skipped[3] == (*raised[2][:2], True)
    if not options:
        ignored = run(4, _nonfinite, "ignore", overlap, options, tmp_path=tmp_path)
        assert ignored[0][0] != ignored[0][0]
        assert ignored[0][1] == 0.5


class Averaging(nn.Module):
    """A layer that assigns its running mean anew, as many do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.average = 0.5 * self.average + 0.5 * x.detach().mean(0)
        return self.layer(x - self.average)


def _assigned_anew(rank: int):
    found = []
    for options in ({}, {"overlap": True}, {"average": ("buffers",)}):
        torch.manual_seed(0)
        model = Averaging()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sync = DSSync(model, optimizer, timeout=TIMEOUT_S, **options)
        for _ in range(2):
            model(torch.full((2, 3), 8.0 * rank))
            sync.step()
        before = model.average.tolist()
        found.append((before, sync.consensus_distance()))
        sync.consensus_()
        assert model.average.tolist() == [3.0] * 3
        sync.close()
    return found


def test_buffers_that_are_assigned_anew(tmp_path):
    """Two processes see 0 and 8: after the first round both have 2, after the second 3."""
    for rank, found in enumerate(run(2, _assigned_anew, tmp_path=tmp_path)):
        now, overlapped, buffers = found
        assert now == ([3.0] * 3, 0.0)
        # 0 and 4, then 0 and 6, corrected by 2 - 0 and 2 - 4; the second round is yet to take effect
        assert overlapped == ([[2.0, 4.0][rank]] * 3, 0.0)
        assert buffers == ([3.0] * 3, 0.0)


def _buffers_apart(rank: int):
    model = Averaging()
    sync = DSSync(model, torch.optim.SGD(model.parameters(), lr=0.1), average=("buffers",), timeout=TIMEOUT_S)
    model.average.fill_(1.0 + 2 * rank)
    distance = sync.consensus_distance()
    sync.close()
    return distance


def test_without_parameters_the_distance_is_that_of_the_buffers(tmp_path):
    assert run(2, _buffers_apart, tmp_path=tmp_path) == [pytest.approx(0.5)] * 2


def _misuse(rank: int):
    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, group_size=2, timeout=TIMEOUT_S)
    model[3].weight.data = model[3].weight.data.clone()
    with pytest.raises(RuntimeError, match=r"parameter 3.weight or its memory was replaced"):
        sync.step()
    sync.close()
    stranger = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(ValueError, match="optimizer: expected parameters of the model only"):
        DSSync(model, stranger, group_size=2)
    return True


def test_misuse_that_would_train_wrongly_is_refused(tmp_path):
    assert run(2, _misuse, tmp_path=tmp_path) == [True, True]


def _parts_of_the_world(rank: int):
    """Two communicators side by side, each over every other rank, and a third over all."""
    halves = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    model, optimizer = make(rank)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(rank))
    half = DSSync(model, optimizer, process_group=halves[rank % 2], broadcast_from=None, timeout=TIMEOUT_S)
    assert (half.world, half.rank, half.group) == (2, rank // 2, (0, 1))
    half.consensus_()
    out = [model[3].bias[0].item()]
    half.close()
    with pytest.raises(ValueError, match="process_group: expected one that this process is in"):
        DSSync(model, optimizer, process_group=halves[1 - rank % 2], timeout=TIMEOUT_S)
    with DSSync(model, optimizer, broadcast_from=3, timeout=TIMEOUT_S):
        out.append(model[3].bias[0].item())
    return out


def test_parts_of_the_world_and_broadcast_from_another_rank(tmp_path):
    assert run(4, _parts_of_the_world, tmp_path=tmp_path) == [[1.0, 2.0], [2.0, 2.0], [1.0, 2.0], [2.0, 2.0]]


def test_alone_it_is_the_optimizer():
    def trained(wrap: bool) -> list[torch.Tensor]:
        model, optimizer = make(0)
        sync = DSSync(model, optimizer, group_size=4, overlap=True, wire="float8", momentum=True) if wrap else None
        addresses = [parameter.data_ptr() for parameter in model.parameters()]
        for step in range(3):
            optimizer.zero_grad()
            loss(model, 0, step).backward()
            sync.step() if wrap else optimizer.step()
        trained = values(model)
        if wrap:
            assert (sync.rank, sync.world, sync.round, sync.group, sync.extra_bytes) == (0, 1, 3, (0,), 0)
            assert addresses == [parameter.data_ptr() for parameter in model.parameters()]
            assert sync.consensus_distance() == 0.0
            sync.load_state_dict(sync.state_dict())
            with sync:
                assert sync.step(lambda: torch.tensor(3.0)).item() == 3.0
        return trained

    assert all(torch.equal(a, b) for a, b in zip(trained(False), trained(True), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wire": "int8"}, "wire: expected float32, bfloat16 or float8; got 'int8'"),
        ({"on_nonfinite": "stop"}, "on_nonfinite: expected raise, skip, ignore; got 'stop'"),
        ({"average": ("weights",)}, "average: expected parameters or trainable, and buffers"),
        ({"average": ("parameters", "trainable")}, "average: expected parameters or trainable, and buffers"),
        ({"global_every": -1}, "global_every: expected 0 or more; got -1"),
        ({"timeout": 0.0}, "timeout: expected seconds above 0; got 0.0"),
        ({"broadcast_from": 1}, "broadcast_from: expected a rank of 0 to 0, or None; got 1"),
        ({"schedule": make_schedule("grid", 4, 2)}, "schedule: expected one of 1 ranks, the world; got one of 4"),
        ({"schedule": "circle"}, "kind: expected one of"),
    ],
)
def test_arguments_are_checked(options, message):
    model, optimizer = make(0)
    with pytest.raises(ValueError, match=message):
        DSSync(model, optimizer, **options)


def _raises(rank: int):
    if rank:
        raise ValueError("this one")
    dist.barrier()


def test_the_launcher_shows_what_a_process_raised(tmp_path):
    with pytest.raises(ProcessError, match="ValueError: this one"):
        run(2, _raises, tmp_path=tmp_path)


def _symmetric(rank: int):
    """CPUs have no symmetric memory; a stand-in shows that a round goes through it where it is."""
    from specfast.dssync import groups

    model, optimizer = make(rank)
    sync = DSSync(model, optimizer, group_size=2, symmetric=True, timeout=TIMEOUT_S)
    assert sync._workers.symmetric(sync._workers.everyone) is None
    train(sync, model, rank, range(2))
    plain = values(model)
    sync.close()

    class Everywhere(groups.SymmetricMean):
        calls = 0

        def _any_reason(self, reason: str, node: str = "") -> str:
            return ""

        def _make_memory(self) -> str:
            return ""

        def form_of(self, values: torch.Tensor) -> str:
            return "library"

        def mean_(self, values: torch.Tensor, *, form: str | None = None) -> torch.Tensor:
            Everywhere.calls += 1
            return super().mean_(values, form=form)

    groups.SymmetricMean = Everywhere
    model, optimizer = make(rank)
    with DSSync(model, optimizer, group_size=2, symmetric=True, timeout=TIMEOUT_S) as sync:
        train(sync, model, rank, range(2))
        assert all(torch.equal(a, b) for a, b in zip(plain, values(model), strict=True))
    return Everywhere.calls


def test_groups_within_a_node_go_through_symmetric_memory(tmp_path):
    assert run(4, _symmetric, tmp_path=tmp_path) == [3] * 4  # two rounds and the consensus, of one bucket
