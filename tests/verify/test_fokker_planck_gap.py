"""Certificates against Gaussian laws in closed form, densities on grids against exact marginals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from conftest import assert_within_error

from kinema.errors import InputError
from kinema.generate import VE, VP, Generator, MixturePosterior
from kinema.verify import flow_density, gap_certificate, grid_wasserstein, noisy_density, ode_sde_gap

SPAN = (-1.5, 1.2)  # log-SNR of VE: s from 4.48 to 0.30


class Stretched(eqx.Module):
    """The noise prediction of N(0, 1) data, wrong by a factor."""

    factor: float

    def __call__(self, x, signal, cond=None):
        s = jnp.exp(-signal)
        return self.factor * x * s / jnp.sqrt(1 + s**2)  # x comes divided by sqrt(1 + s^2)


def gaussian(factor: float) -> Generator:
    return Generator(VE(sigma_max=float(np.exp(1.5))), Stretched(factor), predicts="noise")


def variances(factor: float):
    """Final variance of flow and noisy samples, and KL between them: linear equations in level = log(1 / s)."""
    levels = np.linspace(*SPAN, 200_001)
    step = levels[1] - levels[0]
    s2 = np.exp(-2 * levels)
    pull = factor * s2 / (1 + s2)
    flow = noisy = s2[0]
    for rate, square in zip(pull, s2):
        flow += step * (-2 * rate * flow)
        noisy += step * (-4 * rate * noisy + 2 * square)
    return flow, noisy


def test_certificates_bound_the_gap_of_gaussian_laws(key):
    """Both laws are normal, with variances V: KL = (V / V' - 1 - log(V / V')) / 2, W2 = |V^(1/2) - V'^(1/2)|."""
    wrong = gaussian(0.8)
    flow, noisy = variances(0.8)
    certificate = gap_certificate(wrong, key=key, shape=(1,), n=64, steps=40, span=SPAN)
    kl = 0.5 * (flow / noisy - 1 - np.log(flow / noisy))
    w2 = abs(np.sqrt(flow) - np.sqrt(noisy))
    assert w2 > 0.05
    assert kl <= certificate.kl <= 20 * kl
    assert w2 <= certificate.w2 <= 20 * w2
    assert certificate.mismatch.shape == certificate.log_snr.shape == (41,)


def test_sampled_gap_of_gaussian_laws(key):
    wrong, n = gaussian(0.8), 4000
    flow, noisy = variances(0.8)
    found = ode_sde_gap(wrong, jr.normal(key, (n, 1)), key=key, steps=60, span=SPAN, projections=1)
    spread = np.sqrt(np.sqrt(flow * noisy) / (n // 2))
    assert_within_error(found.ode_sde, abs(np.sqrt(flow) - np.sqrt(noisy)), standard_error=spread)
    assert found.floor < found.sde_data < found.ode_data


def test_densities_on_a_grid(x64):
    """The noisy law and the flow of an exact mixture are its own marginal; mass is kept."""
    exact = MixturePosterior(VP(), [[-1.0], [0.1], [1.1]], [0.0625, 0.04, 0.09], [0.35, 0.2, 0.45])
    path, span = exact.path, (-5.0, 2.0)
    centres = (jnp.arange(300) + 0.5) / 30 - 5
    noisy = noisy_density(exact, centres, dim=1, steps=300, span=span)
    flow = flow_density(exact, centres, dim=1, span=span)
    t = path.time_of_log_snr(span[1])
    truth = jnp.exp(jax.vmap(lambda x: exact.log_prob(t, x))(centres[:, None]))
    assert abs(noisy.sum() - 1) < 1e-12 and noisy.min() >= 0
    assert grid_wasserstein(noisy, truth, centres) < 5e-3
    assert grid_wasserstein(flow, truth, centres) < 1e-2  # a trace of the data, a = 0.007, is left in the source


def test_distances_on_a_grid():
    centres = (jnp.arange(80) + 0.5) / 8 - 5
    normal = [jnp.exp(-0.5 * (centres - mean) ** 2 / 0.3) for mean in (-1.0, 0.5)]
    assert np.isclose(grid_wasserstein(*normal, centres), 1.5, rtol=1e-3)
    flat = [jnp.outer(one, normal[0]) for one in normal]
    # a shift c along one axis: E (c cos)^2 = c^2 / 2 over directions
    assert np.isclose(grid_wasserstein(*flat, centres), 1.5 / 2**0.5, rtol=1e-3)


def test_two_dimensions_by_their_axes():
    """A product law stays one: its density on the plane is the product of those on the line."""
    path, span = VP(), (-4.0, 1.0)
    plane = MixturePosterior(path, [[0.5, -0.3]], [[0.3, 0.6]])
    centres = (jnp.arange(48) + 0.5) / 6 - 4
    found = noisy_density(plane, centres, dim=2, steps=60, span=span)
    for axis, (mean, variance) in enumerate([(0.5, 0.3), (-0.3, 0.6)]):
        line = noisy_density(MixturePosterior(path, [[mean]], variance), centres, dim=1, steps=60, span=span)
        np.testing.assert_allclose(found.sum(1 - axis), line, atol=2e-5)


def test_bad_input(key):
    gen = gaussian(1.0)
    with pytest.raises(InputError, match="two rising log-SNRs"):
        gap_certificate(gen, key=key, shape=(1,), span=(1.0, -1.0))
    with pytest.raises(InputError, match="must be positive"):
        gap_certificate(gen, key=key, shape=(1,), n=0)
    with pytest.raises(InputError, match="takes 100 derivatives"):
        gap_certificate(gen, key=key, shape=(100,))
    with pytest.raises(InputError, match="at least 4 samples"):
        ode_sde_gap(gen, jnp.ones((3, 1)), key=key)
    centres = jnp.linspace(-1, 1, 10)
    with pytest.raises(InputError, match="dim must be 1 or 2"):
        noisy_density(gen, centres, dim=3, span=SPAN)
    with pytest.raises(InputError, match="equally spaced"):
        flow_density(gen, centres**3, dim=1, span=SPAN)
    with pytest.raises(InputError, match="both masses need shape"):
        grid_wasserstein(jnp.ones(9), jnp.ones(10), centres)
