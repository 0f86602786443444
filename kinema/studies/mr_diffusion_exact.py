"""Mean reversion where the denoiser is exact: three modes on a line, the error of samplers by number of calls."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from kinema.generate import MeanReverting, MixturePosterior, Path, sample
from kinema.generate.solver import Plan, ancestral, dpmpp, euler_maruyama, grids
from kinema.studies.plans_by_calls import bind_by_calls

WEIGHTS, MEANS, DEVIATION = np.array([0.3, 0.45, 0.25]), np.array([-0.3, 0.2, 0.8]), 0.05
PATH = MeanReverting()
HIGHEST = 6.0  # log SNR from which the last step jumps onto the prediction
POSTERIOR, EULER, TRUTH = "posterior sampling", "Euler-Maruyama", "another draw"
ODE, SDE = "ODE, data, 2", "SDE, data, 2"
Build = Callable[[Path, int], Plan]
Errors = Mapping[tuple[str, int], float]


def multistep(path: Path, calls: int, **options) -> Plan:
    """The published solver: steps uniform in log SNR, then one onto the prediction."""
    return dpmpp(path, grids.log_snr(path, calls, high=HIGHEST), variant="heun", **options)


FLOWS: dict[str, Build] = {
    ODE: lambda path, calls: multistep(path, calls),
    "ODE, noise, 2": lambda path, calls: multistep(path, calls, form="noise"),
    "ODE, noise, 3, published": lambda path, calls: multistep(path, calls, order=3, form="noise", exact=False),
}
NOISY: dict[str, Build] = {
    POSTERIOR: lambda path, calls: ancestral(path, grids.uniform_time(path, calls)),
    EULER: lambda path, calls: euler_maruyama(path, grids.uniform_time(path, calls)),
    SDE: lambda path, calls: multistep(path, calls, eta=1.0),
    "SDE, noise, 2": lambda path, calls: multistep(path, calls, form="noise", eta=1.0),
}


def flow_errors(names: Sequence[str], counts: Sequence[int]) -> Errors:
    """Wasserstein distance to the truth by sampler and calls, of those of `names` that are flows.

    Quantiles go to quantiles, so a few thousand do, and no sampling error is left.
    """
    with jax.enable_x64(True):
        return _errors(
            {(name, n): FLOWS[name](PATH, n) for name in names if name in FLOWS for n in counts}, 2000, jr.key(0)
        )


def noisy_errors(names: Sequence[str], counts: Sequence[int], n: int, key) -> Errors:
    """The same of n samples of those that add noise. Single precision is a thousandth of their sampling error."""
    key_draw, key_truth = jr.split(key)
    drawn = jax.vmap(MixturePosterior(PATH, MEANS[:, None], DEVIATION**2, WEIGHTS).draw)(jr.split(key_truth, n))
    floor = distance(drawn[:, 0], quantiles(n))
    found = {(TRUTH, calls): floor for calls in counts}
    for calls in counts:
        plans = {(name, calls): NOISY[name](PATH, calls) for name in names if name in NOISY}
        found |= _errors(plans, n, key_draw)
    return found


def _errors(plans: Mapping[tuple[str, int], Plan], n: int, key) -> Errors:
    """Written in the residual x1 - x0, to which mean reversion reduces; starts are the quantiles of the source."""
    key_order, key_steps = jr.split(key)
    oracle, truth = MixturePosterior(PATH, MEANS[:, None], DEVIATION**2, WEIGHTS), quantiles(n)
    places = jax.scipy.stats.norm.ppf((jr.permutation(key_order, n) + 0.5) / n)[:, None]
    start, origin = PATH.coefficients(0.0)[2] * places, jnp.zeros((n, 1))
    found = {}
    for at, rows in bind_by_calls(plans, oracle).items():
        drawn = sample(oracle, rows, n, key=key_steps, shape=(1,), x0=origin, start=start).x
        found[at] = distance(drawn[:, 0], truth)
    return found


def distance(x, truth: np.ndarray) -> float:
    """W1 to the law whose sorted quantiles are `truth (n,)`."""
    return float(np.abs(np.sort(np.asarray(x)) - truth).mean())


def quantiles(n: int) -> np.ndarray:
    """The n middle quantiles of the truth, by bisection of its distribution function."""
    level, low, high = (np.arange(n) + 0.5) / n, np.full(n, -2.0), np.full(n, 2.0)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = distribution(middle) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)


def distribution(x: np.ndarray) -> np.ndarray:
    """P(residual <= x)."""
    standard = (x[:, None] - MEANS) / (DEVIATION * math.sqrt(2))
    return 0.5 * (1 + np.asarray(jax.scipy.special.erf(standard))) @ WEIGHTS
