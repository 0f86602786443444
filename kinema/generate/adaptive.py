"""Adaptive solves: sampling, and its inversion, as one differential equation on Diffrax.

A plan fixes its steps beforehand; here the error decides. The law of `Generator.law` is run on a clock tau(t) of one's
choice, where its solution is smooth to both ends:

    dx / dtau = drift(t, x) / tau'(t),    noise w(t) / sqrt(tau'(t)),    t = t(tau)

tau is log(a / s), the noise ratio s / a (with its sign changed, so that it rises) or t itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Int, PyTree

from kinema.errors import InputError, choose
from kinema.generate.fields import Moments
from kinema.generate.generator import AbstractGenerator, SamplingLaw
from kinema.generate.path.path import Path, in_float64
from kinema.motion import METHODS, integrate

FORMS = ("ode", "sde")


class Solution(eqx.Module):
    """The end of an adaptive solve, what it cost, and the states at its `segments`.

    `steps` counts accepted and refused steps, `nfe` evaluations of the generator (None for methods that solve
    equations, which do not tell). `path` has a leading axis of segments; None without any.
    """

    x: PyTree
    steps: Int[Array, ""]
    nfe: Int[Array, ""] | None
    path: PyTree | None


class Clock(NamedTuple):
    """A rising function tau(t) of a path: its value, its inverse and its rate, all as functions of (path, .)."""

    value: Callable
    time: Callable
    rate: Callable


class Clocked(eqx.Module):
    """A sampling law whose time is that of a clock."""

    law: SamplingLaw
    clock: str = eqx.field(static=True)

    def read(self, t) -> tuple[Array, Array]:
        """The path's time and the clock's rate when the clock shows t."""
        path, clock = self.law.generator.path, CLOCKS[self.clock]
        # The rate is taken at the rounded time: near data a float32 time is coarse, and then rate and drift err alike.
        time = jnp.clip(clock.time(path, t), 0.0, 1.0)
        return time, clock.rate(path, time)

    def drift(self, t, x: PyTree, args=None) -> PyTree:
        time, rate = self.read(t)
        return jax.tree.map(lambda leaf: leaf / rate.astype(leaf.dtype), self.law.drift(time, x))

    @property
    def diffusion(self) -> Callable | None:
        return None if self.law.deterministic else self._diffusion

    def _diffusion(self, t, x: PyTree, args=None) -> PyTree:
        time, rate = self.read(t)
        return jax.tree.map(lambda leaf: leaf / jnp.sqrt(rate).astype(leaf.dtype), self.law._diffusion(time, x))


def solve_adaptive(
    gen: AbstractGenerator,
    x: PyTree,
    *,
    form: str = "ode",
    variable: str = "log-snr",
    method: str | diffrax.AbstractSolver | None = None,
    rtol: Any = None,
    atol: Any = None,
    span: tuple[float, float] | None = None,
    noise_level: Any = "reverse",
    cond: PyTree | None = None,
    x0: PyTree | None = None,
    key=None,
    segments: Sequence[float] = (),
    between: Callable | None = None,
    **options: Any,
) -> Solution:
    """Carry one sample x along the law of a generator, in steps chosen by their error. Use `jax.vmap` for many.

    `form` "ode" is the probability flow; "sde" adds noise of `noise_level` (see `SamplingLaw`) and needs `key`. `span`
    is (from, to) in t, by default the path's safe ends, source to data; an ODE also runs from data to source.
    `variable` is the clock that steps are measured on: "log-snr", "noise-ratio" or "t". Methods, tolerances and
    `options` are those of `motion.integrate`: by default tsit5 at 1e-5 for the ODE, spark at 1e-2 for the SDE.

    There are no grid points to steer at; `segments` are times to stop at, where `between(t, x, key) -> x` may change
    the sample (a draw of `key` for each; None without a key).

    The sample still has the noise s of the last time. Its `gen(t, x).data` is the noise-free end that plans stop at.

    Example:
        >>> starts = jax.vmap(lambda k: gen.path.sample_source(k, jnp.zeros(2)))(jr.split(key, 64))
        >>> jax.vmap(lambda x: solve_adaptive(gen, x).x)(starts).shape
        (64, 2)

    Raises:
        InputError: an unknown form, variable or method; a span or segments outside [0, 1], out of order or where the
            clock is infinite; `between` without segments; a generator without a score in the form "sde".
        BudgetExhausted, NotFinite: see `motion.integrate`.
    """
    if form not in FORMS:
        raise InputError(f"form must be 'ode' or 'sde', got {form!r}")
    if between is not None and not segments:
        raise InputError(
            "between acts at the ends of segments: an adaptive solve has no steps of a grid; give segments=[t, ..]"
        )
    law = gen.law(noise_level if form == "sde" else 0.0, cond, x0)
    if form == "sde" and law.deterministic:
        raise InputError("noise_level=0 is the probability flow: use form='ode'")
    method = method or ("tsit5" if form == "ode" else "spark")
    solver = choose(METHODS, method, "method")() if isinstance(method, str) else method
    tolerance = 1e-5 if form == "ode" else 1e-2
    options |= {"rtol": tolerance if rtol is None else rtol, "atol": tolerance if atol is None else atol}
    times = clock_times(gen.path, variable, span, segments)
    clocked = Clocked(law, variable)

    if between is None:
        run = integrate(clocked, x, times, method=method, key=key, **options)
        last, inner = (jax.tree.map(lambda leaf, part=part: leaf[part], run.states) for part in (-1, slice(1, -1)))
        steps, pieces = run.constants["steps"], 1
    else:
        last, kept, steps, pieces = x, [], jnp.zeros((), int), len(times) - 1
        for i in range(pieces):
            key_piece, key_between = (None, None) if key is None else jr.split(jr.fold_in(key, i))
            run = integrate(clocked, last, times[i : i + 2], method=method, key=key_piece, **options)
            steps = steps + run.constants["steps"]
            last = jax.tree.map(lambda leaf: leaf[-1], run.states)
            if i < pieces - 1:
                last = between(segments[i], last, key_between)
                kept.append(last)
        inner = jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)
    return Solution(last, steps, _evaluations(solver, steps, pieces), inner if segments else None)


def clock_times(path: Path, variable: str, span: tuple[float, float] | None, segments: Sequence[float] = ()) -> Any:
    """Span and segments, checked, as times of a clock; inside compiled code that traces the path itself, unchecked.

    Raises:
        InputError: unknown variable; times outside [0, 1], not in order, or where the clock is infinite.
    """
    clock = choose(CLOCKS, variable, "variable")
    start, stop = (path.t_min, path.t_max) if span is None else span
    times = np.asarray([start, *segments, stop], np.float64)
    if not ((times >= 0) & (times <= 1)).all():
        raise InputError(f"span and segments must lie in [0, 1], got {times.tolist()}")
    step = np.diff(times) * np.sign(stop - start)
    if not (step > 0).all():
        raise InputError(f"span and segments must be in one order, got {times.tolist()}")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(path)):
        return clock.value(path, jnp.asarray(times, jnp.result_type(float)))
    (values,) = in_float64(Partial(clock.value, path), times)
    if not np.isfinite(values).all():
        i = int(np.argmin(np.isfinite(values)))
        raise InputError(f"{variable} is infinite at t={times[i]:g}: stay within {path.t_min:g} to {path.t_max:g}")
    return values.astype(jnp.result_type(float))


def _noise_ratio(path: Path, t) -> Array:
    a, _, s = path.coefficients(t)
    return s / a


def _log_snr_rate(path: Path, t) -> Array:
    moments = Moments.at(path, t)
    return moments.da / moments.a - moments.s_ds / moments.s**2


CLOCKS = {
    "t": Clock(lambda path, t: t, lambda path, tau: tau, lambda path, t: jnp.ones_like(t)),
    "log-snr": Clock(lambda path, t: path.log_snr(t), lambda path, tau: path.time_of_log_snr(tau), _log_snr_rate),
    "noise-ratio": Clock(
        lambda path, t: -_noise_ratio(path, t),
        lambda path, tau: path.time_of_log_snr(-jnp.log(-tau)),
        lambda path, t: _noise_ratio(path, t) * _log_snr_rate(path, t),
    ),
}


def _evaluations(solver: diffrax.AbstractSolver, steps: Array, pieces: int) -> Array | None:
    """Evaluations of the drift: those of every step, and one before the first of a piece if steps share their ends."""
    tableau = getattr(solver, "tableau", None)
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        return None
    if tableau is None:
        return steps if isinstance(solver, diffrax.Euler) else None
    shared = int(getattr(tableau, "fsal", False))
    return steps * (len(tableau.c) + 1 - shared) + pieces * shared
