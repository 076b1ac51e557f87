"""``regrow.attach``: everything is checked here, before the first weight is written."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from regrow.algorithm import Algorithm
from regrow.arguments import whole_number
from regrow.compaction.policy import CompactStorage, check_compact
from regrow.layers import Layer, find_layers, select_layers, unwrap
from regrow.parts.scores import Evidence, random
from regrow.storage import optimizers
from regrow.storage.attachments import attachments, forgets_new
from regrow.storage.distributed import Ranks, evidence_for, whole
from regrow.storage.masked_layer import DenseStorage, MaskedLayer
from regrow.storage.optimizer_holders import Holders
from regrow.storage.optimizer_state import Held
from regrow.storage.stored_layer import Storage
from regrow.tied_weights import identity, overlapping, places_of_parameters, touch
from regrow.topology import initial_masks
from regrow.training.coverage import dense_weights
from regrow.training.layer_group import Group
from regrow.training.loading import SPARSE, is_sparse
from regrow.training.sparsifier import Sparsifier
from regrow.training.undo import Undo, all_or_nothing


def attach(
    model: nn.Module,
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer],
    algorithm: Algorithm | Mapping[str, Algorithm],
    *,
    storage: Literal["dense", "compact"] = "dense",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    strict: bool = False,
) -> Sparsifier:
    """Makes the training of a model sparse; the loop around it stays as it is.

    Dead weights are zeroed at once and stay exactly 0, as does their optimizer state. Hooks on the optimizer and on
    the gradients of the weights do the work; model, optimizer, parameter names and ``state_dict`` keys stay the same.

    A model that is sparse already (a checkpoint was loaded before) keeps its weights where the recipe draws random
    masks: their own come by ``load_state_dict`` or ``take_masks_from_weights`` of the sparsifier, before the next step.

    Args:
        model: any module with parameters on a real device.
        optimizer: any torch optimizer that steps on ``p.grad`` (LBFGS and SparseAdam are refused); or what makes one of
            ``model.parameters()``, which is then ``sparsifier.optimizer``.
        algorithm: a record from a recipe such as :func:`regrow.rigl`; or a dict glob → record, where each layer belongs
            to the first glob that fits it, each group meets its own sparsity, and other layers stay dense.
        include: globs on parameter or module names; None takes every known layer (see :func:`regrow.find_layers`).
        exclude: globs of layers to leave dense.
        storage: "dense": full-size weights, dead entries 0, on any device. "compact": of a layer that is at most half
            alive only the alive weights exist, their gradients and optimizer state too, and sparse kernels run it; on
            the CPU. See docs/compact.md.
        seed: of the initial masks and of random growth; equal on all ranks.
        strict: check at every step (when gradients come, before the step and after it) that the masks hold the number
            of alive weights that they should, that dead weights and their state are exactly 0, that the weights are
            still those of the model and of the optimizer, after updates also that all ranks have the same masks; and
            name the first that breaks it. Slower.

    Returns:
        The sparsifier: its masks, its table (``print``), its state for checkpoints.

    Raises:
        ValueError: a pattern matches nothing, the budget cannot be met, the optimizer is unfit or does not hold the
            weights or has a sparsifier already, two parameters share memory in a way that no mask fits, the model has
            no sparsifiable layer, is on the meta device or is attached to already; compact storage cannot do what the
            recipe or optimizer needs; the ranks of a model in DistributedDataParallel or fully_shard were given
            different seeds or masks. The model is untouched then, and after any other exception.

    >>> import regrow
    >>> model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> regrow.attach(model, optimizer, regrow.rigl(sparsity=0.9, total_steps=1000)).num_alive
    {'0.weight': 1199, '2.weight': 1021}
    """
    if storage not in ("dense", "compact"):
        raise ValueError(f"storage is {storage!r}; expected 'dense' or 'compact'")
    seed = whole_number(seed, "seed", "a seed, the same on all ranks")
    given, model = model, unwrap(model)
    if not isinstance(optimizer, Optimizer) and callable(optimizer):
        optimizer = optimizer(given.parameters())
    optimizers.check(optimizer)
    layers = find_layers(model, include, exclude)
    holders = _holders(model, optimizer, layers)
    _check_parameters(model, holders, layers)
    found = holders.obstacle(storage == "compact")
    if found:
        raise ValueError(found)
    ranks = Ranks.of(given)
    if ranks is not None:
        ranks.check_seed(seed)
    assigned, masks, loaded = assign(layers, algorithm), dict[str, torch.Tensor](), False
    if storage == "compact":
        check_compact(given, holders, [record for _, record in assigned])
    for chosen, record in assigned:
        evidence = {name: _first_evidence(model, layer, seed) for name, layer in chosen.items()}
        masks |= initial_masks(record, evidence)
        if record.initial is random:
            loaded |= any(_is_sparse_already(holders, known, masks[name], model) for name, known in evidence.items())
        elif record.initial is None:
            loaded |= any(is_sparse(known.weight) for known in evidence.values())
    if ranks is not None:
        ranks.check_masks(masks)
    dense = dense_weights(model, masks, include, exclude)
    undo = Undo(model, [model.get_parameter(name) for name in layers], holders)
    with all_or_nothing(undo, forgets_new()):
        groups = [
            Group(
                record,
                {
                    name: MaskedLayer(layer, model.get_parameter(name), masks[name], holders, record.needs)
                    for name, layer in chosen.items()
                },
                next_update=record.when.following(0),
            )
            for chosen, record in assigned
        ]
        kept = _storage(storage, model, holders)
        sparsifier = Sparsifier(model, holders, groups, kept, seed, strict, ranks, dense, loaded)
        if not loaded:
            undo.keep()
            sparsifier.apply_masks(model)
        return sparsifier


def _storage(name: str, model: nn.Module, holders: Holders) -> Storage:
    if name == "dense":
        return DenseStorage()
    return CompactStorage(model, holders)


def _holders(model: nn.Module, optimizer: Optimizer, layers: Mapping[str, Layer]) -> Holders:
    named = [(name, model.get_parameter(name)) for name in layers]
    return Holders(optimizer, [Held(name, parameter, tuple(parameter.shape)) for name, parameter in named])


def assign(
    layers: Mapping[str, Layer], algorithm: Algorithm | Mapping[str, Algorithm]
) -> list[tuple[dict[str, Layer], Algorithm]]:
    """Layers and record of each group; a layer belongs to the first glob that fits it."""
    if isinstance(algorithm, Algorithm):
        return [(dict(layers), algorithm)]
    if not isinstance(algorithm, Mapping) or not algorithm:
        raise ValueError(
            f"algorithm is {algorithm!r}; expected a record from a recipe, such as regrow.rigl(sparsity=0.9, "
            "total_steps=30_000), or a dict of glob → record"
        )
    groups, taken = [], set[str]()
    for pattern, record in algorithm.items():
        if not isinstance(record, Algorithm):
            raise ValueError(f"the algorithm of '{pattern}' is {record!r}; expected a record from a recipe")
        fits = {name: layer for name, layer in select_layers(layers, pattern).items() if name not in taken}
        if not fits:
            raise ValueError(f"every layer that '{pattern}' matches belongs to an earlier pattern; put it before those")
        taken |= fits.keys()
        groups.append((fits, record))
    return groups


def _first_evidence(model: nn.Module, layer: Layer, seed: int) -> Evidence:
    weight = model.get_parameter(layer.name).detach()
    everything = torch.ones((), dtype=torch.bool, device=weight.device).expand(weight.shape)  # takes no memory
    return evidence_for(weight)(layer, alive=everything, weight=weight, gradient=None, momentum=None, seed=seed, step=0)


def _check_parameters(model: nn.Module, holders: Holders, layers: Mapping[str, Layer]) -> None:
    optimizer = holders.given
    held = {id(parameter) for parameter in optimizers.parameters(optimizer)}
    for name in layers:
        parameter = model.get_parameter(name)
        if parameter.is_meta:
            raise ValueError(
                f"'{name}' is on the meta device and has no values yet: attach after model.to_empty(device=…) and "
                "initialisation (regrow.plan gives the budgets and FLOPs of a meta model as it is)"
            )
        expanded = any(size > 1 and not parameter.stride(at) for at, size in enumerate(parameter.shape))
        if expanded or parameter.is_inference():
            kind = "is expanded, several of its entries are one" if expanded else "was made in inference mode"
            raise ValueError(f"'{name}' {kind}: it cannot be written to; make it anew, nn.Parameter(weight.clone())")
        if id(parameter) not in held:
            raise ValueError(
                f"the optimizer does not hold '{name}' ({type(optimizer).__name__} over {len(held)} parameters): "
                "build it from the parameters of this very model, after moving it to its device, or leave the layer "
                f"out with exclude=['{name}']"
            )
    weights = {name: model.get_parameter(name) for name in layers}
    _check_one_parameter_each(weights, model, optimizer)
    try:
        holders.stepper.register_step_pre_hook(lambda *_: None).remove()
    except AttributeError:
        raise ValueError(
            f"{type(holders.stepper).__name__} never calls super().__init__(), so hooks on its step do not run, and "
            "none of its attributes is the one optimizer that steps all the weights: attach to that optimizer"
        ) from None
    for other in attachments():
        if touch(weights.values(), other.parameters()):
            raise ValueError("a sparsifier is attached to these weights already: call its detach() first")
        if other.stepper is holders.stepper:
            raise ValueError(
                "the optimizer has a sparsifier already, and an update takes the place of a step of all its weights: "
                "call its detach() first, or attach once with a dict of glob → algorithm"
            )
    for name, layer in layers.items():
        if tuple(model.get_parameter(name).shape) != layer.shape:
            raise ValueError(f"'{name}' is compact already: make the model dense with regrow.to_dense(model) first")


def _check_one_parameter_each(weights: Mapping[str, nn.Parameter], model: nn.Module, optimizer: Optimizer) -> None:
    """Refuses what would be stepped as two parameters, each by a part of the gradient."""
    names = {id(parameter): name for name, parameter in reversed(places_of_parameters(model).items())}
    known = {id(parameter): name for name, parameter in weights.items()}
    stepped = {
        known.get(id(parameter), names.get(id(parameter), f"parameter {number} of the optimizer")): parameter
        for number, parameter in enumerate(optimizers.parameters(optimizer))
        if parameter.requires_grad
    }
    by_identity = {identity(parameter): name for name, parameter in weights.items()}
    twice = {name: by_identity.get(identity(parameter), name) for name, parameter in stepped.items()}
    pairs = [(first, name) for name, first in twice.items() if first != name]
    pairs += [pair for pair in overlapping(stepped) if any(name in weights for name in pair)]
    for one, other in pairs:
        raise ValueError(
            f"the optimizer steps '{one}' and '{other}', two parameters over the same memory, each with a part of the "
            "gradient and a state of its own: tie the modules by one parameter (second.weight = first.weight) before "
            "the optimizer is made, or give it only one of the two"
        )


def _is_sparse_already(holders: Holders, known: Evidence, mask: torch.Tensor, model: nn.Module) -> bool:
    """Whether a random mask would erase what is left of a sparse net: nearly always a checkpoint was loaded before.

    Of the weight, or of the optimizer's state, which may have been loaded first; gradients of a dense net can be 0.
    """
    size, dead = mask.numel(), int((~mask).count_nonzero())
    if _would_lose(known.weight, mask, least=min(SPARSE * size, dead)):
        return True
    state = holders.elementwise_state(model.get_parameter(known.layer.name))
    return any(_would_lose(whole(value), mask, max(size / 2, dead), start) for value, start in state)


def _would_lose(tensor: torch.Tensor, mask: torch.Tensor, least: float, start: float = 0.0) -> bool:
    """Whether so many entries or more are at their start value, and the mask would put others back to it as well."""
    idle = tensor == start
    number = int(idle.count_nonzero())
    return max(1, least) <= number < idle.numel() and bool((~idle & ~mask).any())
