"""Neural stochastic differential equations: path generators, and latent ones fitted by variational inference.

Both are laws, dx = drift dt + diffusion dW. `NeuralSDE` turns noise into paths; `LatentSDE` has a second drift that
follows a series, and whose distance from the first is a path integral,

    KL = KL(z0) + E ∫ ½ |(drift_q - drift_p) / diffusion|² dt.

[Kidger, Foster, Li, Oberhauser & Lyons 2021; Li, Wong, Chen & Duvenaud 2020]
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Float, PRNGKeyArray

from kinema.errors import InputError
from kinema.models.checks import check_positive
from kinema.models.layers import Linear
from kinema.models.neural_ode import VectorField, lipswish
from kinema.motion import integrate


class NeuralSDE(eqx.Module):
    """Paths from noise: x(0) = start(v), dx = drift(t, x) dt + diffusion(t, x) ∘ dW, y = A x + b. Stratonovich.

    >>> net = NeuralSDE(1, hidden=4, width=8, key=jr.key(0))
    >>> net(jnp.linspace(0, 1, 3), key=jr.key(1), dt=0.5).shape
    (3, 1)

    Raises:
        InputError: sizes not positive.
    """

    start: VectorField
    move: VectorField
    spread: VectorField
    readout: Linear
    hidden: int = eqx.field(static=True)
    noises: int = eqx.field(static=True)
    seeds: int = eqx.field(static=True)
    calculus: str = eqx.field(static=True)

    def __init__(
        self,
        outputs: int,
        *,
        hidden: int = 16,
        noises: int = 3,
        seeds: int = 5,
        width: int = 16,
        depth: int = 1,
        key: PRNGKeyArray,
    ):
        check_positive(outputs=outputs, hidden=hidden, noises=noises, seeds=seeds)
        key_start, key_move, key_spread, key_readout = jr.split(key, 4)
        sizes = {"width": width, "depth": depth, "activation": lipswish}
        self.start = VectorField(seeds, hidden, **sizes, key=key_start)
        self.move = VectorField(1 + hidden, hidden, **sizes, bounded=True, key=key_move)
        self.spread = VectorField(1 + hidden, hidden * noises, **sizes, bounded=True, key=key_spread)
        self.readout = Linear(hidden, outputs, key=key_readout)
        self.hidden, self.noises, self.seeds, self.calculus = hidden, noises, seeds, "stratonovich"

    def drift(self, t: Any, x: Float[Array, " hidden"], args: Any = None) -> Float[Array, " hidden"]:
        return self.move(t, x)

    def diffusion(self, t: Any, x: Float[Array, " hidden"], args: Any = None) -> lx.MatrixLinearOperator:
        return lx.MatrixLinearOperator(self.spread(t, x).reshape(self.hidden, self.noises))

    def __call__(
        self,
        ts: Float[Array, " frames"],
        *,
        key: PRNGKeyArray,
        dt: Any,
        adjoint: Any = "recursive",
        max_steps: int = 1024,
    ) -> Float[Array, "frames outputs"]:
        """One path at `ts`, by reversible Heun with steps `dt`."""
        key_start, key_noise = jr.split(key)
        x0 = self.start(jr.normal(key_start, (self.seeds,)))
        how = {"method": "reversible_heun", "dt": dt, "key": key_noise, "adjoint": adjoint, "max_steps": max_steps}
        return self.readout(integrate(self, x0, ts, **how).states)


class Inferred(NamedTuple):
    """One latent path given a series: z (frames, latent), its reconstruction, and nats of KL at the start and along."""

    z: Float[Array, "frames latent"]
    made: Float[Array, "frames features"]
    kl_start: Float[Array, ""]
    kl_path: Float[Array, ""]


class LatentSDE(eqx.Module):
    """A prior dz = prior(z) dt + σ dW seen through a linear readout; a posterior drift follows a series.

    σ is learnt, one number a latent dimension; so Itô and Stratonovich agree. The encoder runs backwards over the
    series; frames are centred and scaled outside. A law (its prior) like any other: `integrate` makes new motion.

    >>> net = LatentSDE(1, latent=1, width=8, key=jr.key(0))
    >>> net.infer(jnp.linspace(0, 1, 5), jnp.zeros((5, 1)), key=jr.key(1)).z.shape
    (5, 1)

    Raises:
        InputError: sizes not positive; a series of another shape.
    """

    prior: VectorField
    posterior: VectorField
    encoder: eqx.nn.GRUCell
    first: Linear
    start_mean: Float[Array, " latent"]
    start_log: Float[Array, " latent"]
    noise_log: Float[Array, " latent"]
    readout: Linear
    latent: int = eqx.field(static=True)

    def __init__(
        self,
        features: int,
        *,
        latent: int = 4,
        context: int = 16,
        width: int = 64,
        depth: int = 1,
        noise: float = 0.5,
        key: PRNGKeyArray,
    ):
        check_positive(features=features, latent=latent, context=context)
        if not noise > 0:
            raise InputError(f"noise must be positive, got {noise}")
        key_prior, key_posterior, key_encoder, key_first, key_readout = jr.split(key, 5)
        sizes = {"width": width, "depth": depth, "gain": 0.1}
        self.prior = VectorField(latent, latent, **sizes, key=key_prior)
        self.posterior = VectorField(latent + context + features + 1, latent, **sizes, key=key_posterior)
        self.encoder = eqx.nn.GRUCell(features, context, key=key_encoder)
        self.first = Linear(context, 2 * latent, key=key_first)
        self.start_mean, self.start_log = jnp.zeros(latent), jnp.zeros(latent)
        self.noise_log = jnp.full(latent, jnp.log(noise))
        self.readout = Linear(latent, features, key=key_readout)
        self.latent = latent

    def drift(self, t: Any, x: Float[Array, " latent"], args: Any = None) -> Float[Array, " latent"]:
        return self.prior(x)

    def diffusion(self, t: Any, x: Float[Array, " latent"], args: Any = None) -> Float[Array, " latent"]:
        return jnp.exp(self.noise_log)

    def infer(
        self,
        ts: Float[Array, " frames"],
        x: Float[Array, "frames features"],
        *,
        key: PRNGKeyArray,
        substeps: int = 1,
    ) -> Inferred:
        """One draw of the posterior by Euler-Maruyama, `substeps` a frame, the KL integral carried along.

        A scan over increments drawn at once: asking a Brownian tree costs ten times such a step.
        """
        if x.shape != (len(ts), self.encoder.input_size):
            raise InputError(f"x must have shape ({len(ts)}, {self.encoder.input_size}), got {x.shape}")
        check_positive(substeps=substeps)
        key_start, key_noise = jr.split(key)

        def read(h, frame):
            h = self.encoder(frame, h)
            return h, h

        _, context = jax.lax.scan(read, jnp.zeros(self.encoder.hidden_size), x, reverse=True)
        mean, log = jnp.split(self.first(context[0]), 2)
        z0 = mean + jnp.exp(log) * jr.normal(key_start, mean.shape)
        shift, spread = mean - self.start_mean, jnp.exp(self.start_log)
        kl_start = jnp.sum(self.start_log - log + (jnp.exp(2 * log) + shift**2) / (2 * spread**2) - 0.5)
        noise = jnp.exp(self.noise_log)

        def interval(carry, row):
            h, frame, dt, normals = row  # of the next frame: what is ahead, and in what time

            def step(carry, moment):
                (z, kl), (left, normal) = carry, moment
                drift = self.posterior(z, h, frame - self.readout(z), left * dt)
                kl = kl + dt * 0.5 * jnp.sum(((drift - self.prior(z)) / noise) ** 2)
                return (z + dt * drift + jnp.sqrt(dt) * noise * normal, kl), None

            carry, _ = jax.lax.scan(step, carry, (jnp.arange(substeps, 0, -1), normals))
            return carry, carry[0]

        normals = jr.normal(key_noise, (len(ts) - 1, substeps, self.latent))
        rows = (context[1:], x[1:], jnp.diff(ts) / substeps, normals)
        (_, kl_path), later = jax.lax.scan(interval, (z0, jnp.zeros(())), rows)
        z = jnp.concatenate([z0[None], later])
        return Inferred(z, self.readout(z), kl_start, kl_path)
