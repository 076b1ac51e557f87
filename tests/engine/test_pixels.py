"""Inference on few images, where the engine puts pixels in the lanes, against torch's own operations."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import regrow
from regrow.compaction.reference import interpret
from regrow.engine import native
from regrow.engine.compiled_program import Plan, SparseWeight
from regrow.engine.program import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Flatten,
    Input,
    MaxPool,
    Operation,
    Program,
    Relu,
)

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.unavailable_reason()))

TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 3e-6}  # bf16 plans compute few images in fp32


def difference(
    operations: list[Operation],
    weights: list[Tensor],
    batch: int,
    *,
    norms: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    threads: int = 1,
    full: bool = False,
) -> float:
    """Largest difference between the engine's outputs in inference and the reference's, relative to the largest."""
    generator = torch.Generator().manual_seed(1)
    program = Program(tuple(operations), (len(operations) - 1,))
    alive = [torch.ones_like(w).bool() if full else w != 0 for w in weights]
    given_ops = [op for op in operations if isinstance(op, Input)]
    inputs = [torch.randn((batch, op.channels, op.height, op.width), generator=generator).double() for op in given_ops]
    biased = {op.bias: op.weight for op in operations if isinstance(op, Convolution) and op.bias is not None}
    biases = [torch.randn(len(weights[biased[k]]), generator=generator).double() for k in sorted(biased)]
    modules = [nn.BatchNorm2d(channels).double().eval() for channels in norms]
    for module in modules:
        module.weight.data.uniform_(0.5, 1.5, generator=generator)
        module.bias.data.normal_(generator=generator)
        module.running_mean.normal_(generator=generator)
        module.running_var.uniform_(0.5, 2, generator=generator)
    sparse = [
        SparseWeight(tuple(w.shape), a.flatten().nonzero().flatten()) for w, a in zip(weights, alive, strict=True)
    ]
    plan = Plan(program, sparse, modules, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (found,), saved = plan.forward(
            [x.to(plan.scalar) for x in inputs],
            [w[a].to(plan.scalar) for w, a in zip(weights, alive, strict=True)],
            [bias.to(plan.scalar) for bias in biases],
            [copy.deepcopy(module).to(plan.scalar) for module in modules],
            training=False,
            save=False,
        )
    finally:
        torch.set_num_threads(before)
    assert saved is None
    with torch.no_grad():
        (expected,) = interpret(program, inputs, weights, biases, modules, False)
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


def sparse_weight(*shape: int, density: float = 0.4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(shape, generator=generator) < density
    return torch.randn(shape, generator=generator, dtype=torch.float64) * alive


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 6),
    size=st.tuples(st.integers(1, 19), st.integers(1, 35)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels=st.tuples(st.integers(1, 6), st.integers(1, 9)),
    biased=st.booleans(),
)
def test_any_geometry(batch, size, kernel, stride, padding, dilation, channels, biased):
    reach = [s + 2 * p - d * (k - 1) for s, p, k, d in zip(size, padding, kernel, dilation, strict=True)]
    if min(reach) < 1 or size == (1, 1):
        return
    first = sparse_weight(channels[1], channels[0], *kernel)
    second = sparse_weight(3, channels[1], 3, 3, seed=1)
    operations = [
        Input(0, channels[0], *size),
        BatchNorm(0, 0),
        Relu(1),
        Convolution(2, 0, 0 if biased else None, stride, padding, dilation),
        Relu(3),
        Convolution(4, 1, None, (1, 1), (1, 1)),
    ]
    assert difference(operations, [first, second], batch, norms=(channels[0],)) < 1e-12


@pytest.mark.parametrize("isa", native.extension().variants() if native.available() else [])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_small_residual_net_on_every_instruction_set(monkeypatch, isa, dtype, batch):
    monkeypatch.setenv("REGROW_ISA", isa)
    operations = [
        Input(0, 5, 9, 19),
        Convolution(0, 0, None, (1, 1), (1, 1)),
        BatchNorm(1, 0),
        Relu(2),
        Convolution(3, 1, 0, (2, 2), (1, 1)),
        BatchNorm(4, 1),
        Relu(5),
        Convolution(6, 2, None, (1, 1), (1, 1)),
        Convolution(3, 3, None, (2, 2), (0, 0)),
        Add(7, 8),
        MaxPool(9, (3, 3), (2, 2), (1, 1)),
        AveragePool(10, None),
        Flatten(11),
        Convolution(12, 4, 1),
    ]
    shapes = [(8, 5, 3, 3), (12, 8, 3, 3), (12, 12, 3, 3), (12, 8, 1, 1), (10, 12)]
    weights = [sparse_weight(*shape, seed=k) for k, shape in enumerate(shapes)]
    assert difference(operations, weights, batch, norms=(8, 12), dtype=dtype) < TOLERANCE[dtype]


def test_two_threads_give_what_one_gives():
    operations = [Input(0, 32, 17, 17), Convolution(0, 0, None, (1, 1), (1, 1)), Relu(1), Flatten(2)]
    assert difference(operations, [sparse_weight(33, 32, 3, 3)], 2, threads=2) < 1e-12


@pytest.mark.parametrize("full", [True, False], ids=["four rows at a time", "one row"])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_dense_layers(full, batch):
    operations = [Input(0, 3, 11, 13), Convolution(0, 0, 0, (1, 1), (1, 1)), Convolution(1, 1, None)]
    weights = [sparse_weight(8, 3, 3, 3, density=1.0), sparse_weight(5, 8, 1, 1, density=1.0)]
    assert difference(operations, weights, batch, full=full) < 1e-12


def test_rows_without_weights_and_a_single_alive_weight():
    empty = sparse_weight(6, 4, 3, 3)
    empty[[0, 2, 5]] = 0
    single = torch.zeros(7, 6, 3, 3, dtype=torch.float64)
    single[4, 3, 2, 0] = 1.5
    operations = [Input(0, 4, 8, 8), Convolution(0, 0, 0, (1, 1), (1, 1)), Convolution(1, 1, None, (1, 1), (1, 1))]
    assert difference(operations, [empty, single], 3) < 1e-12


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_linear_layers(batch):
    operations = [Input(0, 37, 1, 1), Convolution(0, 0, 0), Relu(1), Convolution(2, 1, 1), Convolution(3, 2, None)]
    weights = [sparse_weight(21, 37), sparse_weight(9, 21, seed=1), sparse_weight(4, 9, seed=2, density=1.0)]
    assert difference(operations, weights, batch) < 1e-12


def test_a_sum_that_must_be_stored():
    operations = [
        Input(0, 4, 6, 7),
        Convolution(0, 0, None, (1, 1), (1, 1)),
        Convolution(0, 1, None, (1, 1), (1, 1)),
        BatchNorm(1, 0),
        BatchNorm(2, 1),
        Add(3, 4),
        Relu(5),
        Convolution(6, 2, None, (1, 1), (1, 1)),
        Add(6, 7),
        AveragePool(8, (2, 3), (1, 2), (1, 1)),
    ]
    weights = [sparse_weight(5, 4, 3, 3, seed=k) for k in range(2)] + [sparse_weight(5, 5, 3, 3, seed=2)]
    assert difference(operations, weights, 2, norms=(5, 5)) < 1e-12


def test_nan_stays_nan():
    program = Program((Input(0, 1, 4, 4), Relu(0), Convolution(1, 0, None)), (2,))
    plan = Plan(program, [SparseWeight((1, 1, 1, 1), torch.tensor([0]))])
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 2, 1] = float("nan")
    (found,), _ = plan.forward([image], [torch.ones(1)], training=False, save=False)
    assert found.isnan().nonzero().tolist() == [[0, 0, 2, 1]]


def test_a_batch_gives_what_its_images_give_alone():
    """Across the border between the two ways of computing, and between batch sizes that follow each other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    ).eval()
    for layer in (model[0], model[3], model[6]):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.3
    images = torch.randn(20, 3, 8, 8)
    with torch.no_grad():
        expected = model(images)
        regrow.compact(model)
        for batch in (1, 20, 3, 1, 12, 16):
            found = model(images[:batch])
            assert torch.allclose(found, expected[:batch], atol=1e-5)


def test_training_mode_without_gradients_still_updates_statistics():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4))
    model[0].weight.data *= torch.rand_like(model[0].weight) < 0.5
    reference = copy.deepcopy(model)
    regrow.compact(model)
    images = torch.randn(2, 2, 5, 5)
    with torch.no_grad():
        assert torch.allclose(model(images), reference(images), atol=1e-5)
    assert torch.allclose(model[1].running_mean, reference[1].running_mean, atol=1e-6)
    assert int(model[1].num_batches_tracked) == 1
