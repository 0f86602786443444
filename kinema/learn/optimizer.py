"""The optimizer to start with. Any `optax.GradientTransformation` will do in its place."""

import functools

import optax

from kinema.errors import InputError


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
