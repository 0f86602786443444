import numpy as np
import pytest
from numpy.random import default_rng

from kinema.errors import InputError
from kinema.report import charts
from kinema.report.picture import Picture

NFE = np.array([4, 6, 8, 12, 16, 32])
SEEDS = 1.0 / NFE + 0.01 * default_rng(0).random((3, 6))


def drawn(figure):
    picture = Picture("chart", figure, alt="a chart").encoded()
    assert picture.kind == "svg"
    return picture.image.decode()


def test_error_against_nfe_is_logarithmic_with_a_band_over_seeds():
    figure = charts.error_against_nfe({"Euler": (NFE, SEEDS), "Heun": (NFE, 1.0 / NFE**2)}, target=0.02)
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), SEEDS.mean(0))
    (band,) = axes.collections
    height = band.get_paths()[0].vertices[:, 1]
    assert height.min() == pytest.approx(SEEDS.min()) and height.max() == pytest.approx(SEEDS.max())
    svg = drawn(figure)
    assert all(word in svg for word in (">Euler<", ">target 0.02<", ">12<", ">network evaluations<"))


def test_errors_of_zero_need_a_floor():
    with pytest.raises(InputError, match="needs a positive `floor`"):
        charts.error_against_nfe({"exact": (NFE, 0.0 * NFE)})
    (axes,) = charts.error_against_nfe({"exact": (NFE, 0.0 * NFE)}, floor=1e-3).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1e-3)


def test_training_curve_smooths_without_shifting():
    values = np.exp(-np.linspace(0, 3, 5000)) * np.exp(0.1 * default_rng(1).normal(size=5000))
    (axes,) = charts.training_curve({"net": (np.arange(5000), values)}, smooth=0.02).axes
    raw, mean = axes.lines
    assert raw.get_xdata().size <= charts.MANY_POINTS
    np.testing.assert_allclose(mean.get_ydata(), np.exp(-3 * mean.get_xdata() / 5000), rtol=0.06)
    straight = np.linspace(2, 1, 999)
    (axes,) = charts.training_curve({"line": (np.arange(999), straight)}, smooth=0.05).axes
    middle = slice(50, -50)
    np.testing.assert_allclose(
        axes.lines[1].get_ydata()[middle], np.interp(axes.lines[1].get_xdata(), np.arange(999), straight)[middle], 1e-3
    )


def test_losses_below_zero_are_shown_on_a_plain_axis():
    (axes,) = charts.training_curve({"log density": (np.arange(9), np.arange(9.0) - 4)}).axes
    assert axes.get_yscale() == "linear"


def test_law_bars_show_means_whiskers_and_what_is_too_low_to_see():
    rows = {
        "true": {"energy": 0.9},
        "generated": {"energy": [0.2, 0.4], "wall": 0.1},
        "steered": {"energy": 8e-7, "wall": 0},
    }
    (axes,) = charts.law_bars(rows, reference="true").axes
    assert sorted(bar.get_height() for bar in axes.patches) == pytest.approx([0, 8e-7, 0.1, 0.3])
    assert {text.get_text() for text in axes.texts} == {"8e-7", "0"}
    with pytest.raises(InputError, match="reference must be one of"):
        charts.law_bars(rows, reference="truth")


def test_scatter_rows_share_axes_and_stay_small():
    clouds = {name: default_rng(i).normal(size=(5000, 2)) for i, name in enumerate(("data", "Euler", "ours"))}
    figure = charts.scatter_rows({"8 evaluations": clouds, "16 evaluations": clouds})
    assert len(figure.axes) == 6 and len({axes.get_xlim() for axes in figure.axes}) == 1
    few = drawn(charts.scatter_rows({"data": clouds["data"][:50]}))
    assert "<image" not in few
    assert len(drawn(charts.scatter_rows(clouds))) < 100_000


@pytest.mark.parametrize("chart", [charts.error_against_nfe, charts.training_curve])
def test_bad_series_are_refused(chart):
    with pytest.raises(InputError, match="empty"):
        chart({})
    with pytest.raises(InputError, match=r"'a' needs shapes .* got \(6,\) and \(1, 5\)"):
        chart({"a": (NFE, np.ones(5))})
    with pytest.raises(InputError, match="not finite"):
        chart({"a": (NFE, np.full(6, np.nan))})


def test_bad_clouds_are_refused():
    with pytest.raises(InputError, match=r"shape \(n, 2\), got \(5, 3\)"):
        charts.scatter_rows({"a": np.ones((5, 3))})
