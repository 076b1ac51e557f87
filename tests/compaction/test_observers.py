"""What leaves a region is a tensor like any other: its gradient, kept, asked for or changed, is dense storage's."""

from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pairs import pair
from torch import Tensor, fx, nn
from torch.nn import functional as F

from regrow.compaction.capture import graph_forward

pytestmark = pytest.mark.usefixtures("runs_engine")


class Net(nn.Module):
    """Convolutions, a residual sum and a head; what else it returns is given as a function of its values."""

    def __init__(self, hands_out: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(a, 8, 3, padding=1) for a in (3, 8, 8))
        self.norm, self.same, self.drop = nn.BatchNorm2d(8), nn.Identity(), nn.Dropout(0.0)
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.hands_out = hands_out

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm(self.first(x)))
        y = self.second(x)
        z = F.relu(self.third(y) + x)
        flat = z.mean((2, 3))
        h = F.relu(self.hidden(flat))
        return self.hands_out(self, self.head(h), x, y, z, flat, h)


@dataclass
class Output:
    logits: Tensor
    features: Tensor


Pair = namedtuple("Pair", ["logits", "features"])


@fx.wrap
def own_pair(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """A function of somebody's own, which a graph calls as a whole."""
    return logits, features


def flat_of(output: Any) -> list[Tensor]:
    if isinstance(output, Output):
        return [output.logits, output.features]
    parts: Sequence[Any] = list(output.values()) if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in ([part] if isinstance(part, Tensor) else flat_of(part))]


HANDED_OUT: dict[str, Callable[..., Any]] = {
    "everything": lambda net, logits, *values: (logits, *values),
    "nested": lambda net, logits, x, y, z, flat, h: {"logits": logits, "more": [(y,), {"h": h}]},
    "named": lambda net, logits, x, y, z, flat, h: Pair(logits, z),
    "dataclass": lambda net, logits, x, y, z, flat, h: Output(logits, x),
    "own function": lambda net, logits, x, y, z, flat, h: own_pair(logits, y),
    "the same by another module": lambda net, logits, x, y, z, flat, h: (logits, net.same(x), net.drop(h)),
    "a view beside it": lambda net, logits, x, y, z, flat, h: (logits, flat, flat.view(flat.size(0), -1)),
    "a part": lambda net, logits, x, y, z, flat, h: (logits, x[:, :3], h[0]),
}


def backwards(model: nn.Module, use: Callable[..., None]) -> list[Tensor | None]:
    """The gradients of images and what is handed out, and of the parameters that no region changes in shape."""
    torch.manual_seed(3)
    x = torch.randn(6, 3, 5, 5, requires_grad=True)
    logits, *features = flat_of(model(x))
    kept = [] if use is damps else features
    for feature in kept:
        feature.retain_grad()
    loss = F.cross_entropy(logits, torch.arange(6) % 5) + sum(0.1 * f.square().mean() for f in features)
    use(loss, features)
    return [x.grad, *(f.grad for f in kept), *(p.grad for n, p in model.named_parameters() if n.endswith("bias"))]


def keeps(loss: Tensor, features: list[Tensor]) -> None:
    loss.backward()


def damps(loss: Tensor, features: list[Tensor]) -> None:
    for feature in features:
        feature.register_hook(lambda gradient: 0.1 * gradient)
    loss.backward()


def asks(loss: Tensor, features: list[Tensor]) -> None:
    for feature, gradient in zip(features, torch.autograd.grad(loss, features, retain_graph=True), strict=True):
        feature.grad = gradient.clone()
        feature.retain_grad()
    for feature in features:
        feature.grad = None
    loss.backward()


@pytest.mark.parametrize("use", [keeps, damps, asks])
@pytest.mark.parametrize("handed_out", HANDED_OUT)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_what_is_handed_out(handed_out: str, use: Callable[..., None], training: bool) -> None:
    dense, compact = pair(Net(HANDED_OUT[handed_out]))
    expected, found = (backwards(model.train(training), use) for model in (dense, compact))
    assert len(expected) == len(found)
    for theirs, ours in zip(expected, found, strict=True):
        assert (theirs is None) == (ours is None)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    assert [forward.failure for forward in graph_forward.installed(compact)] == [None]


def test_asked_for_gradients_are_those_of_dense_storage() -> None:
    found = []
    for model in pair(Net(HANDED_OUT["everything"])):
        logits, *features = model(torch.ones(4, 3, 5, 5) + torch.arange(4.0)[:, None, None, None])
        found.append(torch.autograd.grad(logits[:, 1].sum(), features))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


class Heard(nn.Module):
    """A value that two layers read, of which one lets somebody see what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(12, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.body(x))
        return self.one(h), self.other(h)


class Keeps(Heard):
    """Asks for the gradient inside the forward."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.body(x))
        h.retain_grad()
        return self.one(h), self.other(h), h[:, :0]


def test_gradients_of_what_hooks_see() -> None:
    found = []
    for model in pair(Heard()):
        seen: list[Tensor] = []
        model.one.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        outputs = model(torch.linspace(-1, 1, 60).reshape(5, 12))
        seen[0].retain_grad()
        sum(output.square().sum() for output in outputs).backward()
        found.append(seen[0].grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-6)


def test_gradients_that_a_forward_asks_for() -> None:
    found = []
    for model in pair(Keeps()):
        *outputs, part = model(torch.linspace(-1, 1, 60).reshape(5, 12))
        sum(output.square().sum() for output in outputs).backward()
        found.append(part._base.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-6)


def test_a_net_whose_outputs_are_final_stays_one_region() -> None:
    _, compact = pair(Net(lambda net, logits, *values: logits))
    compact(torch.randn(4, 3, 5, 5))
    assert len(graph_forward.regions(compact)) == 1
    _, compact = pair(Net(HANDED_OUT["everything"]))
    compact(torch.randn(4, 3, 5, 5))
    assert [forward.failure for forward in graph_forward.installed(compact)] == [None]
    assert len(graph_forward.regions(compact)) > 1
