"""AdamP and SGDP: Adam and momentum with radial projection.   [Heo, Chun, Oh, Han, Yun, Kim, Uh & Ha 2021]

    w <- (1 - η λ ρ) w - η Π(m̂ / (sqrt(v̂) + ε))                     AdamP
    w <- (1 - η λ ρ / (1 - μ)) w - η Π(b),    b <- μ b + g            SGDP

Π and ρ as in `radial`. What is stored is not projected, as in the paper; the `adamp` package projects SGDP's buffer too
where `nesterov` is off.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from kinema.learn.optim.checks import demand
from kinema.learn.optim.masks import Mask
from kinema.learn.optim.radial import Axis, radial_projection


def adamp(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    *,
    weight_decay: Any = 0.0,
    delta: Any = 0.1,
    wd_ratio: Any = 0.1,
    nesterov: bool = False,
    mask: Mask = None,
    channel_axis: Axis = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adam with decoupled decay and radial projection. Rates and decays of AdamW work.

    >>> import jax, jax.numpy as jnp, optax
    >>> from kinema.learn.optim import adamp
    >>> rule = adamp(1e-3, weight_decay=1e-2, mask=lambda name, leaf: leaf.ndim > 1)
    >>> params = {"weight": jnp.ones((2, 3)), "bias": jnp.zeros(2)}
    >>> state = rule.init(params)
    >>> updates, state = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
    >>> params = optax.apply_updates(params, updates)

    `nesterov` is AdamP's own form, (β₁ m + (1 - β₁) g) / (1 - β₁ᵗ), which differs from optax's NAdam.

    Raises:
        InputError: as `radial_projection`; b1 or b2 outside [0, 1), a learning rate below 0.
    """
    for name, value in {"b1": b1, "b2": b2}.items():
        demand(name, value, lambda v: 0 <= v < 1, "in [0, 1)")
    demand("learning_rate", learning_rate, lambda v: v >= 0, ">= 0")
    inner = _looking_ahead(b1, b2, eps) if nesterov else optax.scale_by_adam(b1, b2, eps)
    radial = radial_projection(
        inner,
        delta=delta,
        wd_ratio=wd_ratio,
        weight_decay=weight_decay,
        channel_axis=channel_axis,
        mask=mask,
        eps=eps,
    )
    return optax.chain(radial, optax.scale_by_learning_rate(learning_rate))


def sgdp(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Any = 0.9,
    *,
    dampening: Any = 0.0,
    nesterov: bool = False,
    weight_decay: Any = 0.0,
    delta: Any = 0.1,
    wd_ratio: Any = 0.1,
    mask: Mask = None,
    channel_axis: Axis = 0,
    eps: Any = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Momentum with radial projection and a decay of λ / (1 - momentum): as strong as λ inside the gradient.

    >>> from kinema.learn.optim import sgdp
    >>> rule = sgdp(0.1, weight_decay=1e-4, mask="*weight")

    Raises:
        InputError: as `radial_projection`; momentum outside [0, 1), dampening outside [0, 1], a learning rate below 0.
    """
    demand("momentum", momentum, lambda v: 0 <= v < 1, "in [0, 1)")
    demand("dampening", dampening, lambda v: 0 <= v <= 1, "in [0, 1]")
    demand("learning_rate", learning_rate, lambda v: v >= 0, ">= 0")
    radial = radial_projection(
        _heavy(momentum, dampening, nesterov),
        delta=delta,
        wd_ratio=wd_ratio,
        weight_decay=weight_decay,
        decay_scale=1 / (1 - momentum),
        channel_axis=channel_axis,
        mask=mask,
        eps=eps,
    )
    return optax.chain(radial, optax.scale_by_learning_rate(learning_rate))


def _heavy(momentum: Any, dampening: Any, nesterov: bool) -> optax.GradientTransformation:
    """b <- momentum b + (1 - dampening) g; the direction is b, or g + momentum b."""

    def init(params):
        return optax.TraceState(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        trace = jax.tree.map(lambda g, b: momentum * b + (1 - dampening) * g, updates, state.trace)
        ahead = jax.tree.map(lambda g, b: g + momentum * b, updates, trace) if nesterov else trace
        return ahead, optax.TraceState(trace)

    return optax.GradientTransformation(init, update)


def _looking_ahead(b1: Any, b2: Any, eps: Any) -> optax.GradientTransformation:
    """Adam with (β₁ m + (1 - β₁) g) / (1 - β₁ᵗ) in place of m / (1 - β₁ᵗ)."""
    adam = optax.scale_by_adam(b1, b2, eps)

    def update(updates, state, params=None):
        after: Any = adam.update(updates, state, params)[1]
        ahead = optax.tree.update_moment(updates, after.mu, b1, 1)
        first = optax.tree.bias_correction(ahead, b1, after.count)
        second = optax.tree.bias_correction(after.nu, b2, after.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), first, second), after

    return optax.GradientTransformation(adam.init, update)
