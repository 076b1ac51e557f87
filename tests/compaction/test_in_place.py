"""Writes in place in a forward that is cut: whoever reads before or after finds what dense storage shows it."""

from collections.abc import Callable

import pytest
import torch
from pairs import pair
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.compaction.capture import graph_forward


class Net(nn.Module):
    """Two convolutions and two heads around a step that writes in place."""

    def __init__(self, middle: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head, self.other = nn.BatchNorm2d(8), nn.Linear(8, 5), nn.Linear(8, 5)
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU(inplace=True)
        self.shift = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("center", torch.zeros(8))
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, x)

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))

    def rest(self, x: Tensor) -> Tensor:
        return self.head(self.second(x).mean((2, 3)))


def assert_same(dense: nn.Module, compact: nn.Module, shape: tuple[int, ...] = (4, 3, 6, 6)) -> None:
    """Outputs, the images given and the state afterwards, and gradients where dense storage has them."""
    ours, theirs = torch.randn(shape), torch.empty(shape)
    theirs.copy_(ours)
    found, expected = compact(ours), dense(theirs)
    assert torch.equal(found, expected)
    assert torch.equal(ours, theirs)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(compact.head.bias.grad, dense.head.bias.grad)
    state = dense.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in compact.state_dict().items())


def adds_to_a_tensor_of_two_names(net: Net, x: Tensor) -> Tensor:
    x = net.features(x)
    skip = x
    x += net.shift
    return net.rest(F.relu(x) + skip)


def scales_what_a_list_holds(net: Net, x: Tensor) -> Tensor:
    held = [net.features(x)]
    x = held[0]
    x *= 2
    x /= 3
    return net.rest(held[0])


def adds_to_the_data_of_a_tensor(net: Net, x: Tensor) -> Tensor:
    x = net.features(x)
    detached = x.data
    detached -= 1
    return net.rest(x)


def pools_before_it_activates(net: Net, x: Tensor) -> Tensor:
    x = F.gelu(net.first(x))
    pooled = x.mean((2, 3))
    return net.other(pooled) + net.rest(net.silu(x))


def pools_a_view_before_it_activates(net: Net, x: Tensor) -> Tensor:
    x = F.gelu(net.first(x))
    pooled = x.view(x.shape).mean((2, 3))
    return net.other(pooled) + net.rest(net.silu(x))


def adds_views_of_what_it_wrote(net: Net, x: Tensor) -> Tensor:
    x = net.features(x)
    view = x.view(x.shape)
    net.relu(x)
    return net.rest(view + x)


def writes_to_the_images(net: Net, x: Tensor) -> Tensor:
    x -= 0.5
    return net.rest(net.features(x))


def activates_the_images(net: Net, x: Tensor) -> Tensor:
    return net.rest(net.features(net.relu(x)))


def writes_to_a_buffer(net: Net, x: Tensor) -> Tensor:
    x = net.features(x)
    net.center.lerp_(x.detach().mean((0, 2, 3)), 0.1)
    return net.rest(x)


def assigns_to_an_item_of_a_buffer(net: Net, x: Tensor) -> Tensor:
    x = net.features(x)
    net.center[2] = x.detach().mean()
    return net.rest(x)


def writes_to_a_buffer_as_out(net: Net, x: Tensor) -> Tensor:
    x = net.features(x)
    torch.sum(x.detach(), (0, 2, 3), out=net.center)
    return net.rest(x)


def clamps_a_parameter(net: Net, x: Tensor) -> Tensor:
    net.head.bias.data.clamp_(0.01, 0.02)
    return net.rest(net.features(x))


def counts_with_sizes(net: Net, x: Tensor) -> Tensor:
    images = x.size(0)
    before = images
    images *= 2
    return net.rest(net.features(x)).view(before, -1) + images


REFUSED = [
    adds_to_the_data_of_a_tensor,
    pools_before_it_activates,
    pools_a_view_before_it_activates,
    adds_views_of_what_it_wrote,
    writes_to_the_images,
    activates_the_images,
    writes_to_a_buffer,
    assigns_to_an_item_of_a_buffer,
    writes_to_a_buffer_as_out,
    clamps_a_parameter,
]
CUT = [adds_to_a_tensor_of_two_names, scales_what_a_list_holds, counts_with_sizes]


@pytest.mark.parametrize("middle", [*REFUSED, *CUT])
def test_what_is_written_in_place_is_written(middle: Callable[[Net, Tensor], Tensor]) -> None:
    dense, compact = pair(Net(middle))
    assert_same(dense, compact)
    (forward,) = [forward for forward in graph_forward.installed(compact) if forward.module is compact]
    assert (forward.failure is not None) == (middle in REFUSED), forward.failure


class Residual(nn.Module):
    """As torchvision writes it."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.activation, self.head = activation, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.activation(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(identity))
        out += identity
        out = self.activation(out)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(out, 1), 1))


@pytest.mark.parametrize(("activation", "count"), [(nn.ReLU(inplace=True), 1), (nn.ReLU6(inplace=True), 3)])
def test_what_common_nets_write_in_place_is_cut(activation: nn.Module, count: int) -> None:
    dense, compact = pair(Residual(activation))
    assert_same(dense, compact)
    (forward,) = graph_forward.installed(compact)
    assert len(forward.regions) == count
