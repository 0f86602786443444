"""Formulas are found exactly where they are in the library; the front's losses are those of least squares."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.learn import Library, discover


def test_lorenz_is_found_in_noise(x64):
    """All seven terms of twenty, coefficients within four standard errors of least squares."""
    random = np.random.default_rng(1)
    states = random.normal(size=(400, 3))
    x, y, z = states.T
    truth = [{"x": -10.0, "y": 10.0}, {"x": 28.0, "y": -1.0, "x z": -1.0}, {"z": -8 / 3, "x y": 1.0}]
    rates = np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1) + 0.01 * random.normal(size=(400, 3))
    best = discover(states, rates, Library(("x", "y", "z"), 3)).best
    for found, wanted in zip(best.terms, truth, strict=True):
        assert set(found) == set(wanted)
        assert all(abs(found[name] - value) < 4 * 0.01 / np.sqrt(400) * 1.5 for name, value in wanted.items())
    assert jnp.allclose(best(jnp.array([1.0, 2.0, 3.0])), jnp.array([10.0, 23.0, -6.0]), atol=0.02)
    assert best.equations(1)[1] in ("3e+01 x - 1 y - 1 x z", "3e+01 x - 1 x z - 1 y")


def test_front_is_least_squares(x64):
    """Losses with 2 terms, against a fit of these two alone; other functions may be terms; zero has no terms."""
    x = np.linspace(-2, 2, 50)[:, None]
    target = np.stack([3 * np.sin(x[:, 0]) + 0.5 + 0.1 * x[:, 0] ** 2, 0 * x[:, 0]], 1)
    library = Library(("x",), 1, {"sin x": lambda x: jnp.sin(x[0])})
    front = discover(x, target, library)
    terms = np.stack([np.ones(50), np.sin(x[:, 0])], 1)
    gap = target[:, 0] - terms @ np.linalg.lstsq(terms, target[:, 0])[0]
    assert front.losses[0][2] == pytest.approx(np.mean(gap**2)) and front.sizes == (2, 0)
    assert front.best.equations()[1] == "0"
    assert list(front.formula((1, 0)).terms[0]) == ["sin x"]


def test_bad_input(key):
    states, library = jr.normal(key, (20, 2)), Library(("x", "y"), 2)
    for match, call in {
        r"states must have shape \(n, 2\)": lambda: discover(states[:, :1], states, library),
        "rates must have shape": lambda: discover(states, states[:5], library),
        "at least as many states": lambda: discover(states[:3], states[:3], library),
        "must be finite": lambda: discover(states, states * jnp.nan, library),
        "max_terms": lambda: discover(states, states, library, max_terms=0),
        "numbers of terms within the front": lambda: discover(states, states, library).formula((1, 99)),
        "name of its own": lambda: Library(("x", "x")),
        "needs variables": lambda: Library((), 2),
    }.items():
        with pytest.raises(InputError, match=match):
            call()
