"""Maximum likelihood of a latent-variable model on perturbed data, and the fit that goes with it.

    loss = -mean_i log p(x_i + std e_i),   log p(x) = log ∫ N(x | f(z), s^2 I) dP(z)

The nodes of the quadrature share one random shift a step, so that f is not bent to one grid.

Reference: Chae, Kim, Kim & Lin, 2023.
"""

import functools
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from kinema import learn
from kinema.errors import InputError
from kinema.generate.codec import Codec
from kinema.generate.instance_noise import InstanceNoise
from kinema.generate.latent import LatentModel, diagnose, warn_if_degenerate, with_codec
from kinema.learn import History

ANNEAL_FROM, STAGES = 0.5, 6  # first noise of an annealed fit, and the levels of its first third


class LatentLikelihood(eqx.Module):
    """The objective `(model, batch, key) -> (loss, metrics)`: a batch is data `(n, D)`, encoded by the model's codec.

    `noise` is in encoded units. A model with an encoder is fitted by the importance-weighted bound of `samples`
    proposals, one without by `quadrature` nodes an axis.
    """

    noise: InstanceNoise
    quadrature: int | None = eqx.field(static=True, default=None)
    samples: int = eqx.field(static=True, default=16)

    def __call__(
        self, model: LatentModel, batch: Float[Array, "n D"], key
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        key_noise, key_shift, key_bound = jr.split(key, 3)
        n, encoded = len(batch), with_codec(model, None)
        x = jax.vmap(self.noise)(jr.split(key_noise, n), jax.vmap(model.encode)(batch))
        if model.encoder is None:
            curve, log_weights = encoded.curve(self.quadrature, jr.uniform(key_shift, (model.latent.dim,)))
            values = jax.vmap(lambda one: encoded.log_density(one, curve, log_weights))(x)
        else:
            bound = functools.partial(encoded.log_prob_bound, samples=self.samples)
            values = jax.vmap(lambda one, key: bound(one, key=key))(x, jr.split(key_bound, n))
        return -values.mean(), {"std": model.std}


class LatentFit(NamedTuple):
    """`model` with averaged weights and its codec; `history` of loss (encoded units, nats) and `std`
    at the last noise."""

    model: LatentModel
    history: History


def fit_latent_likelihood(
    model: LatentModel,
    data: Any,
    noise: InstanceNoise | float,
    *,
    steps: int,
    key: PRNGKeyArray,
    batch_size: int | None = None,
    rate: float = 5e-3,
    anneal: bool = False,
    quadrature: int | None = None,
    samples: int = 16,
    ema: float | None = 0.99,
    progress: bool = True,
) -> LatentFit:
    """Fit to data `(n, D)` of which the law may have no density, with noise in units of their standard deviation.

    Data are centred and divided by one number for all coordinates, the root of their mean variance, since the noise is
    isotropic; `sample` undoes this. `batch_size` None: all data at every step. `anneal`: over the first third of the
    steps the noise falls in six levels from 0.5, which embeddings in many dimensions need. Warns (RuntimeWarning) where
    nodes lie wider than the noise, and where s fell to its floor.

    >>> import equinox as eqx
    >>> z = jnp.linspace(-1, 1, 64)
    >>> line = LatentModel(eqx.nn.Linear(1, 2, key=jr.key(0)), Uniform(1))
    >>> fitted, _ = fit_latent_likelihood(line, jnp.stack([z, z], 1), 0.1, steps=300, key=jr.key(1), progress=False)
    >>> x = fitted.sample(key=jr.key(2))
    >>> bool(abs(x[0] - x[1]) < 0.1)
    True

    Raises:
        InputError: data not `(n, D)`, not finite, of fewer than two samples or without variance; a latent of more than
            two dimensions without an encoder; what `learn.fit` refuses.
        NotFinite: the loss became NaN or infinite.
    """
    data = np.asarray(data, np.float64)
    if data.ndim != 2 or len(data) < 2:
        raise InputError(f"data must have shape (n, D) with n >= 2, got {data.shape}")
    if not np.isfinite(data).all():
        raise InputError(f"data must be finite, row {int(np.argwhere(~np.isfinite(data))[0, 0])} is not")
    noise = noise if isinstance(noise, InstanceNoise) else InstanceNoise(noise)
    if model.encoder is None:
        jax.eval_shape(lambda: model.curve(quadrature))
    codec = _isotropic(data)
    rows = jax.vmap(codec.encode)(jnp.asarray(data, jnp.float32))
    key_once, *keys = jr.split(key, 2 + STAGES)
    rows = noise.once(rows, key=key_once)
    fitted = with_codec(model, None)
    short = steps // (3 * STAGES) if anneal else 0
    plan = [(short, max(float(noise.std), ANNEAL_FROM * (1 - k / STAGES))) for k in range(STAGES if short else 0)]
    plan.append((steps - short * len(plan), float(noise.std)))
    losses = []
    for (count, std), key_stage in zip(plan, keys):
        last = len(losses) == len(plan) - 1
        made = learn.fit(
            fitted,
            LatentLikelihood(InstanceNoise(std, noise.mode if last else "fresh"), quadrature, samples),
            rows,
            optimizer=learn.adam(rate, count, warmup=0.0) if last else _constant(rate),
            steps=count,
            batch_size=min(batch_size or len(rows), len(rows)),
            key=key_stage,
            ema=ema if last else None,
            chunk=min(count, 100),
            progress=progress,
        )
        fitted = made.ema
        losses.append(made.history)
    found = with_codec(fitted, codec)
    _warn(found, data, float(noise.std), quadrature)
    return LatentFit(found, losses[-1])


def _isotropic(data: np.ndarray) -> Codec:
    scale = float(np.sqrt(data.var(0).mean()))
    if not scale > 0:
        raise InputError(f"data must vary to be modelled, got {len(data)} equal rows")
    return Codec(jnp.asarray(data.mean(0), jnp.float32), jnp.full(data.shape[1], scale, jnp.float32))


@functools.lru_cache(maxsize=8)
def _constant(rate: float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def _warn(model: LatentModel, data: np.ndarray, std: float, quadrature: int | None) -> None:
    warn_if_degenerate(model)
    if model.encoder is None and std > 0:
        spacing = diagnose(model, jnp.asarray(data[:1], jnp.float32), quadrature=quadrature).spacing
        if spacing > std:
            warnings.warn(
                f"nodes lie {spacing:.3g} apart where the noise is {std:.3g}; use more nodes (quadrature) or noise",
                RuntimeWarning,
                stacklevel=3,
            )
