"""Which layers' weights a model's own code reads, past the layers: such a weight must stay dense.

Seen in the source of its classes, where a forward says ``self.layer.weight``, and by whatever name while the forward,
or each of its parts, runs on stand-ins. What a branch reads that neither shows is given it dense when it runs
(:mod:`regrow.compaction.capture.forward_reads`).
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import nn

from regrow.compaction.capture.forward_reads import HARMLESS
from regrow.compaction.capture.tracing import Tracer, parameters_read


def weights_read(model: nn.Module) -> dict[nn.Module, str]:
    """Modules inside whose weight another module reads, and which."""
    found: dict[nn.Module, str] = {}
    for owner in model.modules():
        for path in _paths(type(owner)):  # type: ignore[arg-type]  # mypy takes a class for one of its instances
            try:
                child = owner.get_submodule(path)
            except AttributeError:  # of a branch that this one has not
                continue
            found.setdefault(child, type(owner).__name__)
    for owner, parameters in _seen(model):
        for child in owner.modules():
            if id(child._parameters.get("weight")) in parameters:
                found.setdefault(child, type(owner).__name__)
    return found


def _seen(model: nn.Module) -> Iterator[tuple[nn.Module, set[int]]]:
    """The model, or the largest parts of it that can be traced, and the parameters that each reads itself."""
    tracer, waiting = Tracer(), [model]
    while waiting:
        module = waiting.pop()
        if tracer.is_leaf_module(module, "") or "forward" in module.__dict__:
            continue
        parameters, is_whole = parameters_read(module)
        yield module, parameters
        if not is_whole:
            waiting += module.children()


@cache
def _paths(kind: type[nn.Module]) -> frozenset[str]:
    """Of the children whose weight a class reads in its forward, or in what that calls of its own."""
    found, seen, waiting = set[str](), set[str](), ["forward"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for tree, own in _functions(kind, name):
            harmless = {id(inner) for node in ast.walk(tree) for inner in _harmless(node)}
            for node in ast.walk(tree):
                first, *others = _path(node, own)
                if not others:
                    waiting.append(first)
                elif others[-1] == "weight" and id(node) not in harmless:
                    found.add(".".join([first, *others[:-1]]))
    return frozenset(found)


def _functions(kind: type, name: str) -> Iterator[tuple[ast.AST, str]]:
    """The definitions of a method that a call runs, each with the name of its first argument."""
    for base in kind.__mro__:
        method: Any = base.__dict__.get(name)
        function = inspect.unwrap(getattr(method, "fget", getattr(method, "__func__", method)))
        if not inspect.isfunction(function):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):  # made without a file, or not a whole statement
            return
        arguments = list(inspect.signature(function).parameters)
        if arguments:
            yield tree, arguments[0]
        if not any(isinstance(node, ast.Name) and node.id == "super" for node in ast.walk(tree)):
            return


def _path(node: ast.AST, own: str) -> list[str]:
    """The names in ``own.a.b[0].c``; an empty one where a node is no such thing."""
    names: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            names.append(str(node.slice.value))
            node = node.value
        else:
            is_own = isinstance(node, ast.Name) and node.id == own
            return names[::-1] if is_own and names else [""]


def _harmless(node: ast.AST) -> list[ast.AST]:
    """Parts of which a node reads nothing that compact storage changes."""
    if isinstance(node, ast.Attribute) and node.attr in HARMLESS:
        return [node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        return list(node.args)
    return []
