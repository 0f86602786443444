"""Score SDEs where the score is exact: samplers on a mixture, likelihoods, and the bias of replacement."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema.generate import VE, VP, MixturePosterior, Path, log_prob, sample
from kinema.generate.alike import bind_alike
from kinema.generate.rows import Rows
from kinema.generate.solver import Grid, Plan, ancestral, euler, grids, predictor_corrector
from kinema.generate.solver.plan import Draft
from kinema.steer import PathWeighted, condition_on_mask, steer
from kinema.studies.one_of import OneOf
from kinema.verify import sliced_wasserstein

SNRS = (0.05, 0.16, 0.3)  # the lowest useful one, the published default, the best here
COMPONENTS, DIM, STD, APART = 10, 8, 0.1, 7.0
CORRELATION, KNOWN = 0.9, 1.5
FLOW, EXPONENTIAL, TRUTH = "probability flow", "exponential Euler", "another draw of the truth"


class Quality(NamedTuple):
    """Samples against the truth: excess of the mean negative log density (nats), sliced Wasserstein distance."""

    excess: float
    distance: float


Qualities = dict[tuple[str, int], Quality]


def against_corrector(counts: Sequence[int], n: int, keys: Sequence) -> list[Qualities]:
    """n samples of predictors alone and with a corrector at equal `counts` of calls, on a mixture of exact score for
    every key. `sigma_max` is the largest distance between two means, as published.
    """
    path = VE(sigma_max=APART)
    of_any_score = MixturePosterior(path, np.zeros((COMPONENTS, DIM)), STD**2)
    plans = {calls: bind_alike(samplers(path, calls), of_any_score) for calls in counts}
    return [against_one(path, plans, n, key) for key in keys]


def against_one(path: Path, plans: Mapping[int, Mapping[str, Rows]], n: int, key) -> Qualities:
    """The comparison on one mixture."""
    key_means, key_truth, key_other, key_draw, key_slices = jr.split(key, 5)
    means = np.asarray(jr.normal(key_means, (COMPONENTS, DIM)), np.float64)
    means *= APART / np.linalg.norm(means[:, None] - means, axis=-1).max()
    oracle = MixturePosterior(path, means, STD**2)
    truth, other = (drawn(oracle, n, k) for k in (key_truth, key_other))
    least = surprise(oracle, truth)

    def quality(x) -> Quality:
        return Quality(
            float(surprise(oracle, x) - least), float(sliced_wasserstein(x, truth, key_slices, projections=64))
        )

    found = {(TRUTH, calls): quality(other) for calls in plans}
    for calls, bound in plans.items():
        for name, rows in bound.items():
            found[name, calls] = quality(sample(oracle, rows, n, key=key_draw, shape=(DIM,)).x)
    return found


@eqx.filter_jit
def drawn(oracle: MixturePosterior, n: int, key) -> Float[Array, "n d"]:
    """Samples of the data law."""
    return jax.vmap(oracle.draw)(jr.split(key, n))


def samplers(path: Path, calls: int) -> dict[str, Plan]:
    """Everything compared, at one number of calls."""
    whole, half = grids.uniform_time(path, calls), grids.uniform_time(path, calls // 2)
    flow, exponential = probability_flow(path, half), euler(path, half)
    return {
        FLOW: probability_flow(path, whole),
        **{f"{FLOW}, corrector {snr}": predictor_corrector(path, flow, snr=snr) for snr in SNRS},
        **{f"corrector {snr} alone": langevin(path, whole, snr) for snr in SNRS},
        EXPONENTIAL: euler(path, whole),
        f"{EXPONENTIAL}, corrector {SNRS[-1]}": predictor_corrector(path, exponential, snr=SNRS[-1]),
    }


@eqx.filter_jit
def surprise(oracle: MixturePosterior, x: Float[Array, "n d"]) -> Float[Array, ""]:
    """Mean negative log density of samples under the data law itself, which the path's last noise has not blurred."""
    data = eqx.tree_at(lambda m: m.path, oracle, VE(sigma_min=1e-4, sigma_max=APART))
    return -jax.vmap(lambda one: data.log_prob(1.0, one))(x).mean()


def probability_flow(path, grid: Grid) -> Plan:
    """The ODE discretised as the reverse diffusion is: x' = (2 - q) x - (v^2 / 2 s) e. The published predictor."""
    draft = Draft("probability-flow", grid, extrapolates="noise")
    for i in range(grid.steps):
        a, s, a_next, s_next = grid.a[i], grid.s[i], grid.a[i + 1], grid.s[i + 1]
        if s_next == 0:
            draft.add(i + 1, a_next / a, [-s * a_next / a])
        else:
            q = a / a_next
            draft.add(i + 1, 2 - q, [-(s**2 - (q * s_next) ** 2) / (2 * s)])
    return draft.plan()


def langevin(path, grid: Grid, snr: float) -> Plan:
    """Corrector steps alone, one at every noise level of the grid, then the data prediction."""
    draft = Draft("langevin", grid, extrapolates="data")
    for i in range(grid.steps - 1):
        step = 2 * (snr * grid.s[i]) ** 2
        draft.add(i + 1, 1.0, [step], B=0.0, S=1.0, c=np.sqrt(2 * step))
    draft.add(grid.steps, 0.0, [grid.a[-1]])
    return draft.plan()


def likelihood_error(paths: tuple[Path, ...], key) -> float:
    """The largest error of `log_prob` for a mixture in two dimensions, nats, in double precision."""
    with jax.enable_x64(True):
        means = np.array([[0.7, -0.4], [-0.8, 0.5], [0.1, -0.1]])
        means = means - means.mean(0)  # what the source's normal law leaves out is then of second order
        stds = np.array([0.2, 0.3, 0.1])
        oracles = [MixturePosterior(OneOf(paths, i), means, stds**2) for i in range(len(paths))]
        end = min(path.t_max for path in paths)
        return max(float(exact_error(oracle, end, key)) for oracle in oracles)


@eqx.filter_jit
def exact_error(oracle: MixturePosterior, end: float, key) -> Float[Array, ""]:
    def one(x):
        return log_prob(oracle, x, rtol=1e-7, atol=1e-7, span=(end, 0.0)) - oracle.log_prob(end, x)

    return jnp.abs(jax.vmap(one)(drawn(oracle, 16, key))).max()


def conditional_bias(n: int, key) -> tuple[float, float]:
    """Errors of E[second | first] of two correlated normals: replacement, and replacement with path weights.

    Replacement is what path weights are without resampling when the weights are left out.
    """
    path = VP()
    pair = MixturePosterior(path, np.zeros((1, 2)), np.array([[[1, CORRELATION], [CORRELATION, 1]]]))
    plan = ancestral(path, grids.log_snr(path, 150, high=4.5))
    known = condition_on_mask(np.array([True, False]), np.array([KNOWN, 0.0]))
    plain, weighted = (
        steer(pair, plan, PathWeighted(known, threshold=threshold), n, key=key, shape=(2,)) for threshold in (0.0, 0.5)
    )
    means = plain.x[:, 1].mean(), jax.nn.softmax(weighted.log_weight) @ weighted.x[:, 1]
    replaced, unbiased = (abs(float(mean) - CORRELATION * KNOWN) for mean in means)
    return replaced, unbiased
