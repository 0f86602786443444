import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate import CoupledPosterior, Generator, Interpolant, Linear, MixturePosterior
from kinema.generate.fields import Heads
from kinema.generate.generator import AbstractGenerator
from kinema.verify import kl_bound, optimal_noise

EXACT = CoupledPosterior(
    Interpolant("linear", "quadratic"),
    MixturePosterior(Linear(), [[0.0, 0.0]], 1.0),
    MixturePosterior(Linear(), [[1.0, 0.0]], 0.3),
)


class Shifted(AbstractGenerator):
    """The exact fields with constants added to the velocity and to the score."""

    velocity: jax.Array
    score: jax.Array
    path: Interpolant = EXACT.path
    predicts: tuple[str, str] = eqx.field(static=True, default=("velocity", "noise"))
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def calls(self):
        return 1

    def raw(self, t, x, cond=None, x0=None):
        exact, s = EXACT(t, x), self.path.coefficients(t)[2]
        return Heads(exact.velocity + self.velocity, -s * (exact.score + self.score))


@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_constant_errors_have_the_bound_of_their_square(noise, key):
    """Errors c of the velocity and k of the score: |c + e k|^2 / (4 e) over the time span, in two coordinates."""
    c, k = jnp.array([0.3, -0.1]), jnp.array([0.2, 0.5])
    bound = kl_bound(Shifted(c, k), EXACT, EXACT.draw, noise, key=key, n=256)
    span = EXACT.path.t_max - EXACT.path.t_min
    assert np.isclose(bound, span * float(jnp.sum((c + noise * k) ** 2)) / (4 * noise), rtol=1e-3)
    assert float(kl_bound(EXACT, EXACT, EXACT.draw, noise, key=key, n=16)) == 0


def test_best_noise_is_the_root_of_the_ratio_of_losses():
    velocity, score = 0.5, 0.02
    noises = np.geomspace(0.01, 1000, 200_001)
    bounds = velocity / (2 * noises) + noises * score / 2
    assert np.isclose(optimal_noise(velocity, score), noises[bounds.argmin()], rtol=1e-3)
    assert np.isclose(bounds.min(), (velocity * score) ** 0.5, rtol=1e-6)


def test_bad_input(key):
    with pytest.raises(InputError, match="a flow has no such bound"):
        kl_bound(EXACT, EXACT, EXACT.draw, 0.0, key=key)
    bare = Generator(Interpolant(), lambda x, signal, cond: x, predicts="velocity")
    with pytest.raises(InputError, match="found must have a score, it has"):
        kl_bound(bare, EXACT, EXACT.draw, 0.5, key=key)
    with pytest.raises(InputError, match="score_loss must be positive"):
        optimal_noise(0.1, -1.0)
