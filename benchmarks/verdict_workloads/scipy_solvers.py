"""Equations, optima and orbits in scipy: linalg, sparse, optimize, integrate."""

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
from scipy.integrate import solve_ivp


def double_solve_input(n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """A covariance float64[n, n] and returns float64[n, 4]."""
    rng = np.random.default_rng(1)
    factors = rng.standard_normal((n, n // 4))
    return factors @ factors.T / n + np.eye(n), rng.standard_normal((n, 4))


def double_solve(data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return portfolio(*data)


def portfolio(covariance: np.ndarray, returns: np.ndarray) -> np.ndarray:
    weights = scipy.linalg.solve(covariance, returns)
    return weights / np.abs(weights).sum(axis=0)


def _laplacian(n: int) -> scipy.sparse.csr_matrix:
    """Five-point stencil on an n x n grid, symmetric and positive definite."""
    line = scipy.sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(n, n))
    eye = scipy.sparse.identity(n)
    return (scipy.sparse.kron(line, eye) + scipy.sparse.kron(eye, line)).tocsr()


def sparse_factor_input(n: int = 260) -> tuple[scipy.sparse.csc_matrix, np.ndarray]:
    """Heat on an n x n grid, implicit in time, and its first state."""
    matrix = scipy.sparse.identity(n * n) + 0.5 * _laplacian(n)
    return matrix.tocsc(), np.random.default_rng(2).random(n * n)


def sparse_factor(data: tuple[scipy.sparse.csc_matrix, np.ndarray]) -> np.ndarray:
    return heat(*data, n_steps=5)


def heat(matrix: scipy.sparse.csc_matrix, state: np.ndarray, n_steps: int) -> np.ndarray:
    factor = scipy.sparse.linalg.splu(matrix)
    for _ in range(n_steps):
        state = factor.solve(state)
    return state


def conjugate_gradient_input(n: int = 600) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """A potential on an n x n grid with its charges."""
    return (_laplacian(n) + 0.001 * scipy.sparse.identity(n * n)).tocsr(), np.random.default_rng(3).standard_normal(n * n)


def conjugate_gradient(data: tuple[scipy.sparse.csr_matrix, np.ndarray]) -> np.ndarray:
    return potential(*data)


def potential(matrix: scipy.sparse.csr_matrix, charges: np.ndarray) -> np.ndarray:
    solution, _ = scipy.sparse.linalg.cg(matrix, charges, rtol=1e-6, maxiter=250)
    return solution


def curve_fit_input(n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Times float64[n] and doses float64[n] of one patient."""
    time = np.linspace(0, 10, n)
    return time, 3 * np.exp(-0.4 * time) + 1.5 * np.exp(-1.7 * time) + 0.2


def curve_fit(data: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    method = {
        "method": "Nelder-Mead",
        "args": data,
        "options": {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-9, "fatol": 1e-15},
    }
    return scipy.optimize.basinhopping(misfit, [1.0, 1.0, 1.0, 2.0, 0.0], niter=20, minimizer_kwargs=method, rng=0).x


def misfit(parameters: np.ndarray, time: np.ndarray, dose: np.ndarray) -> float:
    a, b, c, d, e = parameters
    return float(np.sum((a * np.exp(-b * time) + c * np.exp(-d * time) + e - dose) ** 2))


def orbit_input(n: int = 60) -> dict:
    """Years to follow a comet on its elliptic orbit."""
    return {"years": n, "start": [1.0, 0.0, 0.0, 1.2 * np.pi]}


def orbit(comet: dict) -> np.ndarray:
    solved = solve_ivp(acceleration, (0, comet["years"]), comet["start"], method="DOP853", rtol=1e-9, atol=1e-9)
    return solved.y[:, -1]


def acceleration(_, state: np.ndarray) -> list[float]:
    """In astronomical units and years."""
    x, y, u, v = state
    cube = (x * x + y * y) ** 1.5
    return [u, v, -4 * np.pi**2 * x / cube, -4 * np.pi**2 * y / cube]
