"""The hooks on model and optimizer, and the state of an attached model."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.accounting.flops import Flops, count_flops
from regrow.layers import unwrap
from regrow.parts.scores import Need
from regrow.storage import attachments, optimizers
from regrow.storage.distributed import Ranks, whole
from regrow.storage.mask_bits import pack
from regrow.storage.optimizer_holders import Holders
from regrow.storage.optimizer_steps import ClosureCheck, StepUnderWay, unwatch, watch, with_closure
from regrow.storage.stored_layer import Storage, StoredLayer, on_gradient
from regrow.training import saved_state
from regrow.training.attached_layers import AttachedLayers
from regrow.training.coverage import DenseWeight
from regrow.training.layer_group import Group
from regrow.training.layer_table import layer_table
from regrow.training.loading import masks_of_weights
from regrow.training.masked_copies import mask_copy
from regrow.training.membership import Membership
from regrow.training.missed_steps import MissedSteps
from regrow.training.other_optimizers import OtherOptimizers
from regrow.training.update_record import Explored, LayerUpdate, Update


class Sparsifier:
    """Keeps an attached model sparse while it trains; made by :func:`regrow.attach`.

    Attributes:
        model: the user's own module.
        optimizer: the optimizer that was given, or made.
        num_updates: topology updates so far.
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
        self.model, self.optimizer, self.seed, self.num_updates = model, holders.given, seed, 0
        self._holders, self._storage, self._ranks, self._dense = holders, storage, ranks, dense
        self._attached = AttachedLayers(groups, storage, strict)
        self._explored = Explored({name: whole(mask) for name, mask in self.masks.items()})
        self._listeners = OrderedDict[int, Callable[[Update], object]]()  # torch's handle refers to it weakly
        self._updated = dict[str, LayerUpdate]()
        self._has_looked_for_ranks, self._takes_step = False, False
        self._flops: Flops | None = None
        self._step = StepUnderWay()
        self._others = OtherOptimizers(holders, storage, self._step, self._attached)
        if loaded:
            self._attached.were_loaded()
        self._attached.place()
        self._membership = Membership(self._layers, model)
        self._attached.expect_gradients()
        self._missed = MissedSteps(self.parameters()[0], type(self.stepper).__name__)
        self._handles = list(self._register())
        for optimizer in holders:
            self._attached.listen_to_loads(optimizer)
        watch(self._others)
        attachments.enter(self)

    @property
    def _layers(self) -> dict[str, StoredLayer]:
        return self._attached.by_name()

    @property
    def _groups(self) -> list[Group]:
        return self._attached.groups

    # What a user reads

    @property
    def weight_steps(self) -> int:
        """Weight steps taken so far."""
        return self._attached.weight_steps

    @property
    def strict(self) -> bool:
        """Whether every invariant is checked at each step, see :func:`regrow.attach`."""
        return self._attached.strict

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
    def explored(self) -> dict[str, float]:
        """Share of each layer's weights that have been alive at some time, R_s.

        Liu et al. 2021, "Do We Actually Need Dense Over-Parameterization?", section 3.
        """
        return {name: self._explored.number(name) / layer.layer.size for name, layer in self._layers.items()}

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
            f"{'' if attachments.is_attached(self) else ', detached'}>"
        )

    @property
    def stepper(self) -> Optimizer:
        """The optimizer whose step is the weight step: :attr:`optimizer`, or the one that it wraps."""
        return self._holders.stepper

    def parameters(self) -> list[nn.Parameter]:
        """The weights it is attached to."""
        return self._attached.parameters()

    # What a user calls

    def apply_masks(self, model: nn.Module) -> None:
        """Zeroes the dead weights of a copy (a deepcopy, ``AveragedModel``), found by parameter name.

        Of the attached model itself too, and their optimizer state, where something else has written to them.

        Raises:
            ValueError: the copy lacks a layer, or has it in another shape; nothing is written then.
        """
        inner = model.module if isinstance(model, torch.optim.swa_utils.AveragedModel) else model
        copied = unwrap(inner)
        if copied is self.model and not self._membership.has_moved():
            self._attached.zero_dead()
        else:
            mask_copy(self._layers, self.model, copied)

    def on_update(self, function: Callable[[Update], object]) -> RemovableHandle:
        """Calls a function after each topology update, when masks, weights and optimizer state are as they stay.

        Args:
            function: of a record: for each layer how many weights were dropped and grown, and what share has been
                alive so far. What it raises ends the step's call, which is complete by then.

        Returns:
            What takes it off again, by ``remove()``.

        >>> import regrow
        >>> model = nn.Linear(20, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.9, total_steps=4, every=1))
        >>> handle = sparsifier.on_update(lambda update: print(update.number, update.dropped, update.grown))
        >>> for _ in range(3):
        ...     model(torch.randn(8, 20)).square().mean().backward()
        ...     optimizer.step()
        1 4 4
        """
        handle = RemovableHandle(self._listeners)
        self._listeners[handle.id] = function
        return handle

    def detach(self) -> None:
        """Removes every hook; what is left is the plain model, its dead weights at 0.

        Raises:
            RuntimeError: a compact layer's weight is computed from other parameters now; nothing is removed then.
        """
        if attachments.is_attached(self):
            self._storage.remove()
            for layer in self._layers.values():
                layer.release()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._attached.stop_listening()
        unwatch(self._others)
        attachments.leave(self)

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
                    "mask": pack(whole(layer.mask)),
                    "explored": self._explored.bits[name].clone(),
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
        self._attached.weight_steps = saved["weight_steps"]
        self.num_updates = saved["num_updates"]
        for group, entry in zip(self._groups, saved["groups"], strict=True):
            group.next_update = entry["next_update"]
        self._explored = Explored(masks)
        for name, layer in self._layers.items():
            entry = saved["layers"][name]
            if entry.get("explored") is not None:
                self._explored.bits[name] = entry["explored"].clone()
            layer.load_mask(masks[name].to(layer.parameter.device), self.weight_steps)
            layer.alive.restore(entry["alive_steps"], self.weight_steps)
            if entry["momentum"] is not None:
                layer.load_momentum(entry["momentum"])
        self._attached.place()
        self._attached.expect_gradients()

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
            self._explored.add(name, masks[name])
        self._attached.place()
        self._attached.expect_gradients()
        self._attached.zero_dead()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a sparsifier cannot be copied or pickled, as its hooks are on one model and one optimizer: copy those, "
            "attach to the copies, and load_state_dict(sparsifier.state_dict()); a model to be copied must not hold it"
        )

    # Hooks

    def _register(self) -> Iterator[RemovableHandle]:
        yield from self._attached.listen_to_gradients()
        yield on_gradient(self.parameters()[0], self._missed.gradient_came)
        yield self.stepper.register_step_pre_hook(optimizers.uncompiled(self._on_step))
        yield self.stepper.register_step_post_hook(optimizers.uncompiled(self._on_step_end))

    def _on_step(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._step.begins():
            return None
        self._others.weight_step_begins()
        self._missed.stepped()
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
            self._attached.refuse_strays()
        self._takes_step = optimizers.has_gradients(self.stepper) and not optimizers.skips_step(self.stepper)
        if not self._takes_step:
            return
        self._attached.accumulate(dense=True)
        if due and self._update_instead(due):
            self._takes_step = False
            for parameter in optimizers.parameters(self.stepper):
                parameter.grad = None
            return
        self._attached.accumulate(dense=False)
        for layer in self._layers.values():
            layer.mask_gradient()

    def _after_step(self) -> None:
        took_step, self._takes_step = self._takes_step, False
        odd = self._others.odd_state(self.stepper) if took_step else ""
        if took_step:
            due = [
                group for group in self._groups if group.algorithm.step_on_update and group.is_due(self.weight_steps)
            ]
            if due:  # Muon steps dead weights too: what it wrote must be gone before they are grown
                self._attached.zero_dead()
            for group in due:
                self._update(group)
            self._attached.weight_steps += 1
        # Also after a step that was skipped: it may leave new state of whatever lay in memory.
        if not optimizers.only_fills_state(self.stepper):
            self._attached.zero_dead()
        self._attached.expect_gradients()
        self._attached.check()
        if odd:
            raise RuntimeError(odd)
        self._tell()

    def _check_membership(self, due: Sequence[Group]) -> None:
        """Refuses to go on beside a model that has other weights now; looked at where something gives reason to."""
        doubtful = self._membership.is_doubtful(self._layers)
        if not (due or doubtful or self.strict):
            return
        self._attached.check()
        if due:
            self._others.refuse_odd_state()
        self._membership.check(self._layers, self.stepper)

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

    def _update(self, group: Group) -> bool:
        """Gives a group its new masks; False where it must wait for a (finite) gradient."""
        changes = group.update(self.weight_steps, self.seed, self._explored)
        if changes is None:
            return False
        self._updated |= changes
        self.num_updates += 1
        self._attached.place()
        if self.strict and self._ranks is not None:
            self._ranks.check_masks({name: whole(layer.mask) for name, layer in group.layers.items()})
        return True

    def _tell(self) -> None:
        """Hands what has been updated to whoever listens."""
        if self._updated:
            update, self._updated = Update(self.weight_steps, self.num_updates, self._updated), {}
            for function in list(self._listeners.values()):
                function(update)
