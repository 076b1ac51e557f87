"""Tools that look inside a model do the right thing with a compact one, or are refused with the way out."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import batch, mlp, sgd, train
from torch import Tensor, nn

import regrow
from regrow.compaction.compact_modules import CompactLayer

pytestmark = [
    pytest.mark.usefixtures("runs_engine"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*reduce_range:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
REMEDY = r"to_dense\(copy.deepcopy\(model\)\)"


def compact() -> nn.Module:
    model = mlp()
    with torch.no_grad():
        for name, layer in regrow.find_layers(model).items():
            model.get_parameter(name).mul_(torch.rand(layer.shape) < 0.4)
    return regrow.compact(model)


def attached() -> nn.Module:
    model = mlp()
    optimizer = sgd(model)
    regrow.attach(model, optimizer, regrow.rigl(sparsity=0.8, total_steps=60, every=4), storage="compact")
    train(model, optimizer, range(6))
    return model


def inputs() -> Tensor:
    return batch(3)[0]


def quantizes(model: nn.Module) -> None:
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def prepares(model: nn.Module) -> None:
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")  # type: ignore[assignment]
    torch.ao.quantization.prepare_qat(model.train(), inplace=True)


def traces(model: nn.Module) -> None:
    torch.jit.trace(model, inputs())


def scripts(model: nn.Module) -> None:
    torch.jit.script(model)


def traces_symbolically(model: nn.Module) -> None:
    torch.fx.symbolic_trace(model)


def loss(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    output: Tensor = torch.func.functional_call(model, parameters, (x[None],))
    return output.square().sum()


def differentiates_per_sample(model: nn.Module) -> None:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.func.vmap(torch.func.grad(lambda p, x: loss(model, p, x)), (None, 0))(parameters, inputs())


def differentiates(model: nn.Module) -> None:
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.func.grad(lambda p: loss(model, p, inputs()[0]))(parameters)


def pushes_forward(model: nn.Module) -> None:
    torch.func.jvp(model, (inputs(),), (inputs(),))


def maps(model: nn.Module) -> None:
    torch.func.vmap(model)(inputs()[:, None])


def saves_export(model: nn.Module) -> None:
    torch.export.save(torch.export.export(model.eval(), (inputs(),)), io.BytesIO())


TOOLS = (quantizes, prepares, traces, scripts, traces_symbolically, differentiates_per_sample, differentiates)
TOOLS += (pushes_forward, maps, saves_export)


@pytest.mark.parametrize("build", [compact, attached])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_is_refused_and_the_way_out_is_one(tool: Callable[[nn.Module], None], build: Any) -> None:
    model = build()
    expected = model(inputs())
    with pytest.raises((ValueError, RuntimeError), match=REMEDY):
        tool(model)
    torch.testing.assert_close(model(inputs()), expected)
    assert all(isinstance(model[number], CompactLayer) for number in (0, 2, 4))
    tool(regrow.to_dense(copy.deepcopy(model)))


def test_an_attached_model_is_quantized_in_a_copy() -> None:
    model = attached()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert all("quantized" in type(quantized[number]).__module__ for number in (0, 2, 4))
    torch.testing.assert_close(quantized(inputs()), model(inputs()), rtol=0.1, atol=0.1)


def test_alive_values_that_move_are_not_shared() -> None:
    model = attached()
    with pytest.raises(ValueError, match=r"cannot be in shared memory.*copy.deepcopy\(model\).*storage='dense'"):
        model.share_memory()
    assert not any(module.weight.is_shared() for module in model.modules() if isinstance(module, CompactLayer))
    assert all(parameter.is_shared() for parameter in copy.deepcopy(model).share_memory().parameters())
    fixed = compact()
    expected = fixed(inputs())
    assert torch.equal(fixed.share_memory()(inputs()), expected)


def test_an_export_runs_in_its_own_process() -> None:
    model = compact().eval()
    exported = torch.export.export(model, (inputs(),))
    torch.testing.assert_close(exported.module()(inputs()), model(inputs()))
    dense = torch.export.export(regrow.to_dense(copy.deepcopy(model)), (inputs(),))
    file = io.BytesIO()
    torch.export.save(dense, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(inputs()), model(inputs()))


def test_parameters_are_swapped_without_a_transform() -> None:
    model = compact()
    found = torch.func.functional_call(model, {n: 2 * p.detach() for n, p in model.named_parameters()}, (inputs(),))
    assert not torch.allclose(found, model(inputs()))
