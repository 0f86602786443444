"""Trajectories: which axis is which, choosing from an ensemble, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from kinema.errors import InputError, NotFinite
from kinema.motion import Trajectory

TS = jnp.arange(3.0)


def ensemble(n=4):
    x = jnp.arange(n * 3 * 2.0).reshape(n, 3, 2)
    return Trajectory(TS, {"x": x}, {"mass": jnp.arange(float(n))}, {"world": "drift"})


def test_axes_are_read_off_the_shapes():
    assert ensemble().ensemble == 4 and len(ensemble()) == 3
    single = Trajectory(TS, {"x": jnp.zeros((3, 2)), "n": jnp.zeros(3)}, {"steps": 7})
    assert single.ensemble is None and len(single) == 3
    assert Trajectory(TS, {"a": jnp.zeros((3, 3)), "b": jnp.zeros(3)}).ensemble is None  # b has no ensemble axis
    assert Trajectory(TS, jnp.zeros((3, 3, 2))).ensemble == 3  # both would fit
    assert Trajectory(TS, jnp.zeros((3, 3, 2)), single=True).ensemble is None


def test_one_of_the_ensemble():
    one = ensemble()[2]
    assert one.ensemble is None and one.states["x"].shape == (3, 2)
    assert one.states["x"][0, 0] == 12 and one.constants["mass"] == 2 and one.meta == {"world": "drift"}
    assert ensemble()[-1].constants["mass"] == 3
    assert ensemble()[np.int64(1)].constants["mass"] == 1
    assert [float(t.constants["mass"]) for t in ensemble()] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "index,chosen",
    [
        (slice(1, 3), [1, 2]),
        ([3, 0, -1], [3, 0, 3]),
        (np.array([True, False, False, True]), [0, 3]),
        (slice(None, None, -2), [3, 1]),
    ],
)
def test_some_of_the_ensemble(index, chosen):
    some = ensemble()[index]
    assert some.ensemble == len(chosen) and some.constants["mass"].tolist() == chosen
    assert some.states["x"][:, 0, 0].tolist() == [6 * i for i in chosen] and len(some) == 3


def test_indices_are_checked():
    for index, match in [
        (4, "index 4 of an ensemble of 4"),
        (-5, "index -5"),
        ([0, 9], "index 9"),
        (1.5, "integer"),
        ("x", "integer"),
    ]:
        with pytest.raises(InputError, match=match):
            ensemble()[index]
    with pytest.raises(InputError, match=r"shape \(4,\)"):
        ensemble()[np.array([True])]
    for use in (lambda t: t[0], list):
        with pytest.raises(InputError, match="single trajectory"):
            use(ensemble()[0])


def test_vmap_makes_an_ensemble():
    many = jax.vmap(lambda x: Trajectory(TS, x * jnp.ones(3), {"start": x}, {"a": 1}, single=True))(jnp.arange(5.0))
    assert many.ensemble == 5 and len(many) == 3 and many.meta == {"a": 1}
    assert many[3].ensemble is None and many[3].ts.shape == (3,) and many[3].constants["start"] == 3
    assert many[1:3].ensemble == 2 and many[1:3][1].constants["start"] == 2


def test_jit_takes_and_gives_trajectories():
    double = jax.jit(lambda traj: eqx.tree_at(lambda t: t.states["x"], traj, 2 * traj.states["x"]))
    out = double(ensemble())
    assert (
        out.ensemble == 4
        and out.meta == {"world": "drift"}
        and jnp.array_equal(out.states["x"], 2 * ensemble().states["x"])
    )
    assert jax.jit(lambda traj, i: traj[i].constants["mass"])(ensemble(), 2) == 2


def test_meta_is_json_and_a_copy():
    traj = Trajectory(TS, TS, meta={"n": np.int32(3), "sizes": np.array([1.0, 2.0]), "deep": {"key": [None, True]}})
    assert traj.meta == {"n": 3, "sizes": [1.0, 2.0], "deep": {"key": [None, True]}}
    traj.meta["n"] = 4
    assert traj.meta["n"] == 3
    for bad in ({"f": print}, {"x": float("nan")}, {"k": jr.key(0)}):
        with pytest.raises(InputError, match="meta must be JSON"):
            Trajectory(TS, TS, meta=bad)


@pytest.mark.parametrize(
    "states,constants,match",
    [
        ({}, {}, "no arrays"),
        (
            {"x": jnp.zeros((4, 2))},
            {},
            r"'x' must have shape \(4 trajectories, 3 frames|'x' must have shape \(3 frames",
        ),
        ({"x": jnp.zeros((4, 3)), "y": jnp.zeros((5, 3))}, {}, "'x'|'y'"),
        ({"x": jnp.zeros((4, 3)), "y": jnp.zeros((4, 2))}, {}, "'x'|'y'"),
        ({"x": jnp.zeros((4, 3))}, {"mass": jnp.zeros(3)}, r"constants\['mass'\] must have a leading axis of 4"),
        ({"x": jnp.zeros((4, 3))}, {"mass": 1.0}, "leading axis of 4"),
    ],
)
def test_shapes_are_checked(states, constants, match):
    with pytest.raises(InputError, match=match):
        Trajectory(TS, states, constants)


def test_times_are_checked():
    with pytest.raises(InputError, match=r"\(frames,\)"):
        Trajectory(jnp.zeros(()), jnp.zeros(3))
    with pytest.raises(InputError, match=r"\(frames,\)"):
        Trajectory(jnp.zeros(0), jnp.zeros(0))
    with pytest.raises(InputError, match="single trajectory"):
        Trajectory(jnp.zeros((4, 3)), jnp.zeros((4, 3)), single=True)


def test_check_names_leaf_and_row():
    assert ensemble().check().ensemble == 4
    broken = eqx.tree_at(lambda t: t.states["x"], ensemble(), ensemble().states["x"].at[2, 1, 0].set(jnp.nan))
    with pytest.raises(NotFinite, match=r"states/x is NaN or infinite in trajectory 2"):
        broken.check()
    with pytest.raises(NotFinite, match="frame 1"):
        broken[2].check()
    with pytest.raises(NotFinite, match="constants/mass"):
        Trajectory(TS, jnp.zeros((2, 3)), {"mass": jnp.array([1.0, jnp.inf])}).check()


def test_reading_needs_no_heavy_library():
    """`import kinema.motion` must not pull in storage, HDF5 or plotting."""
    import subprocess
    import sys

    code = "import sys, kinema.motion; print([m for m in ('zarr', 'h5py', 'matplotlib', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
