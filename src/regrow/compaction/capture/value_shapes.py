"""What is known of a traced graph's values before it runs: shapes and types, from a run on tensors without content."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from regrow.compaction.capture.forward_reads import leaves
from regrow.compaction.compact_modules import CompactLayer


def propagate(graph_module: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Writes what is known of each node's value into ``meta``, from a run on tensors without content."""
    names = [str(node.target) for node in graph_module.graph.nodes if node.op == "placeholder"]
    defaults = [node.args[0] for node in graph_module.graph.nodes if node.op == "placeholder" and node.args]
    given = [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]
    given += defaults[len(defaults) - (len(names) - len(given)) :]
    with torch.no_grad(), _no_autocast():
        _Shapes(graph_module).run(*(map_aggregate(value, _emptied) for value in given))


@contextmanager
def _no_autocast() -> Iterator[None]:
    with torch.autocast("cpu", enabled=False):
        yield


def _emptied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
    return value


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensor = isinstance(result, Tensor)
        n.meta["shape"] = tuple(result.shape) if tensor else None
        n.meta["dtype"] = result.dtype if tensor else None
        n.meta["tensors"] = _holds_tensors(result)
        n.meta["form"] = isinstance(result, (int, float, torch.Size, torch.dtype, torch.device, torch.layout))
        # Nothing in this run needs a gradient but what the caller gives and asks one for.
        n.meta["differentiable"] = n.op != "placeholder" or (tensor and result.requires_grad)
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _emptied(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, CompactLayer):
            return module.forward(*args, **kwargs)
        module = _apart(module)  # another thread may be running the module itself
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        tensors = {f"inner.{name}": _emptied(tensor) for name, tensor in named.items()}
        return torch.func.functional_call(_Silent(module), tensors, args, kwargs)


def _apart(module: nn.Module) -> nn.Module:
    """A module of its own with the same tensors inside, which can be replaced."""
    twin: nn.Module = object.__new__(type(module))
    own = {name: copy(value) if isinstance(value, (dict, list)) else value for name, value in vars(module).items()}
    own["_modules"] = {name: None if child is None else _apart(child) for name, child in module._modules.items()}
    vars(twin).update(own)
    return twin


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(part, Tensor) for part in leaves(value))


class _Silent(nn.Module):
    """Calls a module's forward past its hooks."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.forward(*args, **kwargs)
