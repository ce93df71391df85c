"""Images and signals in scipy: ndimage, signal, fft."""

import numpy as np
import scipy.fft
from scipy import ndimage, signal


def clean_scans_input(n: int = 1200) -> np.ndarray:
    """Two scans with specks, float32[2, n, n]."""
    rng = np.random.default_rng(1)
    scans = rng.random((2, n, n), dtype=np.float32)
    scans[rng.random(scans.shape) < 0.01] = 9
    return scans


def clean_scans(scans: np.ndarray) -> np.ndarray:
    return np.stack([cleaned(scan) for scan in scans])


def cleaned(scan: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(ndimage.median_filter(scan, size=5), sigma=2)


def spectrograms_input(n: int = 250_000) -> np.ndarray:
    """Recordings of 32 microphones, float32[32, n]."""
    return np.random.default_rng(2).standard_normal((32, n), dtype=np.float32)


def spectrograms(recordings: np.ndarray) -> np.ndarray:
    return levels(recordings)


def levels(recordings: np.ndarray) -> np.ndarray:
    """Mean power of each frequency in decibels, float32[32, 513]."""
    _, _, power = signal.stft(recordings, fs=16_000, nperseg=1024, noverlap=768)
    return 10 * np.log10((np.abs(power) ** 2).mean(axis=-1) + 1e-12)


def sharpened_input(n: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """Blurred images float32[20, n, n], and the point spread that blurred them."""
    images = np.random.default_rng(3).random((20, n, n), dtype=np.float32)
    x = np.minimum(np.arange(n), n - np.arange(n)).astype(np.float32)
    spread = np.exp(-(x[:, None] ** 2 + x**2) / 4)
    return images, spread / spread.sum()


def sharpened(data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return wiener(*data)


def wiener(images: np.ndarray, spread: np.ndarray, noise: float = 0.01) -> np.ndarray:
    """Wiener's deconvolution with white noise; returns each image's variance."""
    transfer = scipy.fft.rfft2(spread)
    inverse = np.conj(transfer) / (np.abs(transfer) ** 2 + noise)
    restored = scipy.fft.irfft2(scipy.fft.rfft2(images) * inverse, s=images.shape[-2:])
    return restored.var(axis=(1, 2))


def heart_traces_input(n: int = 60_000) -> np.ndarray:
    """Electrocardiograms of 96 leads at 500 Hz, float64[96, n]."""
    return np.random.default_rng(4).standard_normal((96, n))


def heart_traces(traces: np.ndarray) -> np.ndarray:
    """Without drift and hum, by a Butterworth filter that goes over each trace forwards and back."""
    sections = signal.butter(4, [0.5, 40.0], "bandpass", fs=500, output="sos")
    return signal.sosfiltfilt(sections, traces, axis=1)
