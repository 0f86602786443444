"""How far apart the flow and the noisy samples of one generator may be, and how far they are.

A learned score s is the score of no diffusion, so the flow and the noisy law built from it sample different laws. With
q = grad log p_flow, carried along the flow's own samples by dq/dt = -(grad v)^T q - grad div v, w the noise:

    KL(flow || noisy) <= int (w^2 / 8) E_flow |q - s|^2 dt
    W2(flow, noisy)   <= int exp(int_t^1 L) (w^2 / 2) (E_flow |q - s|^2)^(1/2) dt

L(t) is the largest rate at which the noisy drift pushes two points apart (one-sided Lipschitz): the two laws driven by
one noise, from one source. No sample of the noisy law is needed.

Reference: Deveney et al. 2025; the bounds are Girsanov's and Grönwall's.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from kinema.errors import InputError
from kinema.generate.fields import Moments
from kinema.generate.fokker_planck import check_divergence
from kinema.generate.generator import AbstractGenerator
from kinema.generate.sampling import sample
from kinema.generate.solver import ancestral, grids, heun
from kinema.verify.distances import sliced_wasserstein
from kinema.verify.stepping import runge_kutta


class GapCertificate(NamedTuple):
    """Bounds on the distance between the laws of flow and noisy samples.

    `kl` in nats; `w2` in units of the data (its Lipschitz constant is the largest seen, so it is a bound up to what was
    not seen); `mismatch` is E|s (q - score)|^2 / dim at each level of `log_snr`: where the gap is made.
    """

    kl: Float[Array, ""]
    w2: Float[Array, ""]
    mismatch: Float[Array, " steps_plus_1"]
    log_snr: Float[Array, " steps_plus_1"]


class Gap(NamedTuple):
    """Sliced Wasserstein distances; `floor` is that of two halves of the data, which no sampler can beat."""

    ode_sde: Float[Array, ""]
    ode_data: Float[Array, ""]
    sde_data: Float[Array, ""]
    floor: Float[Array, ""]


def gap_certificate(
    gen: AbstractGenerator,
    *,
    key,
    shape: tuple[int, ...],
    n: int = 1024,
    steps: int = 200,
    span: tuple[float, float] | None = None,
    noise_level: float = 1.0,
) -> GapCertificate:
    """The bounds, from `n` samples of the flow in `steps` Runge-Kutta steps of equal log-SNR.

    `span` is (first, last) log-SNR, by default of the path's safe ends. `noise_level` is a factor on the noise of the
    reverse SDE. Halve `steps`: a bound that moves has not converged. Cost: d + 2 derivatives of the score an
    evaluation.

    Raises:
        InputError: a generator without a score; a path with an origin or without normal noise; more than 64
            dimensions; counts or noise_level not positive; a span that does not rise.
    """
    low, high = _span(gen, span)
    if n < 1 or steps < 1 or not noise_level > 0:
        raise InputError(f"n, steps and noise_level must be positive, got {n}, {steps} and {noise_level}")
    size = int(np.prod(shape))
    check_divergence("exact", 1, None, size)
    levels = jnp.linspace(low, high, steps + 1)
    mismatch, apart = _carry(gen, shape, levels, jr.split(key, n), jnp.asarray(float(noise_level)))
    s = jax.vmap(lambda level: gen.path.coefficients(gen.path.time_of_log_snr(level))[2])(levels)
    step = (high - low) / steps
    grown = 0.5 * step * (apart[1:] + apart[:-1])
    ahead = jnp.append(jnp.cumsum(grown[::-1])[::-1], 0.0)
    kl = jnp.trapezoid(noise_level**2 * size * mismatch / 4, dx=step)
    push = noise_level**2 * s * jnp.sqrt(size * mismatch)
    return GapCertificate(kl, jnp.trapezoid(jnp.exp(ahead) * push, dx=step), mismatch, levels)


def ode_sde_gap(
    gen: AbstractGenerator,
    data: Float[Array, "n ..."],
    *,
    key,
    steps: int = 200,
    span: tuple[float, float] | None = None,
    projections: int = 256,
) -> Gap:
    """Sliced Wasserstein distances between flow (Heun), noisy samples (ancestral) and data, half as many as `data`.

    Data are noised to the level where `span` (first, last log-SNR; the path's safe ends) ends, which the samplers leave
    in. Mode weights alone make a large `floor`: a gap near it is no finding. Halve `steps`: a gap that moves by more
    than 5 percent is an error of the solver.

    Raises:
        InputError: as `gap_certificate`; fewer than four samples.
    """
    low, high = _span(gen, span)
    if len(data) < 4:
        raise InputError(f"data must have at least 4 samples, got {len(data)}")
    path, half, shape = gen.path, len(data) // 2, data.shape[1:]
    key_noise, key_start, key_draw, key_slices = jr.split(key, 4)
    grid = grids.log_snr(path, steps, low=low, high=high, clean=False)
    t = jnp.asarray(float(grid.times[-1]))
    noised = jax.vmap(lambda k, row: path.perturb(k, t, row).x)(jr.split(key_noise, 2 * half), data[: 2 * half])
    start = jax.vmap(lambda k: path.sample_source(k, jnp.zeros(shape)))(jr.split(key_start, half))
    ode, sde = (
        sample(gen, plan, half, key=key_draw, shape=shape, start=start).x
        for plan in (heun(path, grid), ancestral(path, grid))
    )
    one, other = noised[:half], noised[half:]

    def distance(x, y):
        return sliced_wasserstein(x, y, key_slices, projections=projections)

    return Gap(distance(ode, sde), distance(ode, one), distance(sde, one), distance(one, other))


@eqx.filter_jit
def _carry(gen: AbstractGenerator, shape: tuple[int, ...], levels, keys, noise_level):
    """Mean squared mismatch of the scores and largest rate of separation, at every level."""
    path = gen.path

    def at(level, y):
        """Velocity per unit of log-SNR, score and noise at one point."""
        t = path.time_of_log_snr(level)
        moments, found = Moments.at(path, t), gen(t, y.reshape(shape))
        rate = moments.da / moments.a - moments.s_ds / moments.s**2
        velocity, score = jnp.asarray(found.velocity), jnp.asarray(found.score)
        return velocity.reshape(-1) / rate, score.reshape(-1), moments.s

    def slope(level, pair):
        x, q = pair
        v, back = jax.vjp(lambda y: at(level, y)[0], x)
        turned = jax.grad(lambda y: jnp.trace(jax.jacfwd(lambda z: at(level, z)[0])(y)))(x)
        return v, -back(q)[0] - turned

    def look(level, x, q):
        _, score, s = at(level, x)

        def drift(y):
            v, score, s = at(level, y)
            return v + noise_level**2 * s**2 * score

        jacobian = jax.jacfwd(drift)(x)
        apart = jnp.linalg.eigvalsh(0.5 * (jacobian + jacobian.T))[-1]
        return jnp.mean((s * (q - score)) ** 2), apart

    def seen(level, pair):
        mismatch, apart = jax.vmap(lambda x, q: look(level, x, q))(*pair)
        return mismatch.mean(), apart.max()

    def body(pair, ends):
        pair = runge_kutta(jax.vmap(slope, in_axes=(None, 0)), pair, ends[0], ends[1], 1)
        return pair, seen(ends[1], pair)

    def begin(key):
        x = path.sample_source(key, jnp.zeros(shape, levels.dtype))
        return x.reshape(-1), jax.grad(path.source_log_prob)(x).reshape(-1)

    pair = jax.vmap(begin)(keys)
    first = seen(levels[0], pair)
    _, rest = jax.lax.scan(body, pair, (levels[:-1], levels[1:]))
    return tuple(jnp.append(one, more) for one, more in zip(first, rest))


def _span(gen: AbstractGenerator, span: tuple[float, float] | None) -> tuple[float, float]:
    path = gen.path
    if "score" not in gen.fields:
        raise InputError(f"a noisy law needs a score; this generator has {sorted(gen.fields)}")
    if path.origin != "none" or not path.noise.gaussian:
        raise InputError(f"{type(path).__name__} must start from normal noise without an origin")
    low, high = (float(path.log_snr(t)) for t in (path.t_min, path.t_max)) if span is None else span
    if not low < high:
        raise InputError(f"span must be two rising log-SNRs, got {span}")
    return low, high
