"""Time grids: where a solver stops on the way from source to data.

A `Grid` carries the path's coefficients at its times in float64, so solver plans need nothing else of the path. NumPy
only: the PyTorch bridge builds plans with it too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kinema.errors import InputError

Coefficients = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Grid:
    """Increasing times `(n + 1,)` with the coefficients a, b, s of the path there.

    A `clean` grid ends with a step onto the noise-free prediction: its last point has s = 0 at the time before it.
    `locate` gives (t, a, b, s) at any log-SNR, for solvers that leave the grid (churn, restart).
    """

    times: np.ndarray
    a: np.ndarray
    b: np.ndarray
    s: np.ndarray
    clean: bool = False
    locate: Callable[[float], tuple[float, float, float, float]] | None = None

    def __post_init__(self):
        for name in ("times", "a", "b", "s"):
            values = np.asarray(getattr(self, name), np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != 1 or values.shape != self.times.shape:
                raise InputError(f"{name} must be a vector as long as times, got shape {values.shape}")
            if not np.isfinite(values).all():
                raise InputError(f"{name} must be finite, got {name}[{np.argmin(np.isfinite(values))}]={values.min()}")
        if len(self.times) < 2:
            raise InputError(f"a grid needs at least 2 times, got {len(self.times)}")
        check_increasing("times", self.times[:-1] if self.clean else self.times)
        if (self.s[:-1] <= 0).any():
            i = int(np.argmax(self.s[:-1] <= 0))
            raise InputError(f"the noise may vanish only at the last time, got s={self.s[i]} at times[{i}]={self.times[i]}")

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def log_snr(self) -> np.ndarray:
        """log(a / s): -inf where a = 0, inf where s = 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.a) - np.log(self.s)

    @property
    def noise_ratio(self) -> np.ndarray:
        """kappa = s / a, infinite where a = 0."""
        with np.errstate(divide="ignore"):
            return self.s / self.a


def from_times(path, times, *, clean: bool = False) -> Grid:
    """A grid at the given times; `clean` adds a last step onto the noise-free prediction.

    Raises:
        InputError: times outside [0, 1], not increasing, not finite or fewer than 2.
    """
    from kinema.generate.path.path import in_float64

    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 - clean:
        raise InputError(f"times must be a vector of at least 2, got shape {times.shape}")
    check_increasing("times", times)
    if times[0] < 0 or times[-1] > 1:
        raise InputError(f"times must lie in [0, 1], got {times[0]} to {times[-1]}")
    a, b, s = in_float64(path.coefficients, times)
    if clean:
        end_a, end_b, _ = in_float64(path.coefficients, times[-1:])
        times, a, b, s = np.r_[times, times[-1]], np.r_[a, end_a], np.r_[b, end_b], np.r_[s, 0.0]

    def locate(level: float) -> tuple[float, float, float, float]:
        (time,) = in_float64(path.time_of_log_snr, level)
        return (float(time), *(float(value) for value in in_float64(path.coefficients, time)))

    return Grid(times, a, b, s, clean, locate)


def uniform_time(path, steps: int, *, start: float = 0.0, stop: float | None = None) -> Grid:
    """Equal steps in t from `start` to `stop` (the path's end)."""
    check_steps(steps)
    if stop is not None:
        return from_times(path, np.linspace(start, stop, steps + 1))
    clean = not _ends_clean(path)
    return from_times(path, np.linspace(start, 1.0, steps + (not clean)), clean=clean)


def log_snr(path, steps: int, *, low: float | None = None, high: float | None = None, clean: bool = True) -> Grid:
    """Equal steps in log(a / s) between `low` and `high` (the path's safe ends); then, if `clean`, one onto s = 0."""
    return _between(path, steps, low, high, clean, lambda level: level, lambda level: level)


def karras(path, steps: int, *, rho: float = 7.0, low: float | None = None, high: float | None = None, clean: bool = True) -> Grid:
    """Equal steps in (s / a)^(1/rho), as Karras et al. (2022); `low` and `high` bound log(a / s).

    Raises:
        InputError: rho not positive.
    """
    if not rho > 0:
        raise InputError(f"rho must be positive, got {rho}")
    return _between(
        path, steps, low, high, clean, lambda level: np.exp(-level / rho), lambda power: -rho * np.log(power)
    )


GRIDS = {"uniform-time": uniform_time, "log-snr": log_snr, "karras": karras}


def check_steps(steps: int):
    if not (isinstance(steps, int | np.integer) and steps >= 1):
        raise InputError(f"steps must be a whole number of at least 1, got {steps!r}")


def check_increasing(name: str, values: np.ndarray):
    if not np.isfinite(values).all():
        i = int(np.argmin(np.isfinite(values)))
        raise InputError(f"{name} must be finite, got {name}[{i}]={values[i]}")
    falls = np.flatnonzero(np.diff(values) <= 0)
    if falls.size:
        i = int(falls[0]) + 1
        raise InputError(f"{name} must increase, got {name}[{i}]={values[i]:g} after {name}[{i - 1}]={values[i - 1]:g}")


def _ends_clean(path) -> bool:
    from kinema.generate.path.path import in_float64

    return bool(in_float64(path.coefficients, 1.0)[2] == 0)


def _between(path, steps, low, high, clean, forward, backward) -> Grid:
    """Equal steps in `forward(log_snr)` between two levels."""
    from kinema.generate.path.path import in_float64

    check_steps(steps)
    ends = in_float64(path.log_snr, [max(path.t_min, 0.0), min(path.t_max, 1.0)])[0]
    low, high = (ends[0] if low is None else low), (ends[1] if high is None else high)
    if not low < high:
        raise InputError(f"low must be below high, got low={low}, high={high}")
    count = steps + (not clean)
    if count == 1:
        levels = np.array([low])
    else:
        levels = backward(np.linspace(forward(low), forward(high), count))
    times = np.clip(in_float64(path.time_of_log_snr, levels)[0], 0.0, 1.0)
    return from_times(path, times, clean=clean)
