"""The 1-D testbed: pictures are read back exactly, and the study runs."""

import jax.random as jr
import numpy as np

from kinema import studies
from kinema.studies.physical_law import constant_velocity, film, made_velocity, measured, positions
from kinema.verify import regimes


def test_pictures_are_read_back(key):
    videos = film(regimes("uniform")["train"], 32, key)
    x, inside = np.asarray(positions(videos.pictures)), np.asarray(videos.inside)
    assert np.abs(x - videos.x)[inside].max() < 0.02
    counted = inside[:, 4]
    true = (videos.x[:, 3] - videos.x[:, 2]) / 0.1
    assert np.abs(made_velocity(videos.pictures, videos) - true)[counted].max() < 0.1
    size = measured("size", videos.pictures, videos)
    assert np.abs(size - videos.radius)[counted].max() < 0.02


def test_the_law_itself_errs_nowhere():
    assert max(constant_velocity(64, jr.key(0)).values()) <= 0.05


def test_smoke():
    evidence = studies.run("physical-law-testbed", "smoke")
    names = [metric.name for metric in evidence.metrics]
    assert "balls reversed, mirrored copies seen" in names and len(evidence.figures) == 2
