"""Numerical methods and adjoints by name, and which of them a law can be run with.

Any Diffrax solver can be a method. One that needs more of a law than its drift says so in optional methods of its own:

- `law_terms(law)`: the Diffrax terms of the law, in place of `ODETerm(law.drift)`;
- `pack(state)`, `unpack(y)`: from the state to what Diffrax shall integrate, and back (also with a leading time axis);
- `controller(ts, dt)`: a Diffrax step-size controller, in place of adaptive or even steps; `dt` may be None.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from kinema.errors import InputError
from kinema.motion.reversible import ReversibleAdjoint
from kinema.motion.symplectic import Leapfrog, Yoshida4

METHODS: dict[str, Callable[..., diffrax.AbstractSolver]] = {
    # ordinary: adaptive, implicit (stiff), fixed step, symplectic
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "bosh3": diffrax.Bosh3,
    "kvaerno3": diffrax.Kvaerno3,
    "kvaerno5": diffrax.Kvaerno5,
    "implicit_euler": diffrax.ImplicitEuler,
    "euler": diffrax.Euler,
    "leapfrog": Leapfrog,
    "yoshida4": Yoshida4,
    # ordinary, and Stratonovich
    "heun": diffrax.Heun,
    "midpoint": diffrax.Midpoint,
    "ralston": diffrax.Ralston,
    "reversible_heun": diffrax.ReversibleHeun,
    # Itô
    "euler_maruyama": diffrax.Euler,
    "ito_milstein": diffrax.ItoMilstein,
    # Stratonovich: any noise, then noise that does not depend on the state
    "euler_heun": diffrax.EulerHeun,
    "stratonovich_milstein": diffrax.StratonovichMilstein,
    "slow_rk": diffrax.SlowRK,
    "spark": diffrax.SPaRK,
    "general_shark": diffrax.GeneralShARK,
    "shark": diffrax.ShARK,
    "sra1": diffrax.SRA1,
    "sea": diffrax.SEA,
}
"""Solvers of ordinary and stochastic equations by name, made by calling them."""

ADJOINTS: dict[str, Callable[..., diffrax.AbstractAdjoint]] = {
    "recursive": diffrax.RecursiveCheckpointAdjoint,
    "direct": diffrax.DirectAdjoint,
    "forward": diffrax.ForwardMode,
    "backsolve": diffrax.BacksolveAdjoint,
    "implicit": diffrax.ImplicitAdjoint,
    "reversible": ReversibleAdjoint,
}
"""Ways to differentiate through a solve, by name."""

NOISE_ONLY = ("euler_maruyama", "ito_milstein", "euler_heun", "stratonovich_milstein", "slow_rk", "spark")
NOISE_ONLY += ("general_shark", "shark", "sra1", "sea")


def check_method(name, solver, x0, noisy, dt, key):
    if not isinstance(solver, diffrax.AbstractSolver):
        raise InputError(f"method must be a name or a Diffrax solver, got {type(solver).__name__}")
    stochastic = isinstance(solver, (diffrax.AbstractItoSolver, diffrax.AbstractStratonovichSolver))
    if noisy and not stochastic:
        both = "heun, midpoint, ralston, reversible_heun"
        raise InputError(f"the law has a diffusion and method {name!r} cannot; use {', '.join(NOISE_ONLY)}, {both}")
    if not noisy and name in NOISE_ONLY:
        raise InputError(f"method {name!r} is for laws with a diffusion(t, x, args), and this law has none")
    if isinstance(solver, diffrax.ItoMilstein) and not eqx.is_array(x0):  # Diffrax asks the tree if it is complex
        raise InputError(f"method 'ito_milstein' needs a state that is one array, got {type(x0).__name__}; use another")
    if noisy and key is None:
        raise InputError("a law with a diffusion needs key, the random key of its Brownian motion")
    if dt is None and not isinstance(solver, diffrax.AbstractAdaptiveSolver) and not hasattr(solver, "controller"):
        raise InputError(f"method {name!r} has no error estimate to choose its steps by: give dt")


def check_adjoint(adjoint, solver, noisy, dense, frames):
    if adjoint in ("backsolve", "implicit") and dense:
        raise InputError(f"adjoint {adjoint!r} cannot keep dense output; use 'recursive'")
    if adjoint == "backsolve" and (noisy or not isinstance(solver.term_structure, type)):
        raise InputError("adjoint 'backsolve' is for laws without diffusion and methods of one term; use 'recursive'")
    if adjoint == "implicit" and frames != 2:
        raise InputError(
            f"adjoint 'implicit' differentiates a steady state: ts must be (start, end), got {frames} times"
        )


def make_adjoint(adjoint, solver, rtol, atol):
    """A Diffrax adjoint from a name; one given as such stays."""
    if not isinstance(adjoint, str):
        return adjoint
    if adjoint != "backsolve":
        return ADJOINTS[adjoint]()
    # Backwards always adaptive: Diffrax carries the state of a fixed-step controller from one interval into the next.
    backward = solver if isinstance(solver, diffrax.AbstractAdaptiveSolver) else diffrax.Tsit5()
    controller = diffrax.PIDController(rtol, atol)
    return diffrax.BacksolveAdjoint(solver=backward, stepsize_controller=controller, dt0=None)


def check_calculus(law, t, x0, args, solver):
    """Law and method must be of one calculus, unless the diffusion does not depend on the state: there both agree."""
    ones = jax.tree.map(jnp.ones_like, x0)
    _, slope = eqx.filter_jvp(lambda x: law.diffusion(t, x, args), (x0,), (ones,))
    if not jax.tree.leaves(slope):  # a symbolic zero
        return
    name = type(solver).__name__
    if isinstance(solver, (diffrax.ShARK, diffrax.SRA1, diffrax.SEA)):
        raise InputError(f"method {name} needs a diffusion that does not depend on the state")
    calculus = getattr(law, "calculus", "ito")
    kind = diffrax.AbstractItoSolver if calculus == "ito" else diffrax.AbstractStratonovichSolver
    if not isinstance(solver, kind):
        use = "euler_maruyama or ito_milstein" if calculus == "ito" else "heun, spark or slow_rk"
        raise InputError(
            f"the law is of {calculus} calculus with a diffusion that depends on the state, and method {name} solves "
            f"the other equation; use {use}, or rewrite the law and set its calculus"
        )
