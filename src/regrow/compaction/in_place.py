"""Writes in place in a traced graph, whose regions know values alone: later readers get the writer's result."""

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from regrow.compaction.tracing import UnfaithfulError

INPLACE_POSITION: dict[Any, int] = {F.relu: 1, F.dropout: 3}
"""Function -> where its flag stands among the positional arguments."""
OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
VIEWS = {
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
    *("expand_as", "transpose", "permute", "swapaxes", "swapdims", "movedim", "t", "getattr", "detach", "alias"),
    *("getitem", "narrow", "select", "chunk", "split", "unbind", "tensor_split", "diagonal", "unfold", "as_strided"),
    *("contiguous", "to", "type", "float", "double", "bfloat16", "identity", "dropout", "dropout2d", "channelshuffle"),
}
"""What may give its input's own memory: names of functions and methods, and of modules in lower case."""


def redirect_readers(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """What reads a tensor after it was written to reads the writer's result.

    Raises:
        UnfaithfulError: a view of it, made before, is read after.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    aliases: dict[fx.Node, set[fx.Node]] = {}  # of each node: all that may share its memory
    for node in graph.nodes:
        source = next(iter(node.all_input_nodes), None)
        if source is None:
            continue
        writes = writes_in_place(node, modules)
        if writes:
            earlier = aliases.get(source, {source}) - {source}
            if any(order[user] > order[node] for alias in earlier for user in alias.users):
                raise UnfaithfulError("its forward writes to a tensor that it also reads through a view")
            later = {user for user in source.users if order[user] > order[node]}
            source.replace_all_uses_with(node, delete_user_cb=later.__contains__)
        if writes or is_view(node, modules):
            family = aliases.setdefault(source, {source})
            family.add(node)
            aliases[node] = family


def writes_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node changes its first input."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return _ends_in_place(str(node.target))
    if node.op == "call_function":
        last = INPLACE_POSITION.get(node.target)
        given = node.args[last] if last is not None and len(node.args) > last else node.kwargs.get("inplace", False)
        return bool(given) or node.target in OPERATORS or _ends_in_place(getattr(node.target, "__name__", ""))
    return False


def is_view(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may give its first input's own memory."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__.lower() in VIEWS
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.rstrip("_") in VIEWS


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")
