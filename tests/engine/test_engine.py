"""The compiled engine against torch's own operations, op by op and as whole regions, in float64 unless said."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regrow.compaction.reference import interpret
from regrow.engine import native
from regrow.engine.compiled_program import Plan, SparseWeight, UnsupportedProgramError
from regrow.engine.program import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    Operation,
    Program,
    Relu,
)

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.unavailable_reason()))

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2}


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance."""
    return float((a.double() - b.double()).norm() / (b.double().norm() + 1e-12))


def masked(shape: tuple[int, ...], density: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A weight with about this share of alive elements, and their positions."""
    alive = torch.rand(shape, generator=generator) < density
    return torch.randn(shape, generator=generator, dtype=torch.float64) * alive, alive.flatten().nonzero().flatten()


class Case:
    """A program with random weights, and its gradients by both ways."""

    def __init__(
        self,
        operations: list[Operation],
        outputs: list[int],
        shapes: list[tuple[int, ...]],
        channels: list[int] = [],  # noqa: B006
        density: float = 0.4,
        seed: int = 0,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.program = Program(tuple(operations), tuple(outputs))
        self.pairs = [masked(shape, density, self.generator) for shape in shapes]
        biases = {
            op.bias: shapes[op.weight][0] for op in operations if isinstance(op, Convolution) and op.bias is not None
        }
        self.biases = [self.normal(biases[k]) for k in sorted(biases)]
        self.norms = [nn.BatchNorm2d(c).double() for c in channels]
        for norm in self.norms:
            norm.weight.data.copy_(self.normal(norm.num_features).abs() + 0.5)
            norm.bias.data.copy_(self.normal(norm.num_features) * 0.3)
            norm.running_mean.copy_(self.normal(norm.num_features) * 0.1)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def inputs(self, batch: int) -> list[Tensor]:
        given = [op for op in self.program.operations if isinstance(op, Input)]
        return [
            self.normal(*(batch, op.channels, op.height, op.width)[: 2 if op.height == op.width == 1 else 4])
            for op in given
        ]

    def plan(self, dtype: torch.dtype) -> Plan:
        weights = [SparseWeight(tuple(weight.shape), indices) for weight, indices in self.pairs]
        return Plan(self.program, weights, self.norms, dtype=dtype)

    def reference(self, inputs: list[Tensor], training: bool, grad: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        inputs = [x.clone().requires_grad_() for x in inputs]
        weights = [weight.clone().requires_grad_() for weight, _ in self.pairs]
        biases = [bias.clone().requires_grad_() for bias in self.biases]
        norms = [copy.deepcopy(norm) for norm in self.norms]
        outputs = interpret(self.program, inputs, weights, biases, norms, training)
        torch.autograd.backward(outputs, [grad(output) for output in outputs])
        found = {f"output {k}": output.detach() for k, output in enumerate(outputs)}
        found |= {f"input {k}": x.grad for k, x in enumerate(inputs)}
        found |= {f"values {k}": w.grad.flatten()[self.pairs[k][1]] for k, w in enumerate(weights)}
        found |= {f"dense {k}": w.grad for k, w in enumerate(weights)}
        found |= {f"bias {k}": b.grad for k, b in enumerate(biases)}
        for k, norm in enumerate(norms):
            found |= {
                f"norm weight {k}": norm.weight.grad,
                f"norm bias {k}": norm.bias.grad,
                f"running mean {k}": norm.running_mean,
                f"running var {k}": norm.running_var,
            }
        return found

    def engine(
        self, inputs: list[Tensor], training: bool, grad: Callable[[Tensor], Tensor], dtype: torch.dtype, dense: bool
    ) -> dict[str, Tensor]:
        plan = self.plan(dtype)
        scalar = plan.scalar
        norms = [copy.deepcopy(norm).to(scalar) for norm in self.norms]
        outputs, saved = plan.forward(
            [x.to(scalar) for x in inputs],
            [weight.flatten()[indices].to(scalar) for weight, indices in self.pairs],
            [bias.to(scalar) for bias in self.biases],
            norms,
            training=training,
        )
        received: dict[int, Tensor] = {}
        wanted = {k: (lambda g, _, k=k: received.__setitem__(k, g)) for k in range(len(self.pairs))} if dense else {}
        gradients = plan.backward(saved, [grad(output).to(scalar) for output in outputs], dense_gradient=wanted)
        found = {f"output {k}": output for k, output in enumerate(outputs)}
        found |= {f"input {k}": x for k, x in enumerate(gradients.inputs)}
        found |= {f"values {k}": v for k, v in enumerate(gradients.values)}
        found |= {f"dense {k}": v for k, v in received.items()}
        found |= {f"bias {k}": b for k, b in enumerate(gradients.biases)}
        for k, norm in enumerate(norms):
            found |= {
                f"norm weight {k}": gradients.norm_weights[k],
                f"norm bias {k}": gradients.norm_biases[k],
                f"running mean {k}": norm.running_mean,
                f"running var {k}": norm.running_var,
            }
        return found

    def check(
        self,
        batch: int,
        dtype: torch.dtype = torch.float64,
        training: bool = True,
        dense: bool = False,
        tolerance: float | None = None,
    ) -> None:
        inputs = self.inputs(batch)
        grads: dict[torch.Size, Tensor] = {}

        def grad(output: Tensor) -> Tensor:
            if output.shape not in grads:
                grads[output.shape] = self.normal(*output.shape)
            return grads[output.shape].to(output.dtype)

        expected = self.reference(inputs, training, grad)
        found = self.engine(inputs, training, grad, dtype, dense)
        far = {name: distance(found[name], expected[name]) for name in found}
        limit = TOLERANCE[dtype] if tolerance is None else tolerance
        assert found.keys() >= expected.keys() - {name for name in expected if name.startswith("dense")}
        assert all(found[name].shape == expected[name].shape for name in found)
        assert max(far.values()) < limit, {name: d for name, d in far.items() if d >= limit}


def convolution_case(
    co: int,
    ci: int,
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    density: float,
    bias: bool,
    seed: int = 0,
) -> Case:
    operations: list[Operation] = [
        Input(0, ci, height, width),
        Convolution(0, 0, 0 if bias else None, stride, padding, dilation),
    ]
    return Case(operations, [1], [(co, ci, *kernel)], density=density, seed=seed)


pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    co=st.integers(1, 9),
    ci=st.integers(1, 20),
    height=st.integers(1, 12),
    width=st.integers(1, 19),
    kernel=pair,
    stride=pair,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pair,
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    bias=st.booleans(),
    batch=st.integers(1, 35),
    seed=st.integers(0, 2**16),
    dense=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_convolutions_of_every_shape(
    co, ci, height, width, kernel, stride, padding, dilation, density, bias, batch, seed, dense
):
    reach = [size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) for i, size in enumerate((height, width))]
    case = convolution_case(co, ci, height, width, kernel, stride, padding, dilation, density, bias, seed)
    if min(reach) < 1 or (height == width == 1 and (kernel, stride, padding) != ((1, 1), (1, 1), (0, 0))):
        with pytest.raises(UnsupportedProgramError):
            case.plan(torch.float64)
        return
    case.check(batch, dense=dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (8, 16, 8, 8, 3, 1, 1, 1, 0.1),
        (64, 40, 7, 9, 3, 2, 1, 1, 0.2),
        (8, 3, 17, 17, 7, 2, 3, 1, 1.0),
        (5, 64, 10, 10, 1, 1, 0, 1, 0.3),
        (12, 9, 14, 14, 3, 1, 2, 2, 0.5),
        (4, 5, 1, 1, 1, 1, 0, 1, 0.5),
        (64, 300, 1, 1, 1, 1, 0, 1, 1.0),
        (7, 6, 6, 6, 3, 1, 1, 1, 0.0),
    ],
)
@pytest.mark.parametrize("batch", [1, 33, 128])
def test_single_and_half_precision(dtype, shape, batch):
    co, ci, height, width, kernel, stride, padding, dilation, density = shape
    convolution_case(
        co,
        ci,
        height,
        width,
        (kernel, kernel),
        (stride, stride),
        (padding, padding),
        (dilation, dilation),
        density,
        True,
    ).check(batch, dtype, dense=True)


@given(
    co=st.sampled_from([16, 17, 32, 33, 48, 65]),
    ci=st.sampled_from([16, 24, 31, 32, 47, 64]),
    height=st.integers(1, 9),
    width=st.integers(1, 19),
    kernel=pair,
    stride=pair,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pair,
    density=st.sampled_from([0.1, 0.3, 1.0]),
    bias=st.booleans(),
    batch=st.sampled_from([25, 32, 33, 70]),
    seed=st.integers(0, 2**16),
    dense=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_half_precision_in_blocks_of_channels(
    co, ci, height, width, kernel, stride, padding, dilation, density, bias, batch, seed, dense
):
    """Shapes that CPUs with AMX compute on dense tiles: whole and broken blocks of 32 channels, columns and images."""
    reach = [size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) for i, size in enumerate((height, width))]
    assume(min(reach) >= 1 and height * width > 1)
    case = convolution_case(co, ci, height, width, kernel, stride, padding, dilation, density, bias, seed)
    case.check(batch, torch.bfloat16, dense=dense)


def test_one_alive_weight():
    case = convolution_case(6, 5, 9, 9, (3, 3), (1, 1), (1, 1), (1, 1), 0.0, False)
    case.pairs = [(torch.zeros(6, 5, 3, 3, dtype=torch.float64), torch.tensor([100]))]
    case.pairs[0][0].view(-1)[100] = 2.0
    case.check(20, dense=True)


PRE_ACTIVATION = [
    Input(0, 6, 8, 8),
    BatchNorm(0, 0),
    Relu(1),
    Convolution(2, 0, None, (2, 2), (1, 1)),
    BatchNorm(3, 1),
    Relu(4),
    Dropout(5, 0.0),
    Convolution(6, 1, None, (1, 1), (1, 1)),
    Convolution(2, 2, None, (2, 2)),
    Add(7, 8),
]
POST_ACTIVATION = [
    Input(0, 6, 8, 8),
    Convolution(0, 0, None, (1, 1), (1, 1)),
    BatchNorm(1, 0),
    Relu(2),
    Convolution(3, 1, None, (1, 1), (1, 1)),
    BatchNorm(4, 1),
    Add(5, 0),
    Relu(6),
    Convolution(7, 2, None, (2, 2)),
    BatchNorm(8, 2),
    Convolution(7, 3, None, (2, 2), (1, 1)),
    BatchNorm(10, 3),
    Add(11, 9),
    Relu(12),
    AveragePool(13, None),
    Flatten(14),
    Convolution(15, 4, 0),
]
MLP: list[Operation] = [
    Input(0, 30, 1, 1),
    Convolution(0, 0, None),
    BatchNorm(1, 0),
    Relu(2),
    Convolution(3, 1, 0),
    Relu(4),
    Convolution(5, 2, 1),
]
POOLS = [
    Input(0, 5, 11, 9),
    MaxPool(0, (3, 3), (2, 2), (1, 1)),
    Convolution(1, 0, 0, (1, 1), (1, 1)),
    Relu(2),
    MaxPool(3, (2, 2), (2, 2)),
    AveragePool(4, (2, 2), (1, 1), (1, 1)),
    BatchNorm(5, 0),
    Flatten(6),
    Convolution(7, 1, None),
]
BRANCHES = [
    Input(0, 4, 6, 6),
    Input(1, 4, 6, 6),
    Add(0, 1),
    Relu(2),
    Convolution(3, 0, None, (1, 1), (1, 1)),
    Add(4, 0),
    Add(5, 1),
    BatchNorm(6, 0),
    Relu(7),
    Add(8, 3),
    Convolution(9, 1, None, (1, 1), (1, 1)),
    Add(10, 10),
    Relu(11),
    BatchNorm(12, 1),
    BatchNorm(0, 2),
    Add(13, 14),
    Add(15, 6),
]

CELL = [  # one norm seen in four ways, one of them three times
    Input(0, 4, 6, 6),
    Convolution(0, 0, None, (1, 1), (1, 1)),
    BatchNorm(1, 0),
    Relu(2),
    Convolution(3, 1, None, (1, 1), (1, 1)),
    Relu(2),
    Convolution(5, 2, None),
    Relu(2),
    Convolution(7, 3, None, (1, 1), (1, 1)),
    Add(4, 6),
    Add(9, 8),
    Add(10, 2),
    BatchNorm(11, 1),
]

REGIONS = {
    "pre-activation": (PRE_ACTIVATION, [9], [(10, 6, 3, 3), (10, 10, 3, 3), (10, 6, 1, 1)], [6, 10]),
    "post-activation": (
        POST_ACTIVATION,
        [16, 13],
        [(8, 6, 3, 3), (6, 8, 3, 3), (12, 6, 1, 1), (12, 6, 3, 3), (7, 12)],
        [8, 6, 12, 12],
    ),
    "mlp": (MLP, [6], [(17, 30), (9, 17), (3, 9)], [17]),
    "pools": (POOLS, [8], [(6, 5, 3, 3), (4, 6 * 4 * 3)], [6]),
    "branches": (BRANCHES, [16, 9, 3], [(4, 4, 3, 3), (4, 4, 3, 3)], [4, 4, 4]),
    "cell": (CELL, [12], [(6, 4, 3, 3), (6, 6, 3, 3), (6, 6, 1, 1), (6, 6, 3, 3)], [6, 6]),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [3, 16, 37, 130])
@pytest.mark.parametrize("name", REGIONS)
def test_regions(name, batch, training):
    operations, outputs, shapes, channels = REGIONS[name]
    Case(operations, outputs, shapes, channels).check(batch, training=training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", REGIONS)
def test_regions_in_lower_precision(name, dtype):
    operations, outputs, shapes, channels = REGIONS[name]
    Case(operations, outputs, shapes, channels).check(70, dtype, tolerance=1e-3 if dtype == torch.float32 else 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_only_the_order_of_sums(threads, dtype):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for name in ("post-activation", "mlp"):
            operations, outputs, shapes, channels = REGIONS[name]
            Case(operations, outputs, shapes, channels).check(
                50, dtype, tolerance=None if dtype == torch.float64 else 0.5
            )
        convolution_case(40, 33, 6, 9, (3, 3), (1, 1), (1, 1), (1, 1), 0.3, True).check(100, dtype, dense=True)
    finally:
        torch.set_num_threads(before)


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, seed, norms, count, *tensors):
        inputs, values, biases = tensors[: count[0]], tensors[count[0] : sum(count[:2])], tensors[sum(count[:2]) :]
        outputs, ctx.saved = plan.forward(inputs, values, biases, norms, training=True, seed=seed)
        ctx.plan = plan
        return outputs[0]

    @staticmethod
    def backward(ctx, grad):
        gradients = ctx.plan.backward(ctx.saved, [grad])
        return None, None, None, None, *gradients.inputs, *gradients.values, *gradients.biases


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_gradcheck_with_dropout(probability):
    operations = [
        Input(0, 3, 5, 4),
        Convolution(0, 0, 0, (1, 1), (1, 1)),
        BatchNorm(1, 0),
        Relu(2),
        Dropout(3, probability),
        Convolution(4, 1, None, (2, 2), (1, 1)),
        Dropout(5, probability),
        Flatten(6),
        Dropout(7, probability),
    ]
    case = Case(operations, [8], [(4, 3, 3, 3), (3, 4, 3, 3)], [4])
    plan = case.plan(torch.float64)
    tensors = [case.normal(3, 3, 5, 4), *(w.flatten()[i] for w, i in case.pairs), *case.biases]
    tensors = [t.clone().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: _Run.apply(plan, 5, case.norms, (1, 2), *t), tensors)


def test_dropout_drops_its_share_and_only_in_training():
    plan = Plan(Program((Input(0, 8, 16, 16), Dropout(0, 0.25)), (1,)), [])
    x = torch.ones(70, 8, 16, 16)
    (first,), _ = plan.forward([x], [], seed=1)
    (again,), _ = plan.forward([x], [], seed=1)
    (other,), _ = plan.forward([x], [], seed=2)
    (still,), _ = plan.forward([x], [], training=False)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(still, x)
    assert abs(float((first == 0).float().mean()) - 0.25) < 0.01
    assert torch.allclose(first[first != 0], torch.tensor(4 / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.3, 0.9])
def test_dropout_of_one_element_says_nothing_of_another(dtype, probability):
    plan = Plan(Program((Input(0, 16, 32, 32), Dropout(0, probability)), (1,)), [], dtype=dtype)
    ((output,), _) = plan.forward([torch.ones(32, 16, 32, 32, dtype=plan.scalar)], [], seed=3)
    kept = (output != 0).double().flatten(1)
    score = (kept - (1 - probability)) / math.sqrt(probability * (1 - probability))
    # Standard normal each, if nothing hangs together: images, their pairs, neighbouring pixels.
    count = score.shape[1]
    images = score.mean(dim=1) * math.sqrt(count)
    pairs = (score @ score.T / math.sqrt(count)).fill_diagonal_(0)
    neighbours = [(score[:, :-lag] * score[:, lag:]).sum(dim=1) / math.sqrt(count - lag) for lag in (1, 32, 1024)]
    assert max(float(each.abs().max()) for each in (images, pairs, *neighbours)) < 5


def test_set_pattern_and_indices():
    case = convolution_case(16, 20, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1), 0.1, False)
    plan = case.plan(torch.float32)
    assert torch.equal(plan.indices(0), case.pairs[0][1])
    _, indices = masked((16, 20, 3, 3), 0.2, case.generator)
    plan.set_pattern(0, indices.int())
    assert torch.equal(plan.indices(0), indices)
    weight = torch.zeros(16 * 20 * 9)
    weight[indices] = torch.randn(len(indices))
    x = torch.randn(5, 20, 6, 6)
    (output,), saved = plan.forward([x], [weight[indices]], save=False)
    assert saved is None
    assert distance(output, nn.functional.conv2d(x, weight.view(16, 20, 3, 3), padding=1)) < 1e-6


def test_a_pattern_set_after_the_pass_is_refused():
    case = convolution_case(4, 6, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1), 0.5, False)
    plan = case.plan(torch.float64)
    outputs, saved = plan.forward(case.inputs(2), [w.flatten()[i] for w, i in case.pairs])
    plan.set_pattern(0, torch.arange(4 * 6 * 9))
    with pytest.raises(ValueError, match="pattern was set"):
        plan.backward(saved, outputs)


def test_weights_of_another_size_after_the_pass_are_refused():
    case = convolution_case(4, 6, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1), 0.5, False)
    plan = case.plan(torch.float64)
    values = [w.flatten()[i] for w, i in case.pairs]
    outputs, saved = plan.forward(case.inputs(2), values)
    values[0].data = values[0].data[:3].clone()
    with pytest.raises(ValueError, match="pattern was set"):
        plan.backward(saved, outputs)


@pytest.mark.parametrize(
    ("operations", "shapes", "words"),
    [
        (
            [Input(0, 8, 1, 1), Convolution(0, 0, None), Convolution(0, 1, 0)],
            [(4, 8), (3, 8)],
            "not read by any output",
        ),
        ([Input(0, 1, 4, 22_000), Convolution(0, 0, None, (1, 1), (1, 1))], [(2, 1, 3, 3)], "more than 65,536 lines"),
        ([Input(0, 1, 1, 70_000), Convolution(0, 0, None, (1, 1), (0, 4))], [(2, 1, 1, 9)], "more than 65,536 lines"),
    ],
)
def test_what_it_cannot_run_it_refuses_when_the_plan_is_made(operations, shapes, words):
    weights = [SparseWeight(shape, torch.arange(math.prod(shape))) for shape in shapes]
    with pytest.raises(UnsupportedProgramError, match=words):
        Plan(Program(tuple(operations), (1,)), weights)


def test_index_memory_is_small():
    case = Case([Input(0, 1024, 1, 1), Convolution(0, 0, None)], [1], [(1024, 1024)], density=0.1)
    plan = case.plan(torch.float32)
    assert plan.index_bytes() <= 1.55 * 4 * len(case.pairs[0][1])


@pytest.mark.parametrize("indices", [[3, 3], [5, 2], [-1], [4 * 6 * 9], [0, 2**40]])
def test_hostile_indices_are_refused(indices):
    case = convolution_case(4, 6, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1), 0.5, False)
    plan = case.plan(torch.float32)
    before = plan.indices(0)
    with pytest.raises(ValueError, match="ascend"):
        plan.set_pattern(0, torch.tensor(indices))
    assert torch.equal(plan.indices(0), before)


def test_wrong_calls_are_refused():
    case = convolution_case(4, 6, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1), 0.5, True)
    plan = case.plan(torch.float32)
    values, bias = [torch.zeros(len(case.pairs[0][1]))], [torch.zeros(4)]
    x = torch.zeros(2, 6, 5, 5)
    with pytest.raises(ValueError, match="input 0"):
        plan.forward([torch.zeros(2, 6, 5, 6)], values, bias)
    with pytest.raises(ValueError, match="values"):
        plan.forward([x], [values[0][1:]], bias)
    with pytest.raises(ValueError, match="biases"):
        plan.forward([x], values, [torch.zeros(3)])
    with pytest.raises(ValueError, match="biases"):
        plan.forward([x], values, [])
    with pytest.raises(ValueError, match=r"float32|float64"):
        plan.forward([x], [values[0].double()], bias)
    with pytest.raises(ValueError, match="empty batch"):
        plan.forward([x[:0]], values, bias)
    _, saved = plan.forward([x], values, bias)
    with pytest.raises(ValueError, match="gradient of an output"):
        plan.backward(saved, [torch.zeros(2, 4, 5, 4)])


def test_a_pass_keeps_its_memory_until_it_is_dropped():
    case = Case(PRE_ACTIVATION, [9], *REGIONS["pre-activation"][2:])
    plan = case.plan(torch.float64)
    values = [w.flatten()[i] for w, i in case.pairs]
    x, y = case.inputs(20)[0], case.inputs(20)[0]
    first, saved_first = plan.forward([x], values, (), case.norms)
    second, saved_second = plan.forward([y], values, (), case.norms)
    grad = torch.ones_like(first[0])
    late = plan.backward(saved_first, [grad])
    alone_plan = case.plan(torch.float64)
    _, saved = alone_plan.forward([x], values, (), case.norms)
    assert torch.equal(late.values[0], alone_plan.backward(saved, [grad]).values[0])
    assert not torch.equal(first[0], second[0])
    assert saved_second.bytes > 0


@pytest.mark.parametrize("name", REGIONS)
def test_a_pass_that_saves_nothing_takes_less_memory_for_the_same_outputs(name):
    operations, outputs, shapes, channels = REGIONS[name]
    case = Case(operations, outputs, shapes, channels)
    plan, inputs = case.plan(torch.float64), case.inputs(20)
    values = [w.flatten()[i] for w, i in case.pairs]
    kept, _ = plan.forward(inputs, values, case.biases, case.norms, training=False)
    light, saved = plan.forward(inputs, values, case.biases, case.norms, training=False, save=False)
    assert saved is None
    assert all(torch.equal(a, b) for a, b in zip(kept, light, strict=True))
    assert plan.activation_bytes(20, save=False) <= plan.activation_bytes(20)
