"""Python loops over elements, and over small matrices."""

import numpy as np


def element_loop_input(n: int = 250) -> np.ndarray:
    """Temperatures of a plate, float64[n, n]."""
    return np.random.default_rng(1).random((n, n))


def element_loop(plate: np.ndarray) -> np.ndarray:
    for _ in range(6):
        plate = diffused(plate)
    return plate


def diffused(plate: np.ndarray, rate: float = 0.2) -> np.ndarray:
    after = plate.copy()
    for i in range(1, plate.shape[0] - 1):
        for j in range(1, plate.shape[1] - 1):
            around = plate[i - 1, j] + plate[i + 1, j] + plate[i, j - 1] + plate[i, j + 1]
            after[i, j] = plate[i, j] + rate * (around - 4 * plate[i, j])
    return after


def track_updates_input(n: int = 12_000) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """State float64[4], covariance float64[4, 4] and measurement float64[2] of n objects that a radar follows."""
    rng = np.random.default_rng(2)
    states, measurements = rng.standard_normal((n, 4)), rng.standard_normal((n, 2))
    roots = rng.standard_normal((n, 4, 4))
    return list(zip(states, roots @ roots.transpose(0, 2, 1) + np.eye(4), measurements, strict=True))


MOVE = np.eye(4) + np.diag([0.1, 0.1], k=2)
SEE = np.eye(2, 4)


def track_updates(tracks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [updated(*track) for track in tracks]


def updated(state: np.ndarray, covariance: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step of a Kalman filter."""
    state = MOVE @ state
    covariance = MOVE @ covariance @ MOVE.T + 0.01 * np.eye(4)
    gain = covariance @ SEE.T @ np.linalg.inv(SEE @ covariance @ SEE.T + 0.1 * np.eye(2))
    return state + gain @ (seen - SEE @ state), (np.eye(4) - gain @ SEE) @ covariance
