"""Symplectic steppers for separable laws, as Diffrax solvers: energy stays bounded, and time can run backwards exactly.

One stage is velocity Verlet: half a kick, a drift, half a kick. Leapfrog is one stage; a symmetric chain of stages with
weights w_i, Σ w_i = 1, Σ w_i³ = 0 is of fourth order.   [Verlet 1967; Yoshida 1990]
"""

from typing import Any, ClassVar, TypeAlias

import diffrax
import jax
from diffrax import RESULTS, AbstractTerm
from jaxtyping import PyTree

from kinema.errors import InputError
from kinema.motion import trees
from kinema.motion.law import Law, Separable

Terms: TypeAlias = tuple[AbstractTerm, AbstractTerm]
Pair: TypeAlias = tuple[PyTree, PyTree]


class _Chain(diffrax.AbstractSolver):
    """Stages of velocity Verlet over the shares `weights` of a step; one evaluation of the force for each stage.

    In `diffrax.diffeqsolve`: `terms=(ODETerm(velocity), ODETerm(acceleration))` and `y0=(x, v)`, as for
    `diffrax.SemiImplicitEuler`. In `integrate`: a `Separable` law. Fixed steps only; cubic Hermite between steps.
    """

    term_structure: ClassVar = (AbstractTerm, AbstractTerm)
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation
    weights: ClassVar[tuple[float, ...]]

    def init(self, terms: Terms, t0, t1, y0: Pair, args) -> PyTree:
        return terms[1].vf(t0, y0[0], args)  # the force at y0, carried from step to step

    def step(self, terms: Terms, t0, t1, y0: Pair, args, solver_state: PyTree, made_jump):
        move, kick = terms
        x, v = y0
        force = start = jax.lax.cond(made_jump, lambda: kick.vf(t0, x, args), lambda: solver_state)
        done, begin = 0.0, t0
        for i, weight in enumerate(self.weights):
            done += weight
            end = t1 if i == len(self.weights) - 1 else t0 + done * (t1 - t0)
            kicked = kick.contr(begin, end)
            v = trees.add_scaled(v, 0.5, kick.prod(force, kicked))
            x = trees.add(x, move.vf_prod(0.5 * (begin + end), v, args, move.contr(begin, end)))
            force = kick.vf(end, x, args)
            v = trees.add_scaled(v, 0.5, kick.prod(force, kicked))
            begin = end
        moved, kicked = move.contr(t0, t1), kick.contr(t0, t1)
        slopes = {
            "k0": (move.vf_prod(t0, y0[1], args, moved), kick.prod(start, kicked)),
            "k1": (move.vf_prod(t1, v, args, moved), kick.prod(force, kicked)),
        }
        return (x, v), None, {"y0": y0, "y1": (x, v), **slopes}, force, RESULTS.successful

    def func(self, terms: Terms, t0, y0: Pair, args) -> Pair:
        return terms[0].vf(t0, y0[1], args), terms[1].vf(t0, y0[0], args)

    def law_terms(self, law: Law) -> Terms:
        """Diffrax terms of a law; what `integrate` asks of a solver with terms of its own."""
        if not isinstance(law, Separable):
            raise InputError(
                f"method {type(self).__name__} needs a law with velocity(t, v, args) and acceleration(t, x, args), "
                f"such as kinema.motion.SecondOrder; got {type(law).__name__}"
            )
        return diffrax.ODETerm(law.velocity), diffrax.ODETerm(law.acceleration)

    def pack(self, state: Any) -> Pair:
        """The state {"x", "v"} as Diffrax has it here."""
        if not (isinstance(state, dict) and set(state) == {"x", "v"}):
            got = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise InputError(
                f'method {type(self).__name__} needs the state {{"x": positions, "v": velocities}}, got {got}'
            )
        return state["x"], state["v"]

    def unpack(self, pair: Pair) -> dict[str, PyTree]:
        """The inverse of `pack`."""
        return {"x": pair[0], "v": pair[1]}


class Leapfrog(_Chain):
    """Leapfrog in its velocity Verlet form: second order, one force a step, symplectic, reversible in time.

    Stable for dt < 2 / (largest angular frequency); a tenth of it is a good start. Forces must not depend on velocity.

    Reference: Verlet (1967).
    """

    weights: ClassVar[tuple[float, ...]] = (1.0,)

    def order(self, terms) -> int:
        return 2


_OUTER = 1 / (2 - 2 ** (1 / 3))


class Yoshida4(_Chain):
    """Three leapfrogs, the middle one backwards: fourth order, three forces a step, symplectic, reversible in time.

    Stable for dt < 1.57 / (largest angular frequency).

    Reference: Yoshida (1990), Forest & Ruth (1990).
    """

    weights: ClassVar[tuple[float, ...]] = (_OUTER, 1 - 2 * _OUTER, _OUTER)

    def order(self, terms) -> int:
        return 4
