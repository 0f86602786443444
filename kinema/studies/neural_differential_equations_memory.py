"""Gradients of a neural SDE: error and memory of the reversible adjoint beside Diffrax's own, same solver and steps."""

import time
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from kinema.models import VectorField, lipswish
from kinema.motion import ReversibleAdjoint, integrate, trees

WAYS = ("reversible", "stored steps", "checkpoints")


def adjoint(way: str, steps: int) -> diffrax.AbstractAdjoint:
    """Ours; Diffrax's with every step kept; Diffrax's with about sqrt(2 steps) of them, its default."""
    if way == "reversible":
        return ReversibleAdjoint()
    return diffrax.RecursiveCheckpointAdjoint(checkpoints=steps if way == "stored steps" else None)


class Motion(eqx.Module):
    """A Stratonovich law of two networks, for a state of many rows of four numbers."""

    move: VectorField
    spread: VectorField
    calculus: str = eqx.field(static=True, default="stratonovich")

    def drift(self, t, x, args):
        return jax.vmap(self.move)(x)

    def diffusion(self, t, x, args):
        return jax.vmap(self.spread)(x)


def motion(width: int, key) -> Motion:
    key_move, key_spread = jr.split(key)
    sizes = {"width": width, "depth": 1, "activation": lipswish, "bounded": True}
    return Motion(VectorField(4, 4, **sizes, key=key_move), VectorField(4, 4, **sizes, key=key_spread))


@eqx.filter_jit
def gradient(law: Motion, starts, key, way, dt, steps: int):
    """Gradient in the parameters of the mean of |x(2)|²."""

    def loss(law):
        how = {"method": "reversible_heun", "dt": dt, "key": key, "adjoint": way, "max_steps": steps}
        return jnp.mean(integrate(law, starts, [0.0, 2.0], **how).states[-1] ** 2)

    return eqx.filter_grad(loss)(law)


def compared(batch: int, steps: int, width: int, keys) -> dict[str, dict[str, Any]]:
    """For each way its relative error with each key, bytes of temporaries and seconds of one gradient."""
    found = {}
    with jax.enable_x64(True):
        inputs = []
        for key in keys:
            key_law, key_start, key_noise = jr.split(key, 3)
            inputs.append((motion(width, key_law), jr.normal(key_start, (batch, 4)), key_noise))
        dt = jnp.asarray(2.0 / steps)
        gradients = {}
        for way in WAYS:
            program = gradient.lower(*inputs[0], adjoint(way, steps), dt, steps).compile()
            start = time.perf_counter()
            gradients[way] = jax.block_until_ready([program(*one, adjoint(way, steps), dt, steps) for one in inputs])
            found[way] = {"seconds": (time.perf_counter() - start) / len(keys), "bytes": _temporaries(program)}
        for way, several in gradients.items():
            found[way]["errors"] = [_apart(one, exact) for one, exact in zip(several, gradients["stored steps"])]
    return found


def _apart(one, exact) -> float:
    return float(trees.norm(trees.subtract(one, exact)) / trees.norm(exact))


def _temporaries(program) -> float:
    return float(program.compiled.memory_analysis().temp_size_in_bytes)
