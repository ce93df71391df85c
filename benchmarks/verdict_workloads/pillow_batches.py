"""Batches for training, out of JPEG files, with Pillow."""

import io

import numpy as np
from PIL import Image


def training_batch_input(n: int = 72) -> list[bytes]:
    """JPEG files of 800 x 600 pixels."""
    rng, files = np.random.default_rng(1), []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((800, 600), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def training_batch(files: list[bytes]) -> np.ndarray:
    """float32[n, 224, 224, 3], every second image mirrored."""
    return np.stack([augmented(file, mirror=bool(i % 2)) for i, file in enumerate(files)])


def augmented(file: bytes, mirror: bool) -> np.ndarray:
    image = Image.open(io.BytesIO(file)).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
    image = image.crop((16, 16, 240, 240))
    if mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image, dtype=np.float32) / 255
