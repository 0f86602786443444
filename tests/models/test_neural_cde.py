"""Control paths never look ahead; a linear CDE is a matrix exponential; sampling and speed of time do not matter."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.scipy.linalg import expm

from kinema.errors import InputError
from kinema.models import NeuralCDE, VectorField, log_signatures, make_path
from kinema.motion import FunctionLaw, integrate

TS = jnp.array([0.0, 0.5, 1.25, 2.0])
VALUES = jnp.array([[1.0, -1.0], [2.0, jnp.nan], [jnp.nan, 0.5], [0.0, 3.0]])


def test_missing_values_are_carried_forward():
    path = make_path(TS, VALUES, counts=True)
    filled = [[1, -1], [2, -1], [2, 0.5], [0, 3]]
    shares = [[0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.75, 0.75]]
    assert jnp.allclose(path.points, jnp.concatenate([TS[:, None], jnp.array(filled), jnp.array(shares)], 1))
    assert jnp.allclose(path(1.25), path.points[2], atol=1e-6)
    masked = make_path(TS, jnp.nan_to_num(VALUES), jnp.isfinite(VALUES), counts=True)
    assert jnp.array_equal(masked.points, path.points)
    later = make_path(TS, VALUES.at[3].set(50.0), counts=True)
    assert jnp.array_equal(later(0.9), path(0.9))  # between frames 1 and 2; frame 3 is not seen


def test_linear_field_is_a_matrix_exponential(x64):
    """dz = Σ A_i z dX_i along one straight line: exp(Σ A_i ΔX_i) z, whatever the speed along it."""
    a = jnp.array([[[0.1, -1.0], [0.7, 0.0]], [[0.0, 0.3], [-0.2, -0.5]]])
    law = FunctionLaw(lambda t, z, path: jnp.einsum("ijk,k,i->j", a, z, path.slope(t)))
    z0 = jnp.array([1.0, 2.0])
    path = make_path(jnp.array([0.0, 1.5]), jnp.array([[1.0], [3.0]]), scheme="linear")
    end = integrate(law, z0, path.ts, args=path, rtol=1e-10, atol=1e-10).states[-1]
    assert jnp.allclose(end, expm(1.5 * a[0] + 2.0 * a[1]) @ z0, atol=1e-8)


def test_log_signatures_are_increments_and_areas(x64):
    """A square run round once, one corner a frame: no increment, area 1; and two windows add up by Chen's rule."""
    corners = jnp.array([[0.0], [1.0], [1.0], [0.0], [0.0]])
    path = make_path(jnp.array([0.0, 0.5, 1.0, 1.5, 2.0]), corners, scheme="linear")
    whole = log_signatures(path, 4)
    assert whole.points.shape == (2, 3)
    moved = whole.points[1] - whole.points[0]
    # ∮ (t dx - x dt) / 2 of the trapezium (0,0) (½,1) (1,1) (3/2,0) (2,0): minus the area below it, 1
    assert jnp.allclose(moved, jnp.array([2.0, 0.0, -1.0]), atol=1e-12)
    half = log_signatures(path, 3)
    first, second = jnp.diff(half.points, axis=0)
    chen = first[2] + second[2] + (first[0] * second[1] - first[1] * second[0]) / 2
    assert len(half.ts) == 3 and chen == pytest.approx(-1.0)


def test_network_maps_and_compiles_alike(key):
    net = NeuralCDE(5, 2, hidden=3, width=8, key=key)
    values = jr.normal(key, (4, 4, 2))

    def run(v):
        return net(make_path(TS, v, counts=True))

    mapped = jax.jit(jax.vmap(run))(values)
    assert mapped.shape == (4, 2) and jnp.allclose(mapped[2], run(values[2]), atol=1e-5)
    scaled = VectorField(2, 2, width=4, bounded=True, key=key)
    assert jnp.abs(jax.vmap(scaled)(100 * values[0])).max() <= 1


def test_bad_input(key):
    for match, call in {
        "ts must increase": lambda: make_path(TS[::-1], VALUES),
        "first row": lambda: make_path(TS, VALUES.at[0, 1].set(jnp.nan)),
        "scheme": lambda: make_path(TS, VALUES, scheme="spline"),
        "frames": lambda: make_path(TS, VALUES[:2]),
        "mask must have": lambda: make_path(TS, VALUES, np.ones(4, bool)),
        "window": lambda: log_signatures(make_path(TS, VALUES), 0),
        "4 channels, got 3": lambda: NeuralCDE(4, 1, key=key)(make_path(TS, VALUES)),
        "takes 2 numbers": lambda: VectorField(2, 1, key=key)(jnp.ones(3)),
    }.items():
        with pytest.raises(InputError, match=match):
            call()
    with pytest.raises(RuntimeError, match="first row"):
        jax.block_until_ready(jax.jit(lambda v: make_path(TS, v).points)(VALUES.at[0].set(jnp.nan)))
