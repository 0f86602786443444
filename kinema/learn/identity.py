"""What makes two runs the same run, so that resuming another one is refused by name."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from kinema.learn.batches import key_words
from kinema.learn.gradient import GradientSource
from kinema.learn.step import LearnState
from kinema.motion import trees
from kinema.motion.weights import digests, leaf_specs

_SAMPLED = 64  # rows of the data that are compared


def identity(
    state: LearnState,
    source: GradientSource,
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    batch_size: int,
    key: PRNGKeyArray,
    ema: float | None,
) -> dict[str, Any]:
    """Everything that decides the numbers of a run except the model's leaves, as JSON.

    An optimizer is known by the equations of its update: other rates and other schedules are other optimizers. These
    are comparable between equal versions of JAX and optax only.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return {
        "gradient source": type(source).__name__,
        "optimizer": _equations(optimizer, state),
        "versions": f"jax {jax.__version__}, optax {optax.__version__}",
        "batch_size": batch_size,
        "key": f"{jr.key_impl(key) if typed else 'raw'} {np.asarray(key_words(key)).tolist()}",
        "ema": ema,
        "data": {name: f"{spec['dtype']} {tuple(spec['shape'])}" for name, spec in leaf_specs(data).items()},
        "values of the data": _sample(data),
    }


def unlike(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One phrase for each entry in which two runs differ."""
    phrases = []
    for name, new in now.items():
        old = before.get(name)
        if old == new or name == "versions":
            continue
        if name == "optimizer":
            if before.get("versions") == now["versions"]:
                phrases.append("the optimizer's rule, rate or schedule differs")
        elif name == "values of the data":
            if before.get("data") == now["data"]:
                phrases.append("the data has other values")
        elif name == "data":
            leaves = [leaf for leaf in {**new, **(old or {})} if (old or {}).get(leaf) != new.get(leaf)]
            phrases += [
                f"data leaf {leaf} was {(old or {}).get(leaf, 'absent')}, is {new.get(leaf, 'absent')}"
                for leaf in leaves
            ]
        else:
            phrases.append(f"{name} was {old}, is {new}")
    return phrases


def _equations(optimizer: optax.GradientTransformation, state: LearnState) -> str:
    def value_fn(params):
        return jnp.real(trees.dot(params, params))

    def update(params, opt_state):
        with_extra = optax.with_extra_args_support(optimizer)
        value = value_fn(params)
        return with_extra.update(params, opt_state, params, value=value, grad=params, value_fn=value_fn)

    closed = jax.make_jaxpr(update)(state.params, state.opt_state)
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    for constant in closed.consts:
        digest.update(np.asarray(constant).tobytes())
    return digest.hexdigest()


def _sample(data: PyTree) -> str:
    def rows(leaf):
        return leaf[np.unique(np.linspace(0, len(leaf) - 1, _SAMPLED).astype(int))]

    checksums = digests({name: rows(leaf) for name, leaf in trees.leaf_names(data).items()})
    return hashlib.sha256("".join(checksums.values()).encode()).hexdigest()
