"""Networks that are gradients: of their potential, with a symmetric Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import normals, trained

from kinema import models
from kinema.errors import InputError


def test_output_is_the_gradient_of_the_potential(key, x64):
    nets = [
        models.PotentialMLP((3, 2), width=8, depth=1, classes=2, key=key),
        models.Conservative(models.MLP((3, 2), width=8, depth=1, classes=2, key=key)),
    ]
    x, cond = normals((3, 2)), jnp.array(1)
    for net in nets:
        net = trained(net)

        @jax.jit
        def both(x, net=net):
            jacobian = jax.jacfwd(lambda y: net(y, 0.5, cond))(x).reshape(6, 6)
            step = 1e-5 * jnp.ones_like(x)
            rise = net.potential(x + step, 0.5, cond) - net.potential(x - step, 0.5, cond)
            return jacobian, rise, 2 * jnp.sum(step * net(x, 0.5, cond))

        jacobian, rise, slope = both(x)
        np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-10)
        assert jnp.abs(jacobian).max() > 1e-2
        np.testing.assert_allclose(rise, slope, rtol=1e-5)


def test_bad_input(key):
    with pytest.raises(InputError, match="width must be a positive integer"):
        models.PotentialMLP((2,), width=0, key=key)
    with pytest.raises(InputError, match="one sample of shape"):
        models.PotentialMLP((2,), width=4, key=key)(jnp.ones((5, 2)), 0.5)
    with pytest.raises(InputError, match="array like x"):
        models.Conservative(models.make("mlp", shape=(2,), width=4, outputs=2, key=key))(jnp.ones(2), 0.5)
