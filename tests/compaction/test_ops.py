"""What torch.compile and torch.export see: one operator a compact layer."""

import pytest
import torch
from nets import batch, convnet, mlp, sgd
from pairs import pair
from torch import nn

import regrow
from regrow.compaction import torch_operators
from regrow.compaction.capture import graph_forward
from regrow.compaction.capture.region import SWITCH
from regrow.compaction.compact_modules import CompactLayer


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch 2.15
@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(3, 6, 3, stride=2, padding=1), (2, 3, 7, 9)), (nn.Linear(6, 4, bias=False), (2, 5, 6))],
)
def test_the_operator_keeps_the_rules_of_the_library(layer: nn.Module, shape: tuple[int, ...]) -> None:
    _, compact = pair(nn.Sequential(layer))
    module = compact.get_submodule("0")
    assert isinstance(module, CompactLayer)
    x = torch.randn(shape, requires_grad=True)
    torch.library.opcheck(
        torch_operators.layer, (x, module.weight, module.bias, module.number, None), raise_exception=True
    )


def test_a_compiled_model_has_the_same_outputs_and_gradients() -> None:
    dense, compact = pair(convnet())
    compiled = torch.compile(compact, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 8, 8)
    expected, found = dense(x), compiled(x)
    assert torch.equal(expected, found)
    (expected**2).sum().backward()
    (found**2).sum().backward()
    for name, parameter in compact.named_parameters():
        module, theirs = compact.get_submodule(name.rpartition(".")[0]), dense.get_parameter(name).grad
        gradient = parameter.grad
        if isinstance(module, CompactLayer) and name.endswith("weight"):
            gradient, theirs = module.compact.dense(gradient), theirs * module.compact.mask
        torch.testing.assert_close(gradient, theirs)


def test_a_compiled_model_trains_through_topology_updates() -> None:
    states = []
    for storage, wrap in (("dense", lambda model: model), ("compact", lambda m: torch.compile(m, backend="aot_eager"))):
        model = mlp()
        optimizer = sgd(model)
        recipe = regrow.rigl_sg(sparsity=0.8, total_steps=40, every=4)
        sparsifier = regrow.attach(model, optimizer, recipe, storage=storage, strict=True)
        run = wrap(model)
        for step in range(12):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(run(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert sparsifier.num_updates == 2
        states.append(({k: v.clone() for k, v in model.state_dict().items()}, sparsifier.masks))
    for name, mask in states[0][1].items():
        assert torch.equal(mask, states[1][1][name])
    for name, value in states[0][0].items():
        torch.testing.assert_close(value, states[1][0][name])


@pytest.mark.usefixtures("runs_engine")
def test_a_compiled_model_runs_on_the_engine() -> None:
    dense, compact = pair(convnet().double())
    compiled = torch.compile(compact, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    expected, found = dense(x), compiled(x)
    torch.testing.assert_close(expected, found)
    (expected**2).sum().backward()
    (found**2).sum().backward()
    layer = compact.get_submodule("3")
    assert isinstance(layer, CompactLayer)
    theirs = dense.get_parameter("3.weight").grad * layer.compact.mask
    torch.testing.assert_close(layer.compact.dense(layer.weight.grad), theirs)
    assert all("engine" in region.runner for region in graph_forward.regions(compact))
    assert graph_forward.regions(compact)


def test_an_exported_model_has_the_same_outputs() -> None:
    dense, compact = pair(convnet())
    dense.eval()
    compact.eval()
    x = torch.randn(4, 3, 8, 8)
    exported = torch.export.export(compact, (x,))
    assert sum(node.target is torch.ops.regrow.layer.default for node in exported.graph.nodes) == 3
    assert torch.equal(exported.module()(x), dense(x))


class Block(nn.Module):
    """A block of a small language model: attention and a multilayer perceptron behind layer norms, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.other = nn.Embedding(11, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention, self.project = nn.Linear(16, 48, bias=False), nn.Linear(16, 16)
        self.wide, self.dense, self.narrow, self.head = (
            nn.Linear(*s) for s in ((16, 32), (32, 32), (32, 16), (16, 11))
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        parts = self.attention(self.norm(x)).unflatten(-1, (3, 2, 8)).movedim(-3, 0).transpose(-3, -2)
        found = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.project(found.transpose(-3, -2).flatten(-2))
        x = x + self.narrow(self.dense(nn.functional.gelu(self.wide(self.other(x)))))
        return self.head(x)


class Stem(nn.Sequential):
    """A dense convolution, whose output autocast gives, before compact ones with a batch norm between."""

    def __init__(self) -> None:
        body = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
        super().__init__(*body, nn.Linear(32, 5))


def trained_under_autocast(storage: str, kind: type[nn.Module], cast: torch.dtype, backend: str | None) -> list[object]:
    """Type and values of the outputs of some steps with an update between, masks, and the sparsifier's table."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recipe = regrow.rigl(sparsity=0.7, total_steps=60, every=3, distribution=regrow.uniform)
    exclude = ["0"] if kind is Stem else ["dense"]
    sparsifier = regrow.attach(model, optimizer, recipe, storage=storage, exclude=exclude)  # type: ignore[arg-type]
    run = model if backend is None else torch.compile(model, backend=backend)
    found: list[object] = []
    for step in range(5):
        torch.manual_seed(step)
        given = torch.randint(11, (4, 6)) if kind is Block else torch.randn(4, 3, 6, 6)
        with torch.autocast("cpu", dtype=cast):
            output = run(given)
        found.append(output.detach())
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*found, sparsifier.masks, str(sparsifier)]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Block, Stem])
@pytest.mark.parametrize("switch", ["torch", "engine"])
def test_compiled_under_autocast(
    switch: str, kind: type[nn.Module], cast: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, switch)
    *dense, _, _ = trained_under_autocast("dense", kind, cast, None)
    *eager, _, table = trained_under_autocast("compact", kind, cast, None)
    *compiled, _, _ = trained_under_autocast("compact", kind, cast, backend)
    assert "compact: " in str(table)
    for a, b, c in zip(dense, eager, compiled, strict=True):
        assert a.dtype == b.dtype == c.dtype == cast
        torch.testing.assert_close(b, a, rtol=0.1, atol=0.05)
        torch.testing.assert_close(c, a, rtol=0.1, atol=0.05)
