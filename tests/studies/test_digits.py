"""Digits: a small network trained for a few seconds already draws what a classifier recognises."""

import jax.random as jr
import numpy as np

from kinema import studies
from kinema.generate import train
from kinema.motion.readers import read
from kinema.studies.digits import classifier, draw, flat, split, write_digits


def test_digits_from_a_plain_file_are_recognised(tmp_path):
    trained, _ = split(read(write_digits(tmp_path / "digits.npz")))
    run = train(trained.arrays, labels=trained.labels, key=jr.key(0), model="mlp", steps=900, progress=False)
    labels = np.arange(200) % 10
    assert classifier(trained).score(flat(draw(run, labels, jr.key(1))), labels) >= 0.9


def test_smoke():
    evidence = studies.run("digits", "smoke")
    assert [metric.name for metric in evidence.metrics][:2] == ["recognised", "recognised, guidance 2"]
    assert len(evidence.figures) == 2
