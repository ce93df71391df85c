"""A convolutional network of PyTorch, on the CPU."""

import torch
from torch import nn


def image_classes_input(n: int = 64) -> tuple[nn.Module, torch.Tensor]:
    """A network with three blocks, and float32[n, 3, 96, 96]."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return model.eval(), torch.randn(n, 3, 96, 96, generator=generator)


def image_classes(data: tuple[nn.Module, torch.Tensor]) -> list[int]:
    model, images = data
    return [int(label) for batch in images.split(32) for label in classify(model, batch)]


def classify(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(batch).argmax(dim=1)


def row_scores_input(n: int = 3000) -> tuple[nn.Module, torch.Tensor]:
    """A small network, and the features of n visitors, as they come in."""
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1)).eval()
    return model, torch.randn((n, 32), generator=generator)


def row_scores(data: tuple[nn.Module, torch.Tensor]) -> list[float]:
    model, visitors = data
    return [visitor_score(model, visitor) for visitor in visitors]


def visitor_score(model: nn.Module, visitor: torch.Tensor) -> float:
    with torch.inference_mode():
        return float(model(visitor[None])[0, 0])
