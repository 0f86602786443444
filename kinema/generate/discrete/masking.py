"""Masked diffusion: variables are hidden one by one, and a network without time tells what they were.

Running from t = 0, all masked, to t = 1, all known, every variable becomes known at a time of its own with
P(known at t) = alpha(t). The negative evidence bound of -log p(x) does not depend on alpha, nor does the best network:

    int_0^1 alpha' / (1 - alpha)  E sum_masked -log p_i(x_i | x_S)  dt
        = L E_{d uniform in 0 .. L - 1}  mean_masked -log p_i(x_i | x_S),    |S| = d known at random,

the loss of an any-order autoregressive model. Equal to the entropy for exact conditionals.

Reference: Zheng et al. 2024, arXiv 2409.02908.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Real

from kinema.errors import InputError, choose
from kinema.generate.discrete.marginalization import spread_counts
from kinema.generate.discrete.orders import check_sample, known_first, random_order
from kinema.models.checks import check_positive

# share of variables that are known at t, and its inverse
SCHEDULES: dict[str, tuple[Callable, Callable]] = {
    "linear": (lambda t: t, lambda share: share),
    "cosine": (lambda t: 1 - jnp.cos(math.pi / 2 * t), lambda share: 2 / math.pi * jnp.arccos(1 - share)),
}


class MaskedPath(eqx.Module):
    """When variables become known: independently, each by time t with probability alpha(t).

    `schedule` is "linear", alpha = t, or "cosine", alpha = 1 - cos(pi t / 2).

    >>> round(float(MaskedPath("cosine").alpha(jnp.array(0.5))), 3)
    0.293

    Raises:
        InputError: an unknown schedule.
    """

    schedule: str = eqx.field(static=True, default="linear")

    def __check_init__(self):
        choose(SCHEDULES, self.schedule, "schedule")

    def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """The share that is known at t."""
        return SCHEDULES[self.schedule][0](t)

    def time(self, share: Float[Array, "..."]) -> Float[Array, "..."]:
        """The t at which alpha is `share`."""
        return SCHEDULES[self.schedule][1](share)

    def unmask_rate(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """alpha' / (1 - alpha), the rate at which a masked variable becomes known, per unit of time."""
        alpha, rate = jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))
        return rate / (1 - alpha)

    def perturb(self, t: Float[Array, ""], length: int, *, key: PRNGKeyArray) -> Bool[Array, " length"]:
        """The mask of a sample at t: True where it is known."""
        return jr.uniform(key, (length,)) < self.alpha(t)

    def hitting_times(self, length: int, *, key: PRNGKeyArray) -> Float[Array, " length"]:
        """When each variable becomes known: independent times with P(time < t) = alpha(t).

        In order of time, with n still masked, they obey 1 - alpha(next) = (1 - alpha(now)) u^(1 / n), u uniform: the
        first-hitting rule of masked diffusion.
        """
        return self.time(jr.uniform(key, (length,)))


class MaskedModel(eqx.Module):
    """The law of every masked variable given the known ones, by a network without time. One sample.

    `trunk` maps categories `(length,)`, where the extra category `categories` stands for a masked variable, to
    features `(length, width)`, and `head` the features of one variable to its logits `(categories,)`; without a head
    the features are the logits. A sampler that reveals one variable applies the head to that one alone.

    >>> model = MaskedModel(lambda x: jnp.zeros((4, 3)), 4, 3)
    >>> model.conditionals(jnp.array([0, 2, 1, 1]), jnp.array([True, True, False, False])).shape
    (4, 3)

    Raises:
        InputError: length or categories not positive; x or mask of another shape or type; a category out of range.
    """

    trunk: Callable
    length: int = eqx.field(static=True)
    categories: int = eqx.field(static=True)
    head: Callable | None = None

    def __check_init__(self):
        check_positive(length=self.length, categories=self.categories)

    def conditionals(
        self, x: Int[Array, "..."], mask: Bool[Array, "..."], at: Int[Array, " rows"] | None = None
    ) -> Float[Array, "rows categories"]:
        """log p(x_i = k | x_S), a row for each i, or for each i of `at`; rows of known variables mean nothing."""
        check_sample(x, mask, self.length, self.categories)
        features = self.trunk(jnp.where(mask, x, self.categories))
        features = features if at is None else features[at]
        logits = features if self.head is None else self.head(features)
        return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def masked_nelbo(
    model: MaskedModel,
    x: Int[Array, " length"],
    key: PRNGKeyArray,
    *,
    estimator: str = "count",
    at: Real[Array, ""] | int | float | None = None,
    path: MaskedPath | None = None,
) -> Float[Array, ""]:
    """An unbiased estimate of the bound of -log p(x), nats, in one call of the network.

    "count" takes a number of known variables, uniform in 0 .. length - 1, and is the better one: that of "time", at a
    uniform time of the path, has no variance, since its weight 1 / (1 - t) is not bounded. `at` gives that number, or
    that time. The best networks have no time to condition on, so there is no other difference.

    Raises:
        InputError: another estimator, or as `MaskedModel` says.
    """
    if estimator not in ("count", "time"):
        raise InputError(f"estimator must be 'count' or 'time', got {estimator!r}")
    key_at, key_mask = jr.split(key)
    if estimator == "count":
        count = jr.randint(key_at, (), 0, model.length) if at is None else jnp.asarray(at)
        mask = known_first(random_order(jnp.zeros(model.length, bool), key=key_mask), count)
        weight = model.length / (model.length - count)
    else:
        path = MaskedPath() if path is None else path
        t = jr.uniform(key_at) if at is None else jnp.asarray(at, jnp.result_type(float))
        mask, weight = path.perturb(t, model.length, key=key_mask), path.unmask_rate(t)
    log_p = jnp.take_along_axis(model.conditionals(x, mask), x[:, None], 1)[:, 0]
    return -weight * jnp.where(mask, 0.0, log_p).sum()


def masked_loss(model: MaskedModel, x: Int[Array, "n length"], key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
    """The objective for `learn.fit`: the mean of `masked_nelbo`, nats, its counts spread evenly over the batch."""
    key_count, key_mask = jr.split(key)
    counts = spread_counts(len(x), model.length, key=key_count)
    losses = jax.vmap(lambda x, key, count: masked_nelbo(model, x, key, at=count))
    return losses(x, jr.split(key_mask, len(x)), counts).mean(), {}
