"""`integrate`: any law from any state, on Diffrax, with methods and adjoints by name.

Fixed steps land on the times asked for. Adaptive steps interpolate there by the method's own polynomial; but stochastic
laws are stepped to them, because a straight line between two points of a rough path has too little variance.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jaxtyping import PyTree

from kinema.errors import BudgetExhausted, InputError, NotFinite, choose
from kinema.motion import trees
from kinema.motion.blocks import LONGEST, in_blocks, longest_for
from kinema.motion.law import Law
from kinema.motion.methods import ADJOINTS, METHODS, check_adjoint, check_calculus, check_method, make_adjoint
from kinema.motion.stepping import EvenSteps, counts
from kinema.motion.trajectory import Interpolant, Trajectory

_MAX_STEPS, _MAX_STEPS_DENSE = 100_000, 4_096


def integrate(
    law: Law,
    x0: PyTree,
    ts: Any,
    *,
    method: str | diffrax.AbstractSolver = "tsit5",
    rtol: Any = 1e-6,
    atol: Any = 1e-6,
    dt: Any = None,
    adjoint: str | diffrax.AbstractAdjoint = "recursive",
    dense: bool = False,
    key: Any = None,
    args: Any = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Trajectory:
    """Run `law` from the state `x0` at `ts[0]` through all times `ts`.

    >>> from kinema.motion import FunctionLaw
    >>> traj = integrate(FunctionLaw(lambda t, x, args: -x), jnp.ones(2), jnp.linspace(0, 1, 11))
    >>> traj.states.shape, round(float(traj.states[-1, 0]), 4)
    ((11, 2), 0.3679)

    Works under `jit`, `vmap` (over x0, law, key: the result is an ensemble) and `grad`.

    Args:
        law: see `Law`. With a diffusion, `key` is needed, and a stochastic `method` of the law's calculus (any
            calculus if the diffusion does not depend on the state: there Itô and Stratonovich agree).
        x0: one state, any PyTree of floating-point arrays; widened to the precision of `ts` if that is greater.
        ts: (frames,) times, increasing; or decreasing, which runs an ordinary law backwards.
        method: a name in `METHODS`, or a Diffrax solver, which may say how it runs a law (see `kinema.motion.methods`).
        rtol, atol: tolerances of adaptive steps, and of the equations of implicit methods. About 1e-2 for stochastic
            laws.
        dt: fixed step; each interval of `ts` is divided into equal steps not longer than it. None: adaptive.
        adjoint: how gradients are taken, a name in `ADJOINTS` or a Diffrax adjoint. "recursive" (exact, checkpoints) is
            right nearly always; "forward" for `jvp`; "direct" for both, slowly; "backsolve" is approximate; "implicit"
            differentiates a steady state, so `ts` must be (start, end); "reversible" is exact in constant memory, for
            reversible methods (see `kinema.motion.reversible`).
        dense: also give `Trajectory.interpolate` at any time between. Keeps every step: memory grows with `max_steps`.
        key: random key of the Brownian motion. One key is one path, to the resolution of the steps, whatever `dt` is.
        args: passed on to the law.
        max_steps: default 100 000, or 4 096 if `dense`.
        throw: False returns a failed run instead of raising: `constants["ok"]` tells; frames not reached are infinite.

    Returns:
        Trajectory with states of shape (frames, ...) and `constants["steps"]`, the number of steps taken.

    Raises:
        InputError: an argument is not acceptable; see the message.
        BudgetExhausted: `max_steps` reached, as for a stiff law with an explicit method.
        NotFinite: the state became NaN or infinite, or the equations of an implicit step had no solution.
        RuntimeError: the last two inside `jit`, `vmap` or `grad`, where Python cannot look at values.
    """
    if not isinstance(law, Law):
        raise InputError(f"law must have a method drift(t, x, args), got {type(law).__name__}")
    noisy = getattr(law, "diffusion", None) is not None
    rtol, atol = _positive("rtol", rtol), _positive("atol", atol)
    dt = None if dt is None else _positive("dt", dt)
    solver = choose(METHODS, method, "method")() if isinstance(method, str) else method
    name = method if isinstance(method, str) else type(solver).__name__
    limit = max_steps if max_steps is not None else (_MAX_STEPS_DENSE if dense else _MAX_STEPS)
    if not limit > 0:
        raise InputError(f"max_steps must be positive, got {limit}")
    ts = _times(ts, backwards=not noisy)
    x0 = _state(x0, ts)
    check_method(name, solver, x0, noisy, dt, key)
    if isinstance(adjoint, str):
        choose(ADJOINTS, adjoint, "adjoint")
        check_adjoint(adjoint, solver, noisy, dense, len(ts))
    if dense and len(ts) == 1:
        raise InputError("dense needs at least two times in ts")
    block = LONGEST
    if dt is not None and not _traced(ts, dt):
        needed = counts(ts, dt, np).sum(dtype=np.float64)
        if needed > limit:
            raise BudgetExhausted(f"dt={float(dt)} needs {needed:.0f} steps, max_steps={limit}; raise one of the two")
        block = longest_for(int(needed)) if noisy else LONGEST

    states, interpolant, steps, result, finite = _solve(
        law, x0, ts, args, key, solver, dt, rtol, atol, adjoint, noisy=noisy, dense=dense, max_steps=limit, block=block
    )
    constants = {"steps": steps}
    if throw:
        states = _check_result(states, ts, result, finite, name, limit)
    else:
        constants["ok"] = (result == diffrax.RESULTS.successful) & finite.all()
    return Trajectory(ts, states, constants, {"method": name}, single=True, interpolant=interpolant)


@eqx.filter_jit
def _solve(law, x0, ts, args, key, solver, dt, rtol, atol, adjoint, *, noisy, dense, max_steps, block):
    """The compiled part. Shapes are checked here, while it is traced: once for all calls with the same shapes."""
    ts = jnp.asarray(ts)
    _check_shapes("drift", law.drift, ts[0], x0, args)
    if len(ts) == 1:
        states = jax.tree.map(lambda x: x[None], x0)
        return states, None, jnp.asarray(0), diffrax.RESULTS.successful, jnp.isfinite(ts)
    # What a solver of our own may say about the laws that it runs: its terms, and its form of the state.
    terms = solver.law_terms(law) if hasattr(solver, "law_terms") else diffrax.ODETerm(law.drift)
    pack, unpack = getattr(solver, "pack", _same), getattr(solver, "unpack", _same)
    if noisy:
        terms = diffrax.MultiTerm(terms, _noise_term(law, x0, ts, args, key, solver, dt))
    if dt is not None and isinstance(solver, diffrax.AbstractImplicitSolver):
        # Newton, because a fixed step that does not converge cannot be tried again with a smaller one.
        newton = optx.Newton(rtol=rtol, atol=atol, norm=optx.max_norm)
        solver = eqx.tree_at(lambda s: s.root_finder, solver, newton)
    controller = _controller(solver, ts, dt, rtol, atol, noisy)
    adjoint = make_adjoint(adjoint, solver, rtol, atol)
    if noisy and isinstance(controller, EvenSteps):
        adjoint = in_blocks(adjoint, block)
    steady = isinstance(adjoint, diffrax.ImplicitAdjoint)
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        ts[0],
        ts[-1],
        None,
        pack(x0),
        args,
        saveat=diffrax.SaveAt(t1=True) if steady else diffrax.SaveAt(ts=ts, dense=dense),
        stepsize_controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )
    states = unpack(solution.ys)
    if steady:
        states = jax.tree.map(lambda first, last: jnp.concatenate([first[None], last]), x0, states)
    interpolant = Interpolant(solution.interpolation, unpack) if dense else None
    finite = jnp.stack([jnp.isfinite(x).reshape(len(ts), -1).all(1) for x in jax.tree.leaves(states)]).all(0)
    return states, interpolant, solution.stats["num_steps"], solution.result, finite


def _controller(solver, ts, dt, rtol, atol, noisy):
    if hasattr(solver, "controller"):  # a solver of our own may bring its step rule
        return solver.controller(ts, dt)
    if dt is not None:
        return EvenSteps(ts, dt)
    if not noisy:
        return diffrax.PIDController(rtol, atol)
    pid = diffrax.PIDController(rtol, atol, pcoeff=0.1, icoeff=0.3, dtmin=_shortest_noisy_step(ts, dt))
    return diffrax.ClipStepSizeController(pid, step_ts=ts, store_rejected_steps=100)


class _Noise(eqx.Module):
    """A diffusion as a linear operator; diagonal if the law gives one number for each number of the state."""

    law: Any

    def __call__(self, t, x, args):
        diffusion = self.law.diffusion(t, x, args)
        return diffusion if isinstance(diffusion, lx.AbstractLinearOperator) else lx.DiagonalLinearOperator(diffusion)


def _noise_term(law, x0, ts, args, key, solver, dt):
    shape = eqx.filter_eval_shape(law.diffusion, ts[0], x0, args)
    if isinstance(shape, lx.AbstractLinearOperator):
        _compare("diffusion maps to", shape.out_structure(), x0)
        motion = shape.in_structure()
    else:
        _compare("diffusion returns", shape, x0)
        motion = jax.eval_shape(lambda: x0)
    check_calculus(law, ts[0], x0, args, solver)
    wanted = getattr(solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
    kinds = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
    levy = next(kind for kind in kinds if issubclass(kind, wanted))
    # an interval at the bottom of the tree then holds the end of one step at most, as it must
    resolution = _shortest_noisy_step(ts, dt)
    brownian = diffrax.VirtualBrownianTree(ts[0], ts[-1], resolution, motion, key, levy_area=levy)
    return diffrax.ControlTerm(_Noise(law), brownian)


def _shortest_noisy_step(ts, dt):
    return (ts[-1] - ts[0]) * 2.0**-16 if dt is None else EvenSteps(ts, dt).shortest()


def _check_shapes(name, function, t, x0, args):
    _compare(f"{name} returns", eqx.filter_eval_shape(function, t, x0, args), x0)


def _compare(what, got, x0):
    """Structure and shapes are those of the state, or a sentence that says where not."""
    if jax.tree.structure(got) != jax.tree.structure(x0):
        raise InputError(f"{what} the structure {jax.tree.structure(got)}, the state has {jax.tree.structure(x0)}")
    names = (name for name, _ in trees.named_leaves(x0))
    for name, leaf, like in zip(names, jax.tree.leaves(got), jax.tree.leaves(x0)):
        if jnp.shape(leaf) != like.shape:
            raise InputError(f"{what} shape {jnp.shape(leaf)} for the leaf {name!r} of shape {like.shape}")


def _check_result(states, ts, result, finite, name, limit):
    """The states, if the run went well; else an error, at run time inside compiled code."""
    exhausted = result == diffrax.RESULTS.max_steps_reached
    failed = (result != diffrax.RESULTS.successful) & ~exhausted
    advice = "loosen rtol and atol, raise max_steps, or use an implicit method (kvaerno5) if the law is stiff"
    if _traced(ts, exhausted, finite):
        states = eqx.error_if(states, exhausted, f"{name}: max_steps={limit} reached; {advice}")
        states = eqx.error_if(states, failed, f"{name}: a step could not be solved; use smaller steps")
        return eqx.error_if(states, ~finite.all(), f"{name}: the state became NaN or infinite; use smaller steps")
    last = int(np.argmin(np.append(finite, False))) - 1
    when = f"after ts[{last}]={float(ts[last]):.6g}, the last good frame"
    if exhausted:
        raise BudgetExhausted(f"method {name!r} used up max_steps={limit} {when}; {advice}")
    if failed:
        raise NotFinite(f"method {name!r} could not solve a step {when}: {diffrax.RESULTS[result]}")
    if last < len(ts) - 1:
        raise NotFinite(f"the state became NaN or infinite {when}; use smaller steps, or check the law there")
    return states


def _times(ts, backwards):
    if _traced(ts):
        if ts.ndim != 1:
            raise InputError(f"ts must have shape (frames,), got {ts.shape}")
        return ts
    try:
        ts = np.asarray(ts)
        kind = ts.dtype.kind
    except ValueError:
        kind = "ragged"
    if kind not in "iuf":
        raise InputError("ts must be real numbers")
    ts = ts.astype(jnp.result_type(ts if kind == "f" else float))
    if ts.ndim != 1 or not len(ts):
        raise InputError(f"ts must have shape (frames,), got {ts.shape}")
    if not np.isfinite(ts).all():
        i = int(np.argmin(np.isfinite(ts)))
        raise InputError(f"ts must be finite, got ts[{i}]={ts[i]}")
    sign = -1 if backwards and len(ts) > 1 and ts[1] < ts[0] else 1
    wrong = np.flatnonzero(sign * np.diff(ts) <= 0)
    if len(wrong):
        i = int(wrong[0]) + 1
        way = "decrease" if sign < 0 else "increase"
        also = "" if backwards or ts[i] == ts[i - 1] else " (a law with a diffusion runs forwards only)"
        raise InputError(f"ts must {way}, got ts[{i}]={ts[i]} after ts[{i - 1}]={ts[i - 1]} in {ts.dtype}{also}")
    return ts


def _state(x0, ts):
    if not jax.tree.leaves(x0):
        raise InputError("x0 has no arrays")
    for name, leaf in trees.named_leaves(x0):
        if not (eqx.is_array_like(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.number)):
            raise InputError(f"x0 must be a PyTree of numbers, got {type(leaf).__name__} in the leaf {name!r}")

    def widened(x):
        return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), ts.dtype))

    if _traced(*jax.tree.leaves(x0)):
        return jax.tree.map(widened, x0)
    with jax.ensure_compile_time_eval():  # known numbers stay known inside an outer `jit`
        x0 = jax.tree.map(widened, x0)
        bad = trees.first_not_finite(x0)
    if bad is not None:
        raise InputError(f"x0 must be finite, the leaf {bad[0]!r} is not in row {bad[1]}")
    return x0


def _positive(name, value):
    if not _traced(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise InputError(f"{name} must be a positive number, got {value}")
    return jnp.asarray(value, float) if _traced(value) else np.asarray(value, jnp.result_type(float))


def _traced(*values):
    return any(isinstance(value, Tracer) for value in values)


def _same(x):
    return x
