"""Linear algebra, spectra, simulations and image stacks in NumPy."""

import itertools

import numpy as np


def double_svd_input(n: int = 1000) -> np.ndarray:
    """Ratings float64[n + 200, n]: of rank 20, with noise."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((n + 200, 20)) @ rng.standard_normal((20, n)) + 0.01 * rng.standard_normal((n + 200, n))


def double_svd(ratings: np.ndarray) -> np.ndarray:
    return best_approximation(ratings, 20)


def best_approximation(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def power_iteration_input(n: int = 10_000) -> np.ndarray:
    """A transition matrix, float32[n, n]: positive, columns that sum to 1."""
    matrix = np.random.default_rng(2).random((n, n), dtype=np.float32)
    return matrix / matrix.sum(axis=0)


def power_iteration(matrix: np.ndarray) -> np.ndarray:
    return dominant_vector(matrix, 100)


def dominant_vector(matrix: np.ndarray, n_steps: int) -> np.ndarray:
    vector = np.full(len(matrix), 1 / len(matrix), dtype=matrix.dtype)
    for _ in range(n_steps):
        vector = matrix @ vector
        vector /= np.linalg.norm(vector)
    return vector


def filter_bank_input(n: int = 65_536) -> np.ndarray:
    """Vibration of 128 sensors, float32[128, n]."""
    return np.random.default_rng(3).standard_normal((128, n), dtype=np.float32)


def filter_bank(signals: np.ndarray) -> np.ndarray:
    return band_energies(signals, np.linspace(0.0, 0.5, 17))


def band_energies(signals: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean square of each signal in each band of frequencies."""
    spectrum = np.fft.rfft(signals, axis=1)
    frequencies = np.fft.rfftfreq(signals.shape[1])
    energies = []
    for low, high in itertools.pairwise(edges):
        band = spectrum * ((frequencies >= low) & (frequencies < high))
        filtered = np.fft.irfft(band, n=signals.shape[1], axis=1)
        energies.append((filtered * filtered).mean(axis=1))
    return np.stack(energies, axis=1)


def monte_carlo_input(n: int = 500_000) -> dict:
    return {"n_paths": n, "n_steps": 64, "spot": 100.0, "strike": 105.0, "rate": 0.02, "volatility": 0.25}


def monte_carlo(option: dict) -> float:
    return asian_call(**option)


def asian_call(n_paths: int, n_steps: int, spot: float, strike: float, rate: float, volatility: float) -> float:
    """Price of an arithmetic-average call of one year under geometric Brownian motion."""
    rng, dt = np.random.default_rng(4), 1 / n_steps
    price, total = np.full(n_paths, spot), np.zeros(n_paths)
    for _ in range(n_steps):
        price *= np.exp((rate - volatility**2 / 2) * dt + volatility * np.sqrt(dt) * rng.standard_normal(n_paths))
        total += price
    return float(np.exp(-rate) * np.maximum(total / n_steps - strike, 0).mean())


def calibrated_frames_input(n: int = 700) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames of a camera float32[n, 512, 512], its dark frame and gain, and a buffer for the answer."""
    rng = np.random.default_rng(5)
    frames = rng.random((n, 512, 512), dtype=np.float32)
    dark, gain = rng.random((2, 512, 512), dtype=np.float32)
    return frames, 0.1 * dark, 0.5 + gain, np.empty_like(frames)


def calibrated_frames(data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    frames, dark, gain, buffer = data
    return limited(flat_fielded(without_dark(frames, dark, buffer), gain))


def without_dark(frames: np.ndarray, dark: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.subtract(frames, dark, out=out)


def flat_fielded(frames: np.ndarray, gain: np.ndarray) -> np.ndarray:
    frames *= gain
    return frames


def limited(frames: np.ndarray) -> np.ndarray:
    return np.maximum(frames, 0, out=frames)


def particle_steps_input(n: int = 4_000_000) -> tuple[np.ndarray, np.ndarray]:
    """Places within the unit cube, and velocities, of a gas: float32[n, 3] each."""
    rng = np.random.default_rng(6)
    return rng.random((n, 3), dtype=np.float32), rng.standard_normal((n, 3), dtype=np.float32)


def particle_steps(gas: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    places, velocities = gas[0].copy(), gas[1]
    for _ in range(20):
        places = moved(places, velocities)
    return places


def moved(places: np.ndarray, velocities: np.ndarray, dt: float = 0.01) -> np.ndarray:
    """A step later; what leaves the cube enters it again on the other side."""
    places += dt * velocities
    places -= np.floor(places)
    return places


def median_frames_input(n: int = 400) -> np.ndarray:
    """Frames of a telescope, float32[50, n, n]."""
    return np.random.default_rng(7).standard_normal((50, n, n), dtype=np.float32)


def median_frames(frames: np.ndarray) -> np.ndarray:
    return combined(frames)


def combined(frames: np.ndarray) -> np.ndarray:
    """Their median, without what is far from it in a frame, such as a satellite."""
    middle = np.median(frames, axis=0)
    far = np.abs(frames - middle) > 3 * frames.std(axis=0)
    return np.where(far, middle, frames).mean(axis=0)


def running_totals_input(n: int = 30_000_000) -> np.ndarray:
    """Amounts that were paid, float64[n]."""
    return np.random.default_rng(8).random(n)


def running_totals(amounts: np.ndarray) -> np.ndarray:
    return balances(amounts)


def balances(amounts: np.ndarray) -> np.ndarray:
    return np.cumsum(amounts)
