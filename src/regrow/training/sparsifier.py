"""The hooks on model and optimizer, and the state of an attached model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.accounting.flops import Flops, count_flops
from regrow.algorithm import updated_masks
from regrow.layers import unwrap
from regrow.parts.scores import Need
from regrow.storage import optimizers
from regrow.storage.distributed import Ranks, whole
from regrow.storage.masked_layer import Storage, StoredLayer, on_gradient
from regrow.storage.optimizer_holders import Holders
from regrow.storage.optimizer_steps import ClosureCheck, StepUnderWay, unwatch, watch, watchers, with_closure
from regrow.tied_weights import places_of_parameters
from regrow.training import saved_state
from regrow.training.coverage import DenseWeight
from regrow.training.layer_group import Group, check_membership, check_ties, have_moved, places, second_places, ties
from regrow.training.layer_table import layer_table
from regrow.training.loading import masks_of_weights, refusal
from regrow.training.other_optimizers import OtherOptimizers

_attached: "WeakSet[Sparsifier]" = WeakSet()


def attached_sparsifiers() -> "list[Sparsifier]":
    """Those alive and not detached."""
    return list(_attached)


def forgets_new() -> Callable[[], None]:
    """What forgets the sparsifiers that are attached from now on, wherever their making has come to."""
    known, watching = set(_attached), set(watchers())

    def forget() -> None:
        _attached.intersection_update(known)
        for watcher in set(watchers()) - watching:
            unwatch(watcher)

    return forget


class Sparsifier:
    """Keeps an attached model sparse while it trains; made by :func:`regrow.attach`.

    Attributes:
        weight_steps: weight steps taken so far.
        num_updates: topology updates so far.
        strict: check every invariant at each step, see :func:`regrow.attach`.
    """

    def __init__(
        self,
        model: nn.Module,
        holders: Holders,
        groups: Sequence[Group],
        storage: Storage,
        seed: int,
        strict: bool,
        ranks: Ranks | None = None,
        dense: Mapping[str, DenseWeight] = MappingProxyType({}),
        loaded: bool = False,
    ) -> None:
        """``loaded``: the weights are a sparse model's already, and stay as they are until the first step."""
        self.model, self.optimizer, self.seed, self.strict = model, holders.given, seed, strict
        self._holders, self._storage, self._ranks, self._dense = holders, storage, ranks, dense
        self._without_gradient, self._has_looked_for_ranks = set[str](), False
        self.weight_steps = 0
        self.num_updates = 0
        self._groups = list(groups)
        self._flops: Flops | None = None
        self._takes_step = False
        self._step = StepUnderWay()
        self._others = OtherOptimizers(holders, storage, self._step, self)
        if loaded:
            for layer in self._layers.values():
                layer.was_loaded()
        self._place()
        self._places, self._ties = places(self._layers, model), ties(self._layers, model)
        self._refresh()
        self._handles = list(self._register())
        for optimizer in holders:
            self.listen_to_loads(optimizer)
        watch(self._others)
        _attached.add(self)

    def layers(self) -> dict[str, StoredLayer]:
        """The sparsified weights by name, as they are kept at the moment."""
        return self._layers

    @property
    def _layers(self) -> dict[str, StoredLayer]:
        return {name: layer for group in self._groups for name, layer in group.layers.items()}

    # What a user reads

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name → bool tensor of the weight's shape, True where alive; cut as the weight is. Read only."""
        return {name: layer.mask for name, layer in self._layers.items()}

    @property
    def num_alive(self) -> dict[str, int]:
        """Alive weights of each layer."""
        return {name: layer.alive.number for name, layer in self._layers.items()}

    @property
    def densities(self) -> dict[str, float]:
        """Share of alive weights of each layer."""
        return {name: layer.alive.density for name, layer in self._layers.items()}

    @property
    def mean_densities(self) -> dict[str, float]:
        """Density of each layer averaged over the weight steps so far, for E[f_s]; the present one before the first."""
        return {name: layer.alive.mean_density(self.weight_steps) for name, layer in self._layers.items()}

    @property
    def sparsity(self) -> float:
        """Share of zeros among the attached weights; the printed table says too what it is of all."""
        return 1 - sum(self.num_alive.values()) / sum(layer.layer.size for layer in self._layers.values())

    def flops(self, example_input: Any) -> Flops:
        """:func:`regrow.count_flops` with the present masks; from then on the printed table has a FLOP column."""
        self._flops = count_flops(self.model, example_input, self.masks)
        return self._flops

    def __str__(self) -> str:
        due = {name: group.next_update for group in self._groups for name in group.layers}
        names = {name: group.algorithm.name for group in self._groups for name in group.layers}
        layers = {name: layer.layer for name, layer in self._layers.items()}
        moment = f"after {self.weight_steps:,} weight steps and {self.num_updates:,} topology updates"
        notes = self._storage.notes()
        return layer_table(layers, self.num_alive, names, due, self._flops, notes, self._dense, moment)

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(group.algorithm.name for group in self._groups))
        size = sum(layer.layer.size for layer in self._layers.values())
        dense = sum(weight.layer.size for weight in self._dense.values())
        of_all = f" ({self.sparsity * size / (size + dense):.4f} with what is left dense)" if dense else ""
        return (
            f"<Sparsifier {names}: {len(self._layers)} layer{'s' * (len(self._layers) > 1)}, "
            f"sparsity {self.sparsity:.4f}{of_all}, {self.weight_steps:,} weight steps, "
            f"{self.num_updates:,} topology updates, {self._storage.name} storage"
            f"{'' if self in _attached else ', detached'}>"
        )

    @property
    def stepper(self) -> Optimizer:
        """The optimizer whose step is the weight step: :attr:`optimizer`, or the one that it wraps."""
        return self._holders.stepper

    def parameters(self) -> list[nn.Parameter]:
        """The weights it is attached to."""
        return [layer.parameter for layer in self._layers.values()]

    # What a user calls

    def apply_masks(self, model: nn.Module) -> None:
        """Zeroes the dead weights of a copy (a deepcopy, ``AveragedModel``), found by parameter name.

        Of the attached model itself too, and their optimizer state, where something else has written to them.

        Raises:
            ValueError: the copy lacks a layer, or has it in another shape; nothing is written then.
        """
        inner = model.module if isinstance(model, torch.optim.swa_utils.AveragedModel) else model
        copied = unwrap(inner)
        if copied is self.model and not have_moved(self._places):
            self.zero_dead()
            return
        parameters = dict(copied.named_parameters())
        for name, layer in self._layers.items():
            if layer.find_copy(copied) is None:
                found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise ValueError(
                    f"the copy does not fit: '{name}' of shape {layer.layer.shape} was expected, found {found}; "
                    "pass a copy of the attached model"
                )
        with torch.no_grad():
            for layer in self._layers.values():
                layer.mask_copy(copied)
            weights = places_of_parameters(copied)
            for place, name in second_places(self._layers, self.model).items():
                if place in weights:  # torch copies two parameters over the same memory apart
                    weights[place].masked_fill_(~self._layers[name].mask, 0)

    def detach(self) -> None:
        """Removes every hook; what is left is the plain model, its dead weights at 0.

        Raises:
            RuntimeError: a compact layer's weight is computed from other parameters now; nothing is removed then.
        """
        if self in _attached:
            self._storage.remove()
            for layer in self._layers.values():
                layer.release()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        unwatch(self._others)
        _attached.discard(self)

    def state_dict(self) -> dict[str, Any]:
        """Masks (1 bit a weight), counters and own momentum: tensors and plain values, loadable with weights_only.

        Tensors are whole even where weights are cut (FSDP2, tensor parallelism), so every rank must call it then.
        """
        for layer in self._layers.values():
            layer.alive.advance(self.weight_steps)
        return {
            "version": saved_state.VERSION,
            "seed": self.seed,
            "weight_steps": self.weight_steps,
            "num_updates": self.num_updates,
            "groups": [group.state() for group in self._groups],
            "storage": self._storage.state(),
            "layers": {
                name: {
                    "shape": list(layer.layer.shape),
                    "mask": saved_state.pack(whole(layer.mask)),
                    "alive_steps": layer.alive.weight_steps,
                    "momentum": None if layer.momentum is None else whole(layer.momentum).clone(),
                }
                for name, layer in self._layers.items()
            },
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken; weights and optimizer are loaded by their own methods.

        In whatever order: nothing is zeroed here, and the next step refuses weights that lie outside the masks then.
        Where several ranks train the model, every one must call it.

        Raises:
            ValueError: the state is damaged, or of another model, algorithm, sparsity or version, or not the same on
                all ranks; nothing is changed then.
        """
        groups = [(group.algorithm, list(group.layers)) for group in self._groups]
        momenta = {name: layer.momentum for name, layer in self._layers.items()}
        masks = saved_state.check(saved, groups, {name: layer.layer for name, layer in self._layers.items()}, momenta)
        for group, entry in zip(self._groups, saved["groups"], strict=True):
            group.check_sparsity(entry, masks)
        if self._ranks is not None:
            self._ranks.check_masks(masks)
        self._storage.check(saved.get("storage", {}))
        self._storage.restore(saved.get("storage", {}))
        self.seed = saved["seed"]
        self.weight_steps = saved["weight_steps"]
        self.num_updates = saved["num_updates"]
        for group, entry in zip(self._groups, saved["groups"], strict=True):
            group.next_update = entry["next_update"]
        for name, layer in self._layers.items():
            entry = saved["layers"][name]
            layer.load_mask(masks[name].to(layer.parameter.device), self.weight_steps)
            layer.alive.restore(entry["alive_steps"], self.weight_steps)
            if entry["momentum"] is not None:
                layer.load_momentum(entry["momentum"])
        self._place()
        self._refresh()

    def take_masks_from_weights(self) -> None:
        """Makes the masks those of the weights as they are now: for a loaded sparse model whose masks were not saved.

        What is not 0 is alive. Alive weights that were exactly 0, above all those that an update had just grown, cannot
        be told from dead ones: a recipe that keeps its number of alive weights draws the missing ones at random among
        the zeros, pruning and SNIP take all zeros for dead. Counters go on as they stand, and optimizer state outside
        the masks is dropped; only :meth:`load_state_dict` goes on bit for bit.

        Where several ranks train the model, every one must call it.

        Raises:
            ValueError: the recipe cannot have such masks: no weight is 0, or the net has another sparsity or
                distribution; nothing is changed then.
        """
        masks = dict[str, Tensor]()
        for group in self._groups:
            layers = group.layers.items()
            evidence = {name: layer.evidence(None, self.seed, self.weight_steps) for name, layer in layers}
            masks |= masks_of_weights(group.algorithm, evidence, updates=group.next_update is not None)
        if self._ranks is not None:
            self._ranks.check_masks(masks)
        for name, layer in self._layers.items():
            layer.load_mask(masks[name], self.weight_steps)
        self._place()
        self._refresh()
        self.zero_dead()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a sparsifier cannot be copied or pickled, as its hooks are on one model and one optimizer: copy those, "
            "attach to the copies, and load_state_dict(sparsifier.state_dict()); a model to be copied must not hold it"
        )

    # Hooks

    def _register(self) -> Iterator[RemovableHandle]:
        if self.strict:
            for name, layer in self._layers.items():
                yield on_gradient(layer.parameter, partial(self._check_layer, name))
        yield self.stepper.register_step_pre_hook(optimizers.uncompiled(self._on_step))
        yield self.stepper.register_step_post_hook(optimizers.uncompiled(self._on_step_end))

    def listen_to_loads(self, optimizer: Optimizer) -> None:
        """Has a load of an optimizer's state noticed; one without hooks shows that of another."""
        with suppress(AttributeError):
            self._handles.append(optimizer.register_load_state_dict_post_hook(self._on_load))

    def _on_load(self, _: Optimizer) -> None:
        for layer in self._layers.values():
            layer.was_loaded()

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._step.begins():
            return None
        self._others.weight_step_begins()
        weights = self.parameters()
        return with_closure(args, kwargs, self._before_step, lambda: ClosureCheck(optimizer, weights))

    def _on_step_end(self, *_: Any) -> None:
        if self._step.ends():
            self._after_step()

    def _before_step(self) -> None:
        """Updates the topology in place of the weight step where that is due, else prepares the weight step."""
        due = [group for group in self._groups if group.is_due(self.weight_steps)]
        self._check_membership(due)
        self._check_ranks(due)  # before what a wrapper's broadcast of the weights has made of the other ranks' zeros
        # A step that only fills state comes between weights that are loaded and their masks.
        if not optimizers.only_fills_state(self.stepper):
            self.refuse_strays()
        self._takes_step = optimizers.has_gradients(self.stepper) and not optimizers.skips_step(self.stepper)
        if not self._takes_step:
            return
        self._accumulate(dense=True)
        if due and self._update_instead(due):
            self._takes_step = False
            for parameter in optimizers.parameters(self.stepper):
                parameter.grad = None
            return
        self._accumulate(dense=False)
        for layer in self._layers.values():
            layer.mask_gradient()

    def _accumulate(self, dense: bool) -> None:
        """Brings the own momenta up to date, those of dense gradients or those that stand in for an optimizer's."""
        for group in self._groups:
            if (Need.DENSE_MOMENTUM in group.algorithm.needs) == dense:
                for layer in group.layers.values():
                    layer.accumulate_momentum()

    def _after_step(self) -> None:
        took_step, self._takes_step = self._takes_step, False
        odd = self._others.odd_state(self.stepper) if took_step else ""
        if took_step:
            due = [
                group for group in self._groups if group.algorithm.step_on_update and group.is_due(self.weight_steps)
            ]
            if due:  # Muon steps dead weights too: what it wrote must be gone before they are grown
                self.zero_dead()
            for group in due:
                self._update(group)
            self.weight_steps += 1
        # Also after a step that was skipped: it may leave new state of whatever lay in memory.
        if not optimizers.only_fills_state(self.stepper):
            self.zero_dead()
        self._refresh()
        self.check_layers()
        if odd:
            raise RuntimeError(odd)

    @torch.no_grad()
    def refuse_strays(self) -> None:
        """Refuses to zero what something else wrote to dead places; nothing is looked at where nobody wrote."""
        suspects = {name: layer for name, layer in self._layers.items() if layer.suspect}
        found = {name: layer.strays() for name, layer in suspects.items()}
        strays = {name: what for name, what in found.items() if what is not None}
        if strays:
            raise refusal(strays)
        if suspects:
            self.zero_dead()

    def check_layers(self) -> None:
        """What ``strict=True`` asks for."""
        if self.strict:
            for name in self._layers:
                self._check_layer(name)

    @torch.no_grad()
    def _check_layer(self, name: str, *_: Tensor) -> None:
        self._layers[name].check(self.weight_steps)

    def _check_membership(self, due: Sequence[Group]) -> None:
        """Refuses to go on beside a model that has other weights now; looked at where something gives reason to."""
        without = {name for name, layer in self._layers.items() if layer.parameter.grad is None}
        suspicious, self._without_gradient = without - self._without_gradient, without
        moved = have_moved(self._places)
        if not (due or suspicious or moved or self.strict):
            return
        self.check_layers()
        if due:
            self._others.refuse_odd_state()
        check_membership(self._layers, self.model, self.stepper)
        check_ties(self._layers, self.model, self._ties)
        if moved:
            self._places = places(self._layers, self.model)

    def _check_ranks(self, due: Sequence[Group]) -> None:
        """Refuses masks that differ among ranks which a wrapper that was made after attaching has brought together."""
        if self._ranks is None and (due or not self._has_looked_for_ranks):
            self._has_looked_for_ranks, self._ranks = True, Ranks.of(self.model)
            if self._ranks is not None:
                self._ranks.check_seed(self.seed)
                self._ranks.check_masks({name: whole(layer.mask) for name, layer in self._layers.items()})

    # The update

    @torch.no_grad()
    def _update_instead(self, due: Sequence[Group]) -> bool:
        """Updates the groups whose update takes the place of a weight step; the others' gradients are kept."""
        for group in due:
            if Need.GRADIENT in group.algorithm.needs:
                group.keep_gradients()
        updated = [self._update(group) for group in due if not group.algorithm.step_on_update]
        return any(updated)

    @torch.no_grad()
    def _update(self, group: Group) -> bool:
        """Gives a group its new masks; False where it must wait for a (finite) gradient."""
        moment, needs_gradient = group.moment(self.weight_steps), Need.GRADIENT in group.algorithm.needs
        gradients, group.dense_gradients = group.dense_gradients, {}
        frozen = {
            name
            for name, layer in group.layers.items()
            if not layer.parameter.requires_grad or (needs_gradient and name not in gradients)
        }
        if len(frozen) == len(group.layers):
            return False
        evidence = {
            name: layer.evidence(gradients.get(name), self.seed, moment) for name, layer in group.layers.items()
        }
        for name, mask in updated_masks(group.algorithm, moment, evidence, frozen).items():
            group.layers[name].set_mask(mask, moment)
        group.next_update = group.algorithm.when.following(moment + 1)
        self.num_updates += 1
        self._place()
        if self.strict and self._ranks is not None:
            self._ranks.check_masks({name: whole(layer.mask) for name, layer in group.layers.items()})
        return True

    def _place(self) -> None:
        """Keeps each layer as its present density asks for."""
        for group in self._groups:
            group.layers = {name: self._storage.place(layer) for name, layer in group.layers.items()}

    def _refresh(self) -> None:
        for group in self._groups:
            wanted = group.wants_dense_gradient(self.weight_steps)
            for layer in group.layers.values():
                layer.expect_dense_gradient(wanted)

    def zero_dead(self, names: Sequence[str] | None = None) -> None:
        """Dead weights to 0, and their optimizer state to the value that the optimizer starts it with.

        Args:
            names: of the layers; None for all.
        """
        layers = self._layers
        chosen = list(layers.values()) if names is None else [layers[name] for name in names]
        pairs = [pair for layer in chosen for pair in layer.masked_tensors()]
        if pairs:
            torch._foreach_mul_([tensor for tensor, _ in pairs], [bits for _, bits in pairs])
        for layer in chosen:
            layer.settle()
