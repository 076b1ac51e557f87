"""A GPT and a ViT with pre-normalised blocks, whose projections are plain linear layers and so can be made sparse."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD = 64
"""Width of an attention head."""


class Attention(nn.Module):
    """Multi-head self-attention: one projection to queries, keys and values, one back."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        projected: Tensor = self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return projected


class Block(nn.Module):
    """LayerNorm and attention, LayerNorm and a perceptron of four times the width, each beside the identity."""

    def __init__(self, width: int, heads: int, *, causal: bool, epsilon: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


class GPT(nn.Module):
    """Token and position embeddings, causal blocks, LayerNorm, and logits by the token embedding's transpose."""

    def __init__(self, vocabulary: int, context: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True, epsilon=1e-5) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch × length × vocabulary) of the next token, from tokens (batch × length, int64)."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


class ViT(nn.Module):
    """Patches by a strided convolution, a class token, learned positions, blocks, and a linear layer on that token."""

    def __init__(
        self, channels: int, image_size: int, patch: int, depth: int, width: int, heads: int, num_classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False, epsilon=1e-6) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        logits: Tensor = self.fc(self.norm(self.blocks(x)[:, 0]))
        return logits


def gpt(
    *, depth: int = 4, width: int = 128, context: int = 512, num_classes: int = 256, multiplier: float = 1.0
) -> GPT:
    """A GPT of `depth` blocks and heads of 64 (narrower where the width is).

    Matrices start normal with standard deviation .02, the two that end a residual branch with .02 / sqrt(2 depth).

    Args:
        depth: number of blocks.
        width: of the residual stream; a multiple of 64, or less than 64.
        context: longest sequence.
        num_classes: size of the vocabulary; 256 for bytes.
        multiplier: of the width of each head, rounded down; the number of heads stays.

    Raises:
        ValueError: the width is no multiple of a head's.

    Radford et al. 2019, section 2.3.
    """
    width, heads = _heads("gpt", width, multiplier)
    model = GPT(num_classes, context, depth, width, heads)
    _initialise(model, depth, 0.02)
    return model


def vit(
    *,
    depth: int = 12,
    width: int = 384,
    patch: int = 16,
    channels: int = 3,
    image_size: int = 224,
    num_classes: int = 1000,
    multiplier: float = 1.0,
) -> ViT:
    """A vision transformer; the defaults are ViT-S/16, with a width of 192 it is ViT-Ti/16, with 768 ViT-B/16.

    Args:
        depth: number of blocks.
        width: of the residual stream; a multiple of 64, or less than 64.
        patch: side of a patch in pixels.
        channels: of the images.
        image_size: their side in pixels, a multiple of the patch's.
        num_classes: outputs.
        multiplier: of the width of each head, rounded down; the number of heads stays.

    Raises:
        ValueError: the width is no multiple of a head's, or the image's side none of a patch's.

    Dosovitskiy et al. 2021, section 3.1.
    """
    if image_size % patch:
        raise ValueError(f"vit cuts images into patches of {patch} pixels, which do not fill {image_size}")
    width, heads = _heads("vit", width, multiplier)
    model = ViT(channels, image_size, patch, depth, width, heads, num_classes)
    _initialise(model, depth, 0.02)
    nn.init.normal_(model.positions, std=0.02)
    nn.init.normal_(model.token, std=0.02)
    return model


def _heads(what: str, width: int, multiplier: float) -> tuple[int, int]:
    """The scaled width and the number of heads."""
    heads = max(1, width // HEAD)
    if width < 1 or (width > HEAD and width % HEAD):
        raise ValueError(f"{what} has width {width}; expected a multiple of {HEAD}, or less than {HEAD}")
    return heads * max(1, int(width // heads * multiplier)), heads


def _initialise(model: nn.Module, depth: int, deviation: float) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            ends_branch = name.endswith((".attention.out", ".fc2"))
            nn.init.normal_(module.weight, std=deviation / (2 * depth) ** 0.5 if ends_branch else deviation)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=deviation)
