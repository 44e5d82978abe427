"""The CLIP text transformer, under the parameter names of its published weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.train.config import TextConfig


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        tokens, dim = x.shape[1], x.shape[2]

        def split(t: Tensor) -> Tensor:
            return t.reshape(-1, tokens, self.heads, dim // self.heads).permute(0, 2, 1, 3)

        query, key, value = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.permute(0, 2, 1, 3).reshape(-1, tokens, dim))


class _MLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(dim)
        self.self_attn = _SelfAttention(dim, heads)
        self.layer_norm2 = nn.LayerNorm(dim)
        self.mlp = _MLP(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class _Embeddings(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.dim)
        self.position_embedding = nn.Embedding(config.tokens, config.dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens) + self.position_embedding.weight


class _Encoder(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config.dim, config.heads) for _ in range(config.layers)])


class _TextModel(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.dim)


class CLIPText(nn.Module):
    """Prompt tokens (n, l_p) int64 -> prompt embedding (n, l_p, d_p), the last hidden state after its norm."""

    causal_mask: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextModel(config)
        mask = torch.full((config.tokens, config.tokens), float("-inf")).triu(1)
        self.register_buffer("causal_mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.text_model.embeddings(tokens)
        for layer in self.text_model.encoder.layers:
            x = layer(x, self.causal_mask)
        return self.text_model.final_layer_norm(x)
