"""A marginalization model of data, in two stages: c by maximum likelihood in random orders, then m to agree with it.

In the second stage c stands still, so that samples of it can be drawn once: m is fitted half on data, half on these. It
starts from the hidden layers of c, which have learnt what matters in x already.

Reference: Liu, Ramadge & Adams, ICML 2024.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kinema import learn
from kinema.errors import InputError
from kinema.generate.discrete.marginalization import (
    MarginalModel,
    any_order_loss,
    order_consistency_loss,
    sample_any_order,
    spread_counts,
)

ORDERED = 4  # a row of the second stage costs many calls, one of the first only one


@dataclass(frozen=True)
class MarginalFit:
    """What `fit_marginals` came to: the model with averaged weights, and the history of each stage."""

    model: MarginalModel
    conditionals: learn.History
    marginals: learn.History


def any_order(model: MarginalModel, x: Int[Array, "n length"], key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
    """The objective of the first stage, for `learn.fit`: the mean of `any_order_loss`, nats."""
    key_count, key_order = jr.split(key)
    counts = spread_counts(len(x), model.length, key=key_count)
    losses = jax.vmap(lambda x, key, count: any_order_loss(model, x, key, count=count))
    return losses(x, jr.split(key_order, len(x)), counts).mean(), {}


def consistency(model: MarginalModel, x: Int[Array, "n length"], key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
    """The objective of the second stage, for `learn.fit`: the mean of `order_consistency_loss`."""
    return jax.vmap(order_consistency_loss, (None, 0, 0))(model, x, jr.split(key, len(x))).mean(), {}


def fit_marginals(
    model: MarginalModel,
    x: Int[Array | np.ndarray, "n length"],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: PRNGKeyArray,
    batch_size: int = 128,
    progress: bool = True,
) -> MarginalFit:
    """Learn the marginals of the law of `x`: `steps` steps for c on `batch_size` rows, and as many for m on a quarter
    of them, each along a whole order.

    The two must be separate networks, as in `MarginalMLP`: what they shared would move in the second stage. A trunk
    with a method `warmed()` begins that stage as what it returns: m with the hidden layers of c.

    >>> import jax.numpy as jnp
    >>> from kinema.generate.discrete import MarginalMLP
    >>> model = MarginalModel(MarginalMLP(3, 2, width=16, depth=1, key=jr.key(0)), 3, 2, normalized=True)
    >>> data = jnp.array([[0, 0, 0], [1, 1, 1]])
    >>> run = fit_marginals(model, data, optimizer=learn.adam(1e-2, 20), steps=20, batch_size=2, key=jr.key(1))
    >>> len(run.conditionals), len(run.marginals)
    (20, 20)

    Raises:
        InputError: a model that is not normalized; categories out of range; as `learn.fit` says.
        NotFinite: the loss became NaN or infinite.
    """
    if not model.normalized:
        raise InputError("fit_marginals needs MarginalModel(..., normalized=True): the mass of a law of data is 1")
    values = np.asarray(x)
    if values.shape[1] != model.length or values.min() < 0 or values.max() >= model.categories:
        raise InputError(
            f"x must be (n, {model.length}) of categories 0..{model.categories - 1}, "
            f"got shape {values.shape} from {values.min()} to {values.max()}"
        )
    key_first, key_draw, key_second = jr.split(key, 3)
    shared = {"optimizer": optimizer, "steps": steps, "batch_size": batch_size, "progress": progress}
    first = learn.fit(model, any_order, values, key=key_first, **shared)
    start = _warmed(first.ema)
    drawn = _draw(first.ema, jr.split(key_draw, len(values))).astype(values.dtype)
    both = np.concatenate([values, np.asarray(drawn)])
    shared["batch_size"] = -(-batch_size // ORDERED)
    second = learn.fit(start, consistency, both, key=key_second, **shared)
    return MarginalFit(second.ema, first.history, second.history)


def _warmed(model: MarginalModel) -> MarginalModel:
    warmed = getattr(model.trunk, "warmed", None)
    return model if warmed is None else eqx.tree_at(lambda m: m.trunk, model, warmed())


@eqx.filter_jit
def _draw(model: MarginalModel, keys) -> Int[Array, "n length"]:
    return jax.vmap(lambda key: sample_any_order(model, key=key))(keys)
