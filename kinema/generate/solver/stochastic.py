"""One-step stochastic solvers: ancestral (DDIM with eta, Euler ancestral), reverse diffusion, Euler-Maruyama.

From noisy (a, s) to cleaner (a', s') the exact noising kernel read backwards has q = a / a' and v^2 = s^2 - q^2 s'^2:

    ancestral           x' = a' m + sqrt(s'^2 - c^2) e + c xi,   c = eta v s' / s
    reverse diffusion   x' = (2 - q) x - (v^2 / s) e + v xi
    Euler-Maruyama      x' = x + (velocity + w^2 score / 2) dt + w sqrt(dt) xi

Ancestral at eta = 1 is DDPM's posterior, at 0 DDIM; with kappa = s / a it is the Euler ancestral step down to
sqrt(kappa'^2 - up^2) and up again by up = eta (kappa' / kappa) sqrt(kappa^2 - kappa'^2): one formula for all three.

Reference: Ho et al. 2020, Song et al. 2021 (DDIM), Song et al. 2021 (score SDE).
"""

from collections.abc import Callable

import numpy as np

from kinema.errors import InputError
from kinema.generate.solver.grids import Grid
from kinema.generate.solver.held import Held
from kinema.generate.solver.plan import Draft, Plan


def ancestral(path, grid: Grid, *, eta: float = 1.0, variance: str = "posterior") -> Plan:
    """Steps of the exact posterior given the data prediction: eta 0 is DDIM, 1 DDPM and Euler ancestral.

    `variance="forward"` adds the noise of the noising kernel instead, c = eta v, to the same mean.

    Raises:
        InputError: eta negative; an unknown variance.
    """
    if not (np.isfinite(eta) and eta >= 0):
        raise InputError(f"eta must not be negative, got {eta}")
    if variance not in ("posterior", "forward"):
        raise InputError(f"variance must be 'posterior' or 'forward', got {variance!r}")
    draft = Draft("ancestral" if eta else "ddim", grid, extrapolates="data")
    for i in range(grid.steps):
        s, a_next, s_next = grid.s[i], grid.a[i + 1], grid.s[i + 1]
        v = _kernel(grid, i)[1]
        up = min(eta * v * s_next / s, s_next)
        down = np.sqrt(max(s_next**2 - up**2, 0.0))
        c = up if variance == "posterior" or s_next == 0 else eta * v
        draft.add(i + 1, down / s, [a_next - grid.a[i] * down / s], c=c)
    return draft.plan()


def reverse_diffusion(path, grid: Grid) -> Plan:
    """The noising kernel reversed to first order; the last step onto s = 0 is the data prediction itself."""
    draft = Draft("reverse-diffusion", grid, extrapolates="noise")
    for i in range(grid.steps):
        q, v = _kernel(grid, i)
        if grid.s[i + 1] == 0:
            x, H = Held(path, grid, "noise", "log-snr").step(i, [i])
            draft.add(i + 1, x, H)
        else:
            draft.add(i + 1, 2 - q, [-(v**2) / grid.s[i]], c=v)
    return draft.plan()


def euler_maruyama(path, grid: Grid, *, noise_level: float | str | Callable = "reverse") -> Plan:
    """Equal treatment of any noise level w(t): "reverse" (the reverse of the noising SDE), a factor on it, or w(t).

    First order in law. The last step onto s = 0 of a clean grid is the data prediction itself.

    Raises:
        InputError: a noise level that is negative or unknown; one that is infinite on the grid (the reverse level where
            a = 0).
    """
    from kinema.generate.generator import moments_in_float64

    times = grid.times[:-1]
    width = _width(noise_level, times, moments_in_float64(path, times))
    held = Held(path, grid, "velocity", "time")
    draft = Draft("euler-maruyama", grid, extrapolates="velocity")
    for i, (w, dt) in enumerate(zip(width, np.diff(grid.times))):
        if grid.clean and i == grid.steps - 1:
            draft.add(i + 1, *held.step(i, [i]))
        else:
            draft.add(i + 1, 1.0, [dt], S=w**2 / 2, c=w * np.sqrt(dt))
    return draft.plan()


def _kernel(grid: Grid, i: int) -> tuple[float, float]:
    """q and v of the noising kernel that step i reverses."""
    q = grid.a[i] / grid.a[i + 1]
    return q, np.sqrt(max(grid.s[i] ** 2 - (q * grid.s[i + 1]) ** 2, 0.0))


def _width(level: float | str | Callable, times: np.ndarray, moments) -> np.ndarray:
    if callable(level):
        width = np.array([float(level(t)) for t in times])
    elif level == "reverse" or isinstance(level, int | float):
        with np.errstate(divide="ignore", invalid="ignore"):
            square = 2 * (moments.s**2 * moments.da / moments.a - moments.s_ds)
        falls = square < -1e-9 * np.abs(moments.s_ds)
        if falls.any():
            raise InputError(
                f"noise_level={level!r} has no meaning at t={times[int(np.argmax(falls))]:g}, where the log-SNR of the"
                " path falls; give w as a function of t"
            )
        width = (1.0 if isinstance(level, str) else level) * np.sqrt(np.maximum(square, 0))
    else:
        raise InputError(f"noise_level must be 'reverse', a factor or a function of t, got {level!r}")
    if not (np.isfinite(width).all() and (width >= 0).all()):
        i = int(np.argmin(np.isfinite(width) & (width >= 0)))
        raise InputError(f"noise_level must be finite and not negative, got {width[i]} at t={times[i]:g}")
    return width
