"""Small models with the structures that pruning has to follow; also the factory file their recipes name.

Images are float32 (batch, 3, 32, 32), tokens int64 (batch, sequence) below 64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """x + f(x), or a projection of x where width or size change; groups > 1 as in ResNeXt."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, stride=stride)
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(outputs)
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


class Net(nn.Module):
    """A Sequential with a named input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def resnet(groups: int = 1) -> nn.Module:
    """A stem, three residual blocks of two widths, global pooling, a head of 10 classes."""
    return Net(
        conv(3, 16),
        Residual(16, 16, groups=groups),
        Residual(16, 32, 2, groups=groups),
        Residual(32, 32, groups=groups),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def vgg() -> nn.Module:
    """Convolutions, pooling, and a flatten of (channel, row, column) into a linear layer."""
    return Net(
        conv(3, 16), nn.MaxPool2d(2), conv(16, 24), nn.MaxPool2d(4), nn.Flatten(),
        nn.Linear(24 * 16, 40), nn.ReLU(), nn.Dropout(), nn.Linear(40, 10),
    )  # fmt: skip


class UNet(nn.Module):
    """Two scales, a transposed convolution, a concat with the skip, group norm; (batch, 2, 32, 32) out."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.SiLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), conv(16, 32), conv(32, 32))
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.join = conv(32, 16)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.down(image)
        return self.out(self.join(torch.cat([fine, self.up(self.deep(fine))], 1)))


class Shuffle(nn.Module):
    """Channel shuffle and chunk, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.branch = nn.Sequential(conv(8, 8, 1), conv(8, 8, groups=8), conv(8, 8, 1))
        self.last = conv(16, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        kept, used = self.stem(image).chunk(2, 1)
        x = torch.cat([kept, self.branch(used)], 1)
        x = x.view(x.shape[0], 2, 8, 32, 32).transpose(1, 2).reshape(x.shape[0], 16, 32, 32)
        return self.head(self.last(x).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 12)
        self.between = nn.Linear(12, 10)
        self.gru = nn.GRU(10, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.between(torch.relu(self.before(x))))[0]


class Fixed(nn.Module):
    """An attention whose forward has its sizes written into it as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], 32))
        return x + self.down(nn.functional.gelu(self.up(x)))


class Single(nn.Module):
    """Nothing between its input and its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class Attention(nn.Module):
    """Attention written by hand: a fused projection, sizes held in attributes, a softmax."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.inner_dim = heads, width // heads, width
        self.embed = nn.Linear(8, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        rows, length = x.shape[:2]
        qkv = self.qkv(self.embed(x)).chunk(3, -1)
        q, k, v = (t.reshape(rows, length, self.num_heads, self.head_dim).transpose(1, 2) for t in qkv)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / self.head_dim**0.5, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(rows, length, self.inner_dim))


class Relative(nn.Module):
    """Attention on batch and heads in one axis, with scores by distance, in a type taken from another tensor."""

    def __init__(self, width: int = 32, heads: int = 4, span: int = 8) -> None:
        super().__init__()
        self.num_heads, self.span = heads, span
        self.embed = nn.Linear(8, width)
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.distances = nn.Embedding(2 * span, width)
        self.out = nn.Linear(width, 6)

    def _heads(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:2], self.num_heads, -1).permute(0, 2, 1, 3)
        return x.reshape(-1, *x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        rows, length = x.shape[:2]
        x = self.embed(x)
        q, k, v = self._heads(self.q(x)), self._heads(self.k(x)), self._heads(self.v(x))
        places = torch.arange(length)
        far = (places[:, None] - places + torch.tensor(self.span).type_as(places)).clamp(0, 2 * self.span - 1)
        by_distance = q @ self._heads(self.k(self.distances.weight[None])).repeat(rows, 1, 1).transpose(1, 2)
        scores = q @ k.transpose(1, 2) + by_distance.gather(-1, far.expand(q.shape[0], length, length))
        scores = torch.softmax(scores.view(rows, self.num_heads, length, length), -1).view(-1, length, length)
        mixed = (scores @ v).view(rows, self.num_heads, length, -1).permute(0, 2, 1, 3)
        return self.out(mixed.reshape(rows, length, -1))


class Inverted(nn.Module):
    """MobileNetV2's block: wider, depthwise, narrower, and the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = conv(width, 4 * width, 1)
        self.depthwise = conv(4 * width, 4 * width, groups=4 * width)
        self.narrow = nn.Sequential(nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.depthwise(self.wide(x)))


def mobilenet() -> nn.Module:
    return Net(conv(3, 8, stride=2), Inverted(8), Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class Biased(nn.Module):
    """An attention with a key of its own, which torch alone computes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, add_bias_kv=True)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(nn.functional.gelu(self.up(x)))


class Translator(nn.Module):
    """torch's own encoder, with its nested tensors, and decoder, with every mask they take; 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 1)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), 1)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, padding = self.embed(ids), mask == 0
        causal = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
        memory = self.encoder(x, src_key_padding_mask=padding) * mask[..., None]
        y = self.decoder(x, memory, tgt_mask=causal, tgt_is_causal=True)
        return self.head(y.mean(1))


def _small(name: str, config: str, **options: Any) -> nn.Module:
    """A randomly initialised model of transformers."""
    import transformers

    return getattr(transformers, name)(getattr(transformers, config)(**options))


def bert() -> nn.Module:
    return _small(
        "BertModel", config="BertConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip


def deberta() -> nn.Module:
    return _small(
        "DebertaV2Model", config="DebertaV2Config", vocab_size=64, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=32, relative_attention=True,
        pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True, position_biased_input=False,
    )  # fmt: skip


def gpt2() -> nn.Module:
    return _small(
        "GPT2LMHeadModel", config="GPT2Config", vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32,
        use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def llama() -> nn.Module:
    """Grouped-query attention (4 heads, 2 of keys), rotary embedding, gated units, RMS norm."""
    return _small(
        "LlamaForCausalLM", config="LlamaConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip


def vit() -> nn.Module:
    return _small(
        "ViTForImageClassification", config="ViTConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, image_size=32, patch_size=8, num_labels=10,
    )  # fmt: skip


def convnext() -> nn.Module:
    return _small(
        "ConvNextForImageClassification", config="ConvNextConfig", hidden_sizes=[16, 32], depths=[1, 2], num_stages=2,
        image_size=32, num_labels=10,
    )  # fmt: skip


def swin() -> nn.Module:
    return _small(
        "SwinForImageClassification", config="SwinConfig", image_size=32, patch_size=4, embed_dim=16, depths=[2, 2],
        num_heads=[2, 4], window_size=4, num_labels=10,
    )  # fmt: skip


class Shifted(nn.Module):
    """`(batch, 8)` to `(batch, 6)`, with a matrix that is a part of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 6)
        self.register_buffer("shift", torch.linspace(-1, 1, 6)[None])

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.first(x))) + self.shift
        return scores


class Borrowed(nn.Module):
    """Images to `(batch, 6)`: a convolution's channels are counted on what goes into it, as Segformer's are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 8, 8)
        self.start = nn.LayerNorm(8)
        self.reduce = nn.Conv2d(8, 8, 2, 2)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 16)
        self.head = nn.Linear(16, 6)

    def forward(self, image: Tensor) -> Tensor:
        x = self.start(self.first(image).flatten(2).transpose(1, 2))
        batch, _, channels = x.shape
        x = self.reduce(x.transpose(1, 2).reshape(batch, channels, 4, 4))
        x = self.norm(x.reshape(batch, channels, -1).transpose(1, 2))
        scores: Tensor = self.head(torch.relu(self.wide(x))).mean(1)
        return scores
