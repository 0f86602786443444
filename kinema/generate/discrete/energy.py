"""A marginalization model of an unnormalised law log f, without data.

`anchored`: the mass of a whole sample is f(x), exactly and never learnt. Only gaps of the self-consistency are
minimised, on samples of persistent chains (others serve as well), and m of the empty set becomes the log evidence:

    loss = R + leaf_weight (the mean squared gap of the last equation, where log f enters)

A random equation is the last one once in L samples; without the second term log f would be heard as seldom.

`reinforce` (Liu et al. 2024): m is a function of whole samples too, log Z is set to L log K, and

    loss = mean(r m(x)) + penalty (L R + (m(empty) - L log K)^2),    r = standardised (m(x) - log f(x))

where the first term has the gradient of KL(p || f / Z) at samples of p, up to the scale of r. Here m less its value for
the empty set approximates the log marginal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from kinema import learn
from kinema.errors import InputError, NotFinite, unknown
from kinema.generate.discrete.marginalization import (
    MarginalModel,
    gibbs_refresh,
    sample_any_order,
    self_consistency_loss,
    spread_counts,
)
from kinema.learn.history import Recorder
from kinema.learn.progress import Progress
from kinema.models.checks import check_positive

MODES = ("anchored", "reinforce")


def energy_loss(
    model: MarginalModel,
    log_f: Callable,
    chains: Int[Array, "n length"],
    key: PRNGKeyArray,
    mode: str = "anchored",
    *,
    leaf_weight: float = 0.3,
    penalty: float = 4.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """(loss, metrics) at samples, which should come from the model or be near the law; see the head of this file.

    Metrics: the mean squared gap `consistency`, the `log_evidence` (with `reinforce` an arbitrary constant), and the
    mean `log_f`.

    Raises:
        InputError: an unknown mode.
    """
    if mode not in MODES:
        raise InputError(unknown("mode", mode, MODES))
    key_count, key_order = jr.split(key)
    keys, counts = jr.split(key_order, len(chains)), spread_counts(len(chains), model.length, key=key_count)
    values, root = jax.vmap(log_f)(chains), model.log_evidence()
    metrics = {"log_evidence": root, "log_f": values.mean()}
    if mode == "anchored":
        counts = jnp.stack([counts, jnp.full_like(counts, model.length - 1)])
        gap, last = _gaps(model, chains, keys, counts, values).mean(1)
        return gap + leaf_weight * last, metrics | {"consistency": gap}
    gap = _gaps(model, chains, keys, counts[None], None).mean()
    m = jax.vmap(model.log_marginal, (0, None))(chains, jnp.ones(model.length, bool))
    signal = jax.lax.stop_gradient(m - values)
    signal = (signal - signal.mean()) / (signal.std() + 1e-6)
    fixed = model.length * math.log(model.categories)
    loss = (signal * m).mean() + penalty * (model.length * gap + (root - fixed) ** 2)
    return loss, metrics | {"consistency": gap}


@dataclass(frozen=True)
class EnergyFit:
    """What `fit_energy` came to. `ema` is the model with averaged weights, `chains` `(n, length)` its last samples."""

    model: MarginalModel
    ema: MarginalModel
    chains: Int[Array, "n length"]
    history: learn.History


def fit_energy(
    model: MarginalModel,
    log_f: Callable,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: PRNGKeyArray,
    mode: str = "anchored",
    chains: int = 256,
    block: int = 4,
    renew: tuple[float, int] = (0.05, 10),
    leaf_weight: float = 0.3,
    penalty: float = 4.0,
    ema: float = 0.999,
    chunk: int = 50,
    probes: Sequence[learn.Probe] = (),
    progress: bool = True,
) -> EnergyFit:
    """Learn the marginals of `log_f(x (length,)) -> ()` on `chains` chains, refreshed by c before every step.

    A refresh is a `gibbs_refresh` of `block` variables; `renew` (share, every): that share of the chains is replaced by
    `sample_any_order` every so many steps, so that none is stuck. A `log_f` that cannot be traced by JAX is called on
    the host, one sample at a time.

    >>> import optax
    >>> from kinema.generate.discrete import Ising, MarginalMLP
    >>> model = MarginalModel(MarginalMLP(9, 2, width=16, depth=1, key=jr.key(0)), 9, 2)
    >>> run = fit_energy(model, Ising((3, 3)), optimizer=optax.adam(1e-3), steps=20, chains=16, key=jr.key(1))
    >>> run.chains.shape, len(run.history)
    ((16, 9), 20)

    Raises:
        InputError: an unknown mode, a size not positive, a share outside [0, 1], block longer than the sequence; a
            log_f that is not a scalar, or not finite at a first sample.
        NotFinite: the loss became NaN or infinite.
    """
    if mode not in MODES:
        raise InputError(unknown("mode", mode, MODES))
    share, every = renew
    check_positive(steps=steps, chains=chains, chunk=chunk, block=block, every=every)
    if not 0 <= share <= 1:
        raise InputError(f"renew must be (share in [0, 1], steps), got {renew}")
    log_f = _traceable(log_f, model.length)
    key_start, key_run = jr.split(key)
    params, static = learn.Trainable().split(model)
    rules = _Rules(log_f, optimizer, (mode, leaf_weight, penalty), block, math.ceil(share * chains), every, ema)
    x = _start(model, jr.split(key_start, chains))
    _check_values(log_f, x)
    state, recorder, done = learn.begin(optimizer, params, ema), Recorder(), 0
    with Progress(steps, show=progress) as line:
        while done < steps:
            before, count = done, min(chunk - done % chunk, steps - done)
            state, x, aux = _chunk(rules, static, state, x, key_run, count)
            done += count
            aux = {name: np.asarray(values) for name, values in aux.items()}
            bad = np.flatnonzero(~np.isfinite(aux["loss"]))
            if len(bad):
                raise NotFinite(f"loss is not finite at step {before + bad[0]}; a lower rate or a flatter log_f may do")
            recorder.extend(aux)
            line.update(done, aux["loss"])
            due = [probe for probe in probes if done == steps or probe.due(before, done)]
            for probe in due:
                recorder.probe(probe.name, done, probe.look(learn.Snapshot.of(state, static), key_run))
            line.show(recorder.records())
    final = learn.Snapshot.of(state, static)
    return EnergyFit(final.model, final.ema, x, recorder.history())


def _gaps(model: MarginalModel, chains, keys, counts: Int[Array, "m n"], leaves) -> Float[Array, "m n"]:
    """Squared gaps of m equations along each chain."""

    def one(x, key, count, leaf):
        return self_consistency_loss(model, x, key, leaf, count=count)

    return jax.vmap(jax.vmap(one), (None, None, 0, None))(chains, keys, counts, leaves)


class _Objective(eqx.Module):
    log_f: Callable
    settings: tuple[str, float, float] = eqx.field(static=True)

    def __call__(self, model, chains, key):
        mode, leaf_weight, penalty = self.settings
        return energy_loss(model, self.log_f, chains, key, mode, leaf_weight=leaf_weight, penalty=penalty)


class _Rules(eqx.Module):
    log_f: Callable
    optimizer: optax.GradientTransformation
    objective: tuple[str, float, float] = eqx.field(static=True)
    block: int = eqx.field(static=True)
    renewed: int = eqx.field(static=True)
    every: int = eqx.field(static=True)
    ema: float = eqx.field(static=True)


@eqx.filter_jit
def _start(model: MarginalModel, keys) -> Int[Array, "n length"]:
    return jax.vmap(lambda key: sample_any_order(model, key=key))(keys)


@eqx.filter_jit
def _chunk(rules: _Rules, static, state: learn.LearnState, x, key, count: int):
    source = learn.BackPropagation(_Objective(rules.log_f, rules.objective))

    key_chains, key_loss = jr.split(key)

    def renewed(model, x, key, step):
        def draw(x):
            rows = (step // rules.every * rules.renewed + jnp.arange(rules.renewed)) % len(x)
            return x.at[rows].set(_start(model, jr.split(key, rules.renewed)).astype(x.dtype))

        return jax.lax.cond(step % rules.every == 0, draw, lambda x: x, x) if rules.renewed else x

    def step(carry, _):
        state, x = carry
        model = eqx.combine(state.params, static)
        key_gibbs, key_renew = jr.split(jr.fold_in(key_chains, state.step))
        refresh = jax.vmap(lambda x, key: gibbs_refresh(model, x, block=rules.block, key=key))
        x = refresh(x, jr.split(key_gibbs, len(x)))
        x = renewed(model, x, key_renew, state.step)
        state, aux = learn.advance(state, static, x, key_loss, source=source, optimizer=rules.optimizer, ema=rules.ema)
        return (state, x), aux

    (state, x), aux = jax.lax.scan(step, (state, x), None, count)
    return state, x, aux


class _OnHost(eqx.Module):
    """A function of one sample that JAX cannot trace."""

    function: Callable = eqx.field(static=True)

    def __call__(self, x):
        dtype = jnp.result_type(float)
        return jax.pure_callback(
            lambda x: np.asarray(self.function(np.asarray(x)), dtype),
            jax.ShapeDtypeStruct((), dtype),
            x,
            vmap_method="sequential",
        )


def _traceable(log_f: Callable, length: int) -> Callable:
    try:
        found = jax.eval_shape(log_f, jax.ShapeDtypeStruct((length,), jnp.zeros((), int).dtype))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        value = np.shape(log_f(np.zeros(length, int)))
        found, log_f = jax.ShapeDtypeStruct(value, float), _OnHost(log_f)
    if getattr(found, "shape", None) != ():
        raise InputError(f"log_f must return a scalar for one sample ({length},), got {found}")
    return log_f


def _check_values(log_f: Callable, x: Int[Array, "n length"]) -> None:
    values = np.asarray(jax.vmap(log_f)(x))
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(f"log_f must be finite, got {values[bad[0]]} at x = {np.asarray(x[bad[0]]).tolist()}")
