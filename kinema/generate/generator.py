"""Generator: a path and a network that predicts one field of it; solvers and controllers consume nothing else."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from kinema.errors import InputError, unknown
from kinema.generate.fields import FIELDS, PAIRS, PREDICTS, Affine, Heads, Moments, Prediction, convert, published
from kinema.generate.path.path import Path, in_float64


class AbstractGenerator(eqx.Module):
    """What the sampling loop needs: a path, one raw output, and the affine map from it to every field.

    `raw(t, x, cond, x0)` is one call of the model on one sample; `predicts` names the field it returns (or
    "residual"), or the two of its `Heads`. Guidance, exact mixtures and other combinations are generators of their own.
    """

    path: eqx.AbstractVar[Path]
    predicts: eqx.AbstractVar[str | tuple[str, str]]
    sigma_data: eqx.AbstractVar[float]

    @abc.abstractmethod
    def raw(self, t, x: PyTree, cond: PyTree | None = None, x0: PyTree | None = None) -> PyTree:
        """The model's output at (t, x), a velocity without its b' x0."""

    @property
    @abc.abstractmethod
    def calls(self) -> int:
        """Network passes in one `raw` (2 under classifier-free guidance)."""

    @property
    def fields(self) -> frozenset[str]:
        """The fields this generator really has."""
        return published(self.predicts, self.path)

    def affine(self, t, wanted: str) -> Affine:
        """P and Q of `wanted` = P y + Q raw at the concrete times t `(m,)`, float64 NumPy arrays."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return convert(self.predicts, wanted, moments_in_float64(self.path, t), self.sigma_data)

    def __call__(self, t, x: PyTree, cond: PyTree | None = None, *, x0: PyTree | None = None) -> Prediction:
        """All fields at (t, x), one sample. Only what is used is computed under `jit`.

        Raises:
            InputError: the path has an origin and x0 is missing, or the reverse.
        """
        moments = Moments.at(self.path, t)
        raw = self.raw(t, x, cond, x0)
        y = centre(self.path, x, moments.b, x0)
        fields = {
            name: convert(self.predicts, name, moments, self.sigma_data)(y, raw) if name in self.fields else None
            for name in FIELDS
        }
        if x0 is not None and self.path.origin == "condition":
            fields["velocity"] = jax.tree.map(lambda v, start: v + moments.db * start, fields["velocity"], x0)
        return Prediction(**fields)

    def law(self, noise_level: Any = 0.0, cond: PyTree | None = None, x0: PyTree | None = None):
        """The law of sampling in t: drift v + w^2 score / 2, diffusion w. See `SamplingLaw`."""
        return SamplingLaw(self, noise_level, cond, x0)


class Generator(AbstractGenerator):
    """A path and a network with its parameterization.

    The network is `net(x, signal, cond) -> array like x`, one sample: x comes scaled to about unit variance (given
    `sigma_data`, the standard deviation of the data), `signal` is `path.signal(t)`. `predicts` is what it was trained
    to return: "data", "noise", "velocity", "score" (times s, so that the network's output is of unit size), or
    "residual" (Karras et al. 2022). A pair is a network that returns two arrays: ("data", "score") where the noise is
    not normal and a score is needed; ("transport", "noise") where the start is a random endpoint, with the velocity
    that a' x1 + b' x0 gives, the noise left out.

    On a path whose origin is a condition the network sees `[x, x0]`, joined on a last axis that is twice as long; its
    output is like x.

    Example:
        >>> gen = Generator(Linear(), models.make("mlp", shape=(2,), key=key), predicts="velocity")
        >>> gen(0.5, x).data.shape
        (2,)

    Raises:
        InputError: an unknown `predicts`, or a pair that does not fit the path; `sigma_data` not positive.
    """

    path: Path
    net: Callable
    predicts: str | tuple[str, str] = eqx.field(static=True, default="data")
    sigma_data: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        _check_predicts(self.predicts, self.path)
        if not self.sigma_data > 0:
            raise InputError(f"sigma_data must be positive, got {self.sigma_data}")

    @property
    def calls(self) -> int:
        return 1

    def raw(self, t, x: PyTree, cond: PyTree | None = None, x0: PyTree | None = None) -> PyTree:
        path, s = self.path, self.path.coefficients(t)[2]
        scale = path.input_scale(t, self.sigma_data)
        seen = jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), x)
        if path.origin == "condition":
            seen = jax.tree.map(lambda leaf, start: jnp.concatenate([leaf, start / self.sigma_data], -1), seen, x0)
        out = self.net(seen, path.signal(t), cond)
        if not isinstance(self.predicts, str):
            first, second = out
            if self.predicts[1] == "score":
                second = jax.tree.map(lambda leaf: leaf / s, second)
            return Heads(first, second)
        if self.predicts == "score":
            return jax.tree.map(lambda leaf: leaf / s, out)
        if self.predicts == "velocity" and path.origin == "condition":
            db = path.rates(t)[1]
            return jax.tree.map(lambda leaf, start: leaf - db * start, out, x0)
        return out


class SamplingLaw(eqx.Module):
    """dx = (v + w^2 score / 2) dt + w dW: the same marginals as the path for every w(t) >= 0.

    `noise_level`: 0 (probability-flow ODE), "reverse" (w^2 = 2 s^2 d log_snr/dt, the reverse of the noising SDE), a
    factor on that w (a number, or an array to trace), or w as a function of t.

    Raises:
        InputError: a noise level where the generator has no score; a negative or unknown level.
    """

    generator: AbstractGenerator
    noise_level: Any
    cond: PyTree | None = None
    x0: PyTree | None = None

    def __check_init__(self):
        level = self.noise_level
        if isinstance(level, str) and level != "reverse":
            raise InputError(f"noise_level must be 0, 'reverse', a factor or a function of t, got {level!r}")
        if isinstance(level, int | float) and level < 0:
            raise InputError(f"noise_level must not be negative, got {level}")
        if not self.deterministic and "score" not in self.generator.fields:
            raise InputError(f"a noisy law needs a score; this generator has {sorted(self.generator.fields)}")

    @property
    def deterministic(self) -> bool:
        return isinstance(self.noise_level, int | float) and self.noise_level == 0

    def width(self, t) -> Array:
        """w(t)."""
        if callable(self.noise_level):
            return jnp.asarray(self.noise_level(t))
        path = self.generator.path
        moments = Moments.at(path, t)
        square = 2 * (moments.s**2 * moments.da / moments.a - moments.s_ds)
        factor = 1.0 if self.noise_level == "reverse" else self.noise_level
        return factor * jnp.sqrt(jnp.maximum(square, 0))

    def drift(self, t, x: PyTree, args=None) -> PyTree:
        prediction = self.generator(t, x, self.cond, x0=self.x0)
        if self.deterministic:
            return prediction.velocity
        half = 0.5 * self.width(t) ** 2
        return jax.tree.map(lambda v, score: v + half * score, prediction.velocity, prediction.score)

    @property
    def diffusion(self) -> Callable | None:
        """w as a function (t, x, args), the same for every x; None for the probability flow, an ordinary law."""
        return None if self.deterministic else self._diffusion

    def _diffusion(self, t, x: PyTree, args=None) -> PyTree:
        width = self.width(t)
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, 1) * width.astype(leaf.dtype), x)


def centre(path: Path, x: PyTree, b, x0: PyTree | None) -> PyTree:
    """y = x - b x0, the part of x that data and noise make; x itself where x0 is absent or a random endpoint.

    Raises:
        InputError: x0 missing on a path that needs it, or given on one that has none.
    """
    if path.origin == "endpoint" and x0 is None:
        return x
    if path.check_origin(x0) is None:
        return x
    return jax.tree.map(lambda leaf, start: leaf - b * start, x, x0)


def moments_in_float64(path: Path, t) -> Moments:
    """`Moments` of concrete times `(m,)` as float64 NumPy arrays."""
    return Moments(*in_float64(Partial(_moments, path), t))


def _moments(path: Path, times) -> tuple:
    return tuple(jax.vmap(lambda t: Moments.at(path, t))(times))


def _check_predicts(predicts: str | tuple[str, str], path: Path):
    if isinstance(predicts, str):
        if predicts not in PREDICTS:
            raise InputError(unknown("prediction", predicts, PREDICTS))
        if predicts == "score" and not path.noise.gaussian:
            raise InputError("predicts='score' alone needs a path with normal noise; predict ('data', 'score')")
        return
    if tuple(predicts) not in PAIRS:
        raise InputError(f"a pair of predictions must be one of {PAIRS}, got {predicts}")
    if (path.origin == "endpoint") != (predicts[1] == "noise"):
        raise InputError(
            f"the pair {predicts} does not fit {type(path).__name__}: a random endpoint takes (.., 'noise'), other"
            " paths ('data', 'score')"
        )
