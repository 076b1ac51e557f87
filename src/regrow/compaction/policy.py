"""Compact storage of an attached model: which layers go compact, when, and why the others do not."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.algorithm import Algorithm
from regrow.compaction import optimizer_checkpoint
from regrow.compaction.capture import graph_forward
from regrow.compaction.capture.region import wanted
from regrow.compaction.compact_modules import obstacle, obstacles
from regrow.compaction.compact_weight import gather, own_weight, resize
from regrow.compaction.compacted_layer import CompactedLayer
from regrow.compaction.dense_copies import make_plain
from regrow.compaction.dense_gradient import BackwardPasses
from regrow.compaction.optimizer_rehearsal import check_elementwise
from regrow.compaction.timings import layer_timings, timing_cache
from regrow.engine import native
from regrow.parts.scores import Need
from regrow.storage import optimizers
from regrow.storage.distributed import is_cut, mean_over_ranks
from regrow.storage.masked_layer import MaskedLayer
from regrow.storage.optimizer_holders import Holders
from regrow.storage.optimizer_state import Held
from regrow.storage.stored_layer import StoredLayer

MOST_DENSITY = 0.5
"""Above it a weight with its index is hardly smaller than the dense one."""

SMALL = 1024
"""A linear layer of so many weights or fewer is compact if one is dead: masks would take longer than all its sums."""


class CompactStorage:
    """Keeps a layer compact from the moment that its density has come down to one half.

    Args:
        model: the user's own module.
        holders: the optimizers on its parameters; their state is cut down with them.
    """

    name = "compact"

    def __init__(self, model: nn.Module, holders: Holders) -> None:
        make_plain(model)
        self.model, self.holders = model, holders
        self.layers: dict[str, CompactedLayer] = {}
        self.reasons: dict[str, str] = {}
        self.passes = BackwardPasses(partial(mean_over_ranks, model))
        self.left_to_torch = set[nn.Module]()
        self.decides = wanted() == "auto" and native.available()
        self.agreed = dict[str, tuple[float, ...]]()
        self.recorded = dict[str, bool]()
        self.obstacles = obstacles(model)
        self.handles = [
            handle for optimizer in holders for handle in optimizer_checkpoint.register(optimizer, self.layers)
        ]
        if native.available():
            graph_forward.install(model, self.left_to_torch)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuses one that works on matrices with a ValueError."""
        check_optimizer(optimizer, self.holders.held_by(optimizer))

    def take_in(self, optimizer: Optimizer) -> None:
        """Cuts the state that another optimizer has down to the alive weights, and saves it in dense shapes."""
        for layer in self.layers.values():
            for value in optimizers.state_of(optimizer, layer.parameter).values():
                if isinstance(value, Tensor) and value.shape == layer.layer.shape:
                    resize(value, gather(value.detach(), layer.weight.indices))
        self.handles += optimizer_checkpoint.register(optimizer, self.layers)

    def place(self, layer: StoredLayer) -> StoredLayer:
        """A compacted layer where that is possible and the density is low enough."""
        name = layer.layer.name
        was_compact = self.recorded.pop(name, None)
        if isinstance(layer, CompactedLayer) and was_compact is False:
            layer = self._made_dense(layer)
        if not isinstance(layer, MaskedLayer):
            return layer
        path, _, parameter_name = name.rpartition(".")
        module = self.model.get_submodule(path)
        reason = obstacle(module)
        if parameter_name != "weight":
            reason = f"{type(module).__name__} has no compact form"
        elif reason is None and module in self.obstacles:
            reason = self.obstacles[module]
        elif reason is None and isinstance(module, nn.Linear) and layer.layer.size <= SMALL:
            reason = "no weight is dead" if layer.alive.everything else None
        elif reason is None and was_compact:
            pass  # it may have come down to one half and risen again since
        elif reason is None and layer.alive.density > MOST_DENSITY:
            reason = f"density above {MOST_DENSITY}"
        elif reason is None and self.decides:
            ratio = layer_timings.speedup(self.agreed, module, layer.layer.size, layer.alive.density)
            if ratio < layer_timings.LEAST[layer_timings.kind_of(module)]:
                reason = f"torch is faster here ({ratio:.2f}x on the engine, measured)"
            if reason is not None and module not in self.left_to_torch:
                self.left_to_torch.add(module)
                self._cut_anew()
        if reason is not None:
            self.reasons[name] = reason
            return layer
        self.reasons.pop(name, None)
        self.left_to_torch.discard(module)
        self.layers[name] = CompactedLayer(layer, module, self.passes)
        graph_forward.install(self.model, self.left_to_torch)
        self._cut_anew()
        return self.layers[name]

    def _made_dense(self, layer: CompactedLayer) -> MaskedLayer:
        """The layer as it was before it became compact, with its present mask and counts."""
        mask, momentum = layer.mask, layer.momentum
        layer.release()
        layer.make_dense()
        masked = MaskedLayer(layer.layer, layer.parameter, mask, layer.holders, layer.needs)
        masked.alive = layer.alive
        if momentum is not None:
            masked.load_momentum(momentum)
        del self.layers[layer.layer.name]
        self._cut_anew()
        return masked

    def state(self) -> dict[str, Any]:
        """Which layers are compact, and the ratios that decide it: the engine and torch differ in their last digits."""
        kept = {**dict.fromkeys(self.reasons, False), **dict.fromkeys(self.layers, True)}
        return {"compact": kept, "ratios": timing_cache.believed()}

    def check(self, saved: Any) -> None:
        """Refuses what :meth:`state` cannot have given with a ValueError."""
        kept, ratios = (saved.get(key, {}) if isinstance(saved, Mapping) else None for key in ("compact", "ratios"))
        sound = isinstance(kept, Mapping) and all(isinstance(value, bool) for value in kept.values())
        if not (sound and isinstance(ratios, Mapping) and all(map(timing_cache.are_ratios, ratios.values()))):
            raise ValueError(f"this state does not fit: its storage is {saved!r:.60}; the file is damaged")

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Has layers placed next as they were when :meth:`state` was taken; one of dense storage says nothing."""
        timing_cache.believe(saved.get("ratios", {}))
        self.agreed.clear()
        self.recorded = dict(saved.get("compact", {}))

    def _cut_anew(self) -> None:
        for forward in graph_forward.installed(self.model):
            forward.reset()

    def notes(self) -> Mapping[str, str]:
        """Storage of each layer, with the reason where it is dense."""
        regions = {id(layer): region for region in graph_forward.regions(self.model) for layer in region.members[0]}
        notes = {
            name: f"compact: {regions[id(layer.module)].runner if id(layer.module) in regions else 'not run yet'}"
            for name, layer in self.layers.items()
        }
        for name, reason in self.reasons.items():
            region = regions.get(id(self.model.get_submodule(name.rpartition(".")[0])))
            by_torch = region is None or region.refusal is not None
            notes[name] = f"dense: {reason}" + ("" if region is None or by_torch else f"; {region.runner}")
        return notes

    def remove(self) -> None:
        """Dense weights, dense optimizer state, the modules' own forward.

        Raises:
            RuntimeError: the weight of a layer is no parameter of its own any more; nothing is changed then.
        """
        for layer in self.layers.values():
            own_weight(layer.module)
        for handle in self.handles:
            handle.remove()
        graph_forward.remove(self.model)
        for layer in self.layers.values():
            layer.make_dense()
        self.layers.clear()


def check_optimizer(optimizer: Optimizer, weights: Iterable[Held]) -> None:
    """Refuses an optimizer that works on weights as matrices, or cannot save state as dense, with a ValueError."""
    try:
        optimizer.register_state_dict_post_hook(lambda *_: None).remove()
    except AttributeError:
        raise ValueError(
            f"{type(optimizer).__name__} keeps state of its own and never calls super().__init__(), so its state_dict "
            "cannot be given the shapes of dense weights: use storage='dense'"
        ) from None
    check_elementwise(optimizer, weights)


def check_compact(model: nn.Module, holders: Holders, algorithms: list[Algorithm]) -> None:
    """Refuses what compact storage cannot do.

    Raises:
        ValueError: the model is wrapped or not on the CPU, the optimizer works on matrices, or a recipe needs the dense
            gradient at every step.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(
            f"{type(model).__name__} was made for the dense weights: attach with storage='compact' first and wrap the "
            "model after it, or use storage='dense'"
        )
    if any(is_cut(parameter) for parameter in model.parameters()):
        raise ValueError("the weights are cut into pieces (FSDP2, tensor parallelism): use storage='dense'")
    devices = {parameter.device.type for parameter in model.parameters()} - {"cpu"}
    if devices:
        raise ValueError(f"the model is on {devices.pop()}; compact storage runs on the CPU: use storage='dense'")
    for optimizer in holders:
        check_optimizer(optimizer, holders.held_by(optimizer))
    for record in algorithms:
        if Need.DENSE_MOMENTUM in record.needs:
            raise ValueError(
                f"'{record.name}' needs the dense gradient of every weight at every step, so there is nothing that "
                "compact storage could leave out: attach it with storage='dense'"
            )
