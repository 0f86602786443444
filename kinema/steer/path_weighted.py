"""Exact conditioning by weights on whole paths.

A plan whose steps add noise has Gaussian kernels N(mean, c^2); an edit of the data prediction shifts their means. Each
particle carries the ratio of the kernel it should have moved by to the one it did, and the likelihood of the condition,

    log w += log N(x'; mean, c^2) - log N(x'; mean + shift, c^2) + log l(x') - log l(x)

so at the end the weighted particles follow the sampler's law times the likelihood of the condition at the last noisy
time, whatever the edit was: a poor edit costs particles, not truth.

Reference: Trippe et al. 2023 (SMCDiff); Wu et al. 2023 (twisted diffusion sampler).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from kinema.errors import InputError, choose
from kinema.generate.sampling import data_prediction, push, shift
from kinema.steer.conditioning import Conditioning, with_aux
from kinema.steer.controller import Controller, Ledger, Particles, Scene
from kinema.steer.resampling import ALL_RESAMPLERS, ess, logmeanexp


class Proposal(eqx.Module):
    """The next move of one particle: its edited data prediction (physical units), the mean of the unedited kernel, the
    shift that the edit makes, and the likelihood of the condition here."""

    edited: PyTree
    mean: PyTree
    shift: PyTree
    log_likelihood: Float[Array, ""]


class PathWeighted(Controller):
    """Run `inner`, a conditioning, and weigh its particles so that they follow the conditional law of the sampler.

    Particles are resampled when the effective sample size falls below `threshold` n; `resample_last` returns unweighted
    samples. `logmeanexp(log_weight)` estimates the log normaliser. Weights spread with the number of known values: a
    dozen of them need hundreds of particles.

    Raises:
        InputError: `threshold` outside [0, 1]; an unknown resampler; a plan that does not add noise in every step but
            the last, or that keeps memory between steps (use `ancestral` on a clean grid).
    """

    inner: Conditioning
    threshold: float = 0.5
    resampler: str = eqx.field(static=True, default="systematic")
    resample_last: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold must be in [0, 1], got {self.threshold}")
        choose(ALL_RESAMPLERS, self.resampler, "resampler")

    def check(self, scene: Scene, stochastic: bool) -> None:
        self.inner.check(scene, stochastic)
        rows, c = scene.rows, np.asarray(scene.rows.c)
        noisy = bool((c[:-1] > 0).all()) and c[-1] == 0 and bool(np.asarray(rows.whole).all())
        if not noisy or rows.memory or rows.uses & {"n", "snr", "anchor"}:
            raise InputError(
                "path weights need a one-step plan that adds noise in every step but the last, onto s = 0: use"
                " ancestral on a clean grid"
            )

    def begin(self, particles: Particles, scene: Scene, ledger: Ledger) -> tuple[Particles, Ledger]:
        particles, ledger = self.inner.begin(particles, scene, ledger)
        proposals = self._propose(particles, particles.aux, scene)
        particles = eqx.tree_at(lambda p: p.log_weight, particles, proposals.log_likelihood)
        return with_aux(particles, (particles.aux, proposals)), ledger

    def edit(self, t, x: PyTree, data: PyTree, aux: PyTree, scene: Scene, key) -> PyTree:
        return aux[1].edited

    def update(self, particles: Particles, data: PyTree, scene: Scene, ledger: Ledger, key) -> tuple[Particles, Ledger]:
        inner_aux, before = particles.aux
        after = self._propose(particles, inner_aux, scene)
        ratio = jax.vmap(_log_ratio)(particles.state.x, before, scene.rows.c[particles.row - 1])
        log_weight = particles.log_weight + ratio + after.log_likelihood - before.log_likelihood
        particles = eqx.tree_at(lambda p: p.log_weight, with_aux(particles, (inner_aux, after)), log_weight)
        low = ess(log_weight) < self.threshold * particles.size
        return jax.lax.cond(low, lambda p: self._resample(p, self._parents(p, key)), lambda p: p, particles), ledger

    def finish(self, x: PyTree, particles: Particles, scene: Scene, ledger: Ledger, key):
        if self.resample_last:
            parents = self._parents(particles, key)
            x, particles = jax.tree.map(lambda leaf: leaf[parents], x), self._resample(particles, parents)
        return self.inner.finish(x, with_aux(particles, particles.aux[0]), scene, ledger, key)

    def _propose(self, particles: Particles, inner_aux: PyTree, scene: Scene) -> Proposal:
        def one(state, raw, j, aux, x0) -> Proposal:
            row = scene.rows[j]
            encoded = data_prediction(row, state, raw, x0)
            data, x = scene.decode(encoded), scene.decode(shift(state.x, row.centre, x0))
            edited = self.inner.edit(row.t, x, data, aux, scene, None)
            terms = {0: state.x, 2: push(row, state, raw, x0)}
            used = [(row.M[0, i], terms[i]) for i in scene.rows.columns[0]]
            mean = jax.tree.map(
                lambda *leaves: sum(c * leaf for (c, _), leaf in zip(used, leaves)) + row.d[0],
                *(term for _, term in used),
            )
            pull = row.M[0, 2] * row.from_data
            moved = jax.tree.map(lambda new, old: pull * (new - old), scene.encode(edited), scene.encode(data))
            return Proposal(edited, mean, moved, self.inner.log_likelihood(row.t, x, data, aux, scene))

        return jax.vmap(one)(particles.state, particles.raw, particles.row, inner_aux, scene.x0)

    def _resample(self, particles: Particles, parents: Int[Array, " n"]) -> Particles:
        level = jnp.full(particles.size, logmeanexp(particles.log_weight))
        return eqx.tree_at(lambda p: p.log_weight, particles.select(parents), level)

    def _parents(self, particles: Particles, key) -> Int[Array, " n"]:
        return ALL_RESAMPLERS[self.resampler](key, particles.log_weight)


def _log_ratio(x: PyTree, proposal: Proposal, c) -> Float[Array, ""]:
    """log N(x; mean, c^2) - log N(x; mean + shift, c^2)."""

    def leaf(x, mean, shift):
        return jnp.sum(shift * (shift - 2 * (x - mean))) / (2 * c**2)

    return jax.tree.reduce(jnp.add, jax.tree.map(leaf, x, proposal.mean, proposal.shift))
