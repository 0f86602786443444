"""Gradients of a neural SDE: error and memory of the reversible adjoint beside Diffrax's own, same solver and steps."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from kinema.models import VectorField, lipswish
from kinema.motion import ReversibleAdjoint, integrate, trees

WAYS = {"reversible": ReversibleAdjoint(), "stored steps": "direct", "checkpoints": "recursive"}


class Motion(eqx.Module):
    """A Stratonovich law of two networks."""

    move: VectorField
    spread: VectorField
    calculus: str = eqx.field(static=True, default="stratonovich")

    def drift(self, t, x, args):
        return self.move(x)

    def diffusion(self, t, x, args):
        return self.spread(x)


def motion(width: int, key) -> Motion:
    key_move, key_spread = jr.split(key)
    sizes = {"width": width, "depth": 1, "activation": lipswish, "bounded": True}
    return Motion(VectorField(4, 4, **sizes, key=key_move), VectorField(4, 4, **sizes, key=key_spread))


@eqx.filter_jit
def gradient(law: Motion, starts, keys, way, dt, steps: int):
    """Gradient in the parameters of the mean of |x(2)|²."""

    def loss(law):
        def one(x0, key):
            how = {"method": "reversible_heun", "dt": dt, "key": key, "adjoint": way, "max_steps": steps}
            return integrate(law, x0, [0.0, 2.0], **how).states[-1]

        return jnp.mean(jax.vmap(one)(starts, keys) ** 2)

    return eqx.filter_grad(loss)(law)


def compared(batch: int, steps: int, width: int, keys) -> dict[str, dict[str, float]]:
    """For each way its error (relative, the worst of `keys`), bytes of temporaries and seconds of one gradient."""
    found = {}
    with jax.enable_x64(True):
        inputs = []
        for key in keys:
            key_law, key_start, key_noise = jr.split(key, 3)
            inputs.append((motion(width, key_law), jr.normal(key_start, (batch, 4)), jr.split(key_noise, batch)))
        dt = jnp.asarray(2.0 / steps)
        gradients = {}
        for name, way in WAYS.items():
            program = gradient.lower(*inputs[0], way, dt, steps).compile()
            gradients[name] = [program(*one, way, dt, steps) for one in inputs]
            start = time.perf_counter()
            jax.block_until_ready(program(*inputs[0], way, dt, steps))
            found[name] = {"seconds": time.perf_counter() - start, "bytes": _temporaries(program)}
        for name, several in gradients.items():
            errors = [_apart(one, exact) for one, exact in zip(several, gradients["stored steps"])]
            found[name]["errors"] = errors
    return found


def _apart(one, exact) -> float:
    return float(trees.norm(trees.subtract(one, exact)) / trees.norm(exact))


def _temporaries(program) -> float:
    return float(program.compiled.memory_analysis().temp_size_in_bytes)
