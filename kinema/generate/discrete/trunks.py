"""A network for marginalization models of short sequences."""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.models.checks import check_positive
from kinema.models.layers import Linear


class MarginalMLP(eqx.Module):
    """Two residual perceptrons on the symbols, one for the log marginal and one for the conditionals.

    `depth` layers h <- h + silu(h W + b). Both outputs start at zero: the uniform law.

    Raises:
        InputError: sizes not positive.
    """

    marginal: "Perceptron"
    conditional: "Perceptron"

    def __init__(self, length: int, categories: int, *, width: int = 256, depth: int = 3, key: PRNGKeyArray):
        check_positive(length=length, categories=categories, width=width, depth=depth)
        key_marginal, key_conditional = jr.split(key)
        inputs = length * (categories + 1)
        self.marginal = Perceptron(inputs, 1, width, depth, key=key_marginal)
        self.conditional = Perceptron(inputs, length * categories, width, depth, key=key_conditional)

    def __call__(self, x: Float[Array, "length symbols"]) -> tuple[Float[Array, ""], Float[Array, "length categories"]]:
        flat = x.reshape(-1)
        return self.marginal(flat)[0], self.conditional(flat).reshape(len(x), -1)

    def warmed(self) -> "MarginalMLP":
        """The same trunk, the log marginal's hidden layers like those of the conditionals."""
        hidden = self.conditional.input, self.conditional.layers
        return eqx.tree_at(lambda trunk: (trunk.marginal.input, trunk.marginal.layers), self, hidden)


class Perceptron(eqx.Module):
    """The perceptron of `MarginalMLP`."""

    input: Linear
    layers: tuple[Linear, ...]
    output: Linear

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, *, key: PRNGKeyArray):
        key_input, key_output, *keys = jr.split(key, 2 + depth)
        self.input = Linear(inputs, width, gain=inputs**0.5 * 0.25, key=key_input)
        self.layers = tuple(Linear(width, width, key=k) for k in keys)
        self.output = Linear(width, outputs, gain=0.0, key=key_output)

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        h = self.input(x)
        for layer in self.layers:
            h = h + jax.nn.silu(layer(h))
        return self.output(h)
