"""The character-level language model of the RigL experiments. Evci et al. 2020, section 4.2."""

from torch import Tensor, nn
from torch.nn import functional as F

from regrow_lab.models.initialization import scaled


class CharGRU(nn.Module):
    """Embedding, one GRU, two linear layers with ReLU between them, and logits by the embedding's own transpose."""

    def __init__(self, vocabulary: int, embedding: int, width: int, readout: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.gru = nn.GRU(embedding, width, batch_first=True)
        self.fc1 = nn.Linear(width, readout)
        self.fc2 = nn.Linear(readout, embedding)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch × length × vocabulary) of the next token, from tokens (batch × length, int64)."""
        hidden, _ = self.gru(self.embedding(tokens))
        return F.linear(self.fc2(F.relu(self.fc1(hidden))), self.embedding.weight)


def char_gru(*, num_classes: int = 256, multiplier: float = 1.0) -> CharGRU:
    """Embedding 128, GRU 512, readout 256 → 128 tied to the embedding; initialised as PyTorch does.

    Args:
        num_classes: size of the vocabulary; 256 for bytes.
        multiplier: of the GRU's width and of the 256, rounded down; the embedding keeps its 128.
    """
    width, readout = scaled((512, 256), multiplier)
    return CharGRU(num_classes, 128, width, readout)
