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

    >>> class Signs(GradientSource):
    ...     source: GradientSource
    ...     def __call__(self, params, static, batch, key):
    ...         grads, aux = self.source(params, static, batch, key)
    ...         return jax.tree.map(jnp.sign, grads), aux
    >>> source = Signs(BackPropagation(lambda w, batch, key: (jnp.sum(w**2), {})))
    >>> source(jnp.array([3.0, -2.0]), None, None, jax.random.key(0))[0].tolist()
    [1.0, -1.0]
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


class Accumulated(GradientSource):
    """The mean of `source` over `parts` equal parts of a batch, one after another: the memory of one part.

    For an objective that is a mean over rows the gradient is that of the whole batch. Every part has a key of its own;
    metrics are means over the parts.

    >>> Accumulated(lambda w, batch, key: (jnp.mean((w - batch) ** 2), {}), 4).parts
    4

    Raises:
        InputError: parts below 1; while tracing, a batch whose rows do not divide by `parts`.
    """

    source: GradientSource = eqx.field(converter=lambda source: as_source(source))
    parts: int

    def __check_init__(self):
        if self.parts < 1:
            raise InputError(f"parts must be at least 1, got {self.parts}")

    def __call__(self, params, static, batch, key):
        rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
        if any(count % self.parts for count in rows):
            raise InputError(f"a batch of {max(rows)} rows does not divide into {self.parts} parts")
        pieces = jax.tree.map(lambda x: x.reshape(self.parts, -1, *x.shape[1:]), batch)

        def one(piece_and_key):
            piece, key = piece_and_key
            return self.source(params, static, piece, key)

        def add(total, piece_and_key):
            return jax.tree.map(jnp.add, total, one(piece_and_key)), None

        inputs = pieces, jax.random.split(key, self.parts)
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jax.tree.map(lambda x: x[0], inputs))
        )
        total, _ = jax.lax.scan(add, zero, inputs)
        return jax.tree.map(lambda x: (x / self.parts).astype(x.dtype), total)


class LowPrecision(GradientSource):
    """`source` computed in bfloat16, or another narrow dtype, while the parameters that learn stay as they are.

    Floating leaves of the parameters, of what does not learn and of the batch are cast before, gradients and metrics
    after. bfloat16 has the range of float32, so no loss scaling is needed.

    >>> LowPrecision(lambda w, batch, key: (jnp.sum(w**2), {})).dtype
    dtype(bfloat16)

    Raises:
        InputError: a dtype that is not floating.
    """

    source: GradientSource = eqx.field(converter=lambda source: as_source(source))
    dtype: jnp.dtype = eqx.field(static=True, converter=jnp.dtype, default="bfloat16")

    def __check_init__(self):
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise InputError(f"dtype must be a floating one, got {self.dtype}")

    def __call__(self, params, static, batch, key):
        narrow = [jax.tree.map(self._cast, tree) for tree in (params, static, batch)]
        grads, aux = self.source(narrow[0], narrow[1], narrow[2], key)
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
        return grads, jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == self.dtype else x, aux)

    def _cast(self, leaf):
        return leaf.astype(self.dtype) if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def as_source(objective: Objective | GradientSource) -> GradientSource:
    """A source as it is, an objective by back-propagation."""
    return objective if isinstance(objective, GradientSource) else BackPropagation(objective)


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
