"""PyTorch denoisers as networks of Kinema: every path, solver and controller runs on them.

Compiled JAX calls back to the host once for a whole batch, and arrays are handed over by DLPack: on a CPU torch reads
XLA's buffer itself, on a GPU the data go over the host. Torch's own autograd answers reverse-mode differentiation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
        leaves = tuple(map(jnp.asarray, leaves))
        ranks = tuple(each.ndim for each in (x, time, *leaves))
        return _call(_Host(self.denoiser, self.device, structure, ranks), x, time, leaves)


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


@dataclass(frozen=True)
class _Host:
    """The host's side: one call of the denoiser for a batch. `ranks` are those of x, time and the leaves unbatched."""

    denoiser: Callable
    device: str
    structure: Any
    ranks: tuple[int, ...]

    def value(self, *arrays) -> np.ndarray:
        lead, inputs = self._batch(self.ranks, arrays)
        with torch.no_grad():
            return self._run(inputs).cpu().numpy().reshape(lead + inputs[0].shape[1:])

    def pull_back(self, cotangent, *arrays) -> tuple[np.ndarray, ...]:
        """Gradients of <cotangent, denoiser> by those of x, time and the leaves that are floating point."""
        lead, (weight, *inputs) = self._batch((self.ranks[0], *self.ranks), (cotangent, *arrays))
        inputs = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        with torch.enable_grad():
            out = self._run(inputs)
            options = {"grad_outputs": weight, "allow_unused": True, "materialize_grads": True}
            grads = torch.autograd.grad(out, wanted, **options) if out.requires_grad else map(torch.zeros_like, wanted)
        return tuple(grad.cpu().numpy().reshape(lead + grad.shape[1:]) for grad in grads)

    def _batch(self, ranks: Sequence[int], arrays: Sequence) -> tuple[torch.Size, list[torch.Tensor]]:
        """The batch shape that JAX has put in front, and tensors with one leading axis for all of it."""
        tensors = [torch.from_dlpack(array).to(self.device) for array in arrays]
        leads = [tensor.shape[: tensor.ndim - rank] for tensor, rank in zip(tensors, ranks)]
        lead = torch.broadcast_shapes(*leads)
        wide = [tensor.expand(lead + tensor.shape[len(own) :]) for tensor, own in zip(tensors, leads)]
        return lead, [tensor.reshape(-1, *tensor.shape[len(lead) :]) for tensor in wide]

    def _run(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        x, time, *leaves = inputs
        cond = jax.tree.unflatten(self.structure, leaves)
        before = [tensor._version for tensor in inputs]
        out = self.denoiser(x, time) if cond is None else self.denoiser(x, time, cond)
        if not isinstance(out, torch.Tensor) or out.shape != x.shape:
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise InputError(f"the denoiser must return a tensor of the shape of x, {tuple(x.shape)}, got {got}")
        if [tensor._version for tensor in inputs] != before:
            raise InputError("the denoiser writes into its arguments, which belong to JAX; let it work on a copy")
        return out.to(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(host: _Host, x: Array, time: Array, leaves: tuple[Array, ...]) -> Array:
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(host.value, like, x, time, *leaves, vmap_method="expand_dims")


def _call_forward(host: _Host, x: Array, time: Array, leaves: tuple[Array, ...]):
    return _call(host, x, time, leaves), (x, time, leaves)


def _call_backward(host: _Host, saved, cotangent: Array):
    x, time, leaves = saved
    arrays = (x, time, *leaves)
    likes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in arrays if _is_float(each)]
    grads = iter(jax.pure_callback(host.pull_back, tuple(likes), cotangent, *arrays, vmap_method="expand_dims"))
    x, time, *leaves = (next(grads) if _is_float(each) else np.zeros(each.shape, jax.dtypes.float0) for each in arrays)
    return x, time, tuple(leaves)


_call.defvjp(_call_forward, _call_backward)


def _is_float(array: Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)
