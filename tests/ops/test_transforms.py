"""What surrounds an operator: CUDA graphs, and the limits towards torch.func."""

from __future__ import annotations

import pytest
import torch

from specfast import ops
from specfast.testing import assert_close
from tests.ops.conftest import Case
from tests.ops.test_factor_ops import OPERATORS, arguments, cast, run

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
