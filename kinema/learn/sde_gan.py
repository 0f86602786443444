"""Wasserstein training of a path generator against a critic that is a controlled differential equation.

The critic's score is Lipschitz because its linear weights are clipped to ±1 / outputs after every step and its
activation has slope 1 at most: no gradient penalty.   [Kidger, Foster, Li & Lyons 2021]
"""

import warnings
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.learn.gradient import GradientSource
from kinema.models.layers import Linear
from kinema.models.neural_cde import NeuralCDE, make_path
from kinema.models.neural_ode import VectorField, lipswish
from kinema.models.neural_sde import NeuralSDE
from kinema.motion.reversible import ReversibleAdjoint


class Adversaries(eqx.Module):
    """A generator of paths with y features, and a critic of paths with 1 + y channels and one score.

    Raises:
        InputError: they do not fit; a warning names a field of the critic whose activation may be steeper than 1.
    """

    generator: NeuralSDE
    critic: NeuralCDE

    def __check_init__(self):
        features = self.generator.readout.bias.shape[0]
        if self.critic.channels != 1 + features or self.critic.readout.bias.shape != (1,):
            raise InputError(
                f"the critic must have {1 + features} channels and one output, got {self.critic.channels} and "
                f"{self.critic.readout.bias.shape[0]}"
            )
        for name in ("start", "field"):
            field: VectorField = getattr(self.critic, name)
            if field.activation not in (lipswish, jnp.tanh, jax.nn.tanh, jax.nn.relu):
                text = f"critic.{name}: its activation may be steeper than 1, so clipping does not bound it"
                warnings.warn(text, stacklevel=3)


class WassersteinSource(GradientSource):
    """Gradients of E critic(data) - E critic(made): the generator goes down, the critic up.

    Batches are rows {"ts": (frames,), "x": (frames, features)}; `dt` is the generator's step. Give its optimizer to
    `clipped`, with a rate several times higher for "critic" than for "generator".
    """

    dt: float = eqx.field(static=True)
    adjoint: str | diffrax.AbstractAdjoint = eqx.field(static=True, default=ReversibleAdjoint())

    def __call__(
        self, params: PyTree, static: PyTree, batch: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, dict[str, Array]]:
        def gap(params):
            pair: Adversaries = eqx.combine(params, static)

            def one(ts, x, key):
                made = pair.generator(ts, key=key, dt=self.dt, adjoint=self.adjoint)
                real, fake = (pair.critic(make_path(ts, one, scheme="linear"))[0] for one in (x, made))
                return real - fake

            return jnp.mean(jax.vmap(one)(batch["ts"], batch["x"], jr.split(key, len(batch["x"]))))

        value, grads = jax.value_and_grad(gap)(params)
        return eqx.tree_at(lambda pair: pair.critic, grads, jax.tree.map(jnp.negative, grads.critic)), {"loss": value}


def clipped(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer`, after whose steps every linear weight of the critic lies within ±1 / outputs."""

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        updates, state = optimizer.update(updates, state, params)

        def held(step, layer):
            if not isinstance(layer, Linear):
                return step
            bound = 1 / layer.weight.shape[1]
            to = jnp.clip(layer.weight + step.weight, -bound, bound)
            return eqx.tree_at(lambda linear: linear.weight, step, to - layer.weight)

        def is_linear(node):
            return isinstance(node, Linear)

        critic = jax.tree.map(held, updates.critic, params.critic, is_leaf=is_linear)
        return eqx.tree_at(lambda pair: pair.critic, updates, critic), state

    return optax.GradientTransformation(optimizer.init, update)
