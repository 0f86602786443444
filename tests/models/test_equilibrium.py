"""Equilibrium layers against (I - A)^-1 b, its gradient, and the Frobenius norm of A."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.models import EquilibriumLayer

A = np.array([[0.4, -0.3, 0.1], [0.2, 0.1, 0.0], [-0.5, 0.2, 0.3]])


class Affine(eqx.Module):
    matrix: jax.Array

    def __call__(self, z, x):
        return self.matrix @ z + x


@pytest.mark.parametrize("search", ["newton", "fixed_point"])
def test_affine_map(search, x64):
    """z = (I - A)^-1 b; of Σ w z the gradient is u = (I - A)^-T w in b, and u zᵀ in A."""
    b, weights = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, -1.0])

    @eqx.filter_jit
    def run(model):
        f, x = model
        found = EquilibriumLayer(f, search, rtol=1e-12, atol=1e-12, max_steps=200).solve(x)
        return jnp.dot(jnp.asarray(weights), found.z), found

    (_, found), grads = eqx.filter_value_and_grad(run, has_aux=True)((Affine(jnp.asarray(A)), jnp.asarray(b)))
    z, u = np.linalg.solve(np.eye(3) - A, b), np.linalg.solve((np.eye(3) - A).T, weights)
    assert found.found and found.residual < 1e-10 and np.abs(found.z - z).max() < 1e-10
    assert np.abs(grads[1] - u).max() < 1e-10 and np.abs(grads[0].matrix - np.outer(u, z)).max() < 1e-10


def test_penalty_is_the_frobenius_norm(key):
    layer = EquilibriumLayer(Affine(jnp.asarray(A, jnp.float32)))
    x = jnp.ones(3)
    many = jax.vmap(lambda k: layer.penalty(x, x, key=k))(jr.split(key, 4000))
    assert_within_error(many.mean(), (A**2).sum() / 3, standard_error=many.std() / 4000**0.5)


def test_what_has_no_equilibrium_is_told():
    growing = EquilibriumLayer(lambda z, x: 2 * z + x, "fixed_point", max_steps=20)
    assert not growing.solve(jnp.ones(2)).found
    with pytest.raises(RuntimeError, match="no equilibrium within 20 steps"):
        jax.block_until_ready(growing(jnp.ones(2)))
    with pytest.raises(InputError, match="did you mean 'newton'"):
        EquilibriumLayer(lambda z, x: z, "newtn")
    with pytest.raises(InputError, match="structure and shapes"):
        EquilibriumLayer(lambda z, x: z[:1]).solve(jnp.ones(2))
    with pytest.raises(InputError, match="positive"):
        EquilibriumLayer(lambda z, x: z, atol=0.0)
