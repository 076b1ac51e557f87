"""Weights that a forward reads past the layers, by whatever name, are those of dense storage; so is their gradient."""

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.utils.checkpoint
from nets import batch, sgd
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.compaction.capture.tracing import UnfaithfulError, trace
from regrow.compaction.compact_modules import CompactLayer

pytestmark = pytest.mark.usefixtures("runs_engine")

Read = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Three layers, and a penalty that reads their weights in a way that is given."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 24), nn.Linear(24, 16), nn.Linear(16, 5)
        self.read = [read]

    def body(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))))

    def forward(self, x: Tensor) -> Tensor:
        penalty = self.read[0](self, x)
        return self.body(x) + penalty


class Branching(Net):
    """Has no graph, and reads in a branch that no stand-in takes."""

    def forward(self, x: Tensor) -> Tensor:
        penalty = self.read[0](self, x) if bool(x.sum() < 1e9) else 0
        return self.body(x) + penalty


class Optional(Net):
    """Has a graph, but not of the branch that reads."""

    def forward(self, x: Tensor, penalised: bool = False) -> Tensor:
        penalty = self.read[0](self, x) if penalised is True else 0
        return self.body(x) + penalty


def of_children(net: Net, x: Tensor) -> Tensor:
    return sum((layer.weight.std() for layer in net.children()), x.new_zeros(()))


def by_getattr(net: Net, x: Tensor) -> Tensor:
    return getattr(net.first, "weight").mean()  # noqa: B009  # what is tried


def of_parameters(net: Net, x: Tensor) -> Tensor:
    return sum((p.std() for p in net.parameters() if p.dim() > 1), x.new_zeros(()))


def by_name(net: Net, x: Tensor) -> Tensor:
    return sum((p.abs().mean() for name, p in net.named_parameters() if name.endswith("weight")), x.new_zeros(()))


def of_the_state(net: Net, x: Tensor) -> Tensor:
    return net.state_dict()["first.weight"].std() * net.state_dict(keep_vars=True)["second.weight"].var()


def concatenated(net: Net, x: Tensor) -> Tensor:
    return torch.cat([p.flatten() for p in net.parameters()]).std()


def stacked(net: Net, x: Tensor) -> Tensor:
    return torch.stack([torch.linalg.matrix_norm(p, 2) for p in net.parameters() if p.ndim == 2]).sum()


def shapes(net: Net, x: Tensor) -> Tensor:
    return sum((p.square().sum() / p.numel() * p.shape[0] for p in net.parameters()), x.new_zeros(()))


def multiplied(net: Net, x: Tensor) -> Tensor:
    layer = net.first
    return F.linear(x, layer.weight).square().mean() + (layer.weight @ layer.weight.t()).mean()


def tied(net: Net, x: Tensor) -> Tensor:
    return (net._modules["second"]._parameters["weight"].T @ torch.ones(16)).square().mean()  # type: ignore[union-attr]


def without_gradient(net: Net, x: Tensor) -> Tensor:
    layers: Iterable[nn.Linear] = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    return sum((layer.weight.data.std() * layer.weight.detach().numel() for layer in layers), x.new_zeros(())) / 100


READS = (of_children, by_getattr, of_parameters, by_name, of_the_state, concatenated, stacked, shapes, multiplied, tied)
READS += (without_gradient,)


def trained(kind: type[Net], read: Read, storage: str) -> tuple[list[float], nn.Module, regrow.Sparsifier]:
    torch.manual_seed(0)
    model = kind(read).double()
    optimizer = sgd(model)
    recipe = regrow.rigl(sparsity=0.7, total_steps=60, every=4, distribution=regrow.uniform)
    sparsifier = regrow.attach(model, optimizer, recipe, storage=storage)  # type: ignore[arg-type]
    losses, given = [], {"penalised": True} if kind is Optional else {}
    for step in range(10):
        inputs, targets = batch(step)
        output = model(inputs.double(), **given)
        loss = F.cross_entropy(output, targets) + 0.3 * output.square().mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses, model, sparsifier


def single(read: Read) -> Read:
    """The same in double precision, where ones are made."""

    def wrapped(net: Net, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        try:
            return read(net, x)
        finally:
            torch.set_default_dtype(torch.float32)

    return wrapped


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("kind", [Net, Branching, Optional])
def test_what_a_forward_reads_is_the_dense_weight(kind: type[Net], read: Read) -> None:
    dense, model, masks = trained(kind, single(read), "dense")
    compact, other, others = trained(kind, single(read), "compact")
    assert compact == pytest.approx(dense, rel=1e-9)
    for name, mask in masks.masks.items():
        assert torch.equal(mask, others.masks[name])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-7, atol=1e-9)
    stays = [isinstance(layer, CompactLayer) for layer in other.children()]
    assert all(stays) if kind is not Net else not all(stays)
    assert ("reads its weight" in str(others)) == (kind is Net)


class Checkpointed(nn.Module):
    """Branches on data, and computes its middle twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 24), nn.Linear(16, 5)
        self.block = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 1e9):
            return self.head(x.new_zeros(len(x), 16))
        x = torch.utils.checkpoint.checkpoint(self.block, F.relu(self.first(x)), use_reentrant=False)
        return self.head(x)


def test_what_is_computed_again_in_the_backward_pass_is_the_same() -> None:
    states = []
    for storage in ("dense", "compact"):
        torch.manual_seed(0)
        model = Checkpointed()
        regrow.attach(model, sgd(model), regrow.static(sparsity=0.7), storage=storage)  # type: ignore[arg-type]
        for _ in range(2):
            model(batch(0)[0]).square().sum().backward()
        states.append([model.first.bias.grad, model.block[0].bias.grad])
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


def hooked(net: Net, x: Tensor) -> Tensor:
    types = {(p.dtype, p.device, p.requires_grad) for p in net.parameters()}
    return x.new_zeros(()) + len(types) + int(next(net.parameters()).is_leaf)


def test_what_is_the_same_of_both_reads_nothing() -> None:
    for kind in (Net, Branching):
        _, model, _ = trained(kind, hooked, "compact")
        assert all(isinstance(layer, CompactLayer) for layer in model.children())


def clamped(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        for layer in net.children():
            layer.weight.clamp_(-0.1, 0.1)
    return x.new_zeros(())


def test_writes_in_place_reach_the_alive_values() -> None:
    for kind in (Net, Branching):
        dense, *_ = trained(kind, clamped, "dense")
        compact, *_ = trained(kind, clamped, "compact")
        assert compact == pytest.approx(dense, rel=1e-9)


def overwritten(net: Net, x: Tensor) -> Tensor:
    net.first.weight.data.clamp_(-0.1, 0.1)
    return x.new_zeros(())


def test_writes_past_the_parameter_are_noticed() -> None:
    dense, *_ = trained(Net, overwritten, "dense")
    compact, *_ = trained(Net, overwritten, "compact")
    assert compact == pytest.approx(dense, rel=1e-9)
    with pytest.raises(RuntimeError, match=r"writes to a weight of a compact layer.*exclude=.*storage='dense'"):
        trained(Branching, overwritten, "compact")


def test_constants_of_parameters_are_not_taken_for_a_graph() -> None:
    for read in (of_parameters, concatenated, shapes):
        with pytest.raises(UnfaithfulError, match="computes from its parameters"):
            trace(Net(read))
    model = Net(of_children)
    trace(model)
    regrow.compact(model, {"first.weight": torch.rand(24, 12) < 0.3})
    assert type(model.first) is nn.Linear


@pytest.mark.parametrize("penalty", [lambda p: p.square().sum(), lambda p: p.abs().sum(), lambda p: p.norm()])
def test_sums_over_values_are_right_outside_too(penalty: Callable[[Tensor], Tensor]) -> None:
    states = []
    for storage in ("dense", "compact"):
        torch.manual_seed(0)
        model = Net(lambda net, x: x.new_zeros(()))
        optimizer = sgd(model)
        regrow.attach(model, optimizer, regrow.static(sparsity=0.7), storage=storage)  # type: ignore[arg-type]
        for step in range(4):
            inputs, targets = batch(step)
            (F.cross_entropy(model(inputs), targets) + 0.01 * sum(map(penalty, model.parameters()))).backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
