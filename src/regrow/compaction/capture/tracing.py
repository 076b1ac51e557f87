"""Traces a forward with ``torch.fx``, and refuses one that does more than its graph would repeat.

A graph is dataflow. What a forward writes to its module, the gradient or autocast mode it enters, and the numbers that
it draws would happen once, while it is traced, and never again. So the trace looks for these, undoes them, and refuses.
"""

import operator
import random
import sys
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from regrow.compaction.capture.forward_reads import Watch

LOCK = threading.RLock()
"""Held while a forward is traced: ``torch.fx`` patches ``nn.Module`` for the whole process."""
_here = threading.local()


def is_tracing() -> bool:
    """Whether this thread runs a forward on stand-ins."""
    return bool(getattr(_here, "tracing", False))


def is_compact(module: nn.Module) -> bool:
    """Whether a module is a compact layer."""
    return "compact" in module.__dict__


class UnfaithfulError(Exception):
    """A forward does something that a graph of it would leave out."""


ASSIGNMENTS: tuple[Callable[[Any, Any], Any], ...] = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow),
    *(operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift),
)
"""``x += y`` and its like, where a tensor changes in place."""


class _Proxy(fx.Proxy):
    """Records that ``x += y`` writes to x, which torch's own takes for ``x = x + y``."""

    def __getattr__(self, k: str) -> "_Attribute":
        return _Attribute(self, k)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise UnfaithfulError(f"its forward sets .{name} of a tensor")
        super().__setattr__(name, value)


class _Attribute(_Proxy, fx.proxy.Attribute):
    """What ``x.name`` is, until it is called or read."""


KEPT = (tuple, list, dict, torch.Size, fx.immutable_collections.immutable_list, fx.immutable_collections.immutable_dict)
"""Containers that torch.fx hands on as they are; others it makes plain, but those with named fields."""


def _records(assignment: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda proxy, other: proxy.tracer.create_proxy("call_function", assignment, (proxy, other), {})


for _assignment in ASSIGNMENTS:
    setattr(_Proxy, f"__{_assignment.__name__}__", _records(_assignment))


class Tracer(fx.Tracer):
    """With compact layers and torch's own modules as leaves; refuses a change of mode, and lets other threads pass."""

    def __init__(self) -> None:
        super().__init__()
        self.modes = modes()

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_compact(module) or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Refuses to make a plain container of one of another class, but for OrderedDict, which it makes anew."""
        if type(a) is OrderedDict:
            pairs = [(key, self.create_arg(value)) for key, value in a.items()]
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        if isinstance(a, (tuple, list, dict)) and type(a) not in KEPT and not hasattr(a, "_fields"):
            raise UnfaithfulError(f"its forward hands on a {type(a).__name__}, of which a graph would make a plain one")
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return super().call_module(m, forward, args, kwargs) if is_tracing() else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return super().getattr(attr, attr_val, parameter_proxy_cache) if is_tracing() else attr_val

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if modes() != self.modes:
            raise UnfaithfulError("its forward enters another gradient or autocast mode")
        return super().create_node(*args, **kwargs)


def trace(module: nn.Module, constants: Mapping[str, Any] | None = None) -> fx.GraphModule:
    """The graph of a module's forward.

    Args:
        module: whose state and generators are afterwards as they were.
        constants: arguments of the forward by name that are fixed, as they are not given.

    Raises:
        Exception: whatever tracing raises where the forward is not a fixed graph; ``UnfaithfulError`` where the graph
            would leave something out.
    """
    watch = Watch(module)
    tracer, changed, error = _run(module, watch, constants)
    if error is not None:
        raise error
    if watch.computes:
        raise UnfaithfulError("its forward computes from its parameters, not as attributes of modules")
    if changed:
        raise UnfaithfulError(f"its forward {changed}")
    if any(id(child._parameters.get("weight")) in watch.read for child in module.modules() if is_compact(child)):
        raise UnfaithfulError("its forward reads the weight of a compact layer")
    return fx.GraphModule(module, tracer.graph, type(module).__name__)


def parameters_read(module: nn.Module) -> tuple[set[int], bool]:
    """Identities of the parameters that a forward reads itself, as far as it can be traced, and whether to its end."""
    watch = Watch(module)
    error = _run(module, watch, None)[-1]
    return watch.read, error is None


def _run(module: nn.Module, watch: Watch, constants: Mapping[str, Any] | None) -> tuple[Tracer, str, Exception | None]:
    """Runs a forward on stand-ins: what has traced it, what was not as before, and what was raised, if so."""
    tracer, failure = Tracer(), None
    with LOCK:
        before = _Before(module)
        _here.tracing = True
        try:
            with warnings.catch_warnings(), watch:
                warnings.filterwarnings("ignore", message="Was not able to add assertion")
                tracer.trace(module, dict(constants) if constants else None)
        except Exception as error:  # the user's forward may raise anything
            failure = error
        finally:
            _here.tracing = False
            changed = before.restore()
    if hasattr(tracer, "graph"):
        watch.add_graph(tracer.graph, module)
    return tracer, changed, failure


def modes() -> tuple[Any, ...]:
    """Whether there are gradients, whether torch is in inference mode, and what autocast casts to, if it does."""
    autocast = torch.is_autocast_enabled("cpu")
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast and torch.get_autocast_dtype("cpu")


class _Before:
    """What a forward may change besides its outputs, as it was: attributes, what is in them, buffers, generators."""

    def __init__(self, module: nn.Module) -> None:
        self.containers = [(container, _content(container)) for container in _containers(module)]
        tensors = [*module.buffers(), *module.parameters()]
        self.versions = [(tensor, _version(tensor)) for tensor in tensors]
        self.buffers = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in module.buffers()]
        self.generators = _generators()

    def restore(self) -> str:
        """Puts everything back; says what was not as before, in words."""
        changed = ""
        for now, before in self.containers:
            if not _same(now, before):
                changed = "writes to an attribute of a module"
                now.clear()
                (now.update if isinstance(now, (dict, set)) else now.extend)(before)
        if any(_version(tensor) != version for tensor, version in self.versions):
            changed = "writes to a buffer or parameter"
            with torch.no_grad():
                for buffer, version, content in self.buffers:
                    if _version(buffer) != version:
                        buffer.copy_(content)
        if not all(map(_equal, _generators(), self.generators)):
            changed = "draws random numbers"
            torch.set_rng_state(self.generators[0])
            random.setstate(self.generators[1])
            if "numpy" in sys.modules and len(self.generators) > 2:
                sys.modules["numpy"].random.set_state(self.generators[2])
        return changed


DEPTH = 4
MOST_CONTAINERS = 10_000
"""How far, and how many, containers in containers are looked at: a module may hold a whole trainer."""


def _containers(module: nn.Module) -> list[Any]:
    """Attributes of the modules inside, containers and plain objects in them, and so on: whatever can be written to."""
    waiting = deque((vars(owner), 0) for owner in module.modules())
    # Other threads that run a compact layer make its regions.
    closed = {id(vars(owner)) for owner in module.modules() if is_compact(owner)}
    found: dict[int, Any] = {}
    while waiting and len(found) < MOST_CONTAINERS:
        container, depth = waiting.popleft()
        if id(container) not in found:
            found[id(container)] = container
            if depth < DEPTH and id(container) not in closed:
                values = list(container.values() if isinstance(container, dict) else container)
                waiting.extend((inner, depth + 1) for inner in map(_inside, values) if inner is not None)
    return [container for container in found.values() if not isinstance(container, tuple)]


def _inside(value: Any) -> Any:
    """A container, or the attributes of a plain object; None of anything else."""
    if isinstance(value, (dict, list, set, tuple, deque)):
        return value
    home = type(value).__module__.partition(".")[0]
    plain = isinstance(value, SimpleNamespace) or home not in {"torch", "regrow", *sys.stdlib_module_names}
    return vars(value) if plain and hasattr(value, "__dict__") else None


def _content(container: Any) -> Any:
    kind = dict if isinstance(container, dict) else set if isinstance(container, set) else list
    return kind(container)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _same(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return all(key in now and now[key] is value for key, value in before.items())
    return now == before if isinstance(now, set) else all(a is b for a, b in zip(now, before, strict=True))


def _generators() -> list[Any]:
    states: list[Any] = [torch.get_rng_state(), random.getstate()]
    if "numpy" in sys.modules:
        states.append(sys.modules["numpy"].random.get_state())
    return states


def _equal(now: Any, before: Any) -> bool:
    if isinstance(now, Tensor):
        return torch.equal(now, before)
    if isinstance(now, tuple) and len(now) > 1 and hasattr(now[1], "tolist"):  # numpy's
        return bool((now[1] == before[1]).all()) and now[2:] == before[2:]
    return bool(now == before)
