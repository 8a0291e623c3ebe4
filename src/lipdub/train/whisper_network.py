"""The encoder of Whisper as a torch module: log-mel window to the hidden states of chosen layers, 50 positions a second.

Two convolutions (the second of stride 2) with GELU, stored positions, pre-norm transformer blocks, a last layer norm (Radford et al.
2022, arXiv 2212.04356, section 2.2; written anew from the paper and the names of github.com/openai/whisper, MIT). Letters: B batch, T
positions of 20 ms (position i is centred on mel column 2 i, so on 20 i ms), C channels, L layers asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lipdub.train.whisper_weights import WhisperDims, WhisperWeights


class Attention(nn.Module):
    """Multi-head self-attention over all positions of a window. Keys have no bias."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self._heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        batch, positions, channels = x.shape
        split = (batch, positions, self._heads, channels // self._heads)
        query, key, value = (part(x).reshape(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(2, 3) * (channels // self._heads) ** -0.5, dim=3)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, positions, channels))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(channels, heads)
        self.attn_ln = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.mlp_ln = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class WhisperEncoder(nn.Module):
    """Hidden states of some layers. Layer 0 is what the convolutions give with positions added, layer k the state after k blocks, and the
    number of all blocks plus one the encoder's own output (the last state through its trained norm).

    Each layer but that one passes a layer norm without weights: a few channels of the raw states are a hundred times as large as the
    others, and would drown them in any mix (and in float16).
    """

    def __init__(self, dims: WhisperDims, layers: Sequence[int]) -> None:
        """layers: rising numbers of the layers to give. Blocks behind the last of them are not built."""
        super().__init__()
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > dims.n_layer + 1:
            raise ValueError(f"layers must rise from 0 to at most {dims.n_layer + 1}, got {tuple(layers)}")
        self.dims, self.layers = dims, tuple(layers)
        self.conv1 = nn.Conv1d(dims.n_mels, dims.n_state, 3, padding=1)
        self.conv2 = nn.Conv1d(dims.n_state, dims.n_state, 3, stride=2, padding=1)
        self.positional_embedding = nn.Parameter(torch.zeros(dims.n_ctx, dims.n_state))
        self.blocks = nn.ModuleList(Block(dims.n_state, dims.n_head) for _ in range(min(layers[-1], dims.n_layer)))
        self.ln_post = nn.LayerNorm(dims.n_state) if layers[-1] > dims.n_layer else None

    @classmethod
    def of(cls, weights: WhisperWeights, layers: Sequence[int]) -> WhisperEncoder:
        """The encoder with these weights as far as it needs them, frozen and in inference mode."""
        encoder = cls(weights.dims, layers)
        encoder.load_state_dict({name: value for name, value in weights.state.items() if name in encoder.state_dict()})
        return encoder.eval().requires_grad_(False)

    def shorten(self, positions: int) -> None:
        """Keep the first stored positions alone: a graph for windows of that length need not carry 30 s of them."""
        self.positional_embedding = nn.Parameter(self.positional_embedding[:positions].clone(), requires_grad=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (B, bands, 2 T) to hidden states (B, L, T, C), float32."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.positional_embedding[: x.shape[1]]
        found = [self._normed(x)] if 0 in self.layers else []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in self.layers:
                found.append(self._normed(x))
        if self.ln_post is not None:
            found.append(self.ln_post(x))
        return torch.stack(found, dim=1)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dims.n_state,))
