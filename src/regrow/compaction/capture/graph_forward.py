"""What a module with compact layers runs in place of its forward: its graph, cut into regions."""

import inspect
from bisect import bisect
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from regrow.compaction.capture.forward_reads import aside, reading, watching
from regrow.compaction.capture.graph_operations import BACKWARD, BACKWARD_PRE, FORWARD, FORWARD_PRE
from regrow.compaction.capture.region import Region
from regrow.compaction.capture.region_cutting import cut, listened_to
from regrow.compaction.capture.tracing import LOCK, is_tracing, modes, trace
from regrow.compaction.compact_modules import CLASSES, MOST_PLANS, compact_layers
from regrow.compaction.refused_tools import is_recorded

_KINDS = {*CLASSES, *CLASSES.values()}
# Their dicts are torch's own, filled and emptied in place.
HOOKS_ON_ALL = (
    modules._global_forward_pre_hooks,
    modules._global_forward_hooks,
    modules._global_backward_pre_hooks,
    modules._global_backward_hooks,
)
_Plan = tuple[Callable[..., Any], list[Region]]


class GraphForward:
    """Stands in ``module.forward``; cuts the graph at the first call with inputs of a shape, in a mode.

    A deepcopy or a pickle of the module carries no cut graph: the copy makes its own.

    Attributes:
        regions: those of the latest call.
        failure: why the module could not be cut, if so.
        is_traceable: whether some call may be cut; else only its parts are.
    """

    def __init__(self, module: nn.Module, left_to_torch: AbstractSet[nn.Module] = frozenset()) -> None:
        self.module, self.left_to_torch, self.is_traceable = module, left_to_torch, True
        self.plans: dict[Any, _Plan] = {}
        self.regions: list[Region] = []
        self.failure: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plans": {}, "regions": []}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Hooks on all modules that there are (a module tracker's) shall see the model's own, never regions.
        if torch.compiler.is_compiling() or is_tracing() or is_recorded():
            return type(self.module).forward(self.module, *args, **kwargs)  # torch 2.6 does not compile self.original
        if not self.is_traceable or any(HOOKS_ON_ALL):
            return self._run_as_it_is(*args, **kwargs)
        key = (_state(self.module), modes(), _signature(args), _signature(kwargs.items()))
        plan = self.plans.get(key)
        run, self.regions = self._plan(key, args, kwargs) if plan is None else plan
        if not watching() or not self.regions:
            return run(*args, **kwargs)
        with aside():  # a graph that is cut has been seen to read no compact weight
            return run(*args, **kwargs)

    def _run_as_it_is(self, *args: Any, **kwargs: Any) -> Any:
        with reading(self.module):
            return self.original(*args, **kwargs)

    @property
    def original(self) -> Callable[..., Any]:
        """The module's own forward."""
        method: Callable[..., Any] = type(self.module).forward.__get__(self.module)
        return method

    # torch.export looks at the arguments of a forward.

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def __code__(self) -> CodeType:
        return type(self.module).forward.__code__

    def reset(self) -> None:
        """Forgets every cut: the layers have changed their storage."""
        self.plans, self.regions = {}, []

    def _plan(self, key: Any, args: Any, kwargs: Mapping[str, Any]) -> _Plan:
        with LOCK, aside():
            if key not in self.plans:  # else another thread has cut it meanwhile
                plan = self._cut(args, kwargs)
                while len(self.plans) >= MOST_PLANS:
                    del self.plans[next(iter(self.plans))]
                self.plans[key] = plan
            return self.plans[key]

    def _cut(self, args: Any, kwargs: Mapping[str, Any]) -> _Plan:
        if listened_to(self.module):
            return self._run_as_it_is, []
        try:
            graph, regions = cut(self.module, args, kwargs, self.left_to_torch)
        except Exception as error:  # the user's forward runs on stand-ins, and may raise anything; itself it works
            self.fail(error)
            return self._run_as_it_is, []
        return (graph.forward if regions else self._run_as_it_is), regions

    def fail(self, error: Exception) -> None:
        """Has the parts of the module cut instead."""
        self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
        _install_in_children(self.module, self.left_to_torch)


def install(module: nn.Module, left_to_torch: AbstractSet[nn.Module] = frozenset()) -> None:
    """Makes a module, or the largest parts of it that can be traced, run as cut graphs.

    Args:
        module: one with convolutions or linear layers inside, else nothing is done.
        left_to_torch: layers that regions leave out; a live view.
    """
    if type(module) in _KINDS or not any(type(child) in _KINDS for child in module.modules()):
        return
    if "forward" in module.__dict__:
        return
    forward = GraphForward(module, left_to_torch)
    try:
        trace(module)
    except Exception as error:  # the user's forward runs on stand-ins, and may raise anything: then its parts are tried
        forward.is_traceable = False
        forward.fail(error)
    module.__dict__["forward"] = forward


def remove(module: nn.Module) -> None:
    """Gives every module inside its own forward back."""
    for forward in _forwards(module):
        del forward.module.__dict__["forward"]


def installed(module: nn.Module) -> list[GraphForward]:
    """The graphs that are cut inside a module."""
    return [forward for forward in _forwards(module) if forward.is_traceable]


def _forwards(module: nn.Module) -> list[GraphForward]:
    found = (child.__dict__.get("forward") for child in module.modules())
    return [forward for forward in found if isinstance(forward, GraphForward)]


def _install_in_children(module: nn.Module, left_to_torch: AbstractSet[nn.Module]) -> None:
    for child in module.children():
        install(child, left_to_torch)


def _state(module: nn.Module) -> tuple[Any, ...]:
    """Everything a cut depends on besides the shapes: which modules there are, what they do, who listens."""
    # Runs at every call of the model, so past nn.Module's own attribute lookup: .3 µs a module.
    state: list[Any] = []
    waiting: list[nn.Module | None] = [module]
    while waiting:
        found = waiting.pop()
        if found is not None:
            own = found.__dict__
            hooks = own[FORWARD] or own[FORWARD_PRE] or own[BACKWARD] or own[BACKWARD_PRE]
            state += (id(found), own["training"], bool(hooks), own["_parameters"].get("bias") is None)
            state += (own.get("momentum"), own.get("eps"), own.get("track_running_stats"))  # of norms
            forward = own.get("forward")
            if forward is not None and type(forward) is not GraphForward:
                state.append(id(forward))
            waiting += own["_modules"].values()
    return tuple(state)


IMAGES = (1, 2, 12, 24)
"""Where the number of images makes a difference: none, one (which broadcasts), less than most of a line."""


def _signature(values: Any) -> tuple[Any, ...]:
    return tuple(
        (value.shape[1:], value.dtype, bisect(IMAGES, len(value)) if value.dim() else 0)
        if isinstance(value, Tensor)
        else _plain(value)
        for value in values
    )


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value), _signature(value)
    if isinstance(value, dict):
        return type(value), tuple(value), _signature(value.values())
    return type(value), value if isinstance(value, (int, float, str)) else None


def regions(model: nn.Module) -> list[Region]:
    """Those that the latest call of a model ran, or would have run."""
    cut_ones = [region for forward in installed(model) for region in forward.regions]
    alone = [region for layer in compact_layers(model).values() for region in layer.regions.values()]
    return [*cut_ones, *alone]
