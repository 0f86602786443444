"""Generators made from generators: classifier-free guidance.

    f = f_null + scale (f_cond - f_null)

Both passes share one affine parameterization and the weights add to 1, so the combination holds for every field at
once. A guided generator counts two network passes a call.

Reference: Ho & Salimans 2022.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.generate.generator import AbstractGenerator
from kinema.generate.path.path import Path


class Guided(AbstractGenerator):
    """Classifier-free guidance of a conditional generator: `scale` 1 is the condition alone, 0 none at all.

    `null` is the condition that means "no condition" (the label one past the last, for class labels). The origin x0 is
    never replaced: it belongs to the path, not to the condition.

    Raises:
        InputError: `scale` not finite.
    """

    generator: AbstractGenerator
    null: PyTree
    scale: float = 2.0

    def __check_init__(self):
        if not jnp.isfinite(self.scale):
            raise InputError(f"scale must be finite, got {self.scale}")

    @property
    def path(self) -> Path:
        return self.generator.path

    @property
    def predicts(self) -> str | tuple[str, str]:
        return self.generator.predicts

    @property
    def sigma_data(self) -> float:
        return self.generator.sigma_data

    @property
    def calls(self) -> int:
        return 2 * self.generator.calls

    @property
    def components(self) -> tuple[AbstractGenerator, ...]:
        """The generators inside."""
        return (self.generator,)

    def raw(self, t, x: PyTree, cond: PyTree | None = None, x0: PyTree | None = None) -> PyTree:
        if cond is None:
            raise InputError("cond is missing: guidance needs a condition to move towards")
        null = jax.tree.map(
            lambda leaf, like: jnp.broadcast_to(jnp.asarray(leaf, like.dtype), like.shape), self.null, cond
        )
        both = eqx.filter_vmap(lambda c: self.generator.raw(t, x, c, x0))(
            jax.tree.map(lambda a, b: jnp.stack([a, b]), null, cond)
        )
        return jax.tree.map(lambda out: out[0] + self.scale * (out[1] - out[0]), both)
