import json
from dataclasses import replace

import numpy as np
import pytest
from plain_loop import run

from kinema.errors import InputError
from kinema.generate import solver
from kinema.generate.path import VP, Linear
from kinema.generate.solver import grids
from kinema.generate.solver.plan import COLUMNS, HERE, Draft, OnDemand, Plan

PATH = VP()
GRID = grids.karras(PATH, 6)
PLANS = {
    "unipc": solver.unipc(PATH, GRID),
    "churn": solver.churn(PATH, GRID, amount=1.0),
    "adams": solver.adams(PATH, GRID, start="heun"),
    "corrected": solver.predictor_corrector(PATH, solver.euler(PATH, GRID), rule="adaptive"),
}


def same(one: Plan, two: Plan) -> bool:
    columns = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in COLUMNS)
    grid = all(np.array_equal(getattr(one.grid, name), getattr(two.grid, name)) for name in ("times", "a", "b", "s"))
    head = (one.name, one.extrapolates, one.notes, one.grid.clean) == (
        two.name,
        two.extrapolates,
        two.notes,
        two.grid.clean,
    )
    depth = len(one.fallback) == len(two.fallback)
    return columns and grid and head and depth and all(map(same, one.fallback, two.fallback))


@pytest.mark.parametrize("name", PLANS)
def test_plans_go_through_text_unchanged(name):
    assert same(Plan.from_json(PLANS[name].to_json()), PLANS[name])


def test_plans_of_lower_order_are_built_when_they_are_asked_for():
    built: list[int] = []
    lower = OnDemand(lambda age: built.append(age) or age, 3)
    assert len(lower) == 3 and not built
    assert lower[1] == lower[-2] == 1 and built == [1]
    assert list(lower) == [0, 1, 2] and lower[:2] == (0, 1) and sorted(built) == [0, 1, 2]
    with pytest.raises(IndexError):
        lower[3]


def test_coefficients_may_have_the_shape_of_a_sample():
    draft = Draft("shaped", GRID, extrapolates="data", history=2)
    weight = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    for i in range(GRID.steps):
        draft.add(i + 1, 0.5, [weight, -0.1], A=weight, d=(weight, 0.0))
    plan = draft.plan()
    assert plan.M.shape == (6, 2, 4, 2, 3) and plan.d.shape == (6, 2, 2, 3) and plan.A.shape == (6, 2, 3)
    assert plan.history == 2 and same(Plan.from_json(plan.to_json()), plan)
    x = run(plan, lambda t, x: np.cos(x), np.ones((2, 3)))
    for index in np.ndindex(2, 3):
        alone = Draft("one", GRID, extrapolates="data", history=2)
        for i in range(GRID.steps):
            alone.add(i + 1, 0.5, [weight[index], -0.1], A=weight[index], d=(weight[index], 0.0))
        assert np.isclose(run(alone.plan(), lambda t, x: np.cos(x), np.ones(1))[0], x[index])


def test_counts_and_kinds():
    assert PLANS["unipc"].nfe == 6 and PLANS["unipc"].history == 4 and not PLANS["unipc"].stochastic
    assert PLANS["churn"].nfe == 11 and PLANS["churn"].stochastic
    assert PLANS["adams"].nfe == 6 and PLANS["adams"].whole.all()
    assert PLANS["corrected"].nfe == 12 and PLANS["corrected"].stochastic


def test_rows_begin_where_the_last_whole_one_ended():
    for plan in PLANS.values():
        assert plan.after[plan.whole].tolist() == [1, 2, 3, 4, 5, 6]
        assert plan.t[0] == pytest.approx(GRID.times[0]) or plan.name == "churn"


def test_a_draft_keeps_anchors():
    draft = Draft("heun", GRID, extrapolates="noise", history=2)
    draft.add(1, 0.5, [0.25], keep=HERE, whole=False)
    draft.add(1, 0.0, [0.1, 0.2], anchor=2.0, t=GRID.times[1])
    plan = draft.plan()
    assert plan.M.tolist() == [[[0.5, 0, 0.25, 0], [1, 0, 0, 0]], [[0, 2, 0.1, 0.2], [0, 2, 0.1, 0.2]]]
    assert plan.t.tolist() == [GRID.times[0], GRID.times[1]]


def test_a_coefficient_that_is_not_finite_is_named():
    M = PLANS["unipc"].M.copy()
    M[3, 1, 2] = np.nan
    with pytest.raises(InputError, match=r"unipc-3: coefficient M\[1, 2\] is not finite in row 3"):
        replace(PLANS["unipc"], M=M)
    flow = grids.uniform_time(Linear(), 4)
    with pytest.raises(InputError, match=r"coefficient c is not finite in row 2"):
        replace(solver.euler(Linear(), flow), c=np.array([0, 0, np.inf, 0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extrapolates": "score"}, "extrapolates must be one of"),
        ({"c": np.zeros(5)}, r"column c has shape \(5,\) in a plan of 6 rows"),
        ({"M": np.zeros((6, 4))}, "column M has shape"),
        ({"n": np.zeros((6, 2))}, "column n has shape"),
        ({"after": np.arange(2, 8)}, r"after must be in 0 .. 6"),
        ({"fallback": (PLANS["churn"],)}, "each fallback must have the rows"),
    ],
)
def test_columns_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(PLANS["unipc"], **change)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text[:-5],
        lambda text: json.dumps(json.loads(text) | {"surprise": 1}),
        lambda text: json.dumps(json.loads(text) | {"M": [[1, 2], [3]]}),
        lambda text: json.dumps(json.loads(text) | {"t": "soon"}),
    ],
)
def test_text_that_is_not_a_plan_is_refused(damage):
    with pytest.raises(InputError, match="text is not a plan"):
        Plan.from_json(damage(PLANS["unipc"].to_json()))
