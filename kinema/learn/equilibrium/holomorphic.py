"""Functions that go on into the complex plane: activations, pooling, losses; and a check that others do.

Nothing here conjugates: |z|^2 or a real part would make the nudged state depend on more than beta.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from kinema.errors import InputError
from kinema.motion import trees

if TYPE_CHECKING:
    from kinema.learn.equilibrium.dynamics import Relaxation

RADIUS, POINTS = 0.05, 16  # of the circles on which a function is tried
REACH = 3.2  # activations are tried on states from -REACH to REACH
TOLERANCE = 1e-3
ADVICE = (
    "Cauchy and Online nudge round a circle in the complex plane: take dsilu or steep_sigmoid in place of ReLU, "
    "softmax_pool in place of max-pooling, or the estimator Symmetric, whose nudges are real"
)


def steep_sigmoid(z: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """1 / (1 + exp(2 - 4z)): slope 1 at 1/2. Poles at 1/2 ± i pi/4.

    >>> steep_sigmoid(jnp.array(0.5)).item()
    0.5
    """
    return jax.lax.logistic(4 * z - 2)


def dsilu(z: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """z s(z) / 2 + (1 - z / 2) s(z - 2), s the logistic function: near z / 2 on [0, 2], flat outside.

    >>> dsilu(jnp.array([-20.0, 20.0])).round(3).tolist()
    [-0.0, 1.0]
    """
    return 0.5 * z * jax.lax.logistic(z) + (1 - 0.5 * z) * jax.lax.logistic(z - 2)


def softmax_pool(
    z: Inexact[Array, "height width channels"], temperature: float = 1.0
) -> Inexact[Array, "h w channels"]:
    """Σ v exp(v / T) / Σ exp(v / T) over windows of 2 x 2: the largest, but smooth. Odd sides lose their last row.

    >>> softmax_pool(jnp.ones((4, 4, 1))).shape
    (2, 2, 1)
    """
    height, width, channels = z.shape
    windows = z[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, channels)
    windows = windows.transpose(0, 2, 1, 3, 4).reshape(height // 2, width // 2, 4, channels)
    top = jax.lax.stop_gradient(windows.real.max(2, keepdims=True))  # a shift, which cancels
    weights = jnp.exp((windows - top) / temperature)
    return (windows * weights).sum(2) / weights.sum(2)


def cross_entropy(logits: Inexact[Array, " classes"], y: Any) -> Inexact[Array, ""]:
    """log Σ exp(logits) - logits[y], `y` an integer label.

    >>> round(cross_entropy(jnp.zeros(4), 1).item(), 4)
    1.3863
    """
    top = jax.lax.stop_gradient(logits.real.max())
    return jnp.log(jnp.exp(logits - top).sum()) + top - logits[y]


def squared_error(prediction: PyTree, y: PyTree) -> Inexact[Array, ""]:
    """Σ (prediction - y)^2 / 2.

    >>> squared_error(jnp.array([1.0, 3.0]), jnp.zeros(2)).item()
    5.0
    """
    gaps = jax.tree.map(jnp.subtract, prediction, y)
    return jnp.stack([(gap**2).sum() for gap in jax.tree.leaves(gaps)]).sum() / 2


def gradient(f: Callable) -> Callable:
    """The gradient of a scalar function, holomorphic where its argument is complex."""

    def of(a):
        complex_ = any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(a))
        return jax.grad(f, holomorphic=complex_)(a)

    return of


def affine(layer: Callable, z: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """A real affine map of a complex array, by two real ones: a complex product would cost four."""
    if not jnp.iscomplexobj(z):
        return layer(z)
    return jax.lax.complex(*jax.jvp(layer, (z.real,), (z.imag,)))


def check_holomorphic(net: "Relaxation", x: PyTree, y: PyTree, loss: Callable) -> None:
    """Try the parts of a network on small circles in the complex plane: no negative powers may come out.

    Runs once while tracing, with numbers of its own in place of the parameters.

    Raises:
        InputError: a part that refuses complex numbers or is not holomorphic; the layer is named.
    """
    with jax.ensure_compile_time_eval():
        net, x, y = (jax.tree.map(_numbers, tree) for tree in (net, x, y))
        state = jax.tree.map(_numbers, jax.eval_shape(net.init_state, x))
        smallest = min(leaf.size for leaf in jax.tree.leaves(state))
        tries = -(-int(REACH / RADIUS) // smallest)
        grid = [jax.tree.map(lambda leaf, k=k: _grid(leaf, k, tries), state) for k in range(tries)]
        rest = jax.tree.map(jnp.zeros_like, state)
        _try("activation", net.activate, grid)
        _try("drive", lambda a: net.drive(a, x), [rest, state])
        _try("out", net.out, [rest, state])
        out = jax.tree.map(_numbers, jax.eval_shape(net.out, state))
        _try("loss", lambda out: loss(out, y), [out])


def _try(part: str, f: Callable, centres: list[PyTree]) -> None:
    centre = jax.tree.map(lambda *leaves: jnp.stack(leaves), *centres)
    # numbers move by different lengths, so that they also cross each other
    ways = jax.tree.map(lambda leaf: np.linspace(1, 1.5, leaf.size, dtype=leaf.dtype).reshape(leaf.shape), centres[0])
    wide = jnp.result_type(*jax.tree.leaves(centre), 1j)
    turns = jnp.asarray(np.exp(2j * np.pi * np.arange(POINTS) / POINTS), wide)

    def circle(centre):
        def at(turn):
            return f(jax.tree.map(lambda leaf, way: leaf + RADIUS * turn * way, centre, ways))

        return jax.vmap(at)(jnp.asarray(turns))

    try:
        values = jax.jit(jax.vmap(circle))(centre)
        real = jax.jit(jax.vmap(f))(centre)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{_named(part, f, centres[0])} takes no complex numbers ({reason}). {ADVICE}") from error
    for (name, value), (_, middle) in zip(trees.named_leaves(values), trees.named_leaves(real)):
        value, middle = np.asarray(value), np.asarray(middle)
        # row k of the transform holds powers turn^k; the upper half are the negative ones
        powers = np.abs(np.fft.fft(value, axis=1)) / POINTS
        wrong = max(powers[:, POINTS // 2 :].max(), np.abs(value.mean(1) - middle).max())
        if not wrong <= TOLERANCE * max(powers[:, 1].max(), TOLERANCE):
            where = part if name == "." else f"{part} of layer {name}"
            raise InputError(f"the {where} is not holomorphic. {ADVICE}")


def _named(part: str, f: Callable, centre: PyTree) -> str:
    """The part, with its layer where one layer alone is to blame."""
    leaves, structure = jax.tree.flatten(centre)
    for index, (name, leaf) in enumerate(trees.named_leaves(centre)):
        mixed = jax.tree.unflatten(structure, [*leaves[:index], leaf + 0j, *leaves[index + 1 :]])
        try:
            jax.eval_shape(f, mixed)
        except (TypeError, ValueError, NotImplementedError):
            return f"the {part}" if name == "." or part != "activation" else f"the activation of layer {name}"
    return f"the {part}"


def _numbers(leaf: Any) -> Any:
    """Fixed numbers in place of what may be traced."""
    if not trees.is_array(leaf):
        return leaf
    if not trees.is_inexact(leaf):
        return jnp.zeros(leaf.shape, leaf.dtype)
    drawn = np.random.default_rng(leaf.size).standard_normal(leaf.shape)
    return jnp.asarray(drawn / max(1, leaf.shape[0] if leaf.shape else 1) ** 0.5, leaf.dtype)


def _grid(leaf: Array, k: int, tries: int) -> np.ndarray:
    """Values whose circles together cover [-REACH, REACH] in `tries` leaves of the smallest size."""
    count = int(REACH / RADIUS)
    places = (np.arange(leaf.size) * tries + k) % count
    return ((2 * places + 1) * RADIUS - REACH).astype(leaf.dtype).reshape(leaf.shape)
