import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from kinema.errors import InputError
from kinema.tables import Spread
from kinema.verify.table import law_table


class Errors(eqx.Module):
    energy: object
    hits: object
    wall: object = None


def cells(table, row):
    return dict(zip(table.columns, table.rows[row]))


def test_one_seed_has_the_standard_error_over_trajectories():
    values = np.array([0.1, 0.3, 0.2, 0.4])
    table = law_table({"generated": Errors(jnp.array(values), jnp.array(3.0))})
    assert table.columns == ("motion", "energy", "hits")
    energy = cells(table, 0)["energy"]
    assert energy.mean == pytest.approx(0.25) and energy.spread == pytest.approx(values.std(ddof=1) / 2)
    assert cells(table, 0)["hits"] == Spread(3.0, None)
    assert "standard error over trajectories" in table.note


def test_seeds_have_the_deviation_of_their_means():
    seeds = [{"energy": [0.2, 0.4]}, {"energy": [0.5, 0.5]}, {"energy": 0.4}]
    table = law_table({"true": {"energy": 0.0}, "generated": seeds})
    assert cells(table, 1)["energy"].mean == pytest.approx(0.4)
    assert cells(table, 1)["energy"].spread == pytest.approx(0.1)
    assert "over 3 seeds, in rows with one seed" in table.note


def test_laws_that_cannot_be_judged_are_left_out_and_counted():
    table = law_table({"a": {"momentum": [np.nan, 0.2, np.nan], "wall": [np.nan]}, "b": {"momentum": 0.1}})
    assert cells(table, 0)["momentum"] == Spread(0.2, None)
    assert cells(table, 0)["wall"] is None and cells(table, 1)["wall"] is None
    assert "momentum: 2 trajectories without a value." in table.note


def test_columns_are_chosen_and_every_form_comes_out():
    table = law_table({"a": {"energy": 0.1, "wall": 0.2}}, columns=["wall", "energy"], title="T", note="N.")
    assert table.columns == ("motion", "wall", "energy") and table.note.startswith("N. ±")
    assert "| a | 0.2 | 0.1 |" in table.markdown() and "<td" in table.html() and table.rich().row_count == 1


def test_bad_rows_are_refused():
    with pytest.raises(InputError, match="rows is empty"):
        law_table({})
    with pytest.raises(InputError, match="'a' is an empty list"):
        law_table({"a": []})
    with pytest.raises(InputError, match="no row has the column 'speed'; there are energy"):
        law_table({"a": {"energy": 0.1}}, columns=["speed"])
    with pytest.raises(InputError, match="got float"):
        law_table({"a": 0.3})
