"""Dead channels taken out of a net: the same outputs from smaller layers."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from regrow.channel_removal.channel_graph import ChannelGraph, Use
from regrow.channel_removal.channel_operations import CONVOLUTIONS, is_zero_padded
from regrow.layers import unwrap

UNIFORM = 1e-9
"""Relative spread, in double precision, under which an image counts as one value."""


OTHER_SIZE = "this net was made smaller for inputs of one size: make it again with an example_input of the new size"


class Offset(nn.Module):
    """A layer and a fixed image: what removed channels with a constant value gave it, where zero padding shows.

    It has the attributes of the layer, which a net's forward may read.
    """

    def __init__(self, layer: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.offset: Tensor
        self.register_buffer("offset", offset)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":  # a copy that is being made
                raise
            return getattr(self.layer, name)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) + self.offset
        return found


class OneSize:
    """A forward pre-hook of a net that constants were computed into which depend on the size of its inputs."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.sizes = [tuple(value.shape[1:]) for value in _inputs(arguments)]

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found = _inputs((arguments, keywords))
        torch._assert(len(found) == len(self.sizes), OTHER_SIZE)
        for value, size in zip(found, self.sizes, strict=True):
            torch._assert(value.shape[1:] == size, OTHER_SIZE)


def _inputs(arguments: Any) -> list[Any]:
    return [value for value in tree_leaves(arguments) if isinstance(value, (Tensor, fx.Proxy))]


def remove_dead_channels(model: nn.Module, masks: Mapping[str, Tensor], example_input: Any) -> nn.Module:
    """A physically smaller copy with the same outputs in eval mode: channels that no longer carry anything are cut out.

    A channel is removed where no weight reads it, or where every reader sees the same values whatever the input: all
    weights that make it are dead. Batch norm, activations, pools, depthwise convolutions, sums, concatenation and
    flatten are followed; a channel of a sum (residual nets) goes only if it may go in all its terms. The constant that
    a removed channel still had, from a bias or batch norm's shift, moves into the bias of the layer that read it. Where
    zero padding (of convolutions, mean pools, ``pad``) makes it differ at the border it moves into an image that is
    added there. That image, or what a global pool makes of it, is another for another size, so the net then takes
    inputs of the example's size only: a forward pre-hook raises AssertionError for any other.

    Args:
        model: a net of Conv1d/2d/3d, Linear, BatchNorm and the usual activations and pools, that torch.fx can trace.
        masks: parameter name → bool tensor, ``sparsifier.masks``; weights without one are alive.
        example_input: a tensor or a tuple of positional arguments, of the size that the net will see.

    Returns:
        A module of the same class without masks; ``model`` stays as it is. Forward hooks of yours are copied with it,
        and run while it is made. A ``forward`` with a fixed number of channels in it will not do.

    Raises:
        ValueError: the net cannot be copied or traced, the example has no batch dimension, dead channels run into an
            operation whose effect on channels is not known, a mask does not fit, dead weights are not 0, or the outputs
            would differ.

    Sundar & Dwaraknath 2021, supplementary, section 4 (where the time was derived, not measured).

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    >>> mask = torch.zeros(8, 3, 3, 3, dtype=torch.bool)
    >>> mask[:2] = True
    >>> _ = model[0].weight.data.mul_(mask)
    >>> remove_dead_channels(model, {"0.weight": mask}, torch.zeros(1, 3, 8, 8))[3]
    Linear(in_features=72, out_features=5, bias=True)
    """
    model = unwrap(model)
    _check(model, masks)
    arguments = example_input if type(example_input) is tuple else (example_input,)
    small = _copied(model)
    modes = [(module, module.training) for module in small.modules()]
    small.eval()
    with torch.no_grad():
        graph = _traced(small, masks)
        trials = [arguments, tree_map_only(Tensor, _another, arguments)]
        expected = [graph.run(*tree_map_only(Tensor, torch.clone, arguments)), small(*trials[1])]
        removed = graph.removable()
        sized = [_cut(small, graph, use, removed) for use in graph.uses]
        if any(sized):
            small.register_forward_pre_hook(OneSize(arguments), with_kwargs=True)
        for trial, outputs in zip(trials, expected, strict=True):
            _compare(outputs, small, trial)
    for module, training in modes:
        module.training = training
    return small


def _check(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"masks['{name}'] is {mask.dtype} of shape {tuple(mask.shape)}; the model has no such weight: pass "
                "sparsifier.masks of this model (detach a sparsifier with compact storage first)"
            )
        if bool((parameters[name].detach() * ~mask).any()):
            raise ValueError(f"dead weights of '{name}' are not 0: call sparsifier.apply_masks(model) first")


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # of whatever the model holds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the {type(model).__name__} cannot be copied ({reason}): it may not hold computed tensors; for "
            "torch.nn.utils.weight_norm call remove_weight_norm first, or take torch.nn.utils.parametrizations"
        ) from error


def _traced(model: nn.Module, masks: Mapping[str, Tensor]) -> ChannelGraph:
    try:
        return ChannelGraph(fx.symbolic_trace(model), masks)
    except Exception as error:  # the user's forward runs on stand-ins, and may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the forward of {type(model).__name__} cannot be followed by torch.fx ({reason}): its branches must not "
            "depend on the values of tensors"
        ) from error


def _cut(model: nn.Module, graph: ChannelGraph, use: Use, removed: set[int]) -> bool:
    """Takes the removed channels out of one module, and puts what they gave into its bias or beside it.

    Returns:
        Whether that holds for inputs of the example's size only.
    """
    module = model.get_submodule(use.name)
    outputs = torch.tensor([i for i, atom in enumerate(use.outputs) if graph.atoms.root(atom) not in removed])
    if isinstance(module, _BatchNorm):
        module.num_features = len(outputs)
        for name in ("weight", "bias"):
            _keep(module, name, outputs)
        for name in ("running_mean", "running_var"):
            if getattr(module, name) is not None:
                setattr(module, name, getattr(module, name)[outputs.to(getattr(module, name).device)])
        return False
    assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
    _keep(module, "weight", outputs)
    _keep(module, "bias", outputs)
    gone = [] if use.inputs is None else [graph.atoms.root(atom) in removed for atom in use.inputs.atoms]
    left = torch.tensor([i for i, away in enumerate(gone) if not away])
    if isinstance(module, nn.Linear):
        module.out_features = len(outputs)
    else:
        module.out_channels = len(outputs)
    if not any(gone):
        return False
    if not isinstance(module, nn.Linear) and module.groups > 1:
        module.in_channels = module.groups = len(left)
        return False
    away = torch.tensor(gone).nonzero().flatten()
    given, sized = _given(module, use, away), _is_sized(module, use, away)
    _keep(module, "weight", left, dim=1)
    if isinstance(module, nn.Linear):
        module.in_features = len(left)
    else:
        module.in_channels = len(left)
    return _add(model, use.name, module, given) or sized


def _keep(module: nn.Module, name: str, positions: Tensor, dim: int = 0) -> None:
    old = getattr(module, name)
    if old is not None and old.shape[dim] != len(positions):
        kept = old.detach().index_select(dim, positions.to(old.device))
        setattr(module, name, nn.Parameter(kept, requires_grad=old.requires_grad))


def _given(module: nn.Module, use: Use, gone: Tensor) -> Tensor:
    """What removed input channels add to the outputs, for one sample, in double precision."""
    assert use.example is not None
    gone = gone.to(use.example.device)
    if isinstance(module, nn.Linear):
        return nn.functional.linear(use.example[..., gone].double(), module.weight[:, gone].double())
    assert isinstance(module, CONVOLUTIONS)
    # The convolution's own padding mode, stride and dilation, with weights of our choice.
    given: Tensor = module._conv_forward(use.example[:, gone].double(), module.weight[:, gone].double(), None)
    return given.movedim(1, -1)


def _is_sized(module: nn.Module, use: Use, gone: Tensor) -> bool:
    """Whether what removed input channels give may be something else for inputs of another size.

    With t_k = Σ_c w_ck v_c for the taps k of a zero-padded convolution, an output is the sum of those t_k that do not
    stand over the edge. It is the same everywhere, for every size and stride, if it is so at stride 1 for an input that
    is too large for taps to stand over two opposite edges.
    """
    assert use.inputs is not None
    assert use.example is not None
    assert isinstance(module, (*CONVOLUTIONS, nn.Linear))
    weight = module.weight[:, gone.to(module.weight.device)].double()
    if bool((weight.transpose(0, 1).flatten(1).any(dim=1).cpu() & use.inputs.sized[gone]).any()):
        return True
    if not is_zero_padded(module):
        return False
    assert isinstance(module, CONVOLUTIONS)
    values = use.example[:, gone.to(use.example.device)].flatten(2)[..., 0].double()
    taps = (weight * values.view(1, -1, *[1] * (weight.dim() - 2))).sum(dim=1, keepdim=True)
    size = [2 * step * (kernel - 1) + 1 for step, kernel in zip(module.dilation, module.kernel_size, strict=True)]
    image = nn.functional.pad(taps.new_ones(1, 1, *size), module._reversed_padding_repeated_twice)
    convolve = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(size) - 1]
    return not _is_uniform(convolve(image, taps, dilation=module.dilation).movedim(1, -1))


def _is_uniform(given: Tensor) -> bool:
    """Whether channels-last values are the same everywhere."""
    flat = given.flatten(0, -2)
    return float((flat.amax(dim=0) - flat.amin(dim=0)).max()) <= UNIFORM * float(flat.abs().max())


def _add(model: nn.Module, name: str, module: Any, given: Tensor) -> bool:
    """Adds channels-last values to the bias if they are the same everywhere, else as an image; whether it was one."""
    flat = given.flatten(0, -2)
    if not bool(given.any()):
        return False
    if _is_uniform(given):
        bias = flat[0].to(module.weight.dtype) if module.bias is None else (module.bias + flat[0]).to(module.bias.dtype)
        learns = (module.weight if module.bias is None else module.bias).requires_grad
        module.bias = nn.Parameter(bias, requires_grad=learns)
        return False
    offset = given if isinstance(module, nn.Linear) else given.movedim(-1, 1)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, Offset(module, offset.to(module.weight.dtype)))
    return True


def _another(value: Tensor) -> Tensor:
    """Other numbers of the same kind: what a channel keeps over the example alone is no constant."""
    if not value.is_floating_point():
        return value.flip(tuple(range(value.dim())))
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value)


def _compare(expected: Any, small: nn.Module, arguments: tuple[Any, ...]) -> None:
    try:
        found = small(*tree_map_only(Tensor, torch.clone, arguments))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the net does not run with fewer channels ({str(error).splitlines()[0]}): its forward has a fixed number "
            "of channels in it; use nn.Flatten, x.flatten(1) or x.shape instead"
        ) from error
    for before, after in zip(tree_leaves(expected), tree_leaves(found), strict=True):
        if isinstance(before, Tensor) and before.is_floating_point():
            difference, tolerance = _difference(before, after), _tolerance(before)
            if not difference <= tolerance:
                raise ValueError(
                    f"the smaller net's outputs differ by {difference:.3g} (allowed {tolerance:.3g}): an operation of "
                    "the net mixes channels in a way that was not seen; please report it"
                )


def _difference(before: Tensor, after: Tensor) -> float:
    """The largest one of finite entries; infinite where others are not the same."""
    finite = before.isfinite()
    if before.shape != after.shape or not torch.allclose(before[~finite], after[~finite], equal_nan=True):
        return float("inf")
    return float((before[finite] - after[finite]).abs().max()) if bool(finite.any()) else 0.0


def _tolerance(before: Tensor) -> float:
    """Of what is rounded along the way, relative to the largest finite entry."""
    finite, eps = before[before.isfinite()], torch.finfo(before.dtype).eps
    # A thousand roundings in a half format would be more than the numbers themselves.
    return min(1000 * eps, 10 * max(eps, 1e-4)) * max(float(finite.abs().max()) if len(finite) else 0.0, 1e-30)
