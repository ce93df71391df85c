"""Models of the published memory figures, by configuration, in plain PyTorch: ResNets, BERT, Llama, U-Net.

Sizes: He et al. 2015 (https://arxiv.org/abs/1512.03385, table 1); Devlin et al. 2018 (https://arxiv.org/abs/1810.04805, 3);
Touvron et al. 2023 (https://arxiv.org/abs/2307.09288) and Llama 3's model cards; Ronneberger et al. 2015
(https://arxiv.org/abs/1505.04597) with batch normalisation and an auxiliary head, as mmsegmentation's UNet-S5-D16 has them.
"""

import torch
from torch import nn
from torch.nn import functional

# ResNet -----------------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    def __init__(self, n_in: int, width: int, stride: int):
        super().__init__()
        n_out = 4 * width
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, size, step, size // 2, bias=False)
            for a, b, size, step in ((n_in, width, 1, 1), (width, width, 3, stride), (width, n_out, 1, 1))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (width, width, n_out))
        self.shortcut = None
        if stride > 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if i < 2:
                y = functional.relu(y, inplace=True)
        y += self.shortcut(x) if self.shortcut else x
        return functional.relu(y, inplace=True)


class ResNet(nn.Module):
    def __init__(self, n_blocks: tuple[int, ...] = (3, 4, 6, 3), n_classes: int = 1000):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        blocks, n_in = [], 64
        for i, n in enumerate(n_blocks):
            for j in range(n):
                blocks.append(Bottleneck(n_in, 64 * 2**i, 2 if i and not j else 1))
                n_in = 256 * 2**i
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(n_in, n_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


# Transformers -------------------------------------------------------------------------------------------------------------


class EncoderLayer(nn.Module):
    """As BERT's first implementations: scores, softmax, dropout and product one after the other."""

    def __init__(self, width: int, n_heads: int, inner: int):
        super().__init__()
        self.n_heads, self.scale = n_heads, (width // n_heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norms, self.dropout = nn.ModuleList(nn.LayerNorm(width) for _ in range(2)), nn.Dropout(0.1)

    def forward(self, x):
        n, length, width = x.shape
        split = (layer(x).view(n, length, self.n_heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key, value = split
        shares = self.dropout(torch.softmax(query @ key.transpose(-1, -2) * self.scale, -1))
        mixed = (shares @ value).transpose(1, 2).reshape(n, length, width)
        x = self.norms[0](x + self.dropout(self.out(mixed)))
        return self.norms[1](x + self.dropout(self.down(functional.gelu(self.up(x)))))


class Bert(nn.Module):
    """For the classification of sequences."""

    def __init__(self, width: int = 768, n_layers: int = 12, n_heads: int = 12, n_tokens: int = 30522, n_positions: int = 512):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(n_tokens, width), nn.Embedding(n_positions, width)
        self.kinds, self.norm, self.dropout = nn.Embedding(2, width), nn.LayerNorm(width), nn.Dropout(0.1)
        self.layers = nn.ModuleList(EncoderLayer(width, n_heads, 4 * width) for _ in range(n_layers))
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places) + self.kinds(torch.zeros_like(tokens))
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.dropout(torch.tanh(self.pool(x[:, 0]))))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, n_heads: int, n_groups: int, inner: int):
        super().__init__()
        self.size = width // n_heads
        sizes = (width, n_groups * self.size, n_groups * self.size, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, size, bias=False) for size in sizes)
        self.gate, self.up, self.down = (
            nn.Linear(a, b, bias=False) for a, b in ((width, inner), (width, inner), (inner, width))
        )
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))

    def forward(self, x, cosine, sine):
        n, length, width = x.shape
        y = self.norms[0](x)
        split = (layer(y).view(n, length, -1, self.size).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key, value = split
        query, key = (_rotate(each, cosine, sine) for each in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        y = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


def _rotate(x, cosine, sine):
    first, second = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((first * cosine - second * sine, first * sine + second * cosine), -1).flatten(-2).type_as(x)


class Llama(nn.Module):
    def __init__(self, width: int, n_layers: int, n_heads: int, n_groups: int, inner: int, n_tokens: int, tied: bool):
        super().__init__()
        self.tokens = nn.Embedding(n_tokens, width)
        self.layers = nn.ModuleList(DecoderLayer(width, n_heads, n_groups, inner) for _ in range(n_layers))
        self.norm, self.head, self.size = nn.RMSNorm(width), nn.Linear(width, n_tokens, bias=False), width // n_heads
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens)
        rates = 500_000 ** -(torch.arange(0, self.size, 2, device=tokens.device) / self.size)
        angles = torch.outer(torch.arange(tokens.shape[1], device=tokens.device), rates)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.head(self.norm(x)).float()


# U-Net --------------------------------------------------------------------------------------------------------------------


def _convs(n_in: int, n_out: int) -> nn.Sequential:
    layers = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Outputs as large as the image: of the head, and of an auxiliary one on the features before the last stage."""

    def __init__(self, n_classes: int = 2, width: int = 64, n_stages: int = 5):
        super().__init__()
        sizes = [width * 2**i for i in range(n_stages)]
        self.down = nn.ModuleList(_convs(a, b) for a, b in zip([3, *sizes], sizes, strict=False))
        pairs = [*zip(sizes[:0:-1], sizes[-2::-1], strict=True)]
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)) for a, b in pairs
        )
        self.up = nn.ModuleList(_convs(2 * b, b) for _, b in pairs)
        self.head = nn.Sequential(*list(_convs(width, width))[:3], nn.Dropout2d(0.1), nn.Conv2d(width, n_classes, 1))
        self.auxiliary = nn.Conv2d(2 * width, n_classes, 1)

    def forward(self, x):
        kept = []
        for i, convs in enumerate(self.down):
            x = convs(functional.max_pool2d(x, 2) if i else x)
            kept.append(x)
        coarse = None
        for reduce, convs, skip in zip(self.reduce, self.up, kept[-2::-1], strict=True):
            coarse = x
            larger = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = convs(torch.cat((skip, reduce(larger)), 1))
        return self.head(x), functional.interpolate(self.auxiliary(coarse), x.shape[2:], mode="bilinear")


def segmentation_loss(outputs, y):
    return sum(weight * functional.cross_entropy(each, y) for weight, each in zip((1.0, 0.4), outputs, strict=True))


def language_loss(outputs, y):
    return functional.cross_entropy(outputs.flatten(0, 1), y.flatten())
