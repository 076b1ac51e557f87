"""What torch.compile and torch.export see: one operator a compact layer."""

import pytest
import torch
from nets import batch, convnet, mlp, sgd
from pairs import pair
from torch import nn

import regrow
from regrow.compaction import graph, ops
from regrow.compaction.layers import CompactLayer


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
    torch.library.opcheck(ops.layer, (x, module.weight, module.bias, module.number), raise_exception=True)


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
    assert all("engine" in region.runner for region in graph.regions(compact))
    assert graph.regions(compact)


def test_an_exported_model_has_the_same_outputs() -> None:
    dense, compact = pair(convnet())
    dense.eval()
    compact.eval()
    x = torch.randn(4, 3, 8, 8)
    exported = torch.export.export(compact, (x,))
    assert sum(node.target is torch.ops.regrow.layer.default for node in exported.graph.nodes) == 3
    assert torch.equal(exported.module()(x), dense(x))
