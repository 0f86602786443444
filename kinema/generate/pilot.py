"""How far plans end from a fine solution, on the same starts."""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.generate.alike import bind_alike
from kinema.generate.generator import AbstractGenerator
from kinema.generate.path.path import Path, in_float64
from kinema.generate.rows import Rows, bind
from kinema.generate.sampling import as_struct, sample
from kinema.generate.solver import Plan, dpmpp, grids, heun
from kinema.generate.solver.registry import LIMIT

GROUP = 8  # plans that one program carries


def distances(
    gen: AbstractGenerator,
    rows: Mapping[str, Rows],
    truth: PyTree,
    *,
    key,
    shape: tuple[int, ...] | PyTree,
    cond: PyTree | None = None,
    x0: PyTree | None = None,
    batch_size: int | None = None,
    told: Callable[[int], None] = lambda count: None,
) -> dict[str, Float[np.ndarray, " n"]]:
    """Squared distance over coordinates to `truth`, of each of its n samples, for plans that `bind_alike` gave.

    The same key gives them the starts of `sample`. Infinite where a sample is not finite. `told` is called with the
    number of plans done.
    """
    names, found = list(rows), {}
    for first in range(0, len(names), GROUP):
        group = names[first : first + GROUP]
        padded = [rows[name] for name in group] + [rows[group[0]]] * (GROUP - len(group))
        stacked = jax.tree.map(lambda *columns: jnp.asarray(np.stack(columns)), *padded)
        values = np.asarray(_distances(gen, stacked, truth, key, as_struct(shape), cond, x0, batch_size), np.float64)
        found |= {name: np.where(np.isfinite(one), one, np.inf) for name, one in zip(group, values)}
        told(len(found))
    return found


@eqx.filter_jit
def _distances(gen, stacked: Rows, truth, key, like, cond, x0, batch_size: int | None) -> Float[Array, "group n"]:
    n = len(jax.tree.leaves(truth)[0])

    def one(rows: Rows) -> Float[Array, " n"]:
        x = sample(gen, rows, n, key=key, shape=like, cond=cond, x0=x0, batch_size=batch_size).x
        return mean_squares(x, truth)

    return jax.lax.map(one, stacked)


def mean_squares(x: PyTree, truth: PyTree) -> Float[Array, " n"]:
    """Squared distance of samples, mean over all coordinates."""
    pairs = list(zip(jax.tree.leaves(x), jax.tree.leaves(truth)))
    size = sum(leaf[0].size for leaf, _ in pairs)
    return jnp.stack([((leaf - goal) ** 2).reshape(len(leaf), -1).sum(1) for leaf, goal in pairs]).sum(0) / size


def rms(squares: Array | np.ndarray) -> float:
    """The root of the mean."""
    return float(np.asarray(squares, np.float64).mean() ** 0.5)


def fine_plan(gen: AbstractGenerator, calls: int) -> Plan:
    """A plan of `calls` calls that has nearly converged: DPM-Solver++ of third order along log-SNR, or, where there is
    no data prediction, Heun in time.

    Raises:
        InputError: a generator that neither can drive.
    """
    refused = ""
    for build in (_along_log_snr, _along_time):
        try:
            plan = build(gen.path, calls)
            bind(plan, gen)
            return plan
        except InputError as error:
            refused = str(error)
    raise InputError(f"gen cannot be solved: it needs a data prediction or a velocity ({refused})")


def fine_rows(gen: AbstractGenerator, calls: int) -> dict[str, Rows]:
    """The fine plan as "whole" and that of half as many calls as "half", bound so that one program runs both."""
    return bind_alike({"half": fine_plan(gen, calls // 2), "whole": fine_plan(gen, calls)}, gen)


def _along_log_snr(path: Path, calls: int) -> Plan:
    low, high = in_float64(path.log_snr, [max(path.t_min, 0.0), min(path.t_max, 1.0)])[0]
    low, high = max(low, -LIMIT), min(high, LIMIT)
    if in_float64(path.coefficients, 0.0)[0] != 0:
        return dpmpp(path, grids.log_snr(path, calls, low=low, high=high), order=3)
    inside = grids.log_snr(path, calls - 1, low=low, high=high)
    return dpmpp(path, grids.from_times(path, np.r_[0.0, inside.times[:-1]], clean=True), order=3)


def _along_time(path: Path, calls: int) -> Plan:
    return heun(path, grids.uniform_time(path, calls // 2), extrapolates="velocity")
