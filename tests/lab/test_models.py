"""The networks of the report: structure, size, initial values, widths, names."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regrow.accounting.flops import count_flops
from regrow.layers import find_layers
from regrow_lab.models import FAMILIES, INPUT_SHAPES, MODELS, OF_TEXT, example_input, find_model, fit, input_shape
from regrow_lab.models.char_gru import char_gru
from regrow_lab.models.lenet import lenet_5, lenet_300_100
from regrow_lab.models.resnet import BasicBlock, Bottleneck, resnet50_cifar
from regrow_lab.models.transformer import gpt, vit
from regrow_lab.models.wide_resnet import PreactivationBlock, wide_resnet


def meta(name: str, **options: float) -> nn.Module:
    with torch.device("meta"):
        return find_model(name)(**options)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: layer.shape for name, layer in find_layers(model).items()}


@pytest.mark.parametrize(
    ("name", "weights", "parameters"),
    [
        ("lenet-300-100", 50_200, 50_610),
        ("wrn-22-2", 1_076_912, 1_079_642),
        ("resnet50-cifar", 23_652_032, 23_705_252),
        ("resnet50-imagenet", 25_502_912, 25_557_032),
        # as torchvision and timm count them, and the papers of the pruning literature
        ("resnet18-imagenet", 11_678_912, 11_689_512),
        ("resnet34-imagenet", 21_779_648, 21_797_672),
        ("resnet101-imagenet", 44_442_816, 44_549_160),
        ("lenet-5", 430_500, 431_080),
        ("mobilenet-v1", 4_209_088, 4_231_976),
        ("mobilenet-v1-cifar", 3_195_328, 3_217_226),
        ("vgg16-bn", 14_715_584, 14_728_266 - 4_224),  # without the biases of the convolutions
        ("vit-12-384-16", 21_912_576, 22_050_664),
        ("vit-12-192-16", 5_647_872, 5_717_416),
        ("vit-12-768-16", 86_292_480, 86_567_656),
        ("char-gru", 3 * 512 * (128 + 512) + 512 * 256 + 256 * 128, 1_183_104),
    ],
)
def test_sizes(name: str, weights: int, parameters: int) -> None:
    model = meta(name)
    assert sum(layer.size for layer in find_layers(model).values()) == weights
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_sizes_with_the_classes_of_other_sources() -> None:
    def parameters(name: str, **options: float) -> int:
        return sum(parameter.numel() for parameter in meta(name, **options).parameters())

    assert parameters("resnet18-cifar", num_classes=10) == 11_173_962
    assert parameters("resnet34-cifar", num_classes=10) == 21_282_122
    assert parameters("resnet101-cifar", num_classes=10) == 42_512_970
    with torch.device("meta"):  # GPT-2, the smallest
        model = gpt(depth=12, width=768, context=1024, num_classes=50_257)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


@pytest.mark.parametrize(("name", "classes"), [(name, classes) for name in MODELS for classes in (7, 1)])
def test_outputs(name: str, classes: int) -> None:
    output = meta(name, num_classes=classes)(example_input(name, batch_size=2))
    assert output.shape == ((2, 512, classes) if name.startswith(OF_TEXT) else (2, classes))


@pytest.mark.parametrize(
    "name", ["resnet18-cifar", "vgg16-bn", "mobilenet-v1-cifar", "lenet-5", "gpt-1-32", "char-gru"]
)
def test_flops_are_twice_the_weights_times_the_places(name: str) -> None:
    """So a mask changes the FLOPs of each layer in proportion to its density."""
    model = meta(name)
    counted = count_flops(model, example_input(name)).layers
    for layer in find_layers(model).values():
        places, rest = divmod(counted[layer.name].dense, 2 * layer.size)
        assert places > 0
        assert rest == 0


def test_attention_projections_are_layers() -> None:
    for name in ("gpt-4-128", "vit-12-384-16"):
        names = {key.split(".", 2)[2] for key in shapes(meta(name)) if key.startswith("blocks.")}
        assert names == {"attention.qkv.weight", "attention.out.weight", "fc1.weight", "fc2.weight"}
    assert not any("tokens" in key or "positions" in key for key in shapes(meta("gpt-4-128")))


@pytest.mark.parametrize("build", [lambda: gpt(depth=2, width=128, context=20), char_gru])
def test_language_models_do_not_look_ahead(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, tokens = build().eval(), torch.randint(256, (2, 12))
    changed = tokens.clone()
    changed[:, 8:] = (tokens[:, 8:] + 1) % 256
    with torch.no_grad():
        one, other = model(tokens), model(changed)
    assert torch.allclose(one[:, :8], other[:, :8], atol=1e-6)
    assert not torch.allclose(one[:, 8:], other[:, 8:], atol=1e-3)


def test_vit_sees_every_patch_in_its_place() -> None:
    torch.manual_seed(0)
    model = vit(depth=1, width=32, patch=4, image_size=8, num_classes=5).eval()
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        whole = model(image)
        assert not torch.equal(whole, model(torch.cat([image[..., 4:], image[..., :4]], dim=3)))
        for row, column in itertools.product((0, 4), repeat=2):
            covered = image.clone()
            covered[:, :, row : row + 4, column : column + 4] = 0
            assert not torch.equal(whole, model(covered))


def test_transformers_refuse_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="gpt has width 100; expected a multiple of 64, or less than 64"):
        find_model("gpt-2-100")()
    with pytest.raises(ValueError, match="patches of 5 pixels, which do not fill 32"):
        vit(patch=5, image_size=32)
    with pytest.raises(ValueError, match="lenet-5 needs images of 16 pixels or more, given 8"):
        lenet_5(image_size=8)


def test_transformers_start_small() -> None:
    torch.manual_seed(0)
    model = gpt(depth=8, width=128)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            ends = name.endswith(("out", "fc2"))
            assert module.weight.std().item() == pytest.approx(0.02 / 4 if ends else 0.02, rel=0.05)
            assert not module.bias.any()
    logits = model(torch.randint(256, (2, 30)))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(256, (60,)))
    assert loss.item() == pytest.approx(math.log(256), abs=0.1)


@pytest.mark.parametrize(
    ("name", "shape", "text", "keywords"),
    [
        ("lenet-300-100", (64,), False, {}),
        ("lenet-300-100", (1, 28, 28), False, {"inputs": 784}),
        ("lenet-5", (1, 28, 28), False, {}),
        ("lenet-5", (3, 32, 32), False, {"channels": 3, "image_size": 32}),
        ("wrn-22-2", (3, 32, 32), False, {}),
        ("wrn-16-4", (1, 28, 28), False, {"channels": 1}),
        ("resnet18-imagenet", (3, 160, 160), False, {}),
        ("vit-2-32-4", (3, 32, 32), False, {"image_size": 32}),
        ("char-gru", (64,), True, {}),
        ("gpt-1-32", (64,), True, {"context": 512}),
        ("gpt-1-32", (1024,), True, {"context": 1024}),
    ],
)
def test_networks_fit_themselves_to_the_data(name: str, shape: tuple[int, ...], text: bool, keywords: object) -> None:
    arguments = fit(name, shape, text=text, data="it")
    assert arguments == keywords
    with torch.device("meta"):
        model = find_model(name)(num_classes=9, **arguments)
    example = torch.zeros(2, *shape, dtype=torch.int64 if text else torch.float32, device="meta")
    assert model(example).shape == ((2, *shape, 9) if text else (2, 9))


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        ("wrn-22-2", (64,), False),
        ("vgg16-bn", (1, 28, 28), False),
        ("lenet-5", (3, 32, 48), False),
        ("char-gru", (64,), False),
        ("lenet-300-100", (64,), True),
    ],
)
def test_networks_refuse_data_that_they_cannot_take(name: str, shape: tuple[int, ...], text: bool) -> None:
    with pytest.raises(ValueError, match=rf"model {name} takes inputs of shape .*, data it has \({shape[0]},"):
        fit(name, shape, text=text, data="it")


def test_lenet_takes_any_input() -> None:
    model = lenet_300_100(inputs=784)
    assert sum(layer.size for layer in find_layers(model).values()) == 784 * 300 + 300 * 100 + 100 * 10
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert list(shapes(model)) == ["fc1.weight", "fc2.weight", "fc3.weight"]


def test_lenet_is_two_relus_deep() -> None:
    model = lenet_300_100(inputs=4, multiplier=0.01)
    x = torch.randn(5, 4)
    expected = model.fc3(model.fc2(model.fc1(x).relu()).relu())
    assert torch.equal(model(x), expected)


def trace(model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    sizes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out, name=name: sizes.update({name: tuple(out.shape[1:])}))
    model(x)
    return sizes


def test_wide_resnet_structure() -> None:
    model = meta("wrn-22-2")
    sizes = trace(model, torch.zeros(1, 3, 32, 32, device="meta"))
    assert sizes["stem"] == (16, 32, 32)
    for stage, (channels, image) in {1: (32, 32), 2: (64, 16), 3: (128, 8)}.items():
        of_stage = {name.partition(".")[2]: size for name, size in sizes.items() if name.startswith(f"stage{stage}")}
        assert set(of_stage.values()) == {(channels, image, image)}
        assert set(of_stage) == {"0.shortcut", *(f"{block}.conv{i}" for block in range(3) for i in (1, 2))}
    assert model.get_submodule("stage2.0.shortcut").stride == (2, 2)
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.3] * 9


def test_wide_resnets_of_other_sizes() -> None:
    for depth, width, millions in ((28, 10, 36.5), (16, 8, 11.0), (40, 4, 8.9)):
        with torch.device("meta"):
            model = wide_resnet(depth=depth, width=width)
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    with pytest.raises(ValueError, match="depth is 21; expected 6 n \\+ 4"):
        wide_resnet(depth=21)


def test_preactivation_block() -> None:
    """The identity carries the raw input; a projection sees it normalised and rectified."""
    x = torch.randn(2, 4, 6, 6)
    plain = PreactivationBlock(4, 4, 1, 0.0, project=False).eval()
    nn.init.zeros_(plain.conv2.weight)
    assert torch.equal(plain(x), x)
    projecting = PreactivationBlock(4, 8, 2, 0.0, project=True).eval()
    nn.init.zeros_(projecting.conv2.weight)
    assert projecting.shortcut is not None
    assert torch.allclose(projecting(x), projecting.shortcut(projecting.norm1(x).relu()))


def test_resnet50_structure() -> None:
    for name, stem, image in (("resnet50-cifar", (64, 32, 32), 32), ("resnet50-imagenet", (64, 112, 112), 56)):
        sizes = trace(meta(name), torch.zeros(1, *INPUT_SHAPES[name], device="meta"))
        assert sizes["stem.conv"] == stem
        for stage, blocks in enumerate((3, 4, 6, 3)):
            channels, side = 64 * 2**stage, image // 2**stage
            names = [key for key in sizes if key.startswith(f"stage{stage + 1}.")]
            assert len(names) == 3 * blocks + 1
            before = side * 2 if stage else side
            assert sizes[f"stage{stage + 1}.0.conv1"] == (channels, before, before)  # the stride is on the 3×3
            assert sizes[f"stage{stage + 1}.0.conv2"] == (channels, side, side)
            assert sizes[f"stage{stage + 1}.0.shortcut.conv"] == (4 * channels, side, side)
            assert sizes[f"stage{stage + 1}.{blocks - 1}.conv3"] == (4 * channels, side, side)


def test_basic_resnets_project_only_where_the_shape_changes() -> None:
    names = [name for name in shapes(meta("resnet18-cifar")) if "shortcut" in name]
    assert names == [f"stage{stage}.0.shortcut.conv.weight" for stage in (2, 3, 4)]


def test_residual_blocks_start_as_the_identity() -> None:
    x = torch.randn(2, 16, 5, 5).relu()
    assert torch.equal(BasicBlock(16, 16, 1, project=False)(x), x)
    assert torch.equal(Bottleneck(16, 4, 1, project=False)(x), x)


@pytest.mark.parametrize("build", [wide_resnet, resnet50_cifar])
def test_initial_values(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = build(multiplier=0.5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
            assert module.weight.any()
        if isinstance(module, Bottleneck):
            assert not module.norm3.weight.any()
            assert (module.norm1.weight == 1).all()
        if isinstance(module, PreactivationBlock):
            assert (module.norm1.weight == 1).all()
            assert (module.norm2.weight == 1).all()


@pytest.mark.parametrize("name", ["lenet-300-100", "wrn-22-2"])
def test_initial_values_come_from_the_global_rng(name: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.detach().flatten() for parameter in MODELS[name]().parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_multiplier_rounds_down_and_leaves_stems() -> None:
    wrn = shapes(meta("wrn-22-2", multiplier=0.1**0.5))
    assert wrn["stem.weight"] == (16, 3, 3, 3)
    assert [wrn[f"stage{i}.2.conv2.weight"][0] for i in (1, 2, 3)] == [10, 20, 40]
    assert wrn["fc.weight"] == (10, 40)
    resnet = shapes(meta("resnet50-cifar", multiplier=0.1**0.5))
    assert resnet["stem.conv.weight"] == (64, 3, 3, 3)
    assert [resnet[f"stage{i}.0.conv2.weight"][0] for i in (1, 2, 3, 4)] == [20, 40, 80, 161]
    assert resnet["fc.weight"] == (100, 4 * 161)
    assert list(shapes(meta("lenet-300-100", multiplier=0.25)).values()) == [(75, 64), (25, 75), (10, 25)]


@pytest.mark.parametrize("name", MODELS)
def test_no_multiplier_is_too_small(name: str) -> None:
    model = meta(name, multiplier=1e-9)
    assert model(example_input(name, batch_size=2)).shape[0] == 2


@pytest.mark.parametrize("name", MODELS)
def test_the_multiplier_narrows_every_network(name: str) -> None:
    def weights(multiplier: float) -> int:
        return sum(layer.size for layer in find_layers(meta(name, multiplier=multiplier)).values())

    assert weights(0.25) < weights(0.5) < weights(1.0)


def test_shortcuts_stay_where_widths_coincide() -> None:
    """At multiplier .5 the first stage is as wide as the stem; its first block projects all the same."""
    wrn = shapes(meta("wrn-22-2", multiplier=0.5))
    assert wrn["stage1.0.shortcut.weight"] == (16, 16, 1, 1)


def test_names() -> None:
    assert set(MODELS) == set(INPUT_SHAPES)
    assert find_model("wrn-22-2") is wide_resnet
    for name, shape in (("wrn-16-4", (3, 32, 32)), ("vit-6-192-4", (3, 224, 224)), ("gpt-2-64", (512,))):
        assert input_shape(name) == shape
        with torch.device("meta"):
            assert find_model(name)()(example_input(name)).shape[0] == 1
    assert len(FAMILIES) == 3
    with pytest.raises(ValueError, match="depth is 17; expected 6 n"):
        find_model("wrn-17-4")()
    with pytest.raises(
        ValueError,
        match=r"unknown model 'wrn22-2'.*lenet-300-100, .*wrn-22-2, .*wrn-DEPTH-WIDTH.*did you mean 'wrn-22-2'",
    ):
        find_model("wrn22-2")
    with pytest.raises(ValueError, match=r"unknown model 'zzz'; expected one of [^;]*$"):
        find_model("zzz")
