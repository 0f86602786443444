import itertools

import numpy as np
import pytest

from kinema.report import style

GROUNDS = {"light": (style.LIGHT, style.SERIES_LIGHT), "dark": (style.DARK, style.SERIES_DARK)}
both = pytest.mark.parametrize("mode", GROUNDS)

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OKLAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2 contrast ratio."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


@both
def test_text_and_lines_stand_out(mode):
    colours, series = GROUNDS[mode]
    for ground in ("paper", "panel", "sunk"):
        for name in ("ink", "soft", "accent"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("good", "bad", "none"):
        assert contrast(colours[name], colours[f"{name}-ground"]) >= 4.5, name
    for colour in series:
        assert contrast(colour, colours["paper"]) >= 3, colour


@both
@pytest.mark.parametrize("vision", VISION)
def test_series_stay_apart(mode, vision):
    seen = [np.clip(np.array(VISION[vision]) @ linear(colour), 0, 1) for colour in GROUNDS[mode][1]]
    lab = [np.array(OKLAB) @ np.cbrt(np.array(LMS) @ rgb) for rgb in seen]
    apart = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2))
    assert apart > 0.08  # .02 is just noticeable


def test_middle_series_can_be_seen_on_both_grounds():
    for colour in style.SERIES_MIDDLE:
        assert contrast(colour, style.LIGHT["paper"]) > 1.8 and contrast(colour, style.DARK["paper"]) > 3


def test_style_sheet_fetches_nothing():
    css = style.css()
    assert "url(" not in css and "@import" not in css and "</style" not in css
    assert css.count("{") == css.count("}")
