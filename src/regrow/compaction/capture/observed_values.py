"""Which values of a traced graph someone may look at as tensors: hand out, hook, or ask for their gradient.

What a region computes inside it has no tensor. A value that is a result of the forward has one, and whatever the
forward computes from it must depend on that very tensor: else ``retain_grad``, ``torch.autograd.grad`` and hooks on it
would see a part of its gradient.
"""

import builtins
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from torch import fx, nn

from regrow.compaction.capture.graph_operations import has_hooks
from regrow.compaction.capture.in_place_writes import is_view

METHODS = {"backward", "register_hook", "register_post_accumulate_grad_hook", "requires_grad_", "retain_grad"}
"""Of a tensor, which ask something of it and not of its content."""
PURE = {"torch", "_operator", "operator", "math", builtins.__name__}
"""Packages whose functions look at content alone."""


def observed(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> set[fx.Node]:
    """The nodes whose values are looked at as tensors, themselves or through what may hand on the same one."""
    found = set[fx.Node]()
    for node in reversed(graph.nodes):
        if _observes(node, modules):
            found.update(node.all_input_nodes)
        if node in found and is_view(node, modules):
            found.update(node.all_input_nodes[:1])
    return found


def _observes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may do more with a tensor than compute from its content."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return has_hooks(module) or "forward" in module.__dict__
    if node.op == "call_method":
        return node.target in METHODS
    if node.op == "call_function":
        home = getattr(node.target, "__module__", None) or "torch"  # torch's own in C++ have none
        return home.partition(".")[0] not in PURE or home.startswith("torch.autograd")
    return node.op == "output"


def levels(nodes: Iterable[fx.Node], seen: AbstractSet[fx.Node]) -> list[list[fx.Node]]:
    """Nodes in their order, in groups such that none reads an observed value of its own group.

    Args:
        nodes: in the order of the graph.
        seen: the observed ones.
    """
    level: dict[fx.Node, int] = {}
    groups: list[list[fx.Node]] = []
    for node in nodes:
        before = [level[source] + (source in seen) for source in node.all_input_nodes if source in level]
        level[node] = max(before, default=0)
        while len(groups) <= level[node]:
            groups.append([])
        groups[level[node]].append(node)
    return groups
