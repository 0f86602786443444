import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from matplotlib.figure import Figure

from kinema.errors import InputError
from kinema.report.charts import house
from kinema.report.picture import Picture
from kinema.report.style import SERIES_DARK, SERIES_LIGHT


def line():
    with house() as (figure, axes):
        axes.plot([1, 2, 3], [0.12345, 2, 1], label="a < b")
        axes.set(title="target 0.000123456 units", xlabel="x")
    return figure


def noise(size):
    figure = Figure(figsize=(4, 4))
    figure.subplots().imshow(np.random.default_rng(0).normal(size=(size, size)), interpolation="nearest")
    return figure


def test_small_figures_become_svg_with_text_and_dark_colours():
    picture = Picture("line", line(), alt="a line").encoded()
    svg = picture.image.decode()
    xml.fromstring(svg)
    assert picture.kind == "svg" and len(svg) < 20_000
    assert "target 0.000123456 units" in svg and "DejaVu" not in svg
    assert f"stroke: {SERIES_LIGHT[0]}" in svg
    assert f'[style*="stroke: {SERIES_LIGHT[0]}"]{{stroke:{SERIES_DARK[0]}!important}}' in svg
    assert picture.width == pytest.approx(4.8 * 96, rel=0.01)


def test_every_ink_of_a_house_figure_has_a_dark_one():
    svg = Picture("line", line(), alt="a line").encoded().image.decode()
    body = svg[svg.index("</style>") :]
    used = set(re.findall(r"(?:fill|stroke): (#\w+)", body))
    repainted = set(re.findall(r'style\*="\w+: (#\w+)"', svg))
    assert used and used <= repainted


def test_same_figure_same_bytes():
    assert Picture("a", line(), alt="x").encoded().image == Picture("a", line(), alt="x").encoded().image


def test_a_figure_with_its_own_ground_keeps_its_colours():
    figure = Figure(figsize=(2, 2))
    figure.subplots().plot([0, 1])
    assert b"prefers-color-scheme" not in Picture("a", figure, alt="x").encoded().image


def test_large_figures_become_png_that_fits():
    picture = Picture("noise", noise(500), alt="noise").encoded(150_000)
    assert picture.kind == "png" and len(picture.image) <= 150_000 and picture.width > 100
    with pytest.raises(InputError, match="does not fit 2000 bytes"):
        Picture("noise", noise(500), alt="noise").encoded(2000)


def test_bytes_pass_through_and_strangers_are_refused():
    svg = "<!-- made by hand -->\n<svg xmlns='http://www.w3.org/2000/svg' width='10'/>"
    assert Picture("a", svg, alt="x").encoded().image == svg.encode()
    with pytest.raises(InputError, match="at most 10"):
        Picture("a", svg, alt="x").encoded(10)
    with pytest.raises(InputError, match="must be a Matplotlib figure, SVG or PNG"):
        Picture("a", b"GIF89a", alt="x")
    with pytest.raises(InputError, match="needs alt text"):
        Picture("a", svg, alt=" ")
