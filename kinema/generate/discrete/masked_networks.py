"""Networks for masked diffusion, without time: a perceptron for short sequences, a transformer for longer ones."""

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kinema.generate.discrete.masking import MaskedModel
from kinema.generate.discrete.trunks import Perceptron
from kinema.models.checks import check_positive
from kinema.models.layers import Attention, Linear, layer_norm, normal, position_code


def masked_mlp(length: int, categories: int, *, width: int = 256, depth: int = 3, key: PRNGKeyArray) -> MaskedModel:
    """A perceptron of `depth` residual layers on the indicators of all variables; starts at the uniform law.

    Raises:
        InputError: sizes not positive.
    """
    check_positive(length=length, categories=categories, width=width, depth=depth)
    net = Perceptron(length * (categories + 1), length * categories, width, depth, key=key)
    return MaskedModel(_Flat(net), length, categories)


def masked_transformer(
    length: int,
    categories: int,
    *,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    expand: int = 4,
    key: PRNGKeyArray,
) -> MaskedModel:
    """A transformer with attention among all variables; starts at the uniform law.

    Raises:
        InputError: sizes not positive, width no multiple of heads.
    """
    check_positive(length=length, categories=categories, width=width, depth=depth, heads=heads, expand=expand)
    key_table, key_head, *keys = jr.split(key, 2 + depth)
    trunk = _Transformer(categories, width, heads, expand * width, key=key_table, keys=keys)
    return MaskedModel(trunk, length, categories, Linear(width, categories, gain=0.0, key=key_head))


class _Flat(eqx.Module):
    net: Perceptron

    def __call__(self, x: Int[Array, " length"]) -> Float[Array, "length categories"]:
        inputs = len(self.net.input.weight)
        return self.net(jax.nn.one_hot(x, inputs // len(x)).reshape(-1)).reshape(len(x), -1)


class _Transformer(eqx.Module):
    table: Float[Array, "symbols width"]
    blocks: tuple["_Block", ...]

    def __init__(self, categories: int, width: int, heads: int, hidden: int, *, key: PRNGKeyArray, keys):
        self.table = normal(key, (categories + 1, width))
        self.blocks = tuple(_Block(width, heads, hidden, key=k) for k in keys)

    def __call__(self, x: Int[Array, " length"]) -> Float[Array, "length width"]:
        h = self.table[x] + position_code(x.shape, self.table.shape[1]).astype(self.table.dtype)
        for block in self.blocks:
            h = block(h)
        return layer_norm(h)


class _Block(eqx.Module):
    attention: Attention
    hidden: Linear
    output: Linear

    def __init__(self, width: int, heads: int, hidden: int, *, key: PRNGKeyArray):
        key_attention, key_hidden, key_output = jr.split(key, 3)
        self.attention = Attention(width, heads, gain=0.5, key=key_attention)
        self.hidden = Linear(width, hidden, key=key_hidden)
        self.output = Linear(hidden, width, gain=0.5, key=key_output)

    def __call__(self, h: Float[Array, "length width"]) -> Float[Array, "length width"]:
        h = h + self.attention(layer_norm(h))
        return h + self.output(jax.nn.gelu(self.hidden(layer_norm(h))))
