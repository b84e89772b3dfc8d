"""Gaussian noise that lasts: a first-order autoregressive process; such actions lead far from where they began."""

import numpy as np
from jaxtyping import Float64


class CorrelatedNoise:
    """z_{t+1} = rho z_t + sqrt(1 - rho^2) eps, begun in its stationary distribution: standard normal at every t."""

    def __init__(self, size: int, correlation: float, rng: np.random.Generator) -> None:
        """`size`: independent processes. `correlation`: rho, of a draw and the next, in [0, 1)."""
        self._correlation, self._rng = correlation, rng
        self._value = rng.normal(size=size)

    def draw(self) -> Float64[np.ndarray, " size"]:
        """z_t, for the next t."""
        value, rho = self._value, self._correlation
        self._value = rho * value + np.sqrt(1 - rho**2) * self._rng.normal(size=len(value))
        return value
