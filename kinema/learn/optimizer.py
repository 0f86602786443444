"""The optimizer to start with, and rules by leaf names. Any `optax.GradientTransformation` will do in their place."""

import fnmatch
import functools
from collections.abc import Callable, Mapping

import jax
import optax
from jaxtyping import PyTree

from kinema.errors import InputError, unknown
from kinema.learn.trainable import Trainable, Where
from kinema.motion import trees


@functools.lru_cache(maxsize=64)  # the same object for the same numbers: `fit` does not compile a second time
def adam(
    rate: float, steps: int, *, warmup: float = 0.05, clip: float | None = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Adam [Kingma & Ba 2015] on clipped gradients, its rate warmed up and then falling on a cosine to 0 at `steps`.

    `warmup` is the share of the steps with a rising rate; the first step already has a rate. `clip` bounds the global
    norm of the gradient; None leaves it alone. Rates that work: 1e-3 for small networks, 1e-4 for large ones.

    >>> adam(1e-3, 2000) is adam(1e-3, 2000)
    True

    Raises:
        InputError: rate, steps or clip not positive, warmup outside [0, 1).
    """
    if not (rate > 0 and steps >= 1 and 0 <= warmup < 1 and (clip is None or clip > 0)):
        raise InputError(
            "adam needs rate > 0, steps >= 1, 0 <= warmup < 1 and clip > 0 or None, "
            f"got rate={rate}, steps={steps}, warmup={warmup}, clip={clip}"
        )
    rising = round(warmup * steps)
    schedule = optax.cosine_decay_schedule(rate, steps - rising)
    if rising:
        # rate * (k + 1) / (rising + 1) at step k
        rise = optax.linear_schedule(rate / (rising + 1), rate, rising)
        schedule = optax.join_schedules([rise, schedule], [rising])
    clipping = [] if clip is None else [optax.clip_by_global_norm(clip)]
    return optax.chain(*clipping, optax.adam(schedule))


def by_path(
    rules: Mapping[str, optax.GradientTransformation], default: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for each part of a model: the first pattern that fits a leaf's name has it, `default` the rest.

    >>> import jax.numpy as jnp
    >>> rule, params = by_path({"*bias": optax.sgd(0.1)}, optax.sgd(1.0)), {"bias": jnp.ones(1), "weight": jnp.ones(1)}
    >>> updates, _ = rule.update(params, rule.init(params), params)
    >>> updates["bias"].item(), updates["weight"].item()
    (-0.10000000149011612, -1.0)

    Raises:
        InputError: at `init`, a pattern that fits no leaf.
    """

    def labels(params):
        names = list(trees.leaf_names(params))
        for pattern in rules:
            if not fnmatch.filter(names, pattern):
                raise InputError(unknown("leaf", pattern, names))
        chosen = [next((p for p in rules if fnmatch.fnmatchcase(name, p)), "") for name in names]
        return jax.tree.unflatten(jax.tree.structure(params), chosen)

    return optax.with_extra_args_support(optax.multi_transform({**rules, "": default}, labels))


def leaf_mask(where: Where) -> Callable[[PyTree], PyTree]:
    """A mask for optax, True on the leaves that `where` chooses as `Trainable` does.

    `optax.adamw(1e-3, mask=leaf_mask("*weight"))` decays weights and no biases.

    >>> import jax.numpy as jnp
    >>> leaf_mask(lambda name, leaf: leaf.ndim > 1)({"bias": jnp.ones(2), "weight": jnp.ones((2, 2))})
    {'bias': False, 'weight': True}

    Raises:
        InputError: as `Trainable.names`, when the mask is asked.
    """

    def mask(params):
        chosen = set(Trainable(where).names(params))
        return jax.tree.unflatten(
            jax.tree.structure(params), [name in chosen for name, _ in trees.named_leaves(params)]
        )

    return mask
