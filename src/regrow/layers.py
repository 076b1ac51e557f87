"""Which parameters of a model are sparsified: found by module type, chosen by glob."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from regrow.normalized_weights import norm_dim
from regrow.tied_weights import identity, overlapping, places_of_parameters

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
FOREIGN = {"transformers.pytorch_utils.Conv1D"}
"""Linear layers of other packages, by full name so that none is imported; their ``weight`` may be (in, out)."""


@dataclass(frozen=True)
class Layer:
    """One sparsifiable weight: its parameter name in the model, its shape, and whether a convolution owns it.

    A transposed convolution has its input channels in the first dimension, every other its output channels. The stem is
    the first layer of the whole model, where that is a convolution. ``norm_dim`` is the dimension whose slices the
    module divides each by its norm (weight_norm, DoRA), so that none may be all dead; None where it does not.
    """

    name: str
    shape: tuple[int, ...]
    is_convolution: bool = False
    is_transposed: bool = False
    is_stem: bool = False
    norm_dim: int | None = None

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside ``torch.compile``, DataParallel or DistributedDataParallel; refuses what is none."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _is_foreign(module: nn.Module) -> bool:
    """Whether another package's linear layer, or a class derived from one."""
    return any(f"{kind.__module__}.{kind.__qualname__}" in FOREIGN for kind in type(module).__mro__)


def _weight_names(module: nn.Module) -> Iterator[str]:
    """Names of the weight matrices that ``module`` itself holds, by its type."""
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)) or _is_foreign(module):
        names: Iterable[str] = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    elif isinstance(module, RECURRENT):
        names = [name for name in module._parameters if name.startswith("weight_")]
    else:
        names = ()
    return (name for name in names if module._parameters.get(name) is not None)


def _known_layers(model: nn.Module) -> Iterator[tuple[Layer, nn.Parameter]]:
    """Every convolution, linear, attention and recurrent weight, in the order of registration, a tied one once."""
    seen = {identity(module.weight) for module in model.modules() if isinstance(module, EMBEDDINGS)}
    is_first = True
    for prefix, module in model.named_modules():
        for weight_name in _weight_names(module):
            parameter = module._parameters[weight_name]
            assert parameter is not None
            if identity(parameter) in seen:
                continue
            seen.add(identity(parameter))
            name = f"{prefix}.{weight_name}" if prefix else weight_name
            if isinstance(parameter, UninitializedParameter):
                raise ValueError(f"'{name}' has no shape yet (a lazy module): run one forward pass, then attach")
            compact = getattr(module, "compact", None)
            shape = parameter.shape if compact is None else compact.shape
            if 0 in shape:
                continue
            is_convolution, is_transposed = isinstance(module, CONVOLUTIONS), isinstance(module, TRANSPOSED)
            yield Layer(name, tuple(shape), is_convolution, is_transposed, is_first and is_convolution), parameter
            is_first = False


def known_layers(model: nn.Module) -> dict[str, Layer]:
    """The layers that are sparsified by default, by name."""
    return {layer.name: layer for layer, _ in _known_layers(model)}


def _other_matrices(model: nn.Module, known: Iterable[str]) -> Iterator[Layer]:
    """Parameters with two or more dimensions of modules that the library does not know by type."""
    seen = {identity(model.get_parameter(name)) for name in known} | {
        identity(parameter)
        for module in model.modules()
        if isinstance(module, (*EMBEDDINGS, nn.LayerNorm))
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and identity(parameter) not in seen:
            seen.add(identity(parameter))
            yield Layer(name, tuple(parameter.shape))


def matches(name: str, pattern: str) -> bool:
    """Whether a glob fits a parameter's name (``fc1.weight``) or its module's (``fc1``).

    >>> matches("blocks.0.fc1.weight", "blocks.*.fc1"), matches("fc1.weight", "fc2*")
    (True, False)
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def matches_any(name: str, patterns: str | Sequence[str]) -> bool:
    """Whether one of several globs fits."""
    return any(matches(name, pattern) for pattern in _patterns(patterns, "patterns"))


def select_layers(layers: Mapping[str, Layer], pattern: str) -> dict[str, Layer]:
    """The layers that one glob fits.

    Raises:
        ValueError: the pattern fits no layer.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"{pattern!r} is no pattern; expected a glob on the names of layers, such as 'encoder.*'")
    chosen = {name: layer for name, layer in layers.items() if matches(name, pattern)}
    if chosen:
        return chosen
    near = difflib.get_close_matches(pattern, [*layers, *(name.rpartition(".")[0] for name in layers)], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"pattern '{pattern}' matches none of the layers {', '.join(layers) or '(there are none)'}{hint}")


def _refuse_second_names(model: nn.Module, layers: Mapping[str, Layer], pattern: str) -> None:
    """Says of a pattern on the second name of a tied weight which is the first."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    first = {
        identity(weights[name]): name for name in reversed([*layers, *(name for name in weights if name not in layers)])
    }
    for name, parameter in weights.items():
        other = first[identity(parameter)]
        if other != name and isinstance(pattern, str) and matches(name, pattern):
            stays = "name that one" if other in layers else "an embedding, which stays dense"
            raise ValueError(f"'{name}', which pattern '{pattern}' matches, is the same weight as '{other}': {stays}")


def _refuse_overlaps(model: nn.Module, layers: Iterable[str]) -> None:
    """Refuses a layer whose memory another parameter has too, but not entry for entry: no mask fits both."""
    weights = places_of_parameters(model)
    chosen = {identity(model.get_parameter(name)) for name in layers}
    order = list(weights)
    for pair in overlapping(weights):
        named = [name for name in sorted(pair, key=order.index) if identity(weights[name]) in chosen]
        if named:
            one, other = sorted(pair, key=order.index)
            raise ValueError(
                f"'{one}' and '{other}' are two parameters that share memory, but not entry for entry (one is a "
                "transpose or a part of the other), so no mask fits both: keep one parameter and compute the other "
                "from it in forward, as F.linear(x, weight.t()), give each its own memory with clone(), or "
                f"leave them out with exclude={named}"
            )


def _patterns(given: str | Sequence[str], argument: str) -> list[str]:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, Iterable):
        raise ValueError(f"{argument} is {given!r}; expected a glob on the names of layers, or a list of them")
    return list(given)


def find_layers(
    model: nn.Module, include: str | Sequence[str] | None = None, exclude: str | Sequence[str] = ()
) -> dict[str, Layer]:
    """Sparsifiable weights of a model, name → :class:`Layer`, in the order of registration.

    By default the weights of Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear (and the transposed one of Hugging Face's
    GPT-2), MultiheadAttention, RNN/GRU/LSTM and their cells; never biases, normalisation weights, embeddings (nor an
    output layer tied to one); tied weights once, whether they are one parameter or two over the same memory.

    Args:
        model: any module.
        include: globs on parameter or module names; None takes every known layer. A glob that fits no known layer is
            tried on the model's other parameters with two or more dimensions (a weight in a module of your own);
            ``count_flops(model, example_input).layers`` lists every parameter that is multiplied with activations.
        exclude: globs of layers to leave dense.

    Raises:
        ValueError: a pattern matches nothing, no layer is left, or one shares memory with another parameter in some way
            other than entry for entry.
    """
    model = unwrap(model)
    layers = known_layers(model)
    if include is not None:
        chosen: dict[str, Layer] = {}
        others = {layer.name: layer for layer in _other_matrices(model, layers)}
        for pattern in _patterns(include, "include"):
            fits_known = any(matches(name, pattern) for name in layers)
            if not fits_known:
                _refuse_second_names(model, layers, pattern)
            chosen |= select_layers(layers if fits_known or not others else layers | others, pattern)
        order = {name: position for position, name in enumerate(layers | others)}
        layers = dict(sorted(chosen.items(), key=lambda item: order[item[0]]))
    for pattern in _patterns(exclude, "exclude"):
        for name in select_layers(known_layers(model) | layers, pattern):
            layers.pop(name, None)
    if not layers:
        named = ", ".join(layer.name for layer in _other_matrices(model, ()))
        raise ValueError(
            f"{type(model).__name__} has no sparsifiable layer left (convolutions, linear, attention and recurrent "
            f"weights are); name a parameter with two or more dimensions in include= ({named or 'it has none'})"
        )
    _refuse_overlaps(model, layers)
    return {name: replace(layer, norm_dim=_norm_dim(model, name)) for name, layer in layers.items()}


def _norm_dim(model: nn.Module, name: str) -> int | None:
    return norm_dim(model, name, transposed=_is_foreign(model.get_submodule(name.rpartition(".")[0])))
