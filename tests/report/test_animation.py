import base64
import json

import numpy as np
import pytest

from kinema.errors import InputError
from kinema.motion import Trajectory
from kinema.report.animation import animate

X = np.random.default_rng(0).uniform(0.1, 0.9, (8, 5, 2, 2))


def unpack(packed, range_):
    fractions = np.frombuffer(base64.b64decode(packed), "<u2").astype(float)
    return np.where(fractions == 65535, np.nan, range_[0] + (range_[1] - range_[0]) * fractions / 65534)


def test_positions_survive_packing():
    x = X.copy()
    x[1, 2, 0] = np.nan
    data = animate({"a": x, "b": X + 3}, alt="balls", samples=6, ghosts={"b": X}).data
    for panel, truth in zip(data["panels"], (x, X + 3)):
        got = unpack(panel["x"], data["range"]).reshape(6, 5, 2, 2)
        np.testing.assert_allclose(got, truth[:6], atol=4 / 65000)
    np.testing.assert_allclose(unpack(data["panels"][1]["ghost"], data["range"]).reshape(6, 5, 2, 2), X[:6], atol=1e-4)
    assert "ghost" not in data["panels"][0]


def test_series_of_a_conserved_number_is_flat():
    noisy = 1 + 1e-7 * np.random.default_rng(0).normal(size=(8, 5))
    data = animate({"a": X}, alt="balls", series={"a": {"energy": noisy, "speed": np.arange(40.0).reshape(8, 5)}}).data
    energy, speed = data["panels"][0]["series"]
    assert energy["range"] == pytest.approx([0.95, 1.05], abs=1e-6)
    np.testing.assert_allclose(unpack(speed["values"], speed["range"])[:3], [0, 1, 2], atol=1e-3)


def trajectory(world, **parameters):
    radius = {"radius": np.full((8, 2), 0.1)}
    return Trajectory(0.1 * np.arange(5), {"x": X, "v": X}, radius, {"world": world, "parameters": parameters})


def test_a_trajectory_brings_its_radius_walls_and_time():
    data = animate({"true": trajectory("collisions", size=[1.5, 1.0], mass=None)}, alt="balls").data
    assert data["box"] == [1.5, 1] and data["dt"] == pytest.approx(0.1) and data["samples"] == 6
    np.testing.assert_allclose(unpack(data["radius"]["values"], data["radius"]["range"]), 0.1, atol=1e-6)


def test_a_world_without_walls_or_unknown_has_no_box():
    for meta in [("parabola", {}), ("elsewhere", {}), ("collisions", {"balls": -1})]:
        assert animate({"a": trajectory(meta[0], **meta[1])}, alt="balls").data["box"] is None


def test_what_strays_is_shown_within_reason():
    inside = animate({"a": X}, alt="balls", radius=0.05, box=(1, 1)).data["view"]
    far = animate({"a": X * 100}, alt="balls", radius=0.05, box=(1, 1)).data["view"]
    assert inside == pytest.approx([-0.03, -0.03, 1.03, 1.03]) and far == pytest.approx([-0.25, -0.25, 1.25, 1.25])


def test_words_cannot_leave_their_place():
    evil = "</script><script>alert(1)</script>\"'<b>"
    html = animate(
        {evil: X}, alt=evil, caption=evil, remarks={evil: evil}, series={evil: {evil: np.ones((8, 5))}}
    ).html()
    assert html.count("<script") == html.count("</script>") == 1 and "<b>" not in html
    data = html[html.index('json">') + 6 : html.index("</script>")]
    assert json.loads(data)["panels"][0]["title"] == evil


def test_eight_samples_take_few_bytes():
    x = np.random.default_rng(0).uniform(size=(8, 16, 2, 2))
    assert len(animate(dict.fromkeys("abc", x), alt="balls", samples=8).html()) < 12_000


@pytest.mark.parametrize(
    ("panels", "options", "message"),
    [
        ({}, {}, "panels is empty"),
        ({"a": X}, {"alt": " "}, "alt is empty"),
        ({"a": X[..., :1]}, {}, r"got \(8, 5, 2, 1\)"),
        ({"a": X, "b": X[:, :3]}, {}, r"'b' has \(6, 3, 2, 2\), the first \(6, 5, 2, 2\)"),
        ({"a": X * np.inf}, {}, "infinite"),
        ({"a": X}, {"ghosts": {"b": X}}, "ghosts names"),
        ({"a": X}, {"radius": -1.0}, "radius must be positive"),
        ({"a": X}, {"radius": [1.0, 1.0, 1.0]}, "radius must be"),
        ({"a": X}, {"series": {"a": {"e": np.ones(4)}}}, r"series 'e'"),
    ],
)
def test_bad_motions_are_refused(panels, options, message):
    with pytest.raises(InputError, match=message):
        animate(panels, **({"alt": "balls"} | options))
