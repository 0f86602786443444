"""Fixed steps of a stochastic law in blocks: the Brownian increments of a block are made at once, then stepped over.

The steps, results and gradients are those of Diffrax's own loop, which asks its tree anew in every step. Memory grows
by the increments of one block, and backwards by the states inside one, whatever the number of steps.
"""

from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import AbstractBrownianPath
from jaxtyping import PyTree

from kinema.motion.increments import KNOWN, increments
from kinema.motion.stepping import EvenSteps

_SHORTEST, LONGEST = 8, 64  # times in a block
_NUMBERS = 2**15  # in the increments of a block, unless it is of the shortest


def in_blocks(adjoint: diffrax.AbstractAdjoint, longest: int = LONGEST) -> diffrax.AbstractAdjoint:
    """`adjoint` for a law with a diffusion and `EvenSteps`; unchanged if it does not run Diffrax's own loop.

    `longest`: times in a block at most.
    """
    if type(adjoint) is diffrax.RecursiveCheckpointAdjoint:
        return _Recursive(adjoint.checkpoints, longest)
    if type(adjoint) is diffrax.DirectAdjoint:
        return _Direct(longest)
    return _Forward(longest) if type(adjoint) is diffrax.ForwardMode else adjoint


def longest_for(steps: int) -> int:
    """Times in a block of a solve of so many steps: a power of two, so that few programs are compiled."""
    return min(1 << steps.bit_length(), LONGEST)


class _Recursive(diffrax.RecursiveCheckpointAdjoint):
    longest: int = LONGEST

    @property
    def _loop(self):
        return partial(_loop, super()._loop, self.longest)


class _Direct(diffrax.DirectAdjoint):
    longest: int = LONGEST

    @property
    def _loop(self):
        return partial(_loop, super()._loop, self.longest)


class _Forward(diffrax.ForwardMode):
    longest: int = LONGEST

    @property
    def _loop(self):
        return partial(_loop, super()._loop, self.longest)


class Step(AbstractBrownianPath):
    """The path in one step, of which the increment is known; asked for anything else, the tree answers."""

    t0: Any
    t1: Any
    known: Any
    tree: diffrax.VirtualBrownianTree
    levy_area: Any = eqx.field(static=True)

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        if t0 is self.t0 and t1 is self.t1:
            return self.known if use_levy else self.known.W
        return self.tree.evaluate(t0, t1, left, use_levy)


class _Given(eqx.Module):
    """`solver` with the increment of each step as the second part of its state."""

    solver: diffrax.AbstractSolver

    @property
    def interpolation_cls(self):
        return self.solver.interpolation_cls

    def error_order(self, terms):
        return self.solver.error_order(terms)

    def step(self, terms, t0, t1, y0: PyTree, args, solver_state, made_jump):
        state, known = solver_state
        drift, noise = terms.terms
        noise = noise.term  # without Diffrax's change of direction: noise runs forwards
        path = Step(t0, t1, known, noise.control, noise.control.levy_area)
        terms = diffrax.MultiTerm(drift, diffrax.ControlTerm(noise.vector_field, path))
        y, error, dense, state, result = self.solver.step(terms, t0, t1, y0, args, state, made_jump)
        return y, error, dense, (state, known), result


def _loop(
    diffrax_loop, longest, *, terms, solver, stepsize_controller: EvenSteps, init_state, outer_while_loop, **others
):
    """Diffrax's loop over steps as one over blocks around one over steps, both of the kind that the adjoint chose."""
    tree = terms.terms[1].term.control
    if tree.levy_area not in KNOWN:
        return diffrax_loop(
            terms=terms,
            solver=solver,
            stepsize_controller=stepsize_controller,
            init_state=init_state,
            outer_while_loop=outer_while_loop,
            **others,
        )
    count = _length(tree, longest)

    def loop(cond_fun, body_fun, init, *, max_steps, buffers):
        def going(state):
            return cond_fun(state) & (state.num_steps < max_steps)

        def block(state):
            begin = state.num_steps
            times = stepsize_controller.ahead(state.controller_state, count - 1)
            ahead = increments(tree, jnp.append(state.tprev, times))

            def one(state):
                known = jax.tree.map(lambda x: x[state.num_steps - begin], ahead)
                state = body_fun(_with(state, (state.solver_state, known)))
                return _with(state, state.solver_state[0])

            # as many checkpoints as steps, so that none is taken more than twice for a gradient
            return outer_while_loop(going, one, state, max_steps=count - 1, buffers=buffers, checkpoints=count - 1)

        start = _with(init, init.solver_state[0])
        return outer_while_loop(going, block, start, max_steps=-(-max_steps // (count - 1)), buffers=buffers)

    known = jax.eval_shape(lambda: increments(tree, jnp.stack([init_state.tprev] * 2)))
    known = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), known)
    return diffrax_loop(
        terms=terms,
        solver=_Given(solver),
        stepsize_controller=stepsize_controller,
        init_state=_with(init_state, (init_state.solver_state, known)),
        outer_while_loop=loop,
        **others,
    )


def _with(state, solver_state):
    return eqx.tree_at(lambda s: s.solver_state, state, solver_state, is_leaf=lambda x: x is None)


def _length(tree, longest):
    """Times in a block: few enough to keep its increments small, a power of two."""
    numbers = sum(x.size for x in jax.tree.leaves(tree.shape))
    fitting = max(_NUMBERS // max(numbers, 1), _SHORTEST)
    return min(1 << (fitting.bit_length() - 1), longest)
