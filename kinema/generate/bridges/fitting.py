"""Fitting a light bridge to samples of both ends: one loop of compiled chunks, looked at on held-out samples.

It is not `learn.fit` because both sides have rows of their own, eps may change from step to step, and a fit may end
early; a step is that of `learn.advance`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from kinema.errors import InputError, NotFinite, choose
from kinema.generate.bridges.light import LightBridge, check_eps
from kinema.generate.bridges.loss import by_components, light_bridge_loss
from kinema.generate.bridges.start import continued, first_guess
from kinema.learn.gradient import BackPropagation, GradientSource
from kinema.learn.history import History, Recorder
from kinema.learn.optimizer import adam
from kinema.learn.progress import Progress
from kinema.learn.step import LearnState, advance, begin
from kinema.learn.trainable import Trainable

CHECK = 500  # steps between looks at the held-out loss
PATIENCE = 5  # looks in a row that are worse than the best before the fit stops
JUDGED = 4096  # held-out samples of each side
DIGITS = 1e4  # |y|^2 / (eps S) up to which a square may be expanded in single precision
COVARIANCES = {
    "diagonal": ("log_weights", "centres", "log_scales"),
    "full": ("log_weights", "centres", "log_scales", "lower"),
}


class BridgeFit(NamedTuple):
    """`bridge`, the last not worse on held-out samples; `history` of the loss, and every 500 steps "held-out"."""

    bridge: LightBridge
    history: History


class Plan(NamedTuple):
    """What one fit is told: counts, and which way the loss is computed."""

    steps: int
    batch: int
    check: int
    expand: bool


def fit_light_bridge(
    x0: Any,
    x1: Any,
    *,
    eps: Any,
    components: int = 50,
    covariance: str = "diagonal",
    steps: int = 10_000,
    batch_size: int = 512,
    rate: float = 1e-2,
    validation: float = 0.1,
    anneal_from: float | None = None,
    start: LightBridge | None = None,
    key: PRNGKeyArray,
    progress: bool = True,
) -> BridgeFit:
    """The bridge of volatility `eps` from samples `x0 (n, d)` to samples `x1 (m, d)`; they need not be paired.

    Adam on independent minibatches, its rate falling on a cosine from `rate` to 0. A share `validation` of each side is
    held out and looked at every 500 steps: a bridge replaces the kept one unless it is worse there by more than two
    standard errors of the difference, and five worse ones in a row end the fit. `validation=0.0`: the last is returned.

    `covariance` "full" costs d times more a component. `anneal_from`: eps falls geometrically from there to `eps` over
    the first half, which small eps need; None does so from the mean variance of x1 if eps is below a hundredth of it.
    `start`: an earlier bridge of the same components to go on from, at another eps too; then None changes no eps.

    Rates that work: 1e-2, or 3e-2 for fewer than 2000 steps. In single precision eps should be above 1e-4 times the
    mean variance of x1. Whether the fit is good says `plan_gap` where the truth is known, else the held-out loss.

    >>> x0, x1 = jr.normal(jr.key(0), (500, 1)), 2 + jr.normal(jr.key(1), (500, 1))
    >>> bridge, history = fit_light_bridge(x0, x1, eps=1.0, components=1, steps=500, rate=0.05, key=jr.key(2))
    >>> bool(abs(bridge.conditional(x0.mean(0)).mean[0] - x1.mean()) < 0.1)
    True

    Raises:
        InputError: an argument is not acceptable; sides of other dimension; a row that is not finite; fewer target
            samples than components; a `start` of other shape.
        NotFinite: the loss became NaN or infinite.

    Reference: Korotin, Gushchin & Burnaev, 2024.
    """
    x0, x1 = check_sides(x0, x1)
    _check(check_eps(eps), components, covariance, steps, batch_size, rate, validation, anneal_from)
    key_split, key_guess, key_rows = jr.split(key, 3)
    origins = np.stack([side.mean(0, np.float64) for side in (x0, x1)])
    unit = float(np.sqrt(x1.var(0, np.float64).mean()))
    if not unit > 0:
        raise InputError("x1 must vary, all its rows are equal")
    dtype = jnp.result_type(float)
    source, target = ((side - centre) / unit for side, centre in zip((x0, x1), origins))
    small = float(eps) / unit**2
    order = [np.asarray(jr.permutation(k, len(side))) for k, side in zip(jr.split(key_split), (source, target))]
    held = [int(validation * len(side)) for side in (source, target)]
    seen = [jnp.asarray(side[rows[n:]], dtype) for side, rows, n in zip((source, target), order, held)]
    judged = [jnp.asarray(side[rows[: min(n, JUDGED)]], dtype) for side, rows, n in zip((source, target), order, held)]
    if start is None:
        model = first_guess(seen, components, covariance, small, key_guess)
    else:
        model = continued(start, components, covariance, seen[0].shape[1], small, unit, origins)
    least = small * float(jnp.exp(model.log_scales).min())
    plan = Plan(steps, batch_size, min(CHECK, steps), expand=float((target**2).sum(1).max()) < DIGITS * least)
    if anneal_from is None:
        first = 1.0 if start is None and small < 0.01 else small
    else:
        first = anneal_from / unit**2
    path = _falling(first, small, steps)
    looks = judged if min(held) else None
    model, history = _learn(model, COVARIANCES[covariance], seen, looks, path, plan, rate, key_rows, progress)
    parts = (unit * model.centres, jnp.asarray(eps, dtype), jnp.asarray(origins, dtype))
    return BridgeFit(eqx.tree_at(lambda b: (b.centres, b.eps, b.origins), model, parts), history)


def _learn(model, names, seen, judged, path, plan: Plan, rate, key, progress) -> tuple[LightBridge, History]:
    """The host's side of the fit: sends chunks of steps off, judges, keeps the best."""
    params, static = Trainable(names).split(model)
    optimizer, source = adam(rate, plan.steps, warmup=0.0, clip=None), BackPropagation(_Loss(plan.expand))
    state, recorder = begin(optimizer, params, None), Recorder()
    best, least, worse = params, None, 0
    with Progress(plan.steps, show=progress) as line:
        for step in range(0, plan.steps, plan.check):
            piece = jnp.asarray(path[step : step + plan.check], model.eps.dtype)
            state, aux = _chunk(state, static, seen, piece, jr.fold_in(key, step), source, optimizer, plan)
            done, loss = step + len(piece), np.asarray(aux["loss"])
            recorder.extend({"loss": loss})
            line.update(done, loss)
            if not np.isfinite(loss).all():
                raise NotFinite(
                    f"loss is not finite at step {step + int(np.argmin(np.isfinite(loss)))}; use a smaller rate,"
                    " anneal_from a larger eps, or double precision"
                )
            if judged is None:
                best = state.params
                continue
            losses = [np.asarray(side, np.float64) for side in _judge(state.params, static, judged)]
            recorder.probe("held-out", done, {"loss": losses[0].mean() - losses[1].mean()})
            line.show(recorder.records())
            settled = path[done - 1] == path[-1]  # before that the losses are of different eps
            if least is None or not settled or not _worse(losses, least):
                best, least, worse = state.params, losses if settled else None, 0
            else:
                worse += 1
            if worse == PATIENCE:
                break
    return eqx.combine(best, static), recorder.history()


class _Loss(eqx.Module):
    expand: bool

    def __call__(self, model: LightBridge, batch: tuple, key: PRNGKeyArray):
        x, y, eps = batch
        model = eqx.tree_at(lambda b: b.eps, model, eps)
        return light_bridge_loss(model, x, y, expand=self.expand), {}


@eqx.filter_jit
def _chunk(
    state: LearnState,
    static: LightBridge,
    seen: list,
    path: Array,
    key: PRNGKeyArray,
    source: GradientSource,
    optimizer: optax.GradientTransformation,
    plan: Plan,
):
    """As many steps as `path` has values of eps; both sides' rows are drawn independently."""
    rows = [jr.randint(k, (len(path), plan.batch), 0, len(side)) for k, side in zip(jr.split(key), seen)]

    def step(state, inputs):
        eps, of_x, of_y = inputs
        batch = seen[0][of_x], seen[1][of_y], eps
        return advance(state, static, batch, key, source=source, optimizer=optimizer, ema=None)

    return jax.lax.scan(step, state, (path, *rows))


@eqx.filter_jit
def _judge(params, static, judged: list) -> tuple[Array, Array]:
    """The two terms of the loss, for each sample."""
    model = eqx.combine(params, static)
    tilts, potentials = by_components(model, *judged)
    return jax.nn.logsumexp(model.log_weights + tilts, 1), jax.nn.logsumexp(model.log_weights + potentials, 1)


def _worse(losses: list[np.ndarray], least: list[np.ndarray]) -> bool:
    """Whether the loss is larger by more than two standard errors of the difference, sample by sample."""
    of_x, of_y = (now - before for now, before in zip(losses, least))
    error = np.sqrt(of_x.var() / len(of_x) + of_y.var() / len(of_y))
    return bool(of_x.mean() - of_y.mean() > 2 * error)


def _falling(first: float, last: float, steps: int) -> np.ndarray:
    """eps at every step: from `first` on a geometric course to `last`, which it reaches half way."""
    share = np.minimum(np.arange(steps) / max(steps // 2, 1), 1.0)
    return np.where(share < 1, first * (last / first) ** share, last)


def check_sides(x0: Any, x1: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both sides as arrays `(n, d)`, in single precision at least.

    Raises:
        InputError: another shape, sides of other dimension, or a row that is not finite.
    """
    sides = []
    for name, side in (("x0", x0), ("x1", x1)):
        side = np.asarray(side)
        side = side.astype(np.promote_types(side.dtype, np.float32), copy=False)
        if side.ndim != 2 or len(side) < 2 or not side.shape[1]:
            raise InputError(f"{name} must have shape (samples, dim) with at least 2 samples, got {side.shape}")
        finite = np.isfinite(side).all(1)
        if not finite.all():
            raise InputError(f"{name} must be finite, row {int(np.argmin(finite))} is not")
        sides.append(side)
    if sides[0].shape[1] != sides[1].shape[1]:
        raise InputError(f"x0 and x1 must have the same dim, got {sides[0].shape[1]} and {sides[1].shape[1]}")
    return sides[0], sides[1]


def _check(eps, components, covariance, steps, batch_size, rate, validation, anneal_from) -> None:
    choose(COVARIANCES, covariance, "covariance")
    for name, count in (("components", components), ("steps", steps), ("batch_size", batch_size)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"{name} must be a whole number >= 1, got {count!r}")
    if not rate > 0:
        raise InputError(f"rate must be positive, got {rate}")
    if not 0 <= validation < 1:
        raise InputError(f"validation must be a share in [0, 1), got {validation}")
    if anneal_from is not None and not anneal_from >= eps:
        raise InputError(f"anneal_from must be at least eps = {eps}, got {anneal_from}")
