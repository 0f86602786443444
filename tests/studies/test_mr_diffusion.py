"""The study runs, and its measures are right where they are known."""

import numpy as np
import pytest

from kinema import studies
from kinema.studies import mr_diffusion_exact as exact
from kinema.studies import mr_diffusion_pictures as pictures


def test_smoke():
    evidence = studies.run("mr-diffusion", "smoke")
    assert evidence.verdict in ("reproduced", "falls short")
    assert [picture.name for picture in evidence.figures] == ["calls", "restored"]
    assert all(np.isfinite(metric.values).all() for metric in evidence.metrics)


def test_quantiles_and_distance():
    truth = exact.quantiles(1001)
    assert np.allclose(exact.distribution(truth), (np.arange(1001) + 0.5) / 1001, atol=1e-6)
    mean = exact.WEIGHTS @ exact.MEANS
    assert abs(truth.mean() - mean) < 1e-3
    assert abs(exact.distance(truth[::-1] + 0.03, truth) - 0.03) < 1e-6


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(1)
    return [pictures.patches(600, 12, rng, held_out=held_out) for held_out in (False, True)]


def test_patches_are_degraded_as_told(parts):
    """Noise of the given deviation; one square of 4 x 4 lost and the rest kept; a blur that keeps constants."""
    seen = parts[0]
    gap = seen.degraded - seen.clean
    noise, lost = (gap[seen.task == i] for i in (0, 1))
    assert abs(noise.std() / pictures.NOISE - 1) < 4 / (2 * noise.size) ** 0.5
    holed = seen.degraded[seen.task == 1]
    assert ((holed == 0).sum((1, 2, 3)) >= 16).all() and ((lost != 0).sum((1, 2, 3)) <= 16).all()
    flat = np.full((1, 12, 12, 1), 0.3, np.float32)
    assert np.allclose(pictures.degrade(flat, np.array([2]), np.random.default_rng(0)), flat, atol=1e-6)
    blurred = seen.task == 2
    assert (seen.degraded[blurred].std((1, 2, 3)) <= seen.clean[blurred].std((1, 2, 3)) + 1e-3).all()


def test_what_judges_was_not_seen_in_training(parts):
    """No held-out patch, turned or not, is a patch of the part that trains."""
    trained = {patch.tobytes() for patch in parts[0].clean}
    for patch in parts[1].clean:
        assert patch.tobytes() not in trained and patch[:, ::-1].tobytes() not in trained
    assert [np.ptp(part.clean) > 0.5 for part in parts] == [True, True]


def test_quality_of_known_errors(parts):
    seen = parts[1]
    found = pictures.qualities(seen.clean + np.float32(0.1), seen, parts[0].clean)
    assert all(abs(quality.psnr - 20) < 1e-3 for quality in found.values())
    assert set(found) == set(pictures.TASKS)
