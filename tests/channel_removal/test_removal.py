"""Channels taken out: the same outputs from fewer of them, through all that is followed, and errors elsewhere."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.channel_removal.removal import Offset
from regrow_lab.models import find_model

Masks = dict[str, Tensor]


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Biases, batch norm's scale, shift and statistics as after a training, so that dead channels leave constants."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
        elif getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias)
    return model


def kill(model: nn.Module, dead: dict[str, list[int]]) -> Masks:
    """Masks in which these output channels are dead, and the weights zeroed."""
    masks = {}
    for name, channels in dead.items():
        weight = model.get_parameter(name)
        masks[name] = torch.ones_like(weight, dtype=torch.bool)
        masks[name][channels] = False
        weight.data.mul_(masks[name])
    return masks


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        found = model(inputs)
    for module, training in zip(model.modules(), modes, strict=True):
        module.training = training
    return found


def check(model: nn.Module, masks: Masks, size: tuple[int, ...]) -> nn.Module:
    """The smaller net, after its outputs were found equal on inputs that it was not made with."""
    small = regrow.remove_dead_channels(model, masks, torch.randn(2, *size))
    assert type(small) is type(model)
    inputs = torch.randn(5, *size)
    expected = outputs(model, inputs)
    assert torch.allclose(outputs(small, inputs), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    return small


def widths(model: nn.Module) -> list[int]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return [module.weight.shape[0] for module in model.modules() if isinstance(module, kinds)]


def offsets(model: nn.Module) -> int:
    return sum(isinstance(module, Offset) for module in model.modules())


def test_the_constant_of_a_dead_channel_moves_into_the_bias_of_an_unpadded_layer() -> None:
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.Flatten()
        )
    )
    small = check(model, kill(model, {"0.weight": [0, 3, 7]}), (3, 7, 7))
    assert widths(small) == [5, 6]
    assert small[3].bias is not None
    assert small[1].num_features == small[3].in_channels == 5
    assert offsets(small) == 0
    bigger = torch.randn(2, 3, 9, 9)
    assert torch.allclose(outputs(small, bigger), outputs(model, bigger), atol=1e-4)


def test_where_padding_shows_the_constant_becomes_an_image() -> None:
    model = lively(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.Tanh())
    )
    small = check(model, kill(model, {"0.weight": [1, 2]}), (3, 7, 7))
    assert widths(small) == [6, 6]
    assert offsets(small) == 1
    with pytest.raises(AssertionError, match="make it again with an example_input of the new size"):
        small(torch.randn(1, 3, 9, 9))


def test_without_a_constant_there_is_nothing_to_move() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.ReLU()
    )
    small = check(model, kill(model, {"0.weight": [1, 2]}), (3, 7, 7))
    assert widths(small) == [6, 6]
    assert offsets(small) == 0
    assert small[2].bias is None


def test_flatten_and_pooling_before_a_linear_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3)
            self.head, self.last = nn.Linear(10 * 4 + 10, 7), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.first(x)), 2)
            x = F.relu_(self.second(x))
            x = torch.cat([x.view(x.size(0), -1), x.mean((2, 3))], dim=1)
            return self.last(F.gelu(self.head(F.dropout(x, 0.5, self.training))))

    model = lively(Net())
    small = check(model, kill(model, {"first.weight": [0], "second.weight": [2, 5], "head.weight": [6]}), (3, 8, 8))
    assert widths(small) == [7, 8, 6, 4]
    assert small.head.in_features == 8 * 4 + 8


def test_a_channel_of_a_sum_goes_only_if_it_is_dead_in_every_term() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
            self.norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.norm(self.inner(F.relu(x)))
            return self.head(F.relu(x)).mean(dim=(2, 3))

    model = lively(Net())
    small = check(model, kill(model, {"stem.weight": [0, 1, 4], "inner.weight": [1, 4, 5]}), (3, 6, 6))
    assert widths(small) == [4, 4, 4]  # 1 and 4 are dead in both


def test_a_sum_written_onto_its_first_term_is_a_sum() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            total = self.one(x)
            total.add_(self.other(x))
            return self.head(total)

    model = lively(Net())
    small = check(model, kill(model, {"one.weight": [0, 1], "other.weight": [1]}), (3, 6, 6))
    assert widths(small) == [5, 5, 4]


def test_a_depthwise_convolution_goes_with_its_channel() -> None:
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
    )  # fmt: skip
    small = check(model, kill(model, {"0.weight": [2], "3.weight": [0, 1, 6]}), (3, 6, 6))
    assert (small[0].out_channels, small[3].groups, small[3].out_channels, small[6].in_channels) == (6, 6, 12, 12)


def test_what_no_one_reads_is_removed_too() -> None:
    """Unstructured masks: a unit whose outgoing weights are all dead, and one that sees only constants."""
    model = lively(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "2.weight")}
    masks["2.weight"][:, 3] = False  # unit 3 is not read
    masks["0.weight"][5] = False  # unit 5 is a constant
    masks["2.weight"][1] = False
    masks["2.weight"][1, 5] = True  # so unit 1 above it is one as well
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    assert widths(check(model, masks, (6,))) == [6, 7, 3]


def test_a_layer_that_is_all_dead_keeps_one_channel() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    assert widths(check(model, kill(model, {"0.weight": [0, 1, 2, 3]}), (3, 6, 6))) == [1, 2]


def test_other_groups_keep_their_channels() -> None:
    model = lively(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 3, 1)))
    assert widths(check(model, kill(model, {"0.weight": [1], "2.weight": [2]}), (4, 6, 6))) == [8, 8, 3]


@pytest.mark.parametrize(("build", "size"), [(nn.Conv1d, (3, 9)), (nn.Conv3d, (3, 5, 5, 5))])
def test_other_dimensions(build, size) -> None:
    model = lively(nn.Sequential(build(3, 6, 3, padding=1), nn.ReLU(), build(6, 4, 3, padding=1), nn.Flatten()))
    small = check(model, kill(model, {"0.weight": [0, 4]}), size)
    assert widths(small) == [4, 4]


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet18-cifar", "resnet50-cifar", "vgg16-bn", "mobilenet-v1-cifar"])
@pytest.mark.parametrize("distribution", [regrow.uniform, regrow.erk])
def test_models_of_the_lab_after_training_steps(name, distribution) -> None:
    torch.manual_seed(0)
    model = lively(find_model(name)(num_classes=10, multiplier=0.5 if name.startswith("wrn") else 0.125))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    recipe = regrow.rigl_struct(sparsity=0.7, total_steps=8, every=2, distribution=distribution)
    sparsifier = regrow.attach(model, optimizer, recipe, strict=True)
    for _ in range(4):
        F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sparsifier.num_updates == 1
    masks = sparsifier.masks
    sparsifier.detach()
    small = check(model, masks, (3, 32, 32))
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    assert widths(small)[-1] == 10


def test_the_model_is_left_alone_and_modes_and_gradients_are_copied() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    masks = kill(model, {"0.weight": [1]})
    before = copy.deepcopy(model.state_dict())
    example = torch.randn(1, 3, 8, 8)
    kept = example.clone()
    small = regrow.remove_dead_channels(model, masks, example)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert [module.training for module in small.modules()] == [True, True, False, True, True]
    assert not small[0].weight.requires_grad
    assert small[3].weight.requires_grad
    assert torch.equal(example, kept)
    small(example).sum().backward()
    assert small[3].weight.grad is not None


def test_a_net_without_dead_channels_comes_back_whole() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)))
    small = check(model, {}, (3, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), small.parameters(), strict=True))


def refused(message: str, model: nn.Module, masks: Masks, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=message):
        regrow.remove_dead_channels(model, masks, torch.randn(2, *size))


def test_a_graph_that_cannot_be_followed_is_refused_and_says_where() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 4, 3))
    refused("dead channels reach '1', and what it does with channels", model, kill(model, {"0.weight": [1]}), (4, 8, 8))
    check(model, {}, (4, 8, 8))  # which is no matter where none are dead

    class Shuffles(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            return self[1](x.permute(0, 1, 3, 2))

    shuffles = Shuffles(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3))
    refused("dead channels reach permute", shuffles, kill(shuffles, {"0.weight": [1]}), (4, 8, 8))

    class Branches(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x) if x.sum() > 0 else x

    branches = Branches(nn.Conv2d(4, 4, 3))
    refused("the forward of Branches cannot be followed", branches, kill(branches, {"0.weight": [1]}), (4, 8, 8))

    twice = nn.Conv2d(4, 4, 1)
    shared = nn.Sequential(twice, twice, nn.ReLU())
    check(shared, kill(shared, {"0.weight": [1]}), (4, 5, 5))  # nothing can be removed, nothing is

    class Fixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).view(-1, 6 * 36))

    fixed = Fixed(nn.Conv2d(4, 6, 3), nn.Linear(6 * 36, 3))
    refused("its forward has a fixed number of channels", fixed, kill(fixed, {"0.weight": [1]}), (4, 8, 8))


def test_an_operation_that_gives_several_tensors_keeps_its_channels_or_is_named() -> None:
    class Gated(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            values, gates = self[1](self[0](x)).chunk(2, dim=1)
            return self[2](values * gates.sigmoid())

    class Longest(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x)).max(2)[0])

    class Recurrent(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x).flatten(2).transpose(1, 2))[0])

    gated = Gated(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(6, 3, 3))
    longest = Longest(nn.Conv1d(4, 8, 3), nn.Conv1d(8, 6, 3), nn.Linear(6, 3))
    recurrent = Recurrent(nn.Conv2d(4, 6, 3), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3))
    for model, size in ((gated, (4, 8, 8)), (longest, (4, 9)), (recurrent, (4, 5, 5))):
        check(model, {}, size)
    for model, size in ((gated, (4, 8, 8)), (longest, (4, 9))):
        smaller = check(model, kill(model, {"0.weight": [1, 5]}), size)
        assert smaller[1].weight.shape[1] == 6  # what comes before is cut all the same
    refused("dead channels reach chunk", gated, kill(gated, {"1.weight": [2]}), (4, 8, 8))
    refused("dead channels reach max", longest, kill(longest, {"1.weight": [2]}), (4, 9))


def test_masks_that_do_not_fit_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 3))
    masks = kill(model, {"0.weight": [1]})
    refused("the model has no such weight", model, {"nosuch.weight": masks["0.weight"]}, (4, 8, 8))
    refused("the model has no such weight", model, {"0.weight": masks["0.weight"].float()}, (4, 8, 8))
    model[0].weight.data[1, 0, 0, 0] = 1.0
    refused(r"dead weights of '0.weight' are not 0: call sparsifier.apply_masks", model, masks, (4, 8, 8))


def test_the_smaller_net_needs_fewer_flops() -> None:
    model = lively(find_model("wrn-22-2")(num_classes=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl_struct(sparsity=0.8, total_steps=100))
    example = torch.randn(1, 3, 32, 32)
    small = regrow.remove_dead_channels(model, sparsifier.masks, example)
    masked = regrow.count_flops(model, example, sparsifier.masks)
    assert regrow.count_flops(small, example).dense < 0.75 * masked.dense


def residual_net() -> nn.Sequential:
    """ImageNet's stem and four stages: at 32 × 32 the last is one pixel, where every padded convolution looks flat."""

    class Block(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.one, self.norm = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.two, self.last = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
            self.beside = nn.Conv2d(before, width, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.last(self.two(F.relu(self.norm(self.one(x))))) + self.beside(x))

    return nn.Sequential(
        *(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Block(8, 8, 1)),
        *(Block(8, 8, 2), Block(8, 8, 2), Block(8, 16, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )


def pooled(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Sigmoid(), *between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


class Bordered(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](F.pad(self[0](x), (1, 1, 1, 1), value=3.0)).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "layer", "size", "other"),
    [
        (residual_net(), "6.one.weight", 32, 64),
        (pooled(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU()), "0.weight", 8, 24),
        (pooled(nn.AvgPool2d(3, 2, 1)), "0.weight", 8, 32),
        (Bordered(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)), "0.weight", 8, 9),
        # Outputs of 4 × 4 from both, and only the odd size has a tap over the right edge.
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, 2, 1)), "0.weight", 8, 7),
    ],
)
def test_a_constant_that_depends_on_the_size_holds_for_inputs_of_that_size_only(model, layer, size, other) -> None:
    masks = kill(lively(model), {layer: [1, 6]})
    small = check(model, masks, (3, size, size))
    assert small.get_parameter(layer).shape[0] == model.get_parameter(layer).shape[0] - 2
    for net in (small, copy.deepcopy(small)):
        with pytest.raises(AssertionError, match="make it again with an example_input of the new size"):
            net(torch.randn(2, 3, other, other))
    check(model, masks, (3, other, other))


@pytest.mark.parametrize(
    "model",
    [
        pooled(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.AvgPool2d(2)),
        pooled(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.MaxPool2d(3, 1, 1)),
        pooled(nn.Conv2d(8, 8, 1), nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(8, 8, 3)),
    ],
)
def test_a_constant_that_does_not_depend_on_the_size_leaves_every_size_open(model) -> None:
    small = check(model, kill(lively(model), {"0.weight": [1, 6]}), (3, 8, 8))
    bigger = torch.randn(2, 3, 24, 20)
    assert torch.allclose(outputs(small, bigger), outputs(model, bigger), atol=1e-4)


def test_padding_does_not_show_where_only_the_middle_tap_is_alive() -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, padding=1)))
    masks = kill(model, {"0.weight": [1, 6]})
    model[1].weight.data[:, :, [0, 2]] = 0
    model[1].weight.data[:, :, :, [0, 2]] = 0
    small = check(model, masks, (3, 1, 1))
    bigger = torch.randn(2, 3, 9, 9)
    assert torch.allclose(outputs(small, bigger), outputs(model, bigger), atol=1e-4)


class Rolled(nn.Sequential):
    """Mixes channels with an operation that is known for what it does to positions."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](F.pad(self[0](x), (0, 0, 0, 0, 1, -1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_comparison_finds_mixed_channels_in_every_precision(dtype) -> None:
    model = lively(Rolled(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3))).to(dtype)
    masks = kill(model, {"0.weight": [1, 6]})
    with pytest.raises(ValueError, match="mixes channels in a way that was not seen"):
        regrow.remove_dead_channels(model, masks, torch.randn(2, 3, 6, 6, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_obstacle(dtype) -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3)))
    masks = kill(model, {"0.weight": [1, 6]})
    small = regrow.remove_dead_channels(model.to(dtype), masks, torch.randn(2, 3, 8, 8, dtype=dtype))
    assert widths(small) == [6, 6]


def test_a_pool_along_the_features_of_a_linear_layer_is_not_followed() -> None:
    for shape, dtype in (((12,), torch.float32), ((7, 12), torch.float32), ((12,), torch.bfloat16)):
        model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.AvgPool1d(3, 1, 1), nn.Linear(24, 5)).to(dtype)
        masks = kill(lively(model), {"0.weight": [3, 20]})
        with pytest.raises(ValueError, match="dead channels reach '2', and what it does with channels is not known"):
            regrow.remove_dead_channels(model, masks, torch.randn(2, *shape, dtype=dtype))


@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
def test_outputs_that_are_not_finite_are_compared_as_they_are(value) -> None:
    class Choice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x))).masked_fill(self.illegal, value)

    model = lively(Choice(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    model.register_buffer("illegal", torch.tensor([True, False, False, False]))
    small = regrow.remove_dead_channels(model, kill(model, {"0.weight": [1]}), torch.randn(2, 6))
    inputs = torch.randn(5, 6)
    assert torch.allclose(outputs(small, inputs), outputs(model, inputs), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False, None])
def test_a_bias_that_a_constant_moves_into_learns_if_it_did(weight, bias) -> None:
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 5, 3, bias=bias is not None)))
    model[2].weight.requires_grad_(weight)
    if bias is not None:
        model[2].bias.requires_grad_(bias)
    small = check(model, kill(model, {"0.weight": [1]}), (3, 8, 8))
    assert small[2].weight.requires_grad == weight
    assert small[2].bias.requires_grad == (weight if bias is None else bias)


class Asks(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        x = self[1](F.relu(self[0](x)))
        return x.mean((2, 3)) * self[1].out_channels / self[1].weight.shape[2]


def test_a_layer_that_was_given_an_image_has_its_attributes_still() -> None:
    model = lively(Asks(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3, padding=1)))
    small = check(model, kill(model, {"0.weight": [1, 6]}), (3, 9, 9))
    assert offsets(small) == 1
    assert (small[1].in_channels, small[1].kernel_size, small[1].weight.shape) == (6, (3, 3), (5, 6, 3, 3))
    inputs = torch.randn(2, 3, 9, 9)
    assert torch.equal(outputs(copy.deepcopy(small), inputs), outputs(small, inputs))
    assert not hasattr(small[1], "nosuch")


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5)), (12,)),
        (nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 5, 3)), (3, 9, 9)),
        (nn.Sequential(nn.Conv1d(3, 24, 3), nn.ReLU(), nn.Conv1d(24, 5, 3)), (3, 9)),
    ],
)
def test_an_example_without_a_batch_dimension_is_refused(model, size) -> None:
    with pytest.raises(
        ValueError, match=r"'0' is given a tensor of shape .*, without a batch dimension: make"
    ) as error:
        regrow.remove_dead_channels(model, kill(lively(model), {"0.weight": [3, 20]}), torch.randn(size))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_from_others_are_not_followed() -> None:
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.utils.spectral_norm(nn.Conv2d(8, 5, 3)))
    refused("dead channels reach '2'", normed, kill(normed, {"0.weight": [1, 6]}), (3, 9, 9))
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.utils.weight_norm(nn.Conv2d(8, 5, 3)))
    refused("cannot be copied .* call remove_weight_norm first", normed, kill(normed, {"0.weight": [1]}), (3, 9, 9))
