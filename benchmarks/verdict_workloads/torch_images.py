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
