"""How far a generator's fields are from those of any diffusion: the residual of the Fokker-Planck equation.

With the velocity v of the probability flow and u = log p, time running from source to data,

    R = -(du/dt + v . grad u + div v),   grad R = -(ds/dt + grad(v . s + div v)) for a score s alone.

R = 0 everywhere only if e^u is the law that flow and noisy sampling share; where it is not 0 the two end in different
laws. Along the flow, log p_flow(x_1) = u(x_1) + (log p_source - u)(x_0) + int R dt.

Reference: Lai et al. 2023; Deveney et al. 2025.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError
from kinema.generate.fields import Moments, convert
from kinema.generate.generator import AbstractGenerator, Generator

FORMS = ("log_density", "score")
DIVERGENCES = ("exact", "hutchinson")
MOST_EXACT = 64  # dimensions up to which a divergence is taken derivative by derivative


def has_potential(gen: AbstractGenerator) -> bool:
    """Whether `log_potential` knows the generator: an exact mixture, or a network with a method `potential`."""
    if hasattr(gen, "log_prob"):
        return True
    if not isinstance(gen, Generator) or not hasattr(gen.net, "potential"):
        return False
    return isinstance(gen.predicts, str) and gen.path.origin == "none" and gen.path.noise.gaussian


def log_potential(gen: AbstractGenerator, t, x: PyTree, cond: PyTree | None = None, x0: PyTree | None = None):
    """u with grad u = score: log p_t(x) of an exact mixture; of a conservative network up to a function of time, nats.

    With `predicts="residual"` u is the log density of N(0, a^2 sigma_data^2 + s^2), which the network's output bends:
    exact at the source whatever the network says.

    Raises:
        InputError: a generator without a potential.
    """
    if not has_potential(gen):
        raise InputError(
            f"this {type(gen).__name__} has no potential; use form='score', or a network such as models.PotentialMLP on"
            " a path without origin"
        )
    if not isinstance(gen, Generator):
        return gen.log_prob(t, x, x0)  # pyright: ignore[reportAttributeAccessIssue]
    path, predicts = gen.path, str(gen.predicts)
    moments = Moments.at(path, t)
    pull = convert(predicts, "score", moments, gen.sigma_data)
    scale = path.input_scale(t, gen.sigma_data)
    factor = pull.Q / (scale * (moments.s if predicts == "score" else 1.0))
    bend = gen.net.potential(  # pyright: ignore[reportFunctionMemberAccess]
        (scale * x).astype(x.dtype), path.signal(t), cond
    )
    variance = (moments.a * gen.sigma_data) ** 2 + moments.s**2
    return 0.5 * pull.P * jnp.sum(x**2) + factor * bend - 0.5 * x.size * jnp.log(2 * jnp.pi * variance)


def fp_residual(
    gen: AbstractGenerator,
    t,
    x: Float[Array, "..."],
    *,
    form: str = "log_density",
    divergence: str = "exact",
    probes: int = 1,
    key: Any = None,
    cond: PyTree | None = None,
    x0: PyTree | None = None,
) -> Float[Array, "..."]:
    """R at one point, nats per unit of t; or grad R, like x, with `form="score"` for generators without a potential.

    `divergence` "exact" takes d derivatives; "hutchinson" estimates it without bias from `probes` random directions.
    Divided by `log_time_rate(path, t)` it no longer depends on the schedule.

    >>> from kinema.generate import MixturePosterior, VP
    >>> exact = MixturePosterior(VP(), [[1.0], [-1.0]], 0.2)
    >>> bool(abs(fp_residual(exact, 0.6, jnp.array([0.3]))) < 1e-4)
    True

    Raises:
        InputError: a form, a divergence or probes that do not exist; no potential for "log_density", no score for
            "score"; more than 64 dimensions for "exact"; "hutchinson" without a key; a time where a or s is 0.
    """
    _check(gen, t, x, form, divergence, probes, key)
    flat, unravel = ravel_pytree(x)
    t = jnp.asarray(t, flat.dtype)

    def field(name: str, now, y):
        return ravel_pytree(getattr(gen(now, unravel(y), cond, x0=x0), name))[0]

    def spread(y):
        """div v at y."""
        if divergence == "hutchinson":
            directions = jr.rademacher(key, (probes, flat.size), flat.dtype)
        else:
            directions = jnp.eye(flat.size, dtype=flat.dtype)

        def along(direction):
            return direction @ jax.jvp(lambda at: field("velocity", t, at), (y,), (direction,))[1]

        slopes = jax.vmap(along)(directions)
        return slopes.mean() if divergence == "hutchinson" else slopes.sum()

    if form == "log_density":
        moving = (jnp.ones_like(t), field("velocity", t, flat))
        _, gain = jax.jvp(lambda now, y: log_potential(gen, now, unravel(y), cond, x0), (t, flat), moving)
        return -(gain + spread(flat))
    _, gain = jax.jvp(lambda now: field("score", now, flat), (t,), (jnp.ones_like(t),))
    return unravel(-(gain + jax.grad(lambda y: field("velocity", t, y) @ field("score", t, y) + spread(y))(flat)))


def ou_time(ratio) -> Array:
    """tau = log(1 + ratio^2) / 2: when an Ornstein-Uhlenbeck process (a = e^-tau, a^2 + s^2 = 1) has s / a = ratio."""
    return 0.5 * jnp.log1p(jnp.asarray(ratio) ** 2)


def log_time_rate(path, t) -> Array:
    """-d log tau / dt with the tau of `ou_time`: R over it is tau R of that process, whatever the schedule."""
    moments = Moments.at(path, t)
    square = (moments.s / moments.a) ** 2
    level_rate = moments.da / moments.a - moments.s_ds / moments.s**2
    return level_rate * square / ((1 + square) * 0.5 * jnp.log1p(square))


def check_divergence(divergence: str, probes: int, key, size: int):
    """Raises InputError for a divergence that cannot be taken."""
    if divergence not in DIVERGENCES:
        raise InputError(f"divergence must be one of {DIVERGENCES}, got {divergence!r}")
    if probes < 1:
        raise InputError(f"probes must be at least 1, got {probes}")
    if divergence == "hutchinson" and key is None:
        raise InputError("divergence='hutchinson' needs key, for its random directions")
    if divergence == "exact" and size > MOST_EXACT:
        raise InputError(
            f"divergence='exact' takes {size} derivatives a point for x of {size} numbers, at most {MOST_EXACT} are"
            " taken; use 'hutchinson'"
        )


def _check(gen: AbstractGenerator, t, x, form: str, divergence: str, probes: int, key):
    if form not in FORMS:
        raise InputError(f"form must be one of {FORMS}, got {form!r}")
    if form == "score" and "score" not in gen.fields:
        raise InputError(f"form='score' needs a score, this generator has {sorted(gen.fields)}")
    if form == "log_density" and not has_potential(gen):
        raise InputError("this generator has no potential; use form='score'")
    check_divergence(divergence, probes, key, jnp.size(x))
    if not isinstance(t, Tracer):
        a, _, s = gen.path.coefficients(t)
        if not (isinstance(a, Tracer) or (bool(a > 0) and bool(s > 0))):
            raise InputError(f"t must lie where data and noise are both present, got t={float(t)}, a={a}, s={s}")
