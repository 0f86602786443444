"""The study runs, its problem is what it says, and its picture shows what is out of range."""

import jax.random as jr
import numpy as np

from kinema import studies
from kinema.studies import ghvb_problems as problems


def test_smoke():
    evidence = studies.run("ghvb", "smoke")
    values = {metric.name: metric.measured.mean for metric in evidence.metrics}
    assert values["diverged, PLMS 4"] > 0.4 and values["diverged, GHVB 3.3"] == 0
    assert [figure.name for figure in evidence.figures] == ["regions"]
    assert len(evidence.tables) == 3


def test_guidance_of_exact_classes():
    """No class is all of them; far from the data of its class a guided start is drawn to it alone."""
    gen, start, classes = problems.guided_mixture(8, jr.key(0))
    assert start.shape == (8, 16) and classes.tolist() == [0, 1, 2, 3] * 2
    everything = gen.raw(0.6, start[0], problems.NO_CLASS)
    np.testing.assert_allclose(everything, gen.mixture.raw(0.6, start[0]), rtol=1e-6)
    means = np.asarray(gen.mixture.means)
    late = np.asarray(gen.raw(0.999, start[0], 2))
    assert (
        np.linalg.norm(late - means[6:9], axis=1).min()
        < np.linalg.norm(late - np.delete(means, [6, 7, 8], 0), axis=1).min()
    )
    grid = problems.uniform_grid(gen.path, 8)
    np.testing.assert_allclose(grid.a[[0, -1]] ** 2, [0.0046600, 0.99915], rtol=1e-4)


def test_digits_out_of_range_are_in_colour():
    x = np.zeros((10, 8, 8, 1))
    x[0], x[1] = 4.0, -4.0
    picture = problems.sheet({"PLMS 4": problems.Drawn(x, 0.1)})
    shown = picture.image.axes[0].get_images()[0].get_array()
    assert (
        shown[0, 0].tolist() == [1, 0, 0] and shown[0, 8].tolist() == [0, 0, 1] and shown[0, 16].tolist() == [1, 1, 1]
    )
