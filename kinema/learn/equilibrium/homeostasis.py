"""Homeostasis of the Jacobian: a local loss that makes a network's Jacobian symmetric, and with it its errors true.

L_h = E[|J e|^2 - e.J^2 e] / n = 2 |A|_F^2 / n,   J = d(drive - a)/da,  A = (J - J^T) / 2,  e standard normal
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from kinema.learn.equilibrium.dynamics import Relaxation, settle
from kinema.learn.gradient import GradientSource
from kinema.learn.probe import Probe
from kinema.models.checks import check_positive
from kinema.motion import trees


def homeostatic_loss(net: Relaxation, a: PyTree, x: PyTree, *, key: PRNGKeyArray, probes: int = 5) -> Float[Array, ""]:
    """The loss of one sample at the activities `a` of its rest, from two forward derivatives for each probe.

    It moves parameters through the Jacobian only: `a` is taken as a constant.

    Raises:
        InputError: probes not positive.
    """
    check_positive(probes=probes)
    jacobian = _jacobian(net, jax.lax.stop_gradient(a), x)

    def one(key):
        direction = trees.normal_like(key, a)
        once = jacobian(direction)
        return trees.dot(once, once) - trees.dot(direction, jacobian(once))

    return jnp.mean(jax.vmap(one)(jr.split(key, probes))) / trees.size(a)


def jacobian_symmetry(net: Relaxation, a: PyTree, x: PyTree) -> Float[Array, ""]:
    """s / (s + |A|), s and |A| the Frobenius norms of the two parts of J at activities `a`: 1 where it is symmetric.

    Makes the whole Jacobian, n^2 numbers.
    """
    flat, restore = ravel_pytree(a)
    jacobian = _jacobian(net, a, x)
    rows = jax.vmap(lambda e: ravel_pytree(jacobian(restore(e)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    symmetric, antisymmetric = (jnp.linalg.norm(rows + sign * rows.T) for sign in (1, -1))
    return symmetric / (symmetric + antisymmetric)


def symmetry_probe(x: PyTree, *, steps: int = 150, name: str = "symmetry", every: int | Sequence[int] = 500) -> Probe:
    """A probe for `learn.fit`: mean `jacobian_symmetry` over the inputs x (n, ...), each settled for `steps` steps.

    Raises:
        InputError: steps not positive; settings of the probe as `Probe`.
    """
    check_positive(steps=steps)

    @eqx.filter_jit
    def look(net):
        return jnp.mean(jax.vmap(lambda x: jacobian_symmetry(net, _rest(net, x, steps), x))(x))

    return Probe(name, lambda net, key: look(net), every)


class Homeostasis(GradientSource):
    """The gradient of the homeostatic loss alone, no task: batches are inputs, or (inputs, targets).

    Raises:
        InputError: steps or probes not positive.
    """

    steps: int = eqx.field(static=True, default=150)
    probes: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        check_positive(steps=self.steps, probes=self.probes)

    def __call__(self, params, static, batch, key):
        x = batch[0] if isinstance(batch, tuple) else batch
        net = eqx.combine(params, static)
        a = jax.vmap(lambda x: _rest(net, x, self.steps))(x)

        def loss(params):
            return mean_homeostatic_loss(eqx.combine(params, static), a, x, key, self.probes)

        value, grads = jax.value_and_grad(loss)(params)
        return grads, {"loss": value}


def mean_homeostatic_loss(net: Relaxation, a: PyTree, x: PyTree, key: PRNGKeyArray, probes: int) -> Float[Array, ""]:
    """Over a batch, every sample with probes of its own."""
    keys = jr.split(key, jax.tree.leaves(a)[0].shape[0])
    return jnp.mean(jax.vmap(lambda a, x, key: homeostatic_loss(net, a, x, key=key, probes=probes))(a, x, keys))


def _rest(net: Relaxation, x: PyTree, steps: int) -> PyTree:
    """Activities where the network comes to rest."""
    return net.activate(settle(net, x, steps=steps).u)


def _jacobian(net: Relaxation, a: PyTree, x: PyTree):
    """The linear map J."""
    _, linear = jax.linearize(lambda a: trees.subtract(net.drive(a, x), a), a)
    return linear
