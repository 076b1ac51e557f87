"""Copies of an attached compact model: plain dense models, whose weights know lists of alive entries for what they are.

A copy stays as it is while the pattern of the original moves on. An average over both (EMA, SWA, target nets) must
therefore be kept of the dense weight: what died fades, what was born grows. So a deepcopy is dense, and where its
weight meets a list of the original's alive entries, that list is made dense by the pattern of the moment.
"""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow.compaction.capture.forward_reads import ARITHMETIC, named
from regrow.compaction.compact_weight import CompactWeight, dense_weight, gather

ELEMENTWISE = {
    *(before + name for before in ("", "r", "i") for name in ARITHMETIC),
    *("div", "true_divide", "lerp", "copy", "addcmul", "addcdiv", "maximum", "minimum", "where", "dist"),
    *("eq", "ne", "equal", "allclose", "isclose", "mse_loss", "l1_loss", "smooth_l1_loss", "data"),
}
"""What pairs entries of tensors, by name without underscores."""
KEEPS = {"detach", "clone", "to", "cpu", "type", "float", "double", "half", "bfloat16", "contiguous", "neg", "alias"}
"""What gives another form of the same weight."""


class CopiedWeight(Tensor):
    """A dense weight in a copy.

    Attributes:
        original: a weak reference to the compact weight that it was copied from.
    """

    original: "weakref.ref[CompactWeight]"

    @classmethod
    def of(cls, dense: Tensor, original: "weakref.ref[CompactWeight]") -> "CopiedWeight":
        """The same tensor, of this class."""
        made = dense.as_subclass(cls)
        made.original = original
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name, writes = named(func)
        with torch._C.DisableTorchFunctionSubclass():
            if name in ELEMENTWISE:
                values = [*args, *kwargs.values()]
                values = _aligned(values, writes)
                args, kwargs = values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))
            result = func(*args, **kwargs)
            return _marked(result, args) if name in ELEMENTWISE | KEEPS else result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made: Tensor = self.detach().clone()
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(made, self.requires_grad) if is_parameter else made
        found: Tensor = memo[id(self)]
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            plain = self.detach()
            made = nn.Parameter(plain, self.requires_grad) if isinstance(self, nn.Parameter) else plain
            return made.__reduce_ex__(protocol)


def _aligned(values: list[Any], writes: bool) -> list[Any]:
    """The arguments with lists of alive entries made dense beside a copied weight; lists of tensors one by one."""
    lists = [value for value in values if isinstance(value, (list, tuple))]
    if not lists:
        return _met(values, writes)
    columns = [
        _met([value[row] if isinstance(value, (list, tuple)) else value for value in values], writes)
        for row in range(len(lists[0]))
    ]
    return [
        [column[number] for column in columns] if isinstance(value, (list, tuple)) else value
        for number, value in enumerate(values)
    ]


def _met(values: list[Any], writes: bool) -> list[Any]:
    original = _original(values)
    if original is None:
        return values
    if writes and _is_list(values[0], original):
        return [_alive(value, original) if isinstance(value, CopiedWeight) else value for value in values]
    return [_dense(value, original) if _is_list(value, original) else value for value in values]


def _original(values: Sequence[Any]) -> CompactWeight | None:
    """The weight that a copied one among the values comes from, if it still is."""
    found = next((value for value in values if isinstance(value, CopiedWeight)), None)
    return None if found is None else found.original()


def _is_list(value: Any, original: CompactWeight) -> bool:
    if not isinstance(value, Tensor) or isinstance(value, CopiedWeight):
        return False
    if value.dim() != 1 or len(value) != original.num_alive:
        return False
    own = value.untyped_storage().data_ptr() == original.values.untyped_storage().data_ptr()
    if len(value) == original.shape[-1] and not own:
        raise ValueError(
            f"{len(value)} numbers beside a copied weight of shape {original.shape} may be a row, or the alive entries "
            "of the compact model that it comes from: average over the state_dict() of both, which is dense"
        )
    return True


def _dense(entries: Tensor, original: CompactWeight) -> Tensor:
    if torch.is_grad_enabled() and entries.requires_grad:
        return dense_weight(entries, original)
    return original.dense(entries.detach())


def _alive(weight: Tensor, original: CompactWeight) -> Tensor:
    """The alive entries of a copied weight, for the original to take over."""
    outside = weight.detach() * ~original.mask
    if bool(outside.any()):
        raise ValueError(
            f"{int(outside.count_nonzero()):,} weights of a copy are not 0 where the attached compact model has none "
            "now: call sparsifier.apply_masks(copy) before its weights are written to the model, or attach with "
            "storage='dense'"
        )
    return gather(weight, original.indices)


def _marked(result: Any, values: Sequence[Any]) -> Any:
    """Results of a copied weight's shape as copied weights."""
    if isinstance(result, (list, tuple)):
        lists = [value for value in values if isinstance(value, (list, tuple))]
        rows = enumerate(result)
        return type(result)(_marked(each, [value[row] for value in lists]) for row, each in rows)
    source = next((value for value in values if isinstance(value, CopiedWeight)), None)
    if source is None or type(result) is not Tensor or result.shape != source.shape:
        return result
    return CopiedWeight.of(result, source.original)


def copied_weight(weight: CompactWeight) -> Tensor:
    """The parameter of a copy."""
    dense = CopiedWeight.of(weight.dense(weight.values.detach()), weakref.ref(weight))
    return nn.Parameter(dense, weight.values.requires_grad)


def make_plain(model: nn.Module) -> None:
    """Makes a copy's weights ordinary parameters, in place: the same objects, which follow nothing any more."""
    for parameter in model.parameters():
        if vars(parameter).pop("original", None) is not None:
            parameter.__class__ = nn.Parameter


def deepcopy_of(module: nn.Module, memo: dict[int, Any], left_out: set[str], kind: type[nn.Module]) -> nn.Module:
    """A deepcopy of a module in another class, without some of its attributes."""
    made = kind.__new__(kind)
    memo[id(module)] = made
    state = {name: value for name, value in module.__getstate__().items() if name not in left_out}
    made.__setstate__(copy.deepcopy(state, memo))
    return made
