"""PyTorch models of the tests, by functions without arguments, as users name them."""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_models import Bert, ResNet, UNet, segmentation_loss


def resnet50():
    return ResNet(), (torch.zeros(1, 3, 224, 224), torch.zeros(1, dtype=torch.long))


def bert_base(length=128):
    return Bert(), (torch.zeros(1, length, dtype=torch.long), torch.zeros(1, dtype=torch.long))


def bert_base_512():
    return bert_base(512)


def small_unet():
    return UNet(width=16, n_stages=3), (torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.long)), segmentation_loss


class Attention(nn.Module):
    """Of 8 heads, 64 wide."""

    def __init__(self, is_fused=True):
        super().__init__()
        self.split, self.is_fused = nn.Linear(512, 3 * 512), is_fused

    def forward(self, x):
        query, key, value = (each.unflatten(-1, (8, 64)).transpose(1, 2) for each in self.split(x).chunk(3, -1))
        if self.is_fused:
            return functional.scaled_dot_product_attention(query, key, value)
        return functional.softmax(query @ key.transpose(-1, -2) / 8, -1) @ value


def fused_attention():
    return Attention(), (torch.zeros(1, 1024, 512), None)


def plain_attention():
    return Attention(is_fused=False), (torch.zeros(1, 1024, 512), None)


def one_layer():
    """Counted by hand: 4 MB of weights, no bias, SGD without a state."""
    return nn.Linear(1024, 1024, bias=False), (torch.zeros(1, 1024), torch.zeros(1, 1024)), None, plain_sgd


def one_layer_with_dropout():
    module, *rest = one_layer()
    return nn.Sequential(module, nn.Dropout(0.5)), *rest


def one_layer_that_looks_at_values():
    """Cannot be built without values."""
    module, *rest = one_layer()
    assert float(module.weight.abs().max()) < 1
    return module, *rest


def fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such thing as a step")

    return Fails(), (torch.zeros(1, 3), None), None, lambda weights: plain_sgd([torch.zeros(1)])


def without_data():
    return nn.Sequential(nn.Linear(10, 3))


def plain_sgd(weights):
    return torch.optim.SGD(weights, 0.1)


class Exported(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.dropout, self.out = nn.LayerNorm(16), nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, x):
        x = self.norm(x + self.dropout(self.attention(x, x, x, need_weights=False)[0]))
        return self.out(x.mean(1)).softmax(-1), x.amax((1, 2))


class TwoInputs(nn.Module):
    def __init__(self, is_fixed=False):
        super().__init__()
        self.words, self.is_fixed = nn.Embedding(10, 4), is_fixed

    def forward(self, tokens, scale):
        return self.words(tokens).reshape(2 if self.is_fixed else -1, 12) * scale


def export_builder():
    return TwoInputs(), ({"tokens": torch.zeros(1, 3, dtype=torch.long), "scale": torch.ones(1, 1)}, None)
