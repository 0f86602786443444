import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.generate.fields import FIELDS, PREDICTS
from kinema.generate.generator import Generator
from kinema.generate.mixtures import MixturePosterior
from kinema.generate.path import GAUSSIAN, VP, Linear

PATH_LIST = {name: make() for name, make in GAUSSIAN.items()}
MEANS, COVS = [[-1.0, 0.5], [1.0, -0.5]], [0.1, 0.3]


class PerfectNet(eqx.Module):
    """A network that undoes the generator's scaling and returns what it should have learnt."""

    exact: MixturePosterior
    predicts: str
    sigma_data: float

    def __call__(self, scaled, signal, cond=None):
        path = self.exact.path
        t = path.time_of_log_snr(signal)
        a, _, s = path.coefficients(t)
        x = scaled * jnp.sqrt((a * self.sigma_data) ** 2 + s**2)
        prediction = self.exact(t, x)
        if self.predicts == "score":
            return s * prediction.score
        if self.predicts == "residual":
            skip = a * self.sigma_data**2 / ((a * self.sigma_data) ** 2 + s**2)
            return (prediction.data - skip * x) * jnp.sqrt((a * self.sigma_data) ** 2 + s**2) / (s * self.sigma_data)
        return getattr(prediction, self.predicts)


@pytest.mark.parametrize("name", PATH_LIST)
def test_all_parameterizations_say_the_same(name, x64):
    path = PATH_LIST[name]
    t, x = 0.55, jnp.array([0.4, -0.7]) * float(path.coefficients(0.55)[2])
    oracle = MixturePosterior(path, MEANS, COVS)
    made = {predicts: Generator(path, PerfectNet(oracle, predicts, 0.8), predicts, 0.8) for predicts in PREDICTS}
    predictions, exact = jax.jit(lambda x: ({name: gen(t, x) for name, gen in made.items()}, oracle(t, x)))(x)
    for predicts, prediction in predictions.items():
        for field in FIELDS:
            assert np.allclose(getattr(prediction, field), getattr(exact, field), rtol=1e-8), (predicts, field)


def test_affine_maps_agree_with_the_prediction(x64):
    path = PATH_LIST["vp"]
    gen = Generator(path, PerfectNet(MixturePosterior(path, MEANS, COVS), "noise", 1.0), "noise")
    x = jnp.array([0.2, 0.9])
    raw, prediction = jax.jit(lambda x: (gen.raw(0.3, x), gen(0.3, x)))(x)
    for field in FIELDS:
        P, Q = gen.affine(np.array([0.3]), field)
        assert np.allclose(P[0] * x + Q[0] * raw, getattr(prediction, field), rtol=1e-9)


def test_any_structure_of_state(key):
    class Identity(eqx.Module):
        def __call__(self, x, signal, cond=None):
            return x

    x = {"x": jnp.ones(3), "v": (jnp.zeros((2, 2)),)}
    prediction = Generator(Linear(), Identity(), "velocity")(0.5, x)
    for field in FIELDS:
        assert jax.tree.structure(getattr(prediction, field)) == jax.tree.structure(x)


@pytest.mark.parametrize("level", ["reverse", 0.7, lambda t: 0.3 + t])
def test_laws_of_every_noise_level_have_the_same_marginals(level, x64):
    """Fokker-Planck: d log p/dt + drift . grad log p + div drift = w^2/2 (lap log p + |grad log p|^2)."""
    gen = MixturePosterior(PATH_LIST["vp"], MEANS, COVS)
    law = gen.law(level)

    @jax.jit
    def residual(t, x):
        dt = jax.jvp(lambda now: gen.log_prob(now, x), (t,), (jnp.ones_like(t),))[1]
        score, hessian = jax.grad(gen.log_prob, 1)(t, x), jax.hessian(gen.log_prob, 1)(t, x)
        divergence = jnp.trace(jax.jacfwd(lambda y: law.drift(t, y))(x))
        width = law.diffusion(t, x)
        spread = 0.5 * width[0] ** 2 * (jnp.trace(hessian) + score @ score)
        return dt + law.drift(t, x) @ score + divergence - spread, width

    gap, width = residual(jnp.asarray(0.6), jnp.array([0.3, -0.8]))
    assert abs(float(gap)) < 1e-9
    assert (width > 0).all() and width.shape == (2,)


def test_the_reverse_level_is_that_of_the_published_equation(x64):
    gen = MixturePosterior(PATH_LIST["vp"], MEANS, COVS)
    assert np.allclose(gen.law("reverse").width(0.3) ** 2, 0.1 + 19.9 * 0.7)
    flow = MixturePosterior(Linear(), MEANS, COVS)
    assert np.allclose(flow.law("reverse").width(0.3) ** 2, 2 * 0.7 / 0.3)


class Zero(eqx.Module):
    def __call__(self, x, signal, cond=None):
        return jnp.zeros_like(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generator(VP(), Zero(), "velocty"), "did you mean 'velocity'"),
        (lambda: Generator(VP(), Zero(), sigma_data=0.0), "sigma_data must be positive"),
        (lambda: Generator(VP(), Zero()).law(-1.0), "must not be negative"),
        (lambda: Generator(VP(), Zero()).law("backward"), "noise_level"),
        (lambda: Generator(VP(), Zero())(0.5, jnp.zeros(2), x0=jnp.zeros(2)), "has no origin"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
