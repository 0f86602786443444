"""Is a run of Lion-K still on its way into its constraint set, or already minimising inside it?

    H = f(x) + K*(λx) / λ + c [K*(λx) + K(m) + λ <m, x>]        c = b1 η / (ηλ (1 - b1) + 1 - b2)

m is optax's momentum, an average of gradients; the bracket is never negative inside the domain of K*. Phase 1: the
distance of λx to the domain shrinks by 1 - ηλ a step or more, whatever f is. Phase 2: λx stays in it and H falls; with
implicit decay and a constant η it rises by at most the curvature of a step, f(x + d) - f(x) - <∇f(x), d>, which is of
the order η². A leaf without decay has K* at 0 only, and no constraint.   [Chen, Liu, Liang & Liu 2024]
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from kinema.errors import InputError
from kinema.learn.optim.convex_base import Convex, wide
from kinema.learn.optim.lion_k import LionK, LionSettings, convex_of
from kinema.learn.optim.masks import leaf_flags
from kinema.learn.probe import Probe
from kinema.learn.trainable import Trainable, Where
from kinema.motion import trees

TOLERANCE = 1e-3  # distance of λx to the domain, of which 1 is the size
OUTSIDE, INSIDE = 1, 2


class LyapunovReport(eqx.Module):
    """One look at a run. `value` = `loss` + `barrier` + `coupling`, all finite.

    Outside its domain K* is infinite, and its value at the nearest point of the domain stands for it; `distance` says
    how far that is, for every leaf that decays. `phase` is 1 while any of them is further than the tolerance, then 2.
    `stochastic`: the loss is of a minibatch, so `value` is noisy.
    """

    value: Float[Array, ""]
    loss: Float[Array, ""]
    barrier: Float[Array, ""]
    coupling: Float[Array, ""]
    distance: dict[str, Float[Array, ""]]
    phase: Int[Array, ""]
    stochastic: bool = eqx.field(static=True, default=False)


def lyapunov(
    rule: LionK | LionSettings,
    loss: Any,
    params: PyTree,
    opt_state: PyTree,
    *,
    tolerance: float = TOLERANCE,
    stochastic: bool = False,
) -> LyapunovReport:
    """H and its parts, from the loss and the optimizer's state at `params`. May be called inside compiled code.

    `rule` is what `learn.optim.lion_k` made; the state of `optax.lion` will do with a `LionSettings` of its numbers.

    >>> from kinema.learn.optim.convex import L1
    >>> from kinema.learn.optim.lion_k import lion_k
    >>> rule, w = lion_k(0.1, L1(), weight_decay=2.0), jnp.array([0.25, 1.0])
    >>> report = lyapunov(rule, jnp.sum(w**2), w, rule.init(w))
    >>> report.phase.item(), report.distance["."].item()
    (1, 1.0)

    Raises:
        InputError: no decay, so there is nothing to watch; a K without conjugate; a state without Lion's momentum.
    """
    settings = _settings(rule)
    state = _momentum(opt_state)
    eta = settings.rate(state.count)
    b1, b2 = settings.b1, settings.b2
    barriers, couplings, distances = [], [], {}
    for name, k, decays, x, m in _leaves(settings, params, state.mu):
        decay = settings.weight_decay if decays else 0.0
        at = decay * wide(x)
        conjugate = _conjugate(k, name, at)
        weight = b1 * eta / (eta * decay * (1 - b1) + 1 - b2)
        couplings.append(weight * (conjugate + k.value(m) + jnp.sum(at * m)))
        if decays:
            barriers.append(conjugate / decay)
            distances[name] = k.distance(at)
    loss, barrier, coupling = jnp.asarray(loss), sum(barriers, jnp.zeros(())), sum(couplings, jnp.zeros(()))
    return LyapunovReport(
        value=loss + barrier + coupling,
        loss=loss,
        barrier=barrier,
        coupling=coupling,
        distance=distances,
        phase=jnp.where(jnp.stack(list(distances.values())).max() > tolerance, OUTSIDE, INSIDE),
        stochastic=stochastic,
    )


def optimality_gap(rule: LionK | LionSettings, params: PyTree, grads: PyTree) -> Float[Array, ""]:
    """[K*(λx) + K(∇f) + λ <∇f, x>] / λ, summed over the leaves that decay; 0 exactly at a stationary point.

    For a convex f and λx in the domain it bounds how far f(x) + K*(λx) / λ lies above its minimum: a certificate that
    needs no other solver.

    >>> from kinema.learn.optim.convex import L1
    >>> from kinema.learn.optim.lion_k import lion_k
    >>> rule, x = lion_k(0.1, L1(), weight_decay=2.0), jnp.array([0.5, -0.5])
    >>> optimality_gap(rule, x, jnp.array([-3.0, 1.0])).item()
    0.0

    Raises:
        InputError: as `lyapunov`.
    """
    settings = _settings(rule)
    gaps = []
    for name, k, decays, x, g in _leaves(settings, params, grads):
        if decays:
            at = settings.weight_decay * wide(x)
            gaps.append((_conjugate(k, name, at) + k.value(g) + jnp.sum(at * g)) / settings.weight_decay)
    return sum(gaps, jnp.zeros(()))


def phase_probe(
    rule: LionK | LionSettings,
    *,
    loss: Callable[[PyTree], Array] | None = None,
    name: str = "phase",
    every: int | Sequence[int] = 500,
    trainable: Trainable | Where = None,
    tolerance: float = TOLERANCE,
) -> Probe:
    """A probe for `learn.fit`: distance of each leaf to its domain, phase, barrier and coupling of H.

    With a `loss` of the model (all data, no noise) also H itself, as `value`, its `objective`, which is the loss plus
    the barrier, and the `gap` of `optimality_gap`. `trainable` as in `fit`.

    >>> from kinema.learn import fit
    >>> from kinema.learn.optim.convex import L1
    >>> from kinema.learn.optim.lion_k import lion_k
    >>> rule, loss = lion_k(0.1, L1(), weight_decay=2.0), lambda w: jnp.sum((w - 1) ** 2)
    >>> options = {"steps": 40, "key": jax.random.key(0), "progress": False}
    >>> probes = [phase_probe(rule, loss=loss)]
    >>> run = fit(jnp.array(3.0), lambda w, batch, key: (loss(w), {}), optimizer=rule, probes=probes, **options)
    >>> run.history.probes["phase"].values["phase"].tolist()
    [1, 2]

    Raises:
        InputError: as `lyapunov`, at the first look if the run is not one of Lion; settings of the probe as `Probe`.
    """
    settings = _settings(rule)
    trainable = trainable if isinstance(trainable, Trainable) else Trainable(trainable)

    @eqx.filter_jit
    def look(model, opt_state):
        params, static = trainable.split(model)

        def value(params):
            return jnp.zeros(()) if loss is None else loss(eqx.combine(params, static))

        level, grads = jax.value_and_grad(value)(params)
        report = lyapunov(settings, level, params, opt_state, tolerance=tolerance)
        seen = {name: getattr(report, name) for name in ("distance", "phase", "barrier", "coupling")}
        if loss is not None:
            gap = optimality_gap(settings, params, grads)
            seen |= {"value": report.value, "objective": report.loss + report.barrier, "gap": gap}
        return seen

    return Probe(name, lambda run, key: look(run.model, run.state.opt_state), every, of="run")


class MonitorState(NamedTuple):
    """The watched rule's state, and the last records: each (keep,), by name; step -1 is a record not yet made."""

    inner: Any
    steps: Int[Array, " keep"]
    records: dict[str, Any]


def monitor_lion_k(
    rule: optax.GradientTransformation, *, every: int = 100, keep: int = 1000, tolerance: float = TOLERANCE
) -> optax.GradientTransformationExtraArgs:
    """`rule`, with a `LyapunovReport` kept in its state each `every` steps, the last `keep` of them.

    The updates are those of `rule`. Nothing comes to the host until `lyapunov_trace` reads the state, so the monitor
    runs inside scans and under `vmap`. `update` needs the loss as optax's line searches do: `value=loss`. `learn.fit`
    passes it.

    >>> from kinema.learn.optim.convex import L1
    >>> from kinema.learn.optim.lion_k import lion_k
    >>> watched, w = monitor_lion_k(lion_k(0.1, L1()), every=1, keep=4), jnp.array(3.0)
    >>> _, state = watched.update(2 * w, watched.init(w), w, value=w**2)
    >>> lyapunov_trace(state).loss.tolist()
    [9.0]

    Raises:
        InputError: a transformation that `lion_k` did not make, as `lyapunov` at `init`, every or keep below 1, or,
            at `update`, no `value` or `params`.
    """
    if not isinstance(rule, LionK):
        raise InputError(f"monitor_lion_k watches what lion_k made, got {type(rule).__name__}; chain around the result")
    if every < 1 or keep < 1:
        raise InputError(f"every and keep must be at least 1, got every={every}, keep={keep}")
    _settings(rule)

    def report(loss, params, inner):
        found = lyapunov(rule, loss, params, inner, tolerance=tolerance)
        return {name: getattr(found, name) for name in _RECORDED}

    def init(params):
        inner = rule.init(params)
        like = jax.eval_shape(report, jnp.zeros(()), params, inner)
        records = jax.tree.map(lambda one: jnp.zeros((keep, *one.shape), one.dtype), like)
        return MonitorState(inner, jnp.full(keep, -1, jnp.int32), records)

    def update(updates, state, params=None, *, value=None, **extra):
        if value is None or params is None:
            raise InputError("monitor_lion_k needs update(grads, state, params, value=loss)")
        step = jnp.asarray(_momentum(state.inner).count)

        def kept():
            place, new = step // every % keep, report(value, params, state.inner)
            records = jax.tree.map(lambda old, one: old.at[place].set(one.astype(old.dtype)), state.records, new)
            return state.steps.at[place].set(step), records

        steps, records = jax.lax.cond(step % every == 0, kept, lambda: (state.steps, state.records))
        moved, inner = rule.update(updates, state.inner, params, **extra)
        return moved, MonitorState(inner, steps, records)

    return optax.GradientTransformationExtraArgs(init, update)


_RECORDED = ("value", "loss", "barrier", "coupling", "distance", "phase")


@dataclasses.dataclass(frozen=True)
class LyapunovTrace:
    """What a monitor recorded, in order of steps: `LyapunovReport`'s entries as arrays (records,)."""

    steps: np.ndarray
    value: np.ndarray
    loss: np.ndarray
    barrier: np.ndarray
    coupling: np.ndarray
    distance: dict[str, np.ndarray]
    phase: np.ndarray

    @property
    def entered(self) -> int | None:
        """The first recorded step in phase 2; None if there was none."""
        inside = self.steps[self.phase == INSIDE]
        return int(inside[0]) if inside.size else None


def lyapunov_trace(opt_state: PyTree) -> LyapunovTrace:
    """The records of a monitor, from the state of an optimizer with `monitor_lion_k` somewhere in it.

    Raises:
        InputError: there is no monitor in it.
    """
    found = _first(opt_state, MonitorState)
    if found is None:
        raise InputError("the optimizer's state has no monitor in it; wrap the rule in monitor_lion_k")
    steps = np.asarray(found.steps)
    order = np.argsort(steps)[np.count_nonzero(steps < 0) :]
    return LyapunovTrace(steps[order], **jax.tree.map(lambda one: np.asarray(one)[order], found.records))


def _settings(rule: LionK | LionSettings) -> LionSettings:
    settings = rule.settings if isinstance(rule, LionK) else rule
    if not settings.weight_decay > 0:
        raise InputError(f"a monitor needs weight_decay > 0, got {settings.weight_decay}: there is no constraint")
    return settings


def _momentum(opt_state: PyTree) -> optax.ScaleByLionState:
    found = _first(opt_state, optax.ScaleByLionState)
    if found is None:
        raise InputError("the optimizer's state has no momentum of Lion in it: pass the state of lion_k or optax.lion")
    return found


def _first(tree: PyTree, kind: type) -> Any:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
    return next((leaf for leaf in leaves if isinstance(leaf, kind)), None)


def _leaves(settings: LionSettings, params: PyTree, others: PyTree):
    """(name, K, whether it decays, leaf of params, leaf of others) for every leaf."""
    names, leaves = zip(*trees.named_leaves(params))
    decays = leaf_flags(settings.mask, params)
    if not any(decays):
        raise InputError("a monitor needs a leaf that decays, mask leaves none: there is no constraint")
    return list(zip(names, convex_of(settings.k, params), decays, leaves, jax.tree.leaves(others)))


def _conjugate(k: Convex, name: str, x) -> Float[Array, ""]:
    try:
        return k.conjugate(x)
    except InputError as error:
        raise InputError(f"leaf {name}: {error}") from error
