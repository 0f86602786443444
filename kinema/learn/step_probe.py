"""A probe of how far the optimizer's next step would go, for weights whose length does not matter."""

from collections.abc import Sequence

import equinox as eqx
import optax
from jaxtyping import PyTree

from kinema.learn.gradient import GradientSource, Objective, as_source
from kinema.learn.optim import effective_step
from kinema.learn.probe import Probe
from kinema.learn.trainable import Trainable, Where
from kinema.motion import trees


def effective_step_probe(
    objective: Objective | GradientSource,
    optimizer: optax.GradientTransformation,
    batch: PyTree = None,
    *,
    name: str = "effective step",
    every: int | Sequence[int] = 500,
    trainable: Trainable | Where = None,
) -> Probe:
    """For each leaf that learns: |Δw| / |w| ("relative") and the angle between w and w + Δw in radians ("angle").

    Δw is the step that `optimizer`, the one of the run with its moments as they are, would take for the gradient on
    `batch`. Weights that grow while the loss does not depend on their length show as angles that shrink. `objective`
    and `trainable` are those of `fit`.

    >>> import jax.numpy as jnp, jax.random as jr, optax
    >>> from kinema.learn import fit
    >>> toward = lambda w, batch, key: (w[1] / jnp.linalg.norm(w), {})  # blind to the length of w
    >>> probe, key = effective_step_probe(toward, optax.sgd(1.0), every=1), jr.key(0)
    >>> run = fit(jnp.array([2.0, 0.0]), toward, optimizer=optax.sgd(1.0), steps=1, probes=[probe], key=key)
    >>> steps = run.history.probes["effective step"].values["relative/."]
    >>> [round(float(step), 4) for step in steps]  # |w| grows, so steps shrink
    [0.25, 0.2283]

    Raises:
        InputError: settings of the probe as `Probe`.
    """
    source = as_source(objective)
    trainable = trainable if isinstance(trainable, Trainable) else Trainable(trainable)

    @eqx.filter_jit
    def look(model, opt_state, key):
        params, static = trainable.split(model)
        grads, aux = source(params, static, batch, key)
        update = optax.with_extra_args_support(optimizer).update

        def value_fn(params):
            return source(params, static, batch, key)[1]["loss"]

        updates, _ = update(grads, opt_state, params, value=aux["loss"], grad=grads, value_fn=value_fn)
        step = effective_step(params, updates)
        return {kind: trees.leaf_names(getattr(step, kind)) for kind in step._fields}

    return Probe(name, lambda run, key: look(run.model, run.state.opt_state, key), every, of="run")
