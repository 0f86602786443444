"""The main job, small: artifacts on disk, the page, and what must hold at any size."""

import jax.numpy as jnp
import numpy as np
import pytest

from kinema import simulate, verify
from kinema.errors import InputError
from kinema.generate import load_run
from kinema.motion import Trajectory
from kinema.studies.collisions import demo
from kinema.studies.collisions_job import _fill


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("collisions")
    demo(where, preset="smoke")
    return where


def test_artifacts(folder):
    world = simulate.make("collisions")
    steered = Trajectory.load(folder / "steered.zarr")
    assert float(jnp.nanmax(verify.laws(steered, world).replay)) <= 1e-5
    assert Trajectory.load(folder / "new.zarr").ensemble == steered.ensemble == 16
    assert load_run(folder / "run").shape == (16, 2, 2, 2)
    noisy = Trajectory.load(folder / "noisy.zarr")
    assert set(noisy.meta["noise"]) == {"x", "v"} and noisy.constants["seen"].shape == (16, 16)


def test_page(folder):
    page = (folder / "report.html").read_text()
    for words in ("What holds by construction", "Where both are needed", "falls short", "Versions and machine"):
        assert words in page
    assert page.count("<canvas") == 7 and page.count("<img") == 3 and "http://" not in page.replace("http://www.w3", "")


def test_a_second_run_is_refused(folder):
    with pytest.raises((InputError, FileExistsError)):
        demo(folder, preset="smoke")


def test_hidden_frames_are_filled_by_straight_lines():
    values = jnp.array([[0.0], [9.0], [9.0], [3.0], [9.0]])
    seen = jnp.array([True, False, False, True, False])
    np.testing.assert_allclose(_fill(values, seen)[:, 0], [0, 1, 2, 3, 3])
