"""Gradients of a solve in constant memory: an algebraically reversible step is undone instead of stored.

Backwards, each step is inverted exactly (up to rounding) and then differentiated on its own, so the gradient is that of
the discrete solve, as by back-propagation through all steps, while memory does not grow with their number.

    integrate(law, x0, ts, method="reversible_heun", dt=0.01, adjoint=ReversibleAdjoint())

[Kidger, Foster, Li & Lyons 2021 (reversible Heun); McCallum & Foster 2024 (any one-step method)]
"""

import warnings
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import RESULTS, AbstractTerm
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.motion import trees
from kinema.motion.law import Law
from kinema.motion.stepping import EvenSteps, counts
from kinema.motion.symplectic import Leapfrog, Yoshida4

RISKY = 20.0  # |Re λ| T above which reversible steps are warned of
_SEARCH = 24  # power iterations


class Reversible(diffrax.AbstractSolver):
    """Any explicit method made reversible by a second copy z of the state; keeps the order, costs two steps for one.

        y' = c y + (1 - c) z + step(t, z, h),    z' = z - step(t + h, y', -h),    c = coupling

    with step(t, x, h) the increment of `base`. For ordinary laws and fixed steps. A smaller coupling tolerates more
    damping and loses more digits on the way back: c^-n of rounding after n steps, so 0.99 or more for many steps.

    Raises:
        InputError: `base` is implicit, or not a Runge-Kutta method; coupling outside (0, 1].

    Reference: McCallum & Foster (2024).
    """

    base: diffrax.AbstractSolver = diffrax.Midpoint()
    coupling: float = eqx.field(default=0.99, static=True)
    term_structure: ClassVar = AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def __check_init__(self):
        if not isinstance(self.base, diffrax.AbstractERK | diffrax.Euler):
            raise InputError(
                f"base must be an explicit Runge-Kutta method such as diffrax.Midpoint(), got "
                f"{type(self.base).__name__}; implicit steps cannot be made reversible"
            )
        if not 0 < self.coupling <= 1:
            raise InputError(f"coupling must be in (0, 1], got {self.coupling}")

    def order(self, terms) -> int | None:
        return self.base.order(terms)

    def init(self, terms, t0, t1, y0: PyTree, args) -> PyTree:
        return y0

    def step(self, terms, t0, t1, y0: PyTree, args, solver_state: PyTree, made_jump):
        mixed = trees.interpolate(solver_state, y0, self.coupling)
        y1 = trees.add(mixed, self._increment(terms, t0, t1, solver_state, args))
        z1 = trees.subtract(solver_state, self._increment(terms, t1, t0, y1, args))
        return y1, None, {"y0": y0, "y1": y1}, z1, RESULTS.successful

    def inverse(self, terms, t0, t1, y1: PyTree, args, solver_state: PyTree) -> tuple[PyTree, PyTree]:
        """(y0, state) before the step that ended in y1."""
        z0 = trees.add(solver_state, self._increment(terms, t1, t0, y1, args))
        moved = trees.subtract(y1, self._increment(terms, t0, t1, z0, args))
        return trees.scale(trees.add_scaled(moved, self.coupling - 1, z0), 1 / self.coupling), z0

    def func(self, terms, t0, y0: PyTree, args) -> PyTree:
        return terms.vf(t0, y0, args)

    def _increment(self, terms, t0, t1, y: PyTree, args) -> PyTree:
        start = self.base.init(terms, t0, t1, y, args)
        return trees.subtract(self.base.step(terms, t0, t1, y, args, start, made_jump=False)[0], y)


class ReversibleAdjoint(diffrax.AbstractAdjoint):
    """Exact gradients of fixed steps in memory that does not depend on their number; `adjoint=` of `integrate`.

    For "reversible_heun" (also with Stratonovich noise: the Brownian path is asked again on the way back), for
    `Reversible(...)`, "leapfrog" and "yoshida4". Costs one evaluation of the field more a step than stored steps.

    Not for damped laws: what is damped forwards grows backwards, and the reversible steps themselves are unstable
    there; `dissipation` tells beforehand. A start that is not found again is an error, never a wrong gradient.
    Parameters must be leaves of the law or of `args`, not captured by a function; times have no gradient. Under `vmap`
    each sample sums a gradient of the parameters of its own: for large networks let one state hold the batch.

    Raises:
        InputError: adaptive steps, dense output, or a method that is not reversible.
        RuntimeError: on the way back, x0 was missed by more than the square root of the rounding unit.
    """

    def loop(self, *, args, terms, solver, stepsize_controller, saveat, max_steps, init_state, event, **others):
        if not isinstance(stepsize_controller, EvenSteps):
            raise InputError("the reversible adjoint needs fixed steps: give dt, or use adjoint='recursive'")
        if not isinstance(solver, diffrax.ReversibleHeun | Leapfrog | Yoshida4) and not hasattr(solver, "inverse"):
            raise InputError(
                f"method {type(solver).__name__} is not reversible; use 'reversible_heun', 'leapfrog', 'yoshida4' or "
                "kinema.motion.Reversible(base), or adjoint='recursive'"
            )
        if saveat.dense or saveat.subs.steps or saveat.subs.ts is None or event is not None:
            raise InputError("the reversible adjoint keeps the frames of ts only: no dense output, no events")
        if isinstance(terms, diffrax.MultiTerm) and not isinstance(solver, diffrax.AbstractStratonovichSolver):
            raise InputError("noise needs method 'reversible_heun'")
        ts = stepsize_controller.ts
        steps = counts(ts, stepsize_controller.dt).astype(int)
        frames = _solve((init_state.y, terms, args), solver, ts, steps)
        last = jax.tree.map(lambda x: x[-1], frames)
        total = steps.sum()
        enough = jnp.asarray(True) if max_steps is None else total <= max_steps
        result = RESULTS.where(enough, RESULTS.successful, RESULTS.max_steps_reached)
        final = eqx.tree_at(
            lambda s: (s.y, s.save_state.ts, s.save_state.ys, s.num_steps, s.num_accepted_steps, s.result),
            init_state,
            (last, ts, frames, total, total, result),
        )
        return final, {}


def dissipation(law: Law, x0: PyTree, ts: Any, args: PyTree = None) -> float:
    """How strongly the law damps over the whole time: |Re λ| T for the most negative Re λ of its Jacobian at x0.

    Found by power iteration; a warning tells where it is above 20, since reversible steps then blow up.

    >>> from kinema.motion import FunctionLaw
    >>> damped = FunctionLaw(lambda t, x, args: -jnp.array([3.0, 1.0]) * x)
    >>> round(dissipation(damped, jnp.ones(2), [0.0, 2.0]), 2)
    6.0
    """
    ts = jnp.asarray(ts, float)
    found = abs(float(_slowest(law, x0, ts[0], args))) * float(jnp.abs(ts[-1] - ts[0]))
    if found > RISKY:
        warnings.warn(
            f"the law damps by |Re λ| T = {found:.3g}, above {RISKY:g}: reversible steps may blow up; "
            "use adjoint='recursive'",
            stacklevel=2,
        )
    return found


@eqx.filter_jit
def _slowest(law, x0, t, args):
    """The most negative real part of an eigenvalue, or 0: power iteration on 1 - J / s, s the largest modulus."""
    start = trees.normal_like(jax.random.key(0), x0)

    def jacobian(v):
        return eqx.filter_jvp(lambda x: law.drift(t, x, args), (x0,), (v,))[1]

    def power(product):
        def one(_, v):
            w = product(v)
            return trees.scale(w, 1 / jnp.maximum(trees.norm(w), jnp.finfo(float).tiny))

        return jax.lax.fori_loop(0, _SEARCH, one, one(0, start))

    size = jnp.maximum(trees.norm(jacobian(power(jacobian))), jnp.finfo(float).tiny)
    v = power(lambda v: trees.add_scaled(v, -1 / size, jacobian(v)))
    return jnp.minimum(trees.dot(v, jacobian(v)), 0)


def _times(ts, steps, interval, step):
    """Begin and end of one step, as `EvenSteps` makes them."""
    begin, end, n = ts[interval], ts[interval + 1], steps[interval]

    def at(k):
        return jnp.where(k == n, end, begin + (end - begin) * (k / n).astype(ts.dtype))

    return at(step), at(step + 1)


def _advance(solver, terms, t0, t1, pair, args):
    y, state = pair
    y, _, _, state, _ = solver.step(terms, t0, t1, y, args, state, made_jump=False)
    return y, state


def _retreat(solver, terms, t0, t1, pair, args):
    """The inverse of `_advance`."""
    if isinstance(solver, Leapfrog | Yoshida4):  # symmetric: the step run backwards
        return _advance(solver, terms, t1, t0, pair, args)
    y, state = pair
    if not isinstance(solver, diffrax.ReversibleHeun):
        return solver.inverse(terms, t0, t1, y, args, state)
    ahead, slope1 = state
    control = terms.contr(t0, t1)
    behind = trees.subtract(trees.add_scaled(trees.scale(y, 2), -1, ahead), terms.prod(slope1, control))
    slope0 = terms.vf(t0, behind, args)
    half = terms.prod(trees.add(slope0, slope1), control)
    return trees.add_scaled(y, -0.5, half), (behind, slope0)


@eqx.filter_custom_vjp
def _solve(moving, solver, ts, steps):
    """Frames at `ts`, (frames, ...)."""
    return _forward(moving, solver, ts, steps)[0]


def _forward(moving, solver, ts, steps):
    y, terms, args = moving
    first = (y, solver.init(terms, *_times(ts, steps, 0, 0), y, args))

    def interval(carry, i):
        def one(k, pair):
            t0, t1 = _times(ts, steps, i, k)
            return _advance(solver, terms, t0, t1, pair, args)

        carry = jax.lax.fori_loop(0, steps[i], one, carry)
        return carry, carry[0]

    last, frames = jax.lax.scan(interval, first, jnp.arange(len(ts) - 1))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), y, frames), last


@_solve.def_fwd
def _solve_forward(perturbed, moving, solver, ts, steps):
    return _forward(moving, solver, ts, steps)


@_solve.def_bwd
def _solve_backward(last, cotangents, perturbed, moving, solver, ts, steps):
    y, terms, args = moving
    # Only what is asked for: a Brownian path refuses gradients of its own times.
    learns, fixed = eqx.partition((terms, args), perturbed[1:])
    cotangents = jax.tree.map(lambda x, c: jnp.zeros((len(ts), *x.shape), x.dtype) if c is None else c, y, cotangents)

    def local(pair, learns, t0, t1):
        terms, args = eqx.combine(learns, fixed)
        return _advance(solver, terms, t0, t1, pair, args)

    def begin(y, learns):
        terms, args = eqx.combine(learns, fixed)
        return y, solver.init(terms, *_times(ts, steps, 0, 0), y, args)

    def interval(carry, row):
        i, cotangent = row

        def one(k, carry):
            pair, towards, total = carry
            t0, t1 = _times(ts, steps, i, steps[i] - 1 - k)
            pair = _retreat(solver, terms, t0, t1, pair, args)
            _, pull = jax.vjp(lambda pair, learns: local(pair, learns, t0, t1), pair, learns)
            towards, grown = pull(towards)
            return pair, towards, trees.add(total, grown)

        pair, towards, total = carry
        towards = (trees.add(towards[0], cotangent), towards[1])
        return jax.lax.fori_loop(0, steps[i], one, (pair, towards, total)), None

    nothing = trees.zeros_like((last, learns))
    rows = (jnp.arange(len(ts) - 1), jax.tree.map(lambda c: c[1:], cotangents))
    (found, towards, total), _ = jax.lax.scan(interval, (last, *nothing), rows, reverse=True)
    _, pull = jax.vjp(begin, y, learns)
    to_start, grown = pull(towards)
    to_start = trees.add(to_start, jax.tree.map(lambda c: c[0], cotangents))
    grads = (to_start, *trees.add(total, grown))
    missed = trees.largest(trees.subtract(found[0], y)) / (1 + trees.largest(y))
    # not (missed <= limit), so that NaN is refused too
    lost = ~(missed <= jnp.sqrt(jnp.finfo(missed.dtype).eps))
    return eqx.error_if(
        grads, lost, "the way back missed x0: the law damps too much for the reversible adjoint; use 'recursive'"
    )
