"""Where gradients come from: a function of the parameters and a batch, of which back-propagation is the usual one."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from kinema.errors import InputError

Objective = Callable[[PyTree, PyTree, PRNGKeyArray], tuple[Array, dict[str, Array]]]


class GradientSource(eqx.Module):
    """The direction in which the parameters should fall, from any principle.

    Equilibrium propagation, physics defects and meta-gradients are sources; accumulation over parts of a batch and
    mixed precision are sources around another source. Called inside compiled code; nothing here may touch the host.
    """

    @abc.abstractmethod
    def __call__(
        self, params: PyTree, static: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, dict[str, Array]]:
        """(grads, aux): grads like `params`; aux has the scalar "loss" and any metrics, which the history keeps."""


class BackPropagation(GradientSource):
    """The gradient of `objective(model, batch, key) -> (loss, metrics)` by reverse-mode differentiation.

    `loss` is a real scalar, `metrics` a dictionary of arrays. For complex parameters the conjugate is returned, which
    is the direction of steepest ascent.

    Raises:
        InputError: while tracing, if the objective returns something else.
    """

    objective: Objective

    def __call__(self, params, static, batch, key):
        def loss(params):
            return _checked(self.objective(eqx.combine(params, static), batch, key))

        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(jnp.conj, grads), {"loss": value, **metrics}


def _checked(result) -> tuple[Array, dict[str, Array]]:
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise InputError(f"the objective must return (loss, metrics), metrics a dictionary; got {_kind(result)}")
    value, metrics = result
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"the loss must be a real scalar, got {value.dtype} of shape {value.shape}")
    for name, metric in metrics.items():
        if name == "loss" or not isinstance(name, str):
            raise InputError(f"metrics are named by text other than 'loss', got {name!r}")
        if not eqx.is_array_like(metric) or jnp.iscomplexobj(metric):
            raise InputError(f"metric {name!r} must be an array of real numbers, got {_kind(metric)}")
    return value, {name: jnp.asarray(metric) for name, metric in metrics.items()}


def _kind(value) -> str:
    inside = f" of {', '.join(type(one).__name__ for one in value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{inside}"
