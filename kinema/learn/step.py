"""One step of learning as a pure function: what `fit` scans and what a population maps over.

    grads, aux = source(params, static, batch, key_k)       key_k = fold_in(key, k)
    params <- params + optimizer.update(grads)
    ema    <- ema + (1 - d_k) (params - ema)                d_k = min(ema decay, k / (9 + k)),  k = 1, 2, ...

The warm-up d_k makes a short run average over its last tenth and forget its first weights.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.learn.gradient import GradientSource
from kinema.motion.weights import differences, leaf_specs, shorten


class LearnState(eqx.Module):
    """Everything that a step changes.

    `ema` is kept in float32 or wider, whatever the parameters are: in bfloat16 it could not move. None: no average.
    """

    params: PyTree
    ema: PyTree
    opt_state: PyTree
    step: Int[Array, ""]


def begin(optimizer: optax.GradientTransformation, params: PyTree, ema: float | None = 0.999) -> LearnState:
    """The state before the first step. It shares no buffer with `params`, so it may be donated.

    >>> import jax.numpy as jnp, optax
    >>> begin(optax.sgd(0.1), {"w": jnp.ones(2)}).step.item()
    0
    """
    params = jax.tree.map(_own, params)
    average = None if ema is None else jax.tree.map(lambda x: _own(x, jnp.promote_types(x.dtype, jnp.float32)), params)
    return LearnState(params, average, jax.tree.map(_own, optimizer.init(params)), jnp.zeros((), jnp.int32))


def continued(state: LearnState, fresh: LearnState) -> LearnState:
    """`state` in buffers of its own, to go on from where a run of `fresh` would begin.

    Raises:
        InputError: leaves that differ from those of `fresh`, by name.
    """
    phrases = differences(leaf_specs(state), leaf_specs(fresh))
    if phrases:
        raise InputError(f"state does not fit the model and its optimizer: {shorten(phrases, 3)}; see learn.transplant")
    return jax.tree.map(_own, state)


def advance(
    state: LearnState,
    static: PyTree,
    batch: PyTree,
    key: PRNGKeyArray,
    *,
    source: GradientSource,
    optimizer: optax.GradientTransformation,
    ema: float | None,
) -> tuple[LearnState, dict[str, Array]]:
    """The state after one step, and the source's aux. `key` is the key of the run, the same at every step.

    Pure, so it may be scanned, mapped over a population and differentiated.

    Raises:
        InputError: while tracing, if the source's aux has no "loss".
    """
    key_step = jr.fold_in(key, state.step)
    grads, aux = source(state.params, static, batch, key_step)
    if "loss" not in aux:
        raise InputError(f"the aux of a gradient source must hold 'loss', {type(source).__name__} gave {sorted(aux)}")

    def value_fn(params):
        return source(params, static, batch, key_step)[1]["loss"]

    # Line searches and plateau rules take these; optax drops them for all others.
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, value=aux["loss"], grad=grads, value_fn=value_fn
    )
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    average = state.ema
    if ema is not None:
        decay = jnp.minimum(ema, step / (9 + step))
        average = jax.tree.map(lambda a, p: a + (1 - decay).astype(a.real.dtype) * (p - a), average, params)
    return LearnState(params, average, opt_state, step), aux


def _own(leaf, dtype=None):
    """A new buffer, strongly typed: a weak type would be compiled twice."""
    if eqx.is_array(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.array(leaf, dtype or leaf.dtype, copy=True)
    return jnp.array(leaf, copy=True) if eqx.is_array_like(leaf) else leaf
