"""Cut graphs: regions as large as they get, the same numbers as torch, everything else left to torch."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from pairs import pair
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from regrow.compaction.capture import graph_forward
from regrow.compaction.compact_modules import CompactConv2d, CompactLayer, CompactLinear, obstacle
from regrow.engine.program import Add, AveragePool, BatchNorm, Convolution, Dropout, Flatten, Input, MaxPool, Relu
from regrow_lab.models import find_model


def run(model: nn.Module, *inputs: Tensor) -> Tensor:
    torch.manual_seed(1)
    return model(*inputs)


def assert_same(dense: nn.Module, compact: nn.Module, *inputs: Tensor) -> None:
    """Outputs, gradients of everything, running statistics, in both modes: bit for bit."""
    for mode in (True, False):
        dense.train(mode)
        compact.train(mode)
        pairs = [[x.clone().requires_grad_(x.is_floating_point()) for x in inputs] for _ in range(2)]
        expected, found = run(dense, *pairs[0]), run(compact, *pairs[1])
        assert torch.equal(expected, found)
        (expected**2).sum().backward()
        (found**2).sum().backward()
        for ours, theirs in zip(pairs[1], pairs[0], strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
        for name, module in compact.named_modules():
            other = dense.get_submodule(name)
            for key, parameter in module._parameters.items():
                gradient = None if parameter is None else parameter.grad
                if gradient is not None and isinstance(module, CompactLayer) and key == "weight":
                    gradient = module.compact.dense(gradient)
                    assert torch.equal(gradient, other.weight.grad * module.compact.mask)
                elif gradient is not None:
                    assert torch.equal(gradient, getattr(other, key).grad)
        state = dense.state_dict()
        for key, value in compact.state_dict().items():
            assert torch.equal(value, state[key]), key
        dense.zero_grad()
        compact.zero_grad()


def kinds(model: nn.Module) -> list[list[str]]:
    return [
        [type(operation).__name__ for operation in region.program.operations]
        for forward in graph_forward.installed(model)
        for region in forward.regions
    ]


@pytest.mark.parametrize(
    ("name", "shape"), [("lenet-300-100", (5, 64)), ("wrn-22-2", (3, 3, 16, 16)), ("resnet50-cifar", (2, 3, 8, 8))]
)
def test_known_nets_are_one_region(name: str, shape: tuple[int, ...]) -> None:
    options = {"depth": 10, "width": 1} if name == "wrn-22-2" else {"multiplier": 0.1}
    dense, compact = pair(find_model(name)(**options))
    assert_same(dense, compact, torch.randn(shape))
    (region,) = kinds(compact)
    count = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in dense.modules())
    assert region.count("Convolution") == count
    assert region[0] == "Input"


class Everything(nn.Module):
    """Every form in which a graph can say what a program knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding="same", bias=False)
        self.down = nn.Conv2d(6, 6, (3, 1), stride=2, padding=(1, 0), dilation=1)
        self.norm = nn.BatchNorm2d(6)
        self.inplace = nn.ReLU(inplace=True)
        self.fc1, self.fc2, self.norm1 = nn.Linear(6, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.inplace(x)
        z = x + y  # twice the activated value: the activation wrote into x
        z += y
        z = torch.add(z, F.relu(self.norm(z), True))
        z = F.max_pool2d(F.avg_pool2d(z, 2, stride=1), 3, 2, 1)
        z = self.down(z).relu()
        a, b = F.adaptive_avg_pool2d(z, 1).view(z.size(0), -1), z.mean((2, 3))
        out = self.norm1(self.fc1(torch.flatten(a.unsqueeze(2), 1) + b.relu_()))
        return self.fc2(F.dropout(out, 0.3, self.training)) + out


def test_every_form_of_every_operation_is_understood() -> None:
    dense, compact = pair(Everything())
    assert_same(dense, compact, torch.randn(4, 3, 12, 12))
    found = {kind for region in kinds(compact) for kind in region}
    known = (Input, Convolution, BatchNorm, Relu, Add, AveragePool, MaxPool, Flatten)
    assert {kind.__name__ for kind in known} <= found
    compact.train()
    compact(torch.randn(4, 3, 12, 12))
    assert Dropout.__name__ in {kind for region in kinds(compact) for kind in region}


class Flattened(nn.Module):
    """A convolution, pooled, made flat in one of the ways that there are, and linear layers."""

    def __init__(self, flatten: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.linear, self.head = nn.Conv2d(3, 8, 3), nn.Linear(32, 16), nn.Linear(16, 4)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        z = F.max_pool2d(F.relu(self.convolution(x)), 2)
        return self.head(F.relu(self.linear(self.flatten(z, x))))


@pytest.mark.parametrize(
    "flatten",
    [
        lambda z, x: torch.flatten(z, 1),
        lambda z, x: z.view(z.size(0), -1),
        lambda z, x: z.reshape(z.shape[0], -1),
        lambda z, x: z.view(x.size(0), -1),
        lambda z, x: z.view(-1, 32),
    ],
)
def test_every_way_to_flatten_stays_in_one_region(flatten: Callable[[Tensor, Tensor], Tensor]) -> None:
    dense, compact = pair(Flattened(flatten))
    for batch in (4, 7):
        assert_same(dense, compact, torch.randn(batch, 3, 6, 6))
    assert len(kinds(compact)) == 1


class PooledByShape(nn.Module):
    """Asks the graph for the size of its window."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.convolution(x))
        return self.head(F.avg_pool2d(z, z.size()[2:]).flatten(1))


def test_a_pool_of_a_size_that_the_graph_works_out_is_left_to_torch() -> None:
    dense, compact = pair(PooledByShape())
    assert_same(dense, compact, torch.randn(4, 3, 6, 6))
    assert {region[-1] for region in kinds(compact)} == {"Relu", "Convolution"}


class Mixed(nn.Module):
    """What a program cannot say, between what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.conv2, self.scale = nn.Conv2d(16, 8, 1), nn.Parameter(torch.ones(8, 1, 1))
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor, gain: float = 2.0) -> tuple[Tensor, ...]:
        x = F.relu(self.conv1(x))
        x = self.conv2(torch.cat([x, F.gelu(self.depthwise(x))], dim=1)) * self.scale * gain
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.attention(tokens, tokens, tokens)[0]
        return self.fc(tokens).mean(1)


def test_what_a_program_cannot_say_is_left_to_torch() -> None:
    dense, compact = pair(Mixed())
    assert isinstance(compact.conv1, CompactConv2d)
    assert type(compact.depthwise) is nn.Conv2d
    assert_same(dense, compact, torch.randn(2, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(compact(x, 3.0), dense(x, 3.0))
    assert torch.equal(compact(x, gain=4.0), dense(x, gain=4.0))


class Branching(nn.Module):
    """A forward that depends on data has no graph; its parts have."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = self.body(x)
        return self.head(x)


def test_a_forward_without_a_graph_runs_in_parts() -> None:
    dense, compact = pair(Branching())
    assert [type(forward.module) for forward in graph_forward.installed(compact)] == [nn.Sequential]
    for sign in (1, -1):
        x = sign * torch.rand(3, 6)
        assert torch.equal(compact(x), dense(x))


def test_linear_layers_take_any_number_of_dimensions() -> None:
    dense, compact = pair(nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)))
    for shape in ((6,), (3, 6), (2, 3, 6), (2, 1, 3, 6)):
        x = torch.randn(shape)
        assert torch.equal(compact(x), dense(x))
    dense, compact = pair(nn.Sequential(nn.Conv2d(3, 4, 3)))
    x = torch.randn(3, 6, 6)
    torch.testing.assert_close(compact(x), dense(x))


def test_any_batch_any_image_size_and_frozen_norms() -> None:
    dense, compact = pair(find_model("wrn-22-2")(depth=10, width=1))
    for shape in ((1, 3, 8, 8), (7, 3, 8, 8), (2, 3, 12, 20)):
        x = torch.randn(shape)
        assert torch.equal(run(compact, x), run(dense, x))
    for model in (dense, compact):
        model.get_submodule("stage1").eval()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(run(compact, x), run(dense, x))
    for name, value in compact.state_dict().items():
        assert torch.equal(value, dense.state_dict()[name]), name


def test_hooks_are_heard() -> None:
    dense, compact = pair(find_model("wrn-22-2")(depth=10, width=1))
    heard: dict[str, list[Tensor]] = {}
    x = torch.randn(2, 3, 8, 8)
    for model in (dense, compact):
        for name in ("stage1", "stage2.0.norm2", "stage2.0.conv1", "fc"):
            hear = heard.setdefault(name, []).append
            model.get_submodule(name).register_forward_hook(lambda module, inputs, output, hear=hear: hear(output))
        run(model, x)
    assert all(len(values) == 2 and torch.equal(*values) for values in heard.values())


class Unread(nn.Module):
    """Computes with modules what its output does not need."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.probe = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Identity()
        self.body, self.aux, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.norm(x)
        _images, _channels, _height, _width = x.shape
        x = self.body(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))
        F.gelu(self.aux(self.probe(x)))
        return self.head(x)


@pytest.mark.usefixtures("runs_engine")
def test_what_nobody_reads_is_done_and_has_no_gradient() -> None:
    dense, compact = pair(Unread())
    heard = []
    for model in (dense, compact):
        calls = list[int]()
        model.probe.register_forward_hook(lambda module, inputs, output, calls=calls: calls.append(len(output)))
        for _ in range(2):
            model(torch.ones(4, 3, 6, 6)).sum().backward()
        assert model.aux.weight.grad is None
        assert model.conv.weight.grad is not None
        heard.append((calls, model.norm.num_batches_tracked.item()))
    assert heard == [([4, 4], 2)] * 2
    torch.testing.assert_close(compact.norm.running_mean, dense.norm.running_mean)
    (forward,) = graph_forward.installed(compact)
    assert forward.failure is None
    # What the hook sees is a tensor, so the head has a region of its own.
    assert [region.count("Convolution") for region in kinds(compact)] == [2, 1]


def test_hooks_on_all_modules_see_the_models_own() -> None:
    heard: list[list[str]] = []
    for model in pair(find_model("wrn-22-2")(depth=10, width=1)):
        model(torch.randn(2, 3, 8, 8))  # has cut its graph by now
        calls = list[str]()
        names = {module: name for name, module in model.named_modules()}
        with register_module_forward_hook(lambda module, *_, names=names, calls=calls: calls.append(names[module])):
            model(torch.randn(2, 3, 8, 8))
        heard.append(calls)
    assert heard[0] == heard[1]
    assert "stage1.0.conv1" in heard[0]


def test_copies_are_on_their_own() -> None:
    dense, compact = pair(find_model("lenet-300-100")(inputs=8))
    x = torch.randn(4, 8)
    expected = compact(x)
    for other in (copy.deepcopy(compact), pickle.loads(pickle.dumps(compact))):
        assert torch.equal(other(x), expected)
        assert isinstance(other.fc1, CompactLinear)
        with torch.no_grad():
            other.fc1.weight.mul_(2)
        assert torch.equal(other.fc1.state_dict()["weight"], 2 * dense.fc1.weight)
        assert not torch.equal(other(x), expected)
        assert torch.equal(compact(x), expected)


def test_a_replaced_module_is_noticed() -> None:
    _, compact = pair(find_model("lenet-300-100")(inputs=8))
    compact(torch.randn(4, 8))
    compact.fc3 = nn.Linear(100, 3)
    assert compact(torch.randn(4, 8)).shape == (4, 3)


def drop_bias(model: nn.Module) -> None:
    model.fc.bias = None


def scale_activation(model: nn.Module) -> None:
    model.get_submodule("stage1.0.norm2").forward = lambda x: x * 0.5


def pass_by_block(model: nn.Module) -> None:
    model.get_submodule("stage2.0").forward = model.get_submodule("stage2.0.shortcut").forward


def use_statistics_of_the_batch(model: nn.Module) -> None:
    norm = model.get_submodule("stage1.0.norm2")
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


@pytest.mark.usefixtures("runs_engine")
@pytest.mark.parametrize("change", [drop_bias, scale_activation, pass_by_block, use_statistics_of_the_batch])
def test_a_changed_module_is_noticed(change: Callable[[nn.Module], None]) -> None:
    model = find_model("wrn-22-2")(depth=10, width=1).eval()
    nn.init.ones_(model.fc.bias)
    dense, compact = pair(model)
    x = torch.randn(2, 3, 8, 8)
    before = compact(x)
    change(dense), change(compact)
    expected = dense(x)
    assert not torch.allclose(before, expected, atol=1e-5)
    torch.testing.assert_close(compact(x), expected)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "grouped"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding mode"),
        (nn.Conv2d(4, 4, 2, padding="same"), "unequally"),
        (nn.Conv1d(4, 4, 3), "Conv1d"),
        (nn.Linear(4, 4).half(), "float16"),
    ],
)
def test_obstacles_are_named(module: nn.Module, words: str) -> None:
    assert words in (obstacle(module) or "")
