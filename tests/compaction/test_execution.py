"""Whole nets on the engine against torch: outputs, every gradient, running statistics, training with updates."""

import copy
from typing import Any

import pytest
import torch
from nets import convnet, mlp, sgd, train
from pairs import pair
from torch import Tensor, nn

import regrow
from regrow.compaction import execution
from regrow.compaction.capture import graph_forward
from regrow.compaction.compact_modules import CompactLayer
from regrow_lab.models import find_model

pytestmark = pytest.mark.usefixtures("runs_engine")

NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (mlp, (37, 12)),
    "convnet": (convnet, (5, 3, 9, 7)),
    "wrn": (lambda: find_model("wrn-22-2")(depth=10, width=1, dropout=0.0), (19, 3, 12, 12)),
    "resnet": (lambda: find_model("resnet50-cifar")(multiplier=0.1), (3, 3, 8, 8)),
    "resnet-imagenet": (lambda: find_model("resnet50-imagenet")(multiplier=0.05), (2, 3, 40, 36)),
}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter, dense, dead weights left out."""
    found = {}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        assert parameter.grad is not None, name
        compact = isinstance(module, CompactLayer) and name.endswith("weight")
        found[name] = module.compact.dense(parameter.grad) if compact else parameter.grad
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [True, False])
def test_float64_agrees_with_torch_to_its_precision(name: str, training: bool) -> None:
    build, shape = NETS[name]
    dense, compact = pair(build().double())
    dense.train(training)
    compact.train(training)
    x, y = (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    x.requires_grad_()
    y = x.detach().clone().requires_grad_()
    expected, found = dense(x), compact(y)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    (expected**2).sum().backward()
    (found**2).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-7, atol=1e-9)
    theirs = gradients(dense)
    for key, gradient in gradients(compact).items():
        module = compact.get_submodule(key.rpartition(".")[0])
        alive = module.compact.mask if isinstance(module, CompactLayer) and key.endswith("weight") else True
        torch.testing.assert_close(gradient, theirs[key] * alive, rtol=1e-7, atol=1e-9, msg=key)
    state = dense.state_dict()
    for key, value in compact.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-9, atol=1e-12, msg=key)
    assert [region.refusal for region in graph_forward.regions(compact)] == [None]
    assert "engine" in graph_forward.regions(compact)[0].runner


@pytest.mark.parametrize(("build", "shape"), [(mlp, (32, 12)), (convnet, (8, 3, 8, 8))])
@pytest.mark.parametrize("recipe", ["set", "rigl", "rigl-sg", "rigl-sm", "pruning", "snip"])
def test_training_with_updates_agrees_with_dense_storage(recipe: str, build: Any, shape: tuple[int, ...]) -> None:
    arguments: Any = {"sparsity": 0.8, "total_steps": 40, "every": 5}
    recipes = {
        "set": regrow.set_(**arguments),
        "rigl": regrow.rigl(**arguments),
        "rigl-sg": regrow.rigl_sg(**arguments),
        "rigl-sm": regrow.rigl_sm(**arguments),
        "pruning": regrow.gradual_pruning(start=5, **arguments),
        "snip": regrow.snip(sparsity=0.8),
    }
    states = []
    for storage in ("dense", "compact"):
        model = build().double()
        optimizer = sgd(model, nesterov=True)
        sparsifier = regrow.attach(model, optimizer, recipes[recipe], storage=storage, strict=True)  # type: ignore[arg-type]
        train(_Double(model), optimizer, range(40), shape=shape)
        states.append((model.state_dict(), sparsifier.masks))
    (dense, masks), (compact, others) = states
    assert all(torch.equal(mask, others[name]) for name, mask in masks.items())
    for name, value in dense.items():
        torch.testing.assert_close(compact[name], value, rtol=1e-7, atol=1e-10, msg=name)
    assert "engine" in str(sparsifier)


class _Double(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x.double())
        return output


def test_dropout_is_a_function_of_the_global_seed_and_of_nothing_in_eval() -> None:
    dense, model = pair(find_model("wrn-22-2")(depth=10, width=1, dropout=0.5))
    x = torch.randn(16, 3, 8, 8)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(copy.deepcopy(model)(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    model.eval()
    dense.eval()
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)


def test_autocast_means_bfloat16() -> None:
    dense, model = pair(find_model("wrn-22-2")(depth=10, width=1, dropout=0.0))
    x = torch.randn(16, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x)
    expected = dense(x)
    assert found.dtype == torch.bfloat16
    assert 1e-6 < float(((found - expected).norm() / expected.norm()).detach()) < 0.1
    found.sum().backward()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model).values())
    assert "bfloat16" in graph_forward.regions(model)[0].runner


class _Ends(nn.Module):
    """Values of every origin: images, a linear layer's, a norm's, sums of the given and the computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.stem = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.middle, self.head = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(self.conv(nn.functional.relu(self.stem(x))))
        z = nn.functional.relu(y + x)
        return y, z, self.head(self.middle(z.mean((2, 3)))), nn.functional.avg_pool2d(y, 2)


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cast", [None, torch.bfloat16, torch.float16])
def test_what_leaves_has_the_type_that_dense_storage_gives_it(given: torch.dtype, cast: torch.dtype | None) -> None:
    if cast is None and given != torch.float32:
        pytest.skip("without autocast torch refuses it, and so does the engine")
    x, found = torch.randn(4, 3, 6, 6).to(given), []
    for model in pair(_Ends()):
        with torch.autocast("cpu", dtype=cast, enabled=cast is not None):
            outputs = model(x)
        sum(output.float().square().sum() for output in outputs).backward()
        found.append(outputs)
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)
    assert [forward.failure for forward in graph_forward.installed(model)] == [None]


def test_a_pass_that_is_not_differentiated_keeps_nothing() -> None:
    _, model = pair(convnet())
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert not model(x).requires_grad
    with torch.inference_mode():
        model(x)
    model.requires_grad_(False)
    model(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_the_engine_does_not_take_runs_on_torch() -> None:
    dense, model = pair(mlp())
    x = torch.randn(4, 12)
    for each in (dense, model):
        each.bfloat16()
    assert torch.equal(model(x.bfloat16()), dense(x.bfloat16()))
    assert "weights are torch.bfloat16" in graph_forward.regions(model)[0].runner
    for each in (dense, model):
        each.float()
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(model(x), dense(x))
    torch.testing.assert_close(model(x), dense(x))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float64, torch.bfloat16])
def test_inputs_that_torch_refuses_are_refused(kind: torch.dtype) -> None:
    for model in pair(mlp()):
        with pytest.raises(RuntimeError, match="dtype"):
            model(torch.ones(4, 12).to(kind))


def test_images_of_five_dimensions_are_refused() -> None:
    for model in pair(nn.Sequential(nn.Conv2d(3, 4, 3))):
        for module in (model, model[0]):
            with pytest.raises(RuntimeError, match=r"3-?D .*4-?D"):
                module(torch.randn(2, 2, 3, 6, 6))


class _Unread(nn.Module):
    """Computes something that it does not use, with a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.head = nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.relu(self.first(x))
        self.aside(h)
        return self.head(h)


def test_what_no_output_needs_has_no_gradient() -> None:
    for model in pair(_Unread()):
        model(torch.randn(5, 12)).sum().backward()
        assert model.aside.weight.grad is None
        assert model.aside.bias.grad is None
        assert model.head.weight.grad is not None


def test_one_model_in_several_precisions_after_each_other() -> None:
    dense, model = pair(mlp())
    x = torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
    for each in (dense, model):
        each.bfloat16()
    assert torch.equal(model(x.bfloat16()), dense(x.bfloat16()))


def test_hooks_on_saved_tensors() -> None:
    _, model = pair(mlp())
    with torch.autograd.graph.save_on_cpu():
        model(torch.randn(4, 12)).sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        loss = model(torch.randn(4, 12)).sum()
    with pytest.raises(RuntimeError, match="gave the compact engine another tensor"):
        loss.backward()


def test_activations_are_freed_by_backward() -> None:
    _, model = pair(mlp())
    x = torch.randn(4, 12)
    loss = model(x).sum()
    assert len(execution._passes) == 1
    loss.backward(retain_graph=True)
    loss.backward()
    assert len(execution._passes) == 0
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    assert model(x).sum().requires_grad
    assert len(execution._passes) == 0


def test_a_second_derivative_is_refused() -> None:
    _, model = pair(mlp())
    x = torch.randn(4, 12, requires_grad=True)
    with pytest.raises(RuntimeError, match="has first derivatives alone: for create_graph=True"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
