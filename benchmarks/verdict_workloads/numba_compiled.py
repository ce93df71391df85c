"""Loops that Numba compiles: two whose steps are independent, one whose steps are not."""

import math

import numba
import numpy as np


def bodies_input(n: int = 12_000) -> np.ndarray:
    """Positions and masses of stars, float32[n, 4]."""
    return np.random.default_rng(1).random((n, 4), dtype=np.float32)


def bodies(stars: np.ndarray) -> np.ndarray:
    return attractions(stars)


@numba.njit(fastmath=True)
def attractions(stars):
    """Acceleration of each star by all others, softened; float32[n, 3]."""
    n = len(stars)
    result = np.zeros((n, 3), np.float32)
    for i in range(n):
        ax = ay = az = np.float32(0)
        for j in range(n):
            dx, dy, dz = stars[j, 0] - stars[i, 0], stars[j, 1] - stars[i, 1], stars[j, 2] - stars[i, 2]
            square = dx * dx + dy * dy + dz * dz + np.float32(1e-4)
            pull = stars[j, 3] / (square * math.sqrt(square))
            ax, ay, az = ax + pull * dx, ay + pull * dy, az + pull * dz
        result[i, 0], result[i, 1], result[i, 2] = ax, ay, az
    return result


def escape_times_input(n: int = 900) -> tuple[int, int]:
    """Size of a picture in pixels, and steps at most."""
    return n, 400


def escape_times(size: tuple[int, int]) -> np.ndarray:
    return mandelbrot(*size)


@numba.njit
def mandelbrot(n, n_steps):
    """Steps until each point of [-2, 0.5] x [-1.25, 1.25] leaves the circle of radius 2; int32[n, n]."""
    result = np.empty((n, n), np.int32)
    for i in range(n):
        for j in range(n):
            cx, cy = np.float32(-2 + 2.5 * j / n), np.float32(-1.25 + 2.5 * i / n)
            x = y = np.float32(0)
            step = 0
            while step < n_steps and x * x + y * y <= np.float32(4):
                x, y = x * x - y * y + cx, np.float32(2) * x * y + cy
                step += 1
            result[i, j] = step
    return result


def volatility_input(n: int = 40_000_000) -> np.ndarray:
    """Returns of one share, float64[n]."""
    return 0.01 * np.random.default_rng(2).standard_normal(n)


def volatility(returns: np.ndarray) -> float:
    return garch_likelihood(returns, 1e-6, 0.08, 0.9)


@numba.njit
def garch_likelihood(returns, omega, alpha, beta):
    """Log-likelihood of a GARCH(1, 1) model without its constant; every variance needs the one before."""
    variance, total = np.var(returns), 0.0
    for value in returns:
        total -= 0.5 * (math.log(variance) + value * value / variance)
        variance = omega + alpha * value * value + beta * variance
    return total


def heat_plate_input(n: int = 700) -> np.ndarray:
    """Temperatures float32[n, n]."""
    return np.random.default_rng(3).random((n, n), dtype=np.float32)


def heat_plate(plate: np.ndarray) -> np.ndarray:
    return spread(plate, 200)


@numba.njit(parallel=True)
def spread(plate, n_steps):
    """Each step moves every inner point a fifth of the way to its neighbours' mean."""
    plate = plate.copy()
    after = plate.copy()
    for _ in range(n_steps):
        for i in numba.prange(1, plate.shape[0] - 1):
            for j in range(1, plate.shape[1] - 1):
                around = plate[i - 1, j] + plate[i + 1, j] + plate[i, j - 1] + plate[i, j + 1]
                after[i, j] = np.float32(0.8) * plate[i, j] + np.float32(0.05) * around
        plate, after = after, plate
    return plate


def queue_waits_input(n: int = 40_000_000) -> tuple[np.ndarray, np.ndarray]:
    """Times between calls, and how long each takes, of a call centre: float64[n]."""
    rng = np.random.default_rng(4)
    return rng.exponential(1.0, n), rng.exponential(0.9, n)


def queue_waits(calls: tuple[np.ndarray, np.ndarray]) -> float:
    return mean_wait(*calls)


@numba.njit
def mean_wait(gaps, services):
    """Lindley's recursion: who comes waits for what is left of those before."""
    wait, total = 0.0, 0.0
    for i in range(len(gaps)):
        wait = max(0.0, wait + services[i] - gaps[i])
        total += wait
    return total / len(gaps)
