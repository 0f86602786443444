"""PyTorch denoisers as networks of Kinema: every path, solver and controller runs on them.

Compiled JAX calls back to the host once for a whole batch, and arrays are handed over by DLPack: on a CPU torch reads
XLA's buffer itself, on a GPU the data go over the host. Torch's own autograd answers reverse-mode differentiation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from kinema.errors import InputError, require

try:
    import torch
except ImportError:
    require("torch", "diffusers")
    raise

FLOATS = ("float16", "float32", "float64")  # bfloat16 has no NumPy form to come back in


class TorchNetwork(eqx.Module):
    """`net(x, signal, cond)` that calls a PyTorch denoiser. Made by `from_torch`.

    Its weights are torch's: they are no leaves of this module, so nothing here trains or stores them.
    """

    denoiser: Callable = eqx.field(static=True)
    time: Callable | None
    device: str = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."], signal, cond: PyTree | None = None) -> Float[Array, "..."]:
        if str(x.dtype) not in FLOATS:
            raise InputError(f"x must be one of {', '.join(FLOATS)} to go to torch and back, got {x.dtype}")
        time = jnp.asarray(signal if self.time is None else self.time(signal))
        leaves, structure = jax.tree.flatten(cond)
        return _call(_Host(self.denoiser, self.device, structure), x, time, tuple(map(jnp.asarray, leaves)))


def from_torch(
    denoiser: Callable, *, time: Callable | None = None, device: str | torch.device | None = None
) -> TorchNetwork:
    """A network of Kinema that runs `denoiser(x, time)`, or `denoiser(x, time, cond)` where a condition is given.

    The denoiser is a `torch.nn.Module` or a function. It gets a batch `x (n, ...)`, `time (n,)` and the leaves of cond
    as tensors with a leading n, and returns a tensor like x; under `vmap` one call carries the whole batch. It must not
    write into its arguments. `time` is a JAX function from the signal (log(a / s), held within +-12) to the time that
    the denoiser was trained with, by default the signal itself; for models with a table of timesteps use `table_index`.
    `device` is where its weights are, by default found from its parameters.

    Gradients: reverse mode, by torch, with respect to x, time and float conditions. Forward mode (`jax.jvp`, exact
    likelihoods) and second derivatives are refused by JAX. Weights have no gradient here: train them in torch.

    Example:
        >>> net = from_torch(lambda x, t: unet(x, t).sample, time=table_index(scheduler.alphas_cumprod))
        >>> gen = generate.Generator(generate.VP(), net, predicts="noise")

    Raises:
        InputError: the denoiser cannot be called; later, one whose output is not like x or that writes into x.
        MissingExtra: torch is not installed.
    """
    if not callable(denoiser):
        raise InputError(f"denoiser must be a torch module or a function, got {type(denoiser).__name__}")
    if device is None:
        weight = next(denoiser.parameters(), None) if isinstance(denoiser, torch.nn.Module) else None
        device = "cpu" if weight is None else weight.device
    return TorchNetwork(denoiser, time, str(device))


class _Table(eqx.Module):
    log_snr: Float[Array, " size"]

    def __call__(self, signal) -> Array:
        size = len(self.log_snr)
        return size - 1 - jnp.interp(signal, self.log_snr[::-1], jnp.arange(size, dtype=self.log_snr.dtype))


def table_index(alphas_cumprod: Any) -> Callable:
    """The function from a signal to the (fractional) index in a table of squared data coefficients `(T,)` that fall.

    Raises:
        InputError: not such a table.
    """
    table = np.asarray(alphas_cumprod, np.float64)
    if table.ndim != 1 or len(table) < 2 or not (np.diff(table) < 0).all() or table[-1] <= 0 or table[0] >= 1:
        raise InputError("alphas_cumprod must be a vector of at least 2 numbers that fall inside (0, 1)")
    return _Table(jnp.asarray(0.5 * (np.log(table) - np.log1p(-table)), jnp.result_type(float)))


class _Host(eqx.Module):
    """The host's side: batches in and out of torch."""

    denoiser: Callable = eqx.field(static=True)
    device: str = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def forward(self, rank: int, x, time, leaves) -> np.ndarray:
        lead, tensors = self._tensors(rank, x, time, leaves)
        with torch.no_grad():
            return self._run(tensors).cpu().numpy().reshape(*lead, *x.shape[x.ndim - rank :])

    def backward(self, rank: int, x, time, leaves, cotangent) -> tuple:
        """Gradients of <cotangent, denoiser> by x, time and the float leaves; None is never returned."""
        lead, tensors = self._tensors(rank, x, time, leaves)
        inputs = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        (weights,) = self._batch(lead, rank, [cotangent])
        with torch.enable_grad():
            out = self._run(inputs)
            if out.requires_grad:
                grads = torch.autograd.grad(out, wanted, weights, allow_unused=True)
            else:
                grads = (None,) * len(wanted)
        shapes = [lead + tensor.shape[1:] for tensor in wanted]
        grads = (torch.zeros_like(t) if g is None else g for g, t in zip(grads, wanted))
        return tuple(grad.cpu().numpy().reshape(shape) for grad, shape in zip(grads, shapes))
