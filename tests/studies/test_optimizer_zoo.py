"""The study runs; every optimizer has the same trials around its own start; settings are chosen on tuning seeds."""

import numpy as np
import pytest

from kinema import studies
from kinema.studies import optimizer_zoo as zoo
from kinema.studies.optimizer_zoo_tasks import OPTIMIZERS, OURS, TASKS, Losses


def test_smoke():
    evidence = studies.run("optimizer-zoo", "smoke")
    worst, picked, near = (metric.measured.mean for metric in evidence.metrics)
    assert np.isfinite([worst, picked, near]).all() and worst > 0 and picked > 0 and 0 < near <= 1
    assert [metric.target for metric in evidence.metrics] == [1.25, None, None]
    assert [figure.name for figure in evidence.figures] == ["zoo"] and len(evidence.tables) == 4


def test_budgets_are_equal():
    decades = []
    for name, start in OPTIMIZERS.items():
        rates, decays = zoo.trials(name, 16)
        assert rates.shape == decays.shape == (16,) and len(set(rates)) == len(set(decays)) == 16
        decades.append(np.log10([rates / start.rate, decays / start.decay]))
    np.testing.assert_allclose(decades, np.broadcast_to(decades[0], (len(OPTIMIZERS), 2, 16)), atol=1e-5)
    assert (np.abs(decades[0]).max(1) <= (zoo.RATE_DECADES / 2, zoo.DECAY_DECADES / 2)).all()
    assert np.ptp(decades[0], axis=1) == pytest.approx((zoo.RATE_DECADES, zoo.DECAY_DECADES), rel=0.15)
    for size in zoo.SIZES.values():
        assert min(size.tuning) >= 1000 and set(size.optimizers) <= set(OPTIMIZERS) and set(size.tasks) <= set(TASKS)
    assert set(OURS) <= set(OPTIMIZERS)


def test_chosen_on_the_tuning_seeds_and_judged_on_the_others():
    validation = np.array([[3.0, 1.0, np.inf], [1.0, 2.0, 5.0], [1.0, 9.0, 1.05], [1.0, 9.0, 9.0]])
    test = np.arange(12.0).reshape(4, 3)
    one = zoo.Tuned.of(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0]), Losses(validation, test), 2)
    assert (one.rate, one.decay, one.validation) == (0.2, 2.0, 1.5)
    assert one.test.tolist() == [7.0, 10.0]
    assert one.near == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("name", ["digits", "diabetes", "Lorenz step"])
def test_tests_are_held_out(name):
    pool, test = TASKS[name].data()
    assert len(pool[0]) == len(pool[1]) > 2 * len(test[0]) > 200
    rows = {row.tobytes() for row in np.asarray(pool[0])}
    assert not any(row.tobytes() in rows for row in np.asarray(test[0]))
