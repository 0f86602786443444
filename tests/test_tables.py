import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from kinema.errors import InputError
from kinema.tables import Spread, Table, float_to_json, number, text

ROWS = [("true", 0.0, 3), ("generated", Spread(0.3412, 0.0123), None), ("a|b *c*", float("nan"), 4)]
TABLE = Table("Law <errors>", ("motion", "replay", "hits"), ROWS, "± over [3] seeds.")


def test_spread_is_the_sample_standard_deviation():
    values = [0.31, 0.35, 0.42, 0.29]
    assert Spread.of(values).mean == pytest.approx(np.mean(values))
    assert Spread.of(values).spread == pytest.approx(np.std(values, ddof=1))
    assert Spread.of([0.1, 0.1, 0.1]) == Spread(0.1, 0.0)
    assert Spread.of([2.5]) == Spread(2.5, None)
    assert math.isnan(Spread.of([]).mean) and math.isnan(Spread.of([1.0, math.nan]).mean)


@pytest.mark.parametrize(
    ("mean", "spread", "shown"),
    [
        (0.3412, 0.0123, "0.341 ± 0.012"),
        (0.3412, 0.0423, "0.34 ± 0.04"),
        (0.0720, 0.0020, "0.072 ± 0.002"),
        (0.0061, 0.0033, "0.0061 ± 0.0033"),
        (123.4, 5.6, "123 ± 6"),
        (2e-4, 3.1e-5, "(2.0 ± 0.3)e-4"),
        (-1.5e8, 2e7, "(-1.5 ± 0.2)e8"),
        (0.0, 0.0, "0"),
        (1.25, None, "1.25"),
        (0.942, 1e-9, "0.942 ± 1e-9"),
    ],
)
def test_spread_shows_the_digits_that_mean_something(mean, spread, shown):
    assert str(Spread(mean, spread)) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (7, "7"), (0.35, "0.35"), (96.04, "96"), (12345.6, "12346"), (-8e-7, "-8e-7"), (math.inf, "inf")],
)
def test_numbers_have_three_digits(value, shown):
    assert number(value) == shown


def test_cells_are_words():
    assert [text(cell) for cell in (None, True, "a", 2, 0.5)] == ["–", "yes", "a", "2", "0.5"]


def test_markdown_cannot_be_broken_out_of():
    lines = TABLE.markdown().splitlines()
    assert lines[1] == "| :-- | --: | --: |"
    assert lines[4] == "| a\\|b \\*c\\* | nan | 4 |"
    evil = Table("", ("x",), [("<img src=x>\n| new row",)]).markdown()
    assert "<" not in evil and len(evil.splitlines()) == 3


def test_html_is_escaped_and_marks_rows_columns_and_numbers():
    html = Table("<b>", ("<i>",), [("<script>",)]).html()
    assert html.count("&lt;") == 3 and "<script" not in html
    assert '<th scope="col" class="number">replay</th>' in TABLE.html()
    assert (
        '<th scope="row">generated</th><td class="number">0.341 ± 0.012</td><td class="number">–</td>' in TABLE.html()
    )


def test_rich_shows_brackets_as_they_are():
    out = io.StringIO()
    Console(file=out, width=80).print(TABLE.rich())
    assert "over [3] seeds" in out.getvalue() and "0.341 ± 0.012" in out.getvalue()


def test_json_round_trip():
    packed = json.loads(json.dumps(TABLE.to_json(), allow_nan=False))
    back = Table.from_json(packed)
    assert back.markdown() == TABLE.markdown() and back.title == TABLE.title
    assert float(float_to_json(-math.inf)) == -math.inf


def test_array_scalars_become_numbers():
    assert Table("", ("x", "y"), [(np.float32(0.5), np.int64(3))]).rows == ((0.5, 3),)


def test_ragged_rows_are_refused():
    with pytest.raises(InputError, match="row 1 has 1 cells, there are 2"):
        Table("t", ("a", "b"), [(1, 2), (1,)])
    with pytest.raises(InputError, match="no columns"):
        Table("t", (), [])
