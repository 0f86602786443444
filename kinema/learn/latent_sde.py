"""The evidence lower bound of a latent SDE as an objective.   [Li, Wong, Chen & Duvenaud 2020]"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray, PyTree

from kinema.errors import InputError
from kinema.learn.trajectories import seen_in
from kinema.models.neural_sde import LatentSDE


class LatentLoss(eqx.Module):
    """-ELBO of rows {"ts": (frames,), "x": (frames, features)}: E ½ |(x - made) / noise|² + weight KL, a frame.

    `noise` is the deviation of an observation, of which the normal constant is left out; numbers that are False in an
    optional "seen" do not count (and should be 0 in "x"). Let it be no smaller than the law's own noise over one of
    the `substeps` of a frame: the posterior cannot follow more closely, and a quieter law would be the way out.
    `weight` below 1 in the first of two fits keeps the posterior from giving up (KL annealing). Metrics: "misfit" and
    "kl", both in nats a series.

    Raises:
        InputError: noise not positive, weight negative.
    """

    noise: float = eqx.field(static=True)
    substeps: int = eqx.field(static=True, default=1)
    weight: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not (self.noise > 0 and self.weight >= 0):
            raise InputError(f"noise must be positive and weight >= 0, got {self.noise} and {self.weight}")

    def __call__(self, model: LatentSDE, batch: PyTree, key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
        def one(ts, x, seen, key):
            found = model.infer(ts, x, key=key, substeps=self.substeps)
            misfit = 0.5 * jnp.sum(jnp.where(seen, (x - found.made) / self.noise, 0) ** 2)
            return misfit, found.kl_start + found.kl_path

        misfit, kl = jax.vmap(one)(batch["ts"], batch["x"], seen_in(batch), jr.split(key, len(batch["x"])))
        loss = jnp.mean(misfit + self.weight * kl) / batch["x"].shape[1]
        return loss, {"misfit": misfit.mean(), "kl": kl.mean()}
