"""Fixed steps that land on given times: a Diffrax step-size controller."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from diffrax import RESULTS
from jaxtyping import Array, Float

_SLACK = 1e-3  # an interval of 10.0001 steps is 10 steps: the excess is rounding of ts


def counts(ts: Any, dt: Any, xp: Any = jnp) -> Any:
    """How many steps each interval of `ts` (times,) is divided into; `xp` is `numpy` on the host. -> (times - 1,)"""
    return xp.clip(xp.ceil(xp.abs(xp.diff(ts)) / dt - _SLACK), 1, 1 << 30)


class EvenSteps(diffrax.AbstractStepSizeController):
    """Each interval between two neighbours in `ts` is divided into equal steps, as few as keep them within `dt`.

    So every time in `ts` is the end of a step, exactly. `ts` may be traced, increasing or decreasing; `diffeqsolve`
    must run from `ts[0]` to `ts[-1]` with `dt0=None`.
    """

    ts: Float[Array, " times"]
    dt: Float[Array, ""]

    def wrap(self, direction: Any) -> "EvenSteps":
        return EvenSteps(self.ts * direction, self.dt)

    def shortest(self) -> Float[Array, ""]:
        """The shortest step."""
        return jnp.min(jnp.abs(jnp.diff(self.ts)) / counts(self.ts, self.dt))

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        state = (jnp.asarray(0), jnp.asarray(1), counts(self.ts, self.dt).astype(int))
        return self._end(state), state

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        interval, step, counts = controller_state
        over = step == counts[interval]
        state = (jnp.where(over, interval + 1, interval), jnp.where(over, 1, step + 1), counts)
        return True, t1, self._end(state), False, state, RESULTS.successful

    def ahead(self, state: Any, n: int) -> Float[Array, " n"]:
        """When the next `n` steps end, beginning with the one that `state` stands at; then always `ts[-1]`."""
        interval, step, counts = state
        places = jnp.minimum(interval + jnp.arange(n), len(self.ts) - 2)
        left = jnp.minimum(counts[places], n).at[0].set(jnp.minimum(counts[interval] - step + 1, n))
        last = jnp.cumsum(left)
        which = jnp.minimum(jnp.searchsorted(last, jnp.arange(n), side="right"), n - 1)
        steps = jnp.arange(n) - (last - left)[which] + jnp.where(which == 0, step, 1)
        ends, end = self._end((places[which], steps, counts)), self.ts[-1]
        almost = end - 100 * (end - jnp.nextafter(end, -jnp.inf))  # where Diffrax goes on to the end in one step
        return jax.lax.cummax(jnp.where(ends > almost, end, ends))

    def _end(self, state):
        """When the step that `state` stands at ends."""
        interval, step, counts = state
        interval = jnp.minimum(interval, len(self.ts) - 2)  # asked once more after the last step; Diffrax clips it
        begin, end = self.ts[interval], self.ts[interval + 1]
        share = (step / counts[interval]).astype(self.ts.dtype)
        return jnp.where(step == counts[interval], end, begin + (end - begin) * share)
