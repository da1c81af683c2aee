"""What surrounds an operator: CUDA graphs, and the limits towards torch.func."""

from __future__ import annotations

import pytest
import torch

from specfast import ops
from specfast.testing import assert_close
from tests.ops.conftest import Case
from tests.ops.test_factor_ops import OPERATORS, arguments, cast, run
from tests.ops.test_patch_pool import Pool

BASE = Case((40, 70), 33, pixels=64, rank=64, hidden=64, width=96)


@pytest.mark.parametrize("op", OPERATORS)
def test_torch_func_is_refused_by_torch_itself(op):
    inputs, constants = (cast(values, torch.float32, "cpu") for values in arguments(op, Case((3, 2), 4)))
    name = next(iter(inputs))

    def total(value):
        outputs = getattr(ops, op)(**(inputs | {name: value}), **constants)
        return outputs.sum() if isinstance(outputs, torch.Tensor) else outputs[0].sum()

    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(total)(inputs[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", OPERATORS)
def test_a_cuda_graph_replays_forward_and_backward(op):
    inputs, constants = (cast(values, torch.bfloat16, "cuda") for values in arguments(op, BASE))
    with ops.use_backend("triton", strict=True):
        expected, expected_gradients = run(getattr(ops, op), inputs, constants)  # also warms up
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(getattr(ops, op), inputs, constants)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs, gradients = run(getattr(ops, op), inputs, constants)
    for out in (*outputs, *gradients.values()):
        out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_close(actual, wanted, 1e-12)
    for name, wanted in expected_gradients.items():
        assert_close(gradients[name], wanted, 1e-12, f"d{name}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("grid", [None, (5, 3)], ids=str)
def test_a_cuda_graph_replays_patch_pool(grid):
    (image, *rest), kwargs = Pool((40, 70), (48, 64), 8, 12, grid=grid, invalid=0.2).arguments(torch.bfloat16, "cuda")

    def run_pool():
        leaf = image.clone().requires_grad_()
        outputs = ops.patch_pool(leaf, *rest, **kwargs)
        (gradient,) = torch.autograd.grad(outputs, leaf, [torch.ones_like(out) for out in outputs])
        return *(out.detach() for out in outputs), gradient

    with ops.use_backend("triton", strict=True):
        expected = run_pool()  # also warms up
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run_pool()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run_pool()
    for out in captured:
        out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, e) for a, e in zip(captured, expected, strict=True))
