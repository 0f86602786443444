"""The Student-t law and the path of PFGM++ against SciPy and quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from kinema.errors import InputError
from kinema.generate import EDM, Denoising, Generator, MixturePosterior, PoissonFlow, bind, log_prob, sample
from kinema.generate.fields import Heads
from kinema.generate.generator import AbstractGenerator
from kinema.generate.noise import Normal, StudentT
from kinema.generate.solver import ancestral, churn, euler_maruyama, grids, heun, predictor_corrector

POINTS = np.array([[-0.4], [0.3], [0.6]])


@pytest.mark.parametrize(("size", "df"), [(2, 3.0), (10, 64.0), (3, 1.0), (4, 0.5)])
def test_radius_is_fisher_distributed(size, df):
    """|z|^2 / N ~ F(N, D): one chi-square for the whole sample, none shared by two samples."""
    draw = jax.vmap(lambda k: StudentT(df).sample(k, {"a": jnp.zeros(size - 1), "b": jnp.zeros(())}))
    z = draw(jr.split(jr.key(0), 20_000))
    square = np.asarray((z["a"] ** 2).sum(-1) + z["b"] ** 2, np.float64) / size
    assert stats.kstest(square, stats.f(size, df).cdf).pvalue > 1e-3
    ranks = stats.rankdata(square)
    assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("df", [0.7, 5.0, 1e6])
def test_density_and_its_gradient(df, x64):
    law, z = StudentT(df), jnp.array([0.3, -1.2, 2.0])
    assert np.isclose(law.log_prob(z), stats.multivariate_t(np.zeros(3), np.eye(3), df=df).logpdf(np.asarray(z)))
    assert np.allclose(law.score(z), jax.grad(law.log_prob)(z), rtol=1e-12)


def test_many_degrees_are_normal():
    law, z = StudentT(1e6), jnp.array([0.3, -1.2, 2.0])
    assert np.allclose(law.log_prob(z), Normal().log_prob(z), atol=1e-4)
    assert np.allclose(law.score(z), -z, rtol=1e-4)
    assert type(PoissonFlow(D=np.inf).noise) is Normal


def test_score_is_not_the_data_prediction_in_disguise(x64):
    """At D = 5 in one dimension the formula of normal noise is off; the separate output is right."""
    gen = MixturePosterior(PoissonFlow(D=5.0), POINTS)
    t, x = 0.8, jnp.array([0.5])
    prediction, s = gen(t, x), gen.path.coefficients(0.8)[2]
    truth = jax.grad(lambda y: gen.log_prob(t, y))(x)
    assert np.allclose(prediction.score, truth, rtol=1e-10)
    assert not np.allclose((prediction.data - x) / s**2, truth, rtol=0.02)


def test_flow_carries_the_source_to_the_kernel_sum(key):
    """Samples of the probability flow follow the exact law: point masses seen through Student-t noise."""
    path = PoissonFlow(D=3.0, sigma_min=0.2, sigma_max=80.0)
    gen = MixturePosterior(path, POINTS)
    x = sample(gen, heun(path, grids.log_snr(path, 60, clean=False)), 4000, key=key, shape=(1,)).x[:, 0]

    def cdf(values):
        return stats.t(3.0, loc=POINTS[:, 0], scale=0.2).cdf(np.asarray(values)[:, None]).mean(-1)

    assert stats.kstest(np.asarray(x), cdf).pvalue > 1e-3


def test_likelihood_is_exact(x64):
    path = PoissonFlow(D=5.0, sigma_min=0.3, sigma_max=80.0)
    x = jnp.array([0.25])
    alone = MixturePosterior(path, [[0.0]])  # whose source is the Student-t law itself
    assert abs(log_prob(alone, x, rtol=1e-9, atol=1e-9) - alone.log_prob(1.0, x)) < 1e-6
    gen = MixturePosterior(path, POINTS - POINTS.mean())
    found = log_prob(gen, x, rtol=1e-9, atol=1e-9)
    truth = gen.log_prob(1.0, x) - gen.log_prob(0.0, jnp.zeros(1)) + path.source_log_prob(jnp.zeros(1))
    assert abs(found - truth) < 1e-4  # the source is taken for one Student-t law, centred at the mean of the points


def test_solvers_that_suppose_normal_noise_are_refused():
    path = PoissonFlow(D=8.0)
    gen, grid = MixturePosterior(path, POINTS), grids.karras(path, 6)
    for plan in (ancestral(path, grid), churn(path, grid)):
        with pytest.raises(InputError, match="euler-maruyama and predictor_corrector"):
            bind(plan, gen)
    bare = Generator(path, lambda x, signal, cond: x)
    with pytest.raises(InputError, match="needs a score; this generator has"):
        bind(euler_maruyama(path, grid, noise_level=0.5), bare)
    bind(heun(path, grid), bare)


@pytest.mark.parametrize("which", ["euler-maruyama", "corrector"])
def test_solvers_with_the_true_score_keep_the_law(which, key):
    path = PoissonFlow(D=4.0, sigma_min=0.2, sigma_max=20.0)
    gen = MixturePosterior(path, POINTS)
    grid = grids.log_snr(path, 200, clean=False)
    if which == "corrector":
        plan = predictor_corrector(path, heun(path, grids.log_snr(path, 60, clean=False)), snr=0.1)
    else:
        plan = euler_maruyama(path, grid, noise_level=1.0)
    x = sample(gen, plan, 4000, key=key, shape=(1,)).x[:, 0]

    def cdf(values):
        return stats.t(4.0, loc=POINTS[:, 0], scale=0.2).cdf(np.asarray(values)[:, None]).mean(-1)

    assert stats.kstest(np.asarray(x), cdf).statistic < 0.03


class Scaled(AbstractGenerator):
    """Both outputs of a generator, each times a factor."""

    exact: MixturePosterior
    factors: jax.Array
    predicts: tuple[str, str] = eqx.field(static=True, default=("data", "score"))
    sigma_data: float = eqx.field(static=True, default=1.0)

    @property
    def path(self):
        return self.exact.path

    @property
    def calls(self):
        return 1

    def raw(self, t, x, cond=None, x0=None):
        return Heads(*(factor * out for factor, out in zip(self.factors, self.exact.raw(t, x))))


def test_both_outputs_are_trained_to_the_posterior(key):
    """The gradient of the objective vanishes, within its noise, at the exact outputs and at no others."""
    exact = MixturePosterior(PoissonFlow(D=6.0, sigma_min=0.05, sigma_max=5.0), POINTS)
    rows = jr.choice(key, jnp.asarray(POINTS), (20_000,))
    loss = jax.jit(lambda factors: Denoising(weight="data")(Scaled(exact, factors), rows, key)[0])
    at = [float(loss(jnp.array(f))) for f in ([1.0, 1.0], [0.95, 1.0], [1.05, 1.0], [1.0, 0.95], [1.0, 1.05])]
    assert at[0] == min(at)
    assert abs(at[1] - at[2]) < 0.5 * (at[1] + at[2] - 2 * at[0])
    assert abs(at[3] - at[4]) < 0.5 * (at[3] + at[4] - 2 * at[0])


def test_alignment_and_preconditioning():
    edm = EDM(sigma_min=0.01, sigma_max=40.0)
    path = PoissonFlow.align(edm, 64.0)
    for t in (0.0, 0.4, 1.0):
        assert np.allclose(path.coefficients(t), edm.coefficients(t))
        assert np.isclose(path.input_scale(t, 0.5), edm.input_scale(t, 0.5))
    moment = PoissonFlow(D=4.0, preconditioning="moment")
    assert np.isclose(moment.input_scale(0.0, 0.5), (0.25 + 2 * 80.0**2) ** -0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"D": 0.0}, "D must be positive"),
        ({"D": -3.0}, "D must be positive"),
        ({"D": 2.0, "preconditioning": "moment"}, "needs D > 2"),
        ({"preconditioning": "none"}, "preconditioning must be one of"),
        ({"sigma_min": 3.0, "sigma_max": 1.0}, "sigma_min must be positive and below"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(InputError, match=message):
        PoissonFlow(**options)


def test_bad_laws_and_heads():
    with pytest.raises(InputError, match="df must be positive and finite"):
        StudentT(np.inf)
    with pytest.raises(InputError, match="predict \\('data', 'score'\\)"):
        Generator(PoissonFlow(), lambda x, signal, cond: x, predicts="score")
    with pytest.raises(InputError, match="does not fit PoissonFlow"):
        Generator(PoissonFlow(), lambda x, signal, cond: (x, x), predicts=("transport", "noise"))
    with pytest.raises(InputError, match="must be one of"):
        Generator(PoissonFlow(), lambda x, signal, cond: (x, x), predicts=("score", "data"))
