"""Flat buffers: the tensors keep everything but their address."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from specfast.dssync.buffers import ALIGNMENT, FlatBuffers, PackedTensors
from specfast.dssync.tensors import places_of, split_tensors


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def test_parameters_become_slices_and_keep_values_and_strides():
    torch.manual_seed(0)
    tensors = {
        "matrix": torch.randn(5, 7),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 8).T,
        "with gaps": torch.randn(6, 9)[:, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(33).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64),
        "complex": torch.randn(2, 3, dtype=torch.complex64),
    }
    before = {name: (tensor.clone(), tensor.shape, tensor.stride()) for name, tensor in tensors.items()}
    buffers = FlatBuffers(tensors)
    assert sorted(str(flat.dtype) for flat in buffers.flats) == ["torch.bfloat16", "torch.float32", "torch.float64"]
    for name, (values, shape, strides) in before.items():
        tensor, slot = tensors[name], buffers.slots[name]
        assert torch.equal(tensor, values), name
        assert tensor.shape == shape
        if name == "with gaps":
            assert tensor.is_contiguous()
        else:
            assert tensor.stride() == strides, name
        flat = buffers.flats[slot.flat]
        if tensor.numel():
            assert tensor.data_ptr() == flat.data_ptr() + slot.start * flat.element_size()
            assert tensor.data_ptr() % ALIGNMENT == 0
            assert tensor.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    for flat in buffers.flats:
        flat.zero_()
    assert not any(tensor.any() for tensor in tensors.values())


def test_slices_do_not_overlap():
    lengths = [1, 15, 16, 17, 63, 64, 65, 1000, 3]
    tensors = {str(number): torch.full((length,), float(number)) for number, length in enumerate(lengths)}
    buffers = FlatBuffers(tensors)
    for number, (name, tensor) in enumerate(tensors.items()):
        tensor.fill_(100.0 + number)
        assert buffers.slots[name].length == tensor.numel()
    for number, tensor in enumerate(tensors.values()):
        assert bool((tensor == 100.0 + number).all())


def test_gradients_and_optimizer_state_stay_and_training_goes_on_bitwise():
    def trained(flat_at: int | None) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).to(
            memory_format=torch.channels_last
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 6, 6)).square().sum().backward()
            if step == flat_at:
                gradients = [parameter.grad for parameter in model.parameters()]
                FlatBuffers(named(model))
                assert all(a is b.grad for a, b in zip(gradients, model.parameters(), strict=True))
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    plain = trained(None)
    for flat_at in (0, 2):  # before and after the optimizer has state
        assert all(torch.equal(a, b) for a, b in zip(plain, trained(flat_at), strict=True))


def test_tied_parameters_lie_once_and_stay_tied():
    shared = torch.randn(4, 3)
    first, second = nn.Parameter(shared), nn.Parameter(shared)  # two objects, one memory
    buffers = FlatBuffers({"first": first, "second": second, "other": torch.randn(2)})
    assert buffers.slots["first"] == buffers.slots["second"]
    with torch.no_grad():
        first.fill_(7.0)
    assert bool((second == 7.0).all())
    assert sum(part.numel() for part in buffers.parts(["first", "second"])) == 12


def test_weights_of_a_recurrent_layer_are_no_overlap():
    lstm = nn.LSTM(3, 4, num_layers=2)
    x = torch.randn(5, 2, 3)
    before = lstm(x)[0]
    FlatBuffers(named(lstm))
    assert torch.equal(lstm(x)[0], before)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.randn(3).expand(4, 3)}, "a: expected elements with memory of their own"),
        ({"a": torch.randn(4, 4).to_sparse()}, "a: expected a dense tensor"),
        ({"a": torch.empty(3, device="meta")}, "a: expected a tensor with memory"),
    ],
)
def test_tensors_that_cannot_lie_flat_are_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        FlatBuffers(tensors)


@pytest.mark.parametrize("other", [lambda whole: whole[2:7], lambda whole: whole.view(2, 4)])
def test_memory_shared_in_part_or_rearranged_is_refused(other):
    whole = torch.randn(8)
    with pytest.raises(ValueError, match="part: shares its memory with whole"):
        FlatBuffers({"whole": whole, "part": other(whole)})


def test_columns_of_one_matrix_share_nothing():
    matrix = torch.arange(12.0).view(3, 4)
    tensors = {"left": matrix[:, :2], "right": matrix[:, 2:]}
    FlatBuffers(tensors)
    assert tensors["left"].tolist() == [[0, 1], [4, 5], [8, 9]]
    assert tensors["right"].tolist() == [[2, 3], [6, 7], [10, 11]]


def test_the_digest_tells_names_shapes_strides_and_dtypes():
    def digest(name="a", shape=(2, 3), dtype=torch.float32, transpose=False):
        tensor = torch.zeros(shape, dtype=dtype)
        return FlatBuffers({name: tensor.T.contiguous().T if transpose else tensor}).digest()

    assert digest() == digest()
    assert len({digest(), digest("b"), digest(shape=(3, 2)), digest(dtype=torch.float64), digest(transpose=True)}) == 5


def test_buckets_cover_the_flats():
    buffers = FlatBuffers({"a": torch.zeros(1000), "b": torch.zeros(70).half()}, bucket_bytes=1024)
    assert sum(bucket.nbytes for bucket in buffers.buckets) == buffers.nbytes
    assert max(bucket.nbytes for bucket in buffers.buckets) == 1024
    for bucket in buffers.buckets:
        bucket.fill_(1.0)
    assert all(bool((flat == 1.0).all()) for flat in buffers.flats)
    with pytest.raises(ValueError, match="bucket_bytes: expected a multiple of 64; got 100"):
        FlatBuffers({"a": torch.zeros(4)}, bucket_bytes=100)


def test_a_tensor_that_was_moved_away_is_named():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    buffers = FlatBuffers(named(model))
    assert buffers.reclaim() is None
    model.load_state_dict(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict())
    assert buffers.reclaim() is None
    model[1].weight.data = model[1].weight.data.clone()
    assert buffers.reclaim() == "1.weight"


class Averaging(nn.Module):
    """Assigns its buffer anew, and ties two parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("other", torch.zeros(2))


def laid_flat() -> tuple[Averaging, FlatBuffers]:
    model = Averaging()
    tensors, _ = split_tensors(model, ("parameters", "buffers"))
    return model, FlatBuffers(tensors, places=places_of(model, tensors))


def test_a_buffer_that_is_assigned_anew_is_taken_back():
    model, buffers = laid_flat()
    before = model.average
    for value in (1.0, 2.0):
        model.average = torch.full((3,), value, requires_grad=value == 2.0)
        assert buffers.reclaim() is None
        assert model.average is before
        assert model.average.tolist() == [value] * 3
        assert not model.average.requires_grad
        (part,) = buffers.parts(["buffer average"])
        part.fill_(-1.0)
        assert model.average.tolist() == [-1.0] * 3
    # the way in which a checkpoint can replace it
    model.load_state_dict({"average": torch.ones(3), "other": torch.ones(2)}, strict=False, assign=True)
    assert buffers.reclaim() is None
    assert model.average is before
    assert model.average.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("replace", "name"),
    [
        (lambda model: setattr(model.first, "weight", nn.Parameter(torch.zeros(4, 3))), "parameter first.weight"),
        (lambda model: setattr(model.last, "weight", nn.Parameter(torch.zeros(4, 3))), "parameter last.weight"),
        (lambda model: delattr(model.last, "weight"), "parameter last.weight"),
        (lambda model: setattr(model, "average", torch.zeros(4)), "buffer average"),
        (lambda model: setattr(model, "average", torch.zeros(3, dtype=torch.float64)), "buffer average"),
        (lambda model: setattr(model, "average", None), "buffer average"),
        (lambda model: model.half(), "buffer average"),
    ],
)
def test_what_cannot_be_taken_back_is_named(replace, name):
    model, buffers = laid_flat()
    assert buffers.reclaim() is None
    replace(model)
    assert buffers.reclaim() == name


def test_packed_tensors_go_there_and_back():
    torch.manual_seed(2)
    tensors = [
        torch.randn(3, 4),
        torch.randn(5).double(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ]
    copies = [tensor.clone() for tensor in tensors]
    packed = PackedTensors(tensors, [tensor.dtype for tensor in tensors])
    packed.pack([tensors[0], None, tensors[2]])
    assert sorted(flat.dtype.itemsize for flat in packed.flats) == [4, 8]
    for flat in packed.flats:
        flat.add_(1.0)
    packed.unpack([None, tensors[1], tensors[2]])
    assert torch.equal(tensors[0], copies[0])
    assert bool((tensors[1] == 1.0).all())  # was absent: zero
    assert torch.equal(tensors[2], copies[2] + 1)
