"""FLOPs: the numbers of section 4 of the design, every kind of layer, and that counting changes nothing."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import regrow
from regrow.accounting.flops import Flops, LayerFlops, count_flops, train_flops
from regrow.layers import Layer, find_layers
from regrow.parts.distributions import Distribution
from regrow.parts.scores import Need
from regrow_lab.models import INPUT_SHAPES, MODELS

FULL = {"wrn-22-2": 315_460_096, "resnet50-cifar": 2_596_028_416}


def build(name: str, multiplier: float = 1.0) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name](multiplier=multiplier)


def sample(name: str) -> Tensor:
    return torch.zeros(1, *INPUT_SHAPES[name])


def masks_of(layers: Mapping[str, Layer], alive: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks with exact counts, at no particular place."""
    masks = {}
    for name, layer in layers.items():
        mask = torch.zeros(layer.size, dtype=torch.bool)
        mask[: alive[name]] = True
        masks[name] = mask.flip(0).view(layer.shape)
    return masks


def random_mask(tensor: Tensor, density: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tensor.shape, generator=generator) < density


def random_masks(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: random_mask(parameters[name]) for name in names or find_layers(model)}


# The numbers of the design


@pytest.mark.parametrize(("name", "dense"), FULL.items())
def test_forward_flops_of_the_reports_networks(name: str, dense: int) -> None:
    flops = count_flops(build(name), sample(name))
    assert flops.dense == flops.sparse == dense
    assert set(flops.layers) == set(find_layers(build(name)))


def test_a_batch_costs_its_samples() -> None:
    model = build("wrn-22-2")
    assert count_flops(model, torch.zeros(7, 3, 32, 32)).dense == 7 * FULL["wrn-22-2"]


RATIOS: list[tuple[str, Distribution, dict[float, tuple[float, float | None]]]] = [
    (
        "wrn-22-2",
        regrow.uniform,
        {0.05: (0.0527, 0.0558), 0.1: (0.1025, 0.1055), 0.2: (0.2022, 0.2049), 0.5: (0.5014, 0.5030)},
    ),
    (
        "wrn-22-2",
        regrow.erk,
        {0.05: (0.0881, 0.0911), 0.1: (0.1736, 0.1763), 0.2: (0.3521, 0.3542), 0.5: (0.7282, 0.7291)},
    ),
    ("wrn-22-2", regrow.er, {0.05: (0.0888, None), 0.1: (0.1759, None), 0.2: (0.3496, None), 0.5: (0.7270, None)}),
    (
        "resnet50-cifar",
        regrow.uniform,
        {0.05: (0.0513, 0.0544), 0.1: (0.1012, 0.1042), 0.2: (0.2011, 0.2037), 0.5: (0.5007, 0.5023)},
    ),
    (
        "resnet50-cifar",
        regrow.erk,
        {0.05: (0.1136, 0.1165), 0.1: (0.2247, 0.2273), 0.2: (0.3851, 0.3872), 0.5: (0.7008, 0.7018)},
    ),
]


@pytest.mark.parametrize(
    ("name", "distribution", "density", "test_ratio", "train_ratio"),
    [(name, by, density, *ratios) for name, by, table in RATIOS for density, ratios in table.items()],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_ratio_table(
    name: str, distribution: Distribution, density: float, test_ratio: float, train_ratio: float | None
) -> None:
    model = build(name)
    layers = find_layers(model)
    flops = count_flops(model, sample(name), masks_of(layers, distribution(layers, 1 - density)))
    assert flops.dense == FULL[name]
    assert flops.sparse / flops.dense == pytest.approx(test_ratio, abs=1e-4)
    if train_ratio is not None:
        rigl = regrow.rigl(sparsity=1 - density, total_steps=88_000, every=100, distribution=distribution)
        assert train_flops(rigl, flops.sparse, flops.dense) / (3 * flops.dense) == pytest.approx(train_ratio, abs=1e-4)


def test_erk_densities_of_wrn() -> None:
    layers = find_layers(build("wrn-22-2"))
    alive = regrow.erk(layers, 0.9)
    density = {name: alive[name] / layer.size for name, layer in layers.items()}
    for name in ("stem", "stage1.0.shortcut", "stage2.0.shortcut", "fc"):
        assert density[f"{name}.weight"] == 1
    assert density["stage3.0.shortcut.weight"] == pytest.approx(0.851, abs=5e-4)
    for stage, (first, other) in {1: (0.421, 0.273), 2: (0.199, 0.131), 3: (0.0965, 0.0638)}.items():
        assert density[f"stage{stage}.0.conv1.weight"] == pytest.approx(first, abs=5e-4)
        for name in ("0.conv2", "1.conv1", "1.conv2", "2.conv1", "2.conv2"):
            assert density[f"stage{stage}.{name}.weight"] == pytest.approx(other, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "density", "ratio"),
    [
        ("wrn-22-2", 0.1, 0.107),
        ("wrn-22-2", 0.2, 0.204),
        ("resnet50-cifar", 0.1, 0.103),
        ("resnet50-cifar", 0.2, 0.202),
    ],
)
def test_small_dense_at_the_reports_multiplier(name: str, density: float, ratio: float) -> None:
    flops = count_flops(build(name, multiplier=density**0.5), sample(name))
    assert flops.dense / FULL[name] == pytest.approx(ratio, abs=5e-4)


PRINTED = {  # (train, test) of the report's Tables 2 and 3 at d = .1 and .2
    ("wrn-22-2", "small-dense"): [(0.11, 0.11), (0.20, 0.20)],
    ("wrn-22-2", "static uniform"): [(0.10, 0.10), (0.20, 0.20)],
    ("wrn-22-2", "set uniform"): [(0.10, 0.10), (0.20, 0.20)],
    ("wrn-22-2", "rigl uniform"): [(0.10, 0.10), (0.20, 0.20)],
    ("wrn-22-2", "set erk"): [(0.17, 0.17), (0.35, 0.35)],
    ("wrn-22-2", "rigl erk"): [(0.17, 0.17), (0.35, 0.35)],
    ("resnet50-cifar", "small-dense"): [(0.11, 0.11), (0.20, 0.20)],
    ("resnet50-cifar", "static uniform"): [(0.10, 0.10), (0.20, 0.20)],
    ("resnet50-cifar", "set uniform"): [(0.10, 0.10), (0.20, 0.20)],
    ("resnet50-cifar", "rigl uniform"): [(0.10, 0.10), (0.20, 0.20)],
    ("resnet50-cifar", "static erk"): [(0.22, 0.22), (0.38, 0.38)],
    ("resnet50-cifar", "set erk"): [(0.22, 0.22), (0.38, 0.38)],
    ("resnet50-cifar", "rigl erk"): [(0.23, 0.22), (0.38, 0.38)],
}


@pytest.mark.parametrize(
    ("name", "method", "density", "printed"),
    [(*row, density, pair) for row, pairs in PRINTED.items() for density, pair in zip((0.1, 0.2), pairs, strict=True)],
)
def test_flop_columns_of_the_report(name: str, method: str, density: float, printed: tuple[float, float]) -> None:
    """Within the .01 that it prints: some of its numbers are cut off (.1763 → .17), some rounded (.2273 → .23)."""
    recipe, _, sharing = method.partition(" ")
    if recipe == "small-dense":
        small = count_flops(build(name, multiplier=density**0.5), sample(name)).dense
        train, test = 3 * small, small
    else:
        model, distribution = build(name), getattr(regrow, sharing)
        layers = find_layers(model)
        flops = count_flops(model, sample(name), masks_of(layers, distribution(layers, 1 - density)))
        options: dict[str, Any] = {"sparsity": 1 - density, "distribution": distribution}
        algorithm = {
            "static": lambda: regrow.static(**options),
            "set": lambda: regrow.set_(**options, total_steps=88_000),
            "rigl": lambda: regrow.rigl(**options, total_steps=88_000),
        }[recipe]()
        train, test = train_flops(algorithm, flops.sparse, flops.dense), flops.sparse
    assert (train / (3 * FULL[name]), test / FULL[name]) == pytest.approx(printed, abs=0.01)


# Training


def test_train_flops_follow_from_the_needs() -> None:
    f_s, f_d, every = 10.0, 100.0, 50
    options = {"sparsity": 0.9, "total_steps": 1000, "every": every}
    sparse, one_dense = 3 * f_s, 2 * f_s + f_d
    swapped = (3 * every * f_s + 2 * f_s + f_d) / (every + 1)
    assert train_flops(regrow.static(sparsity=0.9), f_s, f_d) == sparse
    assert train_flops(regrow.set_(**options), f_s, f_d) == sparse
    assert train_flops(regrow.snip(sparsity=0.9), f_s, f_d) == sparse
    assert train_flops(regrow.gradual_pruning(**options, start=100), f_s, f_d) == sparse
    assert train_flops(regrow.snfs(**options), f_s, f_d) == one_dense
    for recipe in (regrow.rigl, regrow.rigl_sg, regrow.rigl_sm):
        assert train_flops(recipe(**options), f_s, f_d) == pytest.approx(swapped)


def test_an_update_beside_its_weight_step() -> None:
    """The original's order: one of dT weight steps computes the dense gradient, none is lost."""
    rigl = regrow.rigl(sparsity=0.9, total_steps=1000, every=50)
    extra = dataclasses.replace(rigl, step_on_update=True)
    assert Need.GRADIENT in extra.needs
    assert train_flops(extra, 10, 100) == pytest.approx((49 * 30 + 120) / 50)


# Kinds of layers


class Call(nn.Module):
    """A module around a function of its parameters."""

    def __init__(self, function: Callable[..., Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


def alive_share(mask: Tensor, cost: int) -> int:
    share, rest = divmod(cost * int(mask.sum()), mask.numel())
    assert rest == 0
    return share


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(8, 4), (8,), 8 * 4),
        (nn.Linear(8, 4, bias=False), (2, 3, 8), 2 * 3 * 8 * 4),
        (nn.Conv1d(3, 4, 5), (2, 3, 9), 2 * 4 * 3 * 5 * 5),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (1, 3, 8, 8), 4 * 3 * 9 * 16),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 5, 5), 8 * 2 * 9 * 9),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (1, 4, 7, 7), 4 * 9 * 9),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 3 * 2 * 8 * 8),
        (nn.ConvTranspose1d(3, 4, 5, stride=2), (2, 3, 9), 2 * 3 * 4 * 5 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5), 4 * 3 * 9 * 25),
        (nn.ConvTranspose3d(2, 3, 2, padding=1), (1, 2, 3, 3, 3), 2 * 3 * 8 * 27),
    ],
    ids=str,
)
def test_layers(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    mask = random_mask(layer.weight)
    flops = count_flops(layer, torch.zeros(shape), {"weight": mask})
    assert flops == Flops(2 * macs, alive_share(mask, 2 * macs), {"weight": flops.layers["weight"]})
    assert flops.layers["weight"] == LayerFlops(flops.dense, flops.sparse)


def test_channels_last_weights() -> None:
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    mask = random_mask(layer.weight)
    assert count_flops(layer, torch.zeros(1, 3, 5, 5), {"weight": mask}).sparse == 2 * 9 * int(mask.sum())


@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention_counts_its_projections_alone(need_weights: bool) -> None:
    length, width = 5, 8
    layer = nn.MultiheadAttention(width, 2).eval()
    masks = random_masks(layer, ["in_proj_weight", "out_proj.weight"])
    x = torch.zeros(length, 1, width)
    flops = count_flops(layer, {"query": x, "key": x, "value": x, "need_weights": need_weights}, masks)
    assert flops.layers == {
        "in_proj_weight": LayerFlops(2 * length * 3 * width * width, 2 * length * int(masks["in_proj_weight"].sum())),
        "out_proj.weight": LayerFlops(2 * length * width * width, 2 * length * int(masks["out_proj.weight"].sum())),
    }


def test_cross_attention_reads_the_mask_of_each_chunk() -> None:
    """Queries and keys of different length pass through different rows of one in_proj_weight."""
    queries, keys, width = 3, 7, 4
    layer = nn.MultiheadAttention(width, 2)
    mask = torch.zeros(3 * width, width, dtype=torch.bool)
    mask[:width] = True
    mask[width, 0] = True
    args = (torch.zeros(queries, 1, width), torch.zeros(keys, 1, width), torch.zeros(keys, 1, width))
    flops = count_flops(layer, args, {"in_proj_weight": mask}).layers["in_proj_weight"]
    assert flops.dense == 2 * width * width * (queries + 2 * keys)
    assert flops.sparse == 2 * (queries * width * width + keys)


def test_attention_with_projections_of_their_own() -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)
    args = (torch.zeros(1, 3, 8), torch.zeros(1, 5, 4), torch.zeros(1, 5, 6))
    layers = {name: flops.dense for name, flops in count_flops(layer, args).layers.items()}
    assert layers == {
        "q_proj_weight": 2 * 3 * 8 * 8,
        "k_proj_weight": 2 * 5 * 4 * 8,
        "v_proj_weight": 2 * 5 * 6 * 8,
        "out_proj.weight": 2 * 3 * 8 * 8,
    }


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype stage")
@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder(training: bool) -> None:
    length, width, hidden = 6, 8, 16
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    model = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=True).train(training)
    flops = count_flops(model, torch.zeros(2, length, width))
    assert flops.dense == 2 * 2 * 2 * length * (4 * width * width + 2 * width * hidden)
    assert len(flops.layers) == 2 * 4


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers(kind: type[nn.RNNBase], gates: int, bidirectional: bool) -> None:
    steps, batch, inputs, hidden = 5, 2, 4, 3
    layer = kind(inputs, hidden, num_layers=2, bidirectional=bidirectional)
    masks = random_masks(layer)
    flops = count_flops(layer, torch.zeros(steps, batch, inputs), masks)
    uses = 2 * steps * batch
    assert flops.layers.keys() == masks.keys()
    for name, mask in masks.items():
        assert flops.layers[name] == LayerFlops(uses * mask.numel(), uses * int(mask.sum()))
    assert flops.layers["weight_hh_l0"].dense == uses * gates * hidden * hidden


def test_lstm_with_projection_and_cells() -> None:
    layer = nn.LSTM(4, 3, proj_size=2)
    flops = count_flops(layer, torch.zeros(5, 1, 4))
    assert flops.layers["weight_hr_l0"].dense == 2 * 5 * 3 * 2
    assert count_flops(nn.GRUCell(4, 3), torch.zeros(1, 4)).dense == 2 * (9 * 4 + 9 * 3)


def test_packed_sequences_cost_their_true_length() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(torch.zeros(5, 2, 4), torch.tensor([5, 2]))
    assert count_flops(nn.GRU(4, 3), packed).dense == 2 * 7 * (9 * 4 + 9 * 3)


def test_tied_weights_add_up_under_one_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.encode = nn.Linear(4, 4, bias=False)
            self.again = nn.Linear(4, 4, bias=False)
            self.again.weight = self.encode.weight
            self.readout = nn.Linear(4, 10)
            self.readout.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.readout(self.again(self.encode(self.embedding(tokens))))

    model = Tied()
    mask = random_mask(model.encode.weight)
    tokens = torch.zeros(1, 3, dtype=torch.long)
    expected = {"encode.weight": 2 * 2 * 3 * 16, "embedding.weight": 2 * 3 * 40}
    flops = count_flops(model, tokens, {"encode.weight": mask})
    assert {name: layer.dense for name, layer in flops.layers.items()} == expected
    assert flops.layers["encode.weight"].sparse == 2 * 2 * 3 * int(mask.sum())
    by_other_name = count_flops(model, tokens, {"again.weight": mask, "readout.weight": random_mask(torch.ones(10, 4))})
    assert set(by_other_name.layers) == {"again.weight", "readout.weight"}


def test_weights_that_share_a_storage() -> None:
    """Two weights in one flat buffer, as flattened recurrent ones are, and a third that is a transpose of the first."""
    flat = torch.zeros(5 + 12 + 20)
    model = Call(
        lambda self, x: x @ self.first @ self.second @ self.second.T @ self.transpose,
        first=flat[5:17].view(3, 4),
        second=flat[17:].view(4, 5),
        transpose=flat[5:17].view(3, 4).T,
    )
    masks = {"first": random_mask(torch.ones(3, 4)), "second": random_mask(torch.ones(4, 5))}
    flops = count_flops(model, torch.zeros(1, 3), masks)
    assert flops.layers == {
        "first": LayerFlops(2 * 2 * 12, 2 * 2 * int(masks["first"].sum())),
        "second": LayerFlops(2 * 2 * 20, 2 * 2 * int(masks["second"].sum())),
    }


def test_weights_computed_from_weights() -> None:
    """Casts, scaling, weight normalisation, spectral normalisation and torch's own pruning keep the mask."""
    plain = nn.Linear(6, 5)
    mask = random_mask(plain.weight)
    expected = {"dense": 2 * 30, "sparse": 2 * int(mask.sum())}
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    spectral_norm = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
    pruned = prune.l1_unstructured(nn.Linear(6, 5), "weight", amount=0.5)
    models = {
        "parametrizations.weight.original1": weight_norm,
        "parametrizations.weight.original": spectral_norm,
        "weight_orig": pruned,
        "w": Call(
            lambda self, x: F.linear(x.double(), (self.gain * self.w * 0.5).double()),
            gain=torch.ones(5, 1),
            w=plain.weight.detach(),
        ),
    }
    for name, model in models.items():
        flops = count_flops(model, torch.zeros(1, 6), {name: mask})
        assert flops.layers == {name: LayerFlops(**expected)}, name


def test_weight_standardisation() -> None:
    def forward(self: Call, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.w - self.w.mean((1, 2, 3), keepdim=True)) / self.w.std((1, 2, 3), keepdim=True))

    assert count_flops(Call(forward, w=torch.randn(4, 3, 3, 3)), torch.zeros(1, 3, 5, 5)).dense == 2 * 4 * 27 * 9


def test_low_rank_adapter() -> None:
    def forward(self: Call, x: Tensor) -> Tensor:
        return F.linear(x, self.w + self.b @ self.a)

    model = Call(forward, w=torch.zeros(5, 6), a=torch.zeros(2, 6), b=torch.zeros(5, 2))
    layers = {name: layer.dense for name, layer in count_flops(model, torch.zeros(1, 6)).layers.items()}
    assert layers == {"a": 2 * 5 * 2 * 6, "w": 2 * 5 * 6}


def test_batched_and_left_hand_weights() -> None:
    experts = Call(lambda self, x: torch.matmul(x, self.w), w=torch.zeros(3, 4, 5))
    mask = random_mask(experts.w)
    flops = count_flops(experts, torch.zeros(2, 3, 6, 4), {"w": mask})
    assert flops == Flops(2 * 2 * 6 * 60, 2 * 2 * 6 * int(mask.sum()), flops.layers)
    left = Call(lambda self, x: self.w @ x, w=torch.zeros(3, 4))
    assert count_flops(left, torch.zeros(2, 4, 5)).dense == 2 * 2 * 5 * 12
    einsum = Call(lambda self, x: torch.einsum("btd,ehd->bteh", x, self.w), w=torch.zeros(2, 3, 4))
    assert count_flops(einsum, torch.zeros(2, 5, 4)).dense == 2 * 10 * 24


@pytest.mark.parametrize(
    "forward",
    [lambda self, x: self.w @ x, lambda self, x: x @ self.w.T, lambda self, x: torch.addmv(self.b, self.w, x)],
    ids=["left", "right", "addmv"],
)
def test_a_product_with_a_vector_counts(forward: Callable[[Call, Tensor], Tensor]) -> None:
    model = Call(forward, w=torch.zeros(6, 4), b=torch.zeros(6))
    mask = random_mask(model.w)
    assert count_flops(model, torch.zeros(4), {"w": mask}).layers == {"w": LayerFlops(2 * 24, 2 * int(mask.sum()))}


def test_a_bilinear_layer_counts_each_weight_once_a_sample() -> None:
    layer = nn.Bilinear(4, 5, 6)
    mask = random_mask(layer.weight)
    flops = count_flops(layer, (torch.zeros(2, 7, 4), torch.zeros(2, 7, 5)), {"weight": mask})
    assert flops.layers == {"weight": LayerFlops(2 * 14 * 120, 2 * 14 * int(mask.sum()))}


def test_learned_queries_count_under_the_layer() -> None:
    model = Call(lambda self, x: F.linear(self.queries, self.w), queries=torch.zeros(7, 4), w=torch.zeros(5, 4))
    assert count_flops(model, torch.zeros(1)).layers == {"w": LayerFlops(2 * 7 * 20, 2 * 7 * 20)}


def test_free_of_charge() -> None:
    """Activation by activation, embeddings, normalisation, positions, bias matrices, 1-D parameters cost nothing."""

    def forward(self: Call, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.table) + self.positions
        scores = torch.baddbmm(self.bias, x, x.mT)
        x = F.layer_norm(scores.softmax(-1) @ x, self.gain.shape, self.gain)
        return x.reshape(-1, 1) @ self.vector[None]

    model = Call(
        forward,
        table=torch.zeros(9, 4),
        positions=torch.zeros(1, 3, 4),
        bias=torch.zeros(1, 3, 3),
        gain=torch.ones(3, 4),
        vector=torch.ones(4),
    )
    assert count_flops(model, torch.zeros(1, 3, dtype=torch.long)) == Flops(0, 0, {})


def test_positions_of_the_shape_of_the_activations_are_not_a_weight() -> None:
    model = Call(
        lambda self, x: F.linear(x + self.positions, self.w), positions=torch.zeros(1, 3, 4), w=torch.zeros(5, 4)
    )
    assert set(count_flops(model, torch.zeros(1, 3, 4)).layers) == {"w"}


def test_agrees_with_torchs_counter_where_no_activations_are_multiplied() -> None:
    model = MODELS["wrn-22-2"]().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(sample("wrn-22-2"))
    assert count_flops(model, sample("wrn-22-2")).dense == counter.get_total_flops()


# Masks


@given(density=st.floats(0, 1), seed=st.integers(0, 99), batch=st.integers(1, 3))
def test_sparse_is_dense_times_density_exactly(density: float, seed: int, batch: int) -> None:
    layer = nn.Conv2d(3, 4, 3, device="meta")
    mask = random_mask(layer.weight, density, seed)
    flops = count_flops(layer, torch.zeros(batch, 3, 5, 5), {"weight": mask})
    assert flops.sparse * mask.numel() == flops.dense * int(mask.sum())


def test_masks_are_read_and_zeros_are_not() -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    assert count_flops(layer, torch.ones(1, 4)).sparse == 24
    assert count_flops(layer, torch.ones(1, 4), {"weight": torch.ones(3, 4, dtype=torch.bool)}).sparse == 24


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"wieght": torch.ones(3, 4, dtype=torch.bool)}, r"masks\['wieght'\].*did you mean 'weight'"),
        ({"weight": torch.ones(4, 3, dtype=torch.bool)}, r"\(4, 3\).*\(3, 4\)"),
        ({"weight": torch.ones(3, 4)}, r"torch\.float32.*expected torch\.bool"),
    ],
)
def test_masks_that_do_not_fit(masks: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_flops(nn.Linear(4, 3), torch.ones(1, 4), masks)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_are_refused_and_stay_lazy() -> None:
    model = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="run one forward pass"):
        count_flops(model, torch.ones(1, 4))
    assert nn.parameter.is_lazy(model.weight)


# Wrappers and devices


def test_attached_model() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.static(sparsity=0.5))
    flops = count_flops(model, torch.zeros(1, 8), sparsifier.masks)
    assert {name: layer.sparse // 2 for name, layer in flops.layers.items()} == sparsifier.num_alive


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated")
def test_wrapped_models() -> None:
    inner = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    expected = count_flops(inner, torch.zeros(1, 4))
    for wrapped in (
        torch.compile(inner, backend="eager"),
        nn.DataParallel(inner),
        nn.DataParallel(torch.compile(inner, backend="eager")),
    ):
        assert count_flops(wrapped, torch.zeros(1, 4)) == expected
    inner.compile(backend="eager")
    inner(torch.zeros(1, 4))
    assert count_flops(inner, torch.zeros(1, 4)) == expected


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_meta_and_real_device_agree(kind: type[nn.RNNBase]) -> None:
    masks = random_masks(kind(4, 3))
    x = torch.zeros(5, 1, 4)
    assert count_flops(kind(4, 3, device="meta"), x, masks) == count_flops(kind(4, 3), x, masks)


def test_fake_tensors() -> None:
    with FakeTensorMode():
        assert count_flops(MODELS["wrn-22-2"](), sample("wrn-22-2")).dense == FULL["wrn-22-2"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_cuda(kind: type[nn.RNNBase]) -> None:
    model = kind(4, 3, num_layers=2, dropout=0.5).cuda()
    masks = random_masks(model)
    before = torch.cuda.get_rng_state()
    flops = count_flops(model, torch.zeros(5, 1, 4, device="cuda"), masks)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.backends.cudnn.enabled
    assert flops == count_flops(model.cpu(), torch.zeros(5, 1, 4), masks)
    assert flops == count_flops(model, torch.zeros(5, 1, 4), {name: mask.cuda() for name, mask in masks.items()})


def test_inference_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    x = torch.zeros(1, 3, 5, 5)
    expected = count_flops(model, x)
    assert set(expected.layers) == {"0.weight", "2.weight"}
    with torch.inference_mode():
        assert count_flops(model, x) == expected
        assert torch.is_inference_mode_enabled()
    model.forward = torch.inference_mode()(model.forward)  # type: ignore[method-assign]
    assert count_flops(model, x) == expected


def test_autocast_of_the_caller() -> None:
    """The cast weights that autocast keeps from an earlier pass have storages of their own."""
    model, x = nn.Linear(4, 3), torch.zeros(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        assert count_flops(model, x).dense == 24
        assert torch.is_autocast_enabled("cpu")


def test_autocast_inside_the_model() -> None:
    def forward(self: Call, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x, self.w)

    mask = random_mask(torch.ones(3, 4))
    flops = count_flops(Call(forward, w=torch.zeros(3, 4)), torch.zeros(1, 4), {"w": mask})
    assert flops.layers == {"w": LayerFlops(24, 2 * int(mask.sum()))}


def test_empty_weights_and_empty_parts_of_weights() -> None:
    model = Call(
        lambda self, x: F.linear(x, self.empty).sum() + F.linear(x, self.w[:0]).sum(),
        empty=torch.zeros(0, 4),
        w=torch.zeros(3, 4),
    )
    masks = {"empty": torch.zeros(0, 4, dtype=torch.bool), "w": torch.ones(3, 4, dtype=torch.bool)}
    assert count_flops(model, torch.zeros(1, 4), masks) == Flops(0, 0, {})


def test_sparse_inputs_and_empty_batches() -> None:
    model = Call(lambda self, edges, x: torch.sparse.mm(edges, x @ self.w), w=torch.zeros(4, 3))
    assert count_flops(model, (torch.eye(5).to_sparse(), torch.zeros(5, 4))).dense == 2 * 5 * 12
    model = Call(lambda self, x: torch.sparse.mm(self.edges * 2, x @ self.w), w=torch.zeros(4, 3))
    model.register_buffer("edges", torch.eye(5).to_sparse())
    assert count_flops(model, torch.zeros(5, 4)).dense == 2 * 5 * 12
    assert count_flops(nn.Linear(4, 3), torch.zeros(0, 4)).dense == 0


# Nothing changes


class Restless(nn.Module):
    """Changes what it can in its forward pass: normalisation statistics, buffers, RNG, its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.frozen = nn.BatchNorm2d(4).eval()
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(2), persistent=False)
        self.fail = False

    def train(self, mode: bool = True) -> "Restless":
        raise AssertionError("counting sets flags, it does not call train()")

    def forward(self, x: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        assert not torch.is_grad_enabled()
        x.sub_(1)
        self.calls += 1
        y = self.fc(self.dropout(self.frozen(self.norm(self.conv(x)))).mean((2, 3)))
        y = y + torch.rand_like(y)
        self.average = self.average + y.mean(0)
        if self.fail:
            raise RuntimeError("the forward pass failed")
        return y


@pytest.mark.parametrize("fail", [False, True])
def test_counting_changes_nothing(fail: bool) -> None:
    model = Restless()
    calls: list[nn.Module] = []
    handle = model.fc.register_forward_hook(lambda module, args, output: calls.append(module))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    gradients = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None}
    flags = {name: module.training for name, module in model.named_modules()}
    hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    x = torch.randn(2, 3, 5, 5)
    x_before = x.clone()
    rng = torch.get_rng_state()
    backends = (torch.backends.mkldnn, torch.backends.cudnn)
    switches = [backend.enabled for backend in backends] + [torch.backends.mha.get_fastpath_enabled()]

    model.fail = fail
    if fail:
        with pytest.raises(RuntimeError, match="the forward pass failed"):
            count_flops(model, x)
    else:
        assert count_flops(model, x).dense == 2 * 2 * (4 * 27 * 9 + 8)

    assert len(calls) == 1  # the user's hook saw the pass, and is still there
    assert handle.id in model.fc._forward_hooks
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        assert tensor is tensors[name]
        assert torch.equal(tensor, values[name]), name
    for name, parameter in model.named_parameters():
        gradient, value = gradients[name]
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
        assert parameter.requires_grad
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert flags["norm"]
    assert not flags["frozen"]
    assert hooks == {name: len(module._forward_hooks) for name, module in model.named_modules()}
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, x_before)
    assert torch.is_grad_enabled()
    assert switches == [backend.enabled for backend in backends] + [torch.backends.mha.get_fastpath_enabled()]
