"""What moves a state: dx = drift(t, x) dt + diffusion(t, x) dW.

A world, a neural field and a generator are laws; `integrate` runs them. Noise is Itô unless the law says otherwise.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
from jaxtyping import PyTree

from kinema.errors import InputError

Field = Callable[[Any, PyTree, Any], PyTree]


@runtime_checkable
class Law(Protocol):
    """dx = drift(t, x, args) dt + diffusion(t, x, args) dW for one state x, any PyTree of arrays.

    `drift` returns the structure and shapes of x. Two optional attributes make the law stochastic:

    - `diffusion(t, x, args)`: the structure and shapes of x, one independent Brownian motion for each number; or a
      `lineax` operator from the Brownian motion to x, for correlated noise. Missing or `None`: no noise.
    - `calculus`: "ito" (default) or "stratonovich". They differ only where the diffusion depends on x.
    """

    def drift(self, t: Any, x: PyTree, args: Any) -> PyTree: ...


class FunctionLaw(eqx.Module):
    """A law made of functions `(t, x, args) -> PyTree`.

    >>> decay = FunctionLaw(lambda t, x, args: -x)
    >>> decay.drift(0.0, 2.0, None)
    -2.0

    Raises:
        InputError: drift or diffusion cannot be called, unknown calculus.
    """

    drift: Field
    diffusion: Field | None = None
    calculus: str = eqx.field(default="ito", static=True)

    def __check_init__(self):
        if not callable(self.drift) or not (self.diffusion is None or callable(self.diffusion)):
            raise InputError("drift and diffusion must be functions (t, x, args) -> state")
        if self.calculus not in ("ito", "stratonovich"):
            raise InputError(f"calculus must be 'ito' or 'stratonovich', got {self.calculus!r}")


@runtime_checkable
class Separable(Law, Protocol):
    """A law of second order, where positions and velocities do not mix: what symplectic solvers need.

    dx/dt = velocity(t, v, args), dv/dt = acceleration(t, x, args) for the state {"x": x, "v": v}. Canonical momenta may
    stand in place of v if `velocity` turns them into dx/dt.
    """

    def velocity(self, t: Any, v: PyTree, args: Any) -> PyTree: ...

    def acceleration(self, t: Any, x: PyTree, args: Any) -> PyTree: ...


def _same(t, v, args):
    return v


class SecondOrder(eqx.Module):
    """A separable law made of functions: dx/dt = velocity(t, v), v itself by default, and dv/dt = acceleration(t, x).

    The state is {"x": x, "v": v}.

    >>> spring = SecondOrder(lambda t, x, args: -4.0 * x)
    >>> spring.drift(0.0, {"x": 1.0, "v": 3.0})
    {'x': 3.0, 'v': -4.0}

    For H = T(p) + V(q) put q in "x", p in "v", `velocity` = ∂T/∂p and `acceleration` = -∂V/∂q.

    Raises:
        InputError: acceleration or velocity cannot be called.
    """

    acceleration: Field
    velocity: Field = _same

    def __check_init__(self):
        if not (callable(self.acceleration) and callable(self.velocity)):
            raise InputError("acceleration and velocity must be functions (t, part of the state, args) -> rate")

    def drift(self, t: Any, x: PyTree, args: Any = None) -> PyTree:
        return {"x": self.velocity(t, x["v"], args), "v": self.acceleration(t, x["x"], args)}
