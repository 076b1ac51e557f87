"""Tools that would take a list of alive values for a weight are refused in words, with the way out."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

REMEDY = (
    "give it regrow.to_dense(copy.deepcopy(model)), or the model after sparsifier.detach(), or attach with "
    "storage='dense'"
)


def is_recorded() -> bool:
    """Whether torch.jit.trace is at work."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]  # torch has no types for it


def check_runs_for_itself() -> None:
    """Refuses to run a compact layer as part of what torch.jit.trace records or torch.func transforms.

    Raises:
        RuntimeError: one of them is at work.
    """
    if is_recorded():
        raise RuntimeError(f"torch.jit.trace records no compact layers: {REMEDY}")
    if torch._C._are_functorch_transforms_active():  # what autograd functions ask too; there is no public name for it
        raise RuntimeError(
            f"torch.func transforms (vmap, grad, jacrev, jvp, …) do not reach into compact layers: {REMEDY}"
        )


def check_input(input: Any) -> None:
    """Refuses stand-ins of torch.fx.

    Raises:
        RuntimeError: a tracer other than regrow's own looks inside the layer.
    """
    if isinstance(input, fx.Proxy):
        raise RuntimeError(f"torch.fx finds no operations of torch in a compact layer: {REMEDY}")


def check_attribute(name: str) -> None:
    """Refuses the mark of torch.ao.quantization, which then passes by every class that is not torch's own.

    Raises:
        ValueError: the attribute is that mark; None is one too, set on all layers of classes that it does not find.
    """
    if name == "qconfig":
        raise ValueError(f"torch.ao.quantization does not quantize compact layers: {REMEDY}")


def check_conversion(function: Callable[[Tensor], Tensor]) -> None:
    """Refuses to put an attached model's alive values into shared memory: their positions belong to this process.

    Args:
        function: what shall be applied to every tensor.

    Raises:
        ValueError: it shares memory.
    """
    if function(torch.empty(0)).is_shared():
        raise ValueError(
            "the alive values of an attached compact model cannot be in shared memory: at the next update of the "
            "pattern other processes would go on with the old ones. Share copies (copy.deepcopy(model), dense), or "
            "attach with storage='dense'"
        )


def guard_saving() -> None:
    """Has ``torch.export.save`` refuse graphs whose operators name compact layers of this process.

    torch asks nobody whether an operator means anything elsewhere, so its function is wrapped.
    """
    if not hasattr(torch.export.save, "is_guarded"):
        torch.export.save = _guarded(torch.export.save)


def _guarded(save: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(save)
    def checked(ep: Any, *args: Any, **kwargs: Any) -> None:
        modules = ep.graph_module.modules() if isinstance(ep, torch.export.ExportedProgram) else ()
        graphs = (module.graph for module in modules if isinstance(module, fx.GraphModule))
        if any(str(node.target).startswith("regrow.") for graph in graphs for node in graph.nodes):
            raise ValueError(
                "this exported graph names compact layers of this process, and no other process could run it: export "
                "and save regrow.to_dense(copy.deepcopy(model)), or the model after sparsifier.detach()"
            )
        save(ep, *args, **kwargs)

    checked.is_guarded = True  # type: ignore[attr-defined]
    return checked
