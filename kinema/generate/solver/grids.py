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

    A `clean` grid ends with a step onto the noise-free prediction: its last point is t = 1 with s = 0, whatever the
    path's s there, so the last two times may be equal. `locate` gives (t, a, b, s) at any log-SNR, for solvers that
    leave the grid (churn, restart).

    Raises:
        InputError: vectors of different lengths, fewer than 2 times, values that are not finite, times that do not
            increase, negative s, a clean step from s = 0.
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
                i = int(np.argmin(np.isfinite(values)))
                raise InputError(f"{name} must be finite, got {name}[{i}]={values[i]}")
        if len(self.times) < 2:
            raise InputError(f"a grid needs at least 2 times, got {len(self.times)}")
        check_increasing("times", self.times[:-1] if self.clean else self.times)
        if (self.s < 0).any():
            i = int(np.argmax(self.s < 0))
            raise InputError(f"s must not be negative, got s[{i}]={self.s[i]}")
        if self.clean and self.s[-2] == 0:
            raise InputError(f"there is no noise left at times[-2]={self.times[-2]} for a clean last step to remove")

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def log_snr(self) -> np.ndarray:
        """log(a / s): -inf where a = 0, inf where s = 0, NaN where both are."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(self.a) - np.log(self.s)

    @property
    def noise_ratio(self) -> np.ndarray:
        """kappa = s / a, infinite where a = 0, NaN where both are."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.s / self.a

    def at_noise_ratio(self, kappa: float) -> tuple[float, float, float, float]:
        """(t, a, b, s) where s / a is kappa.

        Raises:
            InputError: the grid was not made from a path, or the path does not reach kappa.
        """
        if self.locate is None:
            raise InputError("a point between grid times is needed, so the grid must come from a path or a table")
        t, a, b, s = self.locate(-np.log(kappa))
        if not (t <= 1 and a > 0 and np.isclose(s / a, kappa, rtol=1e-6)):
            raise InputError(f"the noise ratio {kappa:.6g} is outside the path; lower the noise that is put back")
        return t, a, b, s


def from_times(path, times, *, clean: bool = False) -> Grid:
    """A grid at the given times; `clean` adds a last step onto the noise-free prediction, at t = 1.

    Raises:
        InputError: times outside [0, 1], not increasing, not finite or fewer than 2.
    """
    from kinema.generate.path.path import in_float64

    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 - clean:
        raise InputError(f"times must be a vector of at least {2 - clean}, got shape {times.shape}")
    check_increasing("times", times)
    if times[0] < 0 or times[-1] > 1:
        raise InputError(f"times must lie in [0, 1], got {times[0]} to {times[-1]}")
    a, b, s = in_float64(path.coefficients, times)
    if clean:
        end_a, end_b, _ = in_float64(path.coefficients, 1.0)
        times, a, b, s = np.r_[times, 1.0], np.r_[a, end_a], np.r_[b, end_b], np.r_[s, 0.0]

    def locate(level: float) -> tuple[float, float, float, float]:
        (time,) = in_float64(path.time_of_log_snr, level)
        a, b, s = in_float64(path.coefficients, time)
        return float(time), float(a), float(b), float(s)

    return Grid(times, a, b, s, clean, locate)


def from_noise_ratios(path, ratios) -> Grid:
    """A grid at falling noise ratios s / a (the "sigmas" of EDM and k-diffusion); a last 0 is a clean end.

    Raises:
        InputError: ratios that do not fall, are negative or are outside the path.
    """
    ratios = np.asarray(ratios, np.float64)
    if ratios.ndim != 1 or len(ratios) < 2:
        raise InputError(f"ratios must be a vector of at least 2, got shape {ratios.shape}")
    check_increasing("-ratios", -ratios)
    clean = bool(ratios[-1] == 0)
    if (ratios[: len(ratios) - clean] <= 0).any():
        raise InputError(f"ratios must be positive but for a last 0, got {ratios.min()}")
    return _at_levels(path, -np.log(ratios[: len(ratios) - clean]), clean)


def uniform_time(path, steps: int, *, start: float | None = None, stop: float | None = None) -> Grid:
    """Equal steps in t from `start` to `stop` (the path's end)."""
    return polynomial(path, steps, rho=1.0, start=start, stop=stop)


def polynomial(path, steps: int, *, rho: float = 2.0, start: float | None = None, stop: float | None = None) -> Grid:
    """Equal steps in (1 - t)^(1/rho): rho 1 is `uniform_time`, more makes steps shorter near the data.

    Raises:
        InputError: rho not positive.
    """
    check_rho(rho)
    check_count("steps", steps)
    clean = stop is None and not _ends_clean(path)
    start = _first_time(path) if start is None else start
    u = np.linspace((1 - start) ** (1 / rho), (1 - (1.0 if stop is None else stop)) ** (1 / rho), steps + (not clean))
    return from_times(path, np.clip(1 - u**rho, 0.0, 1.0), clean=clean)


def log_snr(path, steps: int, *, low: float | None = None, high: float | None = None, clean: bool = True) -> Grid:
    """Equal steps in log(a / s) between `low` and `high` (the path's safe ends); then, if `clean`, one onto s = 0."""
    return _between(path, steps, low, high, clean, lambda level: level, lambda level: level)


def karras(
    path, steps: int, *, rho: float = 7.0, low: float | None = None, high: float | None = None, clean: bool = True
) -> Grid:
    """Equal steps in (s / a)^(1/rho), as Karras et al. (2022); `low` and `high` bound log(a / s).

    Raises:
        InputError: rho not positive.
    """
    check_rho(rho)
    return _between(
        path, steps, low, high, clean, lambda level: np.exp(-level / rho), lambda power: -rho * np.log(power)
    )


def discrete(
    alphas_cumprod,
    steps: int | None = None,
    *,
    timesteps=None,
    spacing: str = "linspace",
    offset: int = 0,
    rho: float = 7.0,
    clean: bool = True,
) -> Grid:
    """Points of a table of T squared data coefficients, index 0 next to the data: index k is t = 1 - (k + 1) / T.

    Evaluations at `steps` indices chosen by `spacing` ("linspace", "leading" with `offset`, "trailing", or "karras",
    which goes between indices), or at the falling `timesteps`; then a last step onto s = 0 or, with `clean=False`, onto
    index 0.

    Raises:
        InputError: a table that does not fall inside (0, 1); both or neither of `steps` and `timesteps`; indices that
            do not fall or are outside the table; an unknown spacing.
    """
    table = np.asarray(alphas_cumprod, np.float64)
    if table.ndim != 1 or len(table) < 2 or not (np.diff(table) < 0).all() or table[-1] <= 0 or table[0] >= 1:
        raise InputError("alphas_cumprod must be a vector of at least 2 numbers that fall inside (0, 1)")
    if (steps is None) == (timesteps is None):
        raise InputError(f"give either steps or timesteps, got steps={steps} and timesteps={timesteps}")
    levels = 0.5 * (np.log(table) - np.log1p(-table))
    if steps is not None:
        check_count("steps", steps)
        index = _spaced(levels, steps, spacing, offset, rho, clean)
    else:
        index = np.asarray(timesteps)
    lowest = 0 if clean else 1
    if index.ndim != 1 or index.dtype.kind not in "iuf" or (np.diff(index) >= 0).any():
        raise InputError(f"timesteps must fall, got {index.tolist()}")
    if index[0] > len(table) - 1 or (timesteps is not None and index[-1] < lowest):
        raise InputError(f"timesteps must be in {lowest} .. {len(table) - 1}, got {index[0]} to {index[-1]}")

    def at(position, level) -> tuple:
        return (
            1 - (position + 1) / len(table),
            (1 + np.exp(-2 * level)) ** -0.5,
            0 * level,
            (1 + np.exp(2 * level)) ** -0.5,
        )

    def locate(level: float) -> tuple[float, float, float, float]:
        return at(np.interp(level, levels[::-1], np.arange(len(table))[::-1]), level)

    index = index if clean else np.r_[index, 0]
    points = np.array(at(index, np.interp(index, np.arange(len(table)), levels)))
    if clean:
        points = np.c_[points, [1.0, 1.0, 0.0, 0.0]]
    return Grid(*points, clean=clean, locate=locate)


GRIDS = {"uniform-time": uniform_time, "polynomial": polynomial, "log-snr": log_snr, "karras": karras}
"""Time grids by name, each (path, steps, ...) -> `Grid`."""


def check_count(name: str, value: int):
    if not (isinstance(value, int | np.integer) and value >= 1):
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_rho(rho: float):
    if not (np.isfinite(rho) and rho > 0):
        raise InputError(f"rho must be positive, got {rho}")


def check_increasing(name: str, values: np.ndarray):
    if not np.isfinite(values).all():
        i = int(np.argmin(np.isfinite(values)))
        raise InputError(f"{name} must be finite, got {name}[{i}]={values[i]}")
    falls = np.flatnonzero(np.diff(values) <= 0)
    if falls.size:
        i = int(falls[0]) + 1
        raise InputError(f"{name} must increase, got {name}[{i}]={values[i]:g} after {name}[{i - 1}]={values[i - 1]:g}")


def _first_time(path) -> float:
    """0, or the path's first safe time where it has no noise at 0."""
    from kinema.generate.path.path import in_float64

    return float(path.t_min) if in_float64(path.coefficients, 0.0)[2] == 0 else 0.0


def _ends_clean(path) -> bool:
    from kinema.generate.path.path import in_float64

    return bool(in_float64(path.coefficients, 1.0)[2] == 0)


def _between(path, steps, low, high, clean, forward, backward) -> Grid:
    """Equal steps in `forward(log_snr)` between two levels."""
    from kinema.generate.path.path import in_float64

    check_count("steps", steps)
    ends = in_float64(path.log_snr, [max(path.t_min, 0.0), min(path.t_max, 1.0)])[0]
    low, high = (ends[0] if low is None else low), (ends[1] if high is None else high)
    if not low < high:
        raise InputError(f"low must be below high, got low={low}, high={high}")
    count = steps + (not clean)
    if count == 1:
        levels = np.array([low])
    else:
        levels = backward(np.linspace(forward(low), forward(high), count))
    return _at_levels(path, levels, clean)


def _at_levels(path, levels: np.ndarray, clean: bool) -> Grid:
    """The grid at the given log-SNRs, which must be inside the path."""
    from kinema.generate.path.path import in_float64

    times = in_float64(path.time_of_log_snr, levels)[0]
    reached = in_float64(path.log_snr, np.clip(times, 0.0, 1.0))[0]
    if not np.allclose(reached, levels, rtol=1e-6, atol=1e-6):
        i = int(np.argmax(np.abs(reached - levels)))
        raise InputError(f"log(a / s) = {levels[i]:.6g} is outside the path, whose nearest is {reached[i]:.6g}")
    return from_times(path, np.clip(times, 0.0, 1.0), clean=clean)


def _spaced(levels: np.ndarray, steps: int, spacing: str, offset: int, rho: float, clean: bool) -> np.ndarray:
    """Falling table indices of `steps` evaluations."""
    size = len(levels)
    if spacing == "linspace":
        return np.round(np.linspace(0, size - 1, steps + 1)[:0:-1])
    if spacing == "leading":
        return size // (steps + 1) * np.arange(steps, 0, -1.0) + offset
    if spacing == "trailing":
        return np.round(np.arange(size, 0, -size / steps)[:steps]) - 1
    if spacing == "karras":
        check_rho(rho)
        powers = np.linspace(np.exp(-levels[-1] / rho), np.exp(-levels[0] / rho), steps + (not clean))[:steps]
        return np.interp(-rho * np.log(powers), levels[::-1], np.arange(size)[::-1])
    raise InputError(f"spacing must be 'linspace', 'leading', 'trailing' or 'karras', got {spacing!r}")
