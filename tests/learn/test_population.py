"""A population axis: the same code with other rules, each against what it should be equal to."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from kinema.errors import InputError, NotFinite
from kinema.learn import (
    BackPropagation,
    Correspondence,
    Independent,
    Piece,
    RoundRule,
    average,
    begin,
    choose_members,
    count_members,
    fit,
    member_keys,
    replicate,
    run_rounds,
    stack,
    transplant,
    unstack,
)


class Tally(RoundRule):
    """Members count the rounds they were in; the server adds up what it is sent. A member named `sick` sends NaN."""

    sick: int = -1

    def local(self, server, member, data, key):
        message = jnp.where(data == self.sick, jnp.nan, data)
        return member + 1, message, {"loss": jnp.float32(data)}

    def serve(self, server, messages, delivered):
        return server + jnp.sum(messages)


NUMBERS = jnp.arange(5.0)


def tally(rule=None, data=NUMBERS, **options):
    options = {"rounds": 6, "key": jr.key(0), "chunk": 3} | options
    return run_rounds(rule or Tally(), jnp.zeros(()), jnp.zeros(len(data), int), data, **options)


def test_seeds_learn_as_alone():
    def loss(w, batch, key):
        noise = jr.normal(key, w.shape)
        return jnp.sum((w - 1 + 0.1 * noise) ** 2), {"first": w[0]}

    optimizer, keys = optax.adam(0.05), jr.split(jr.key(3), 3)
    starts = jax.vmap(lambda key: jr.normal(key, (4,)))(keys)
    alone = [
        fit(start, loss, optimizer=optimizer, steps=12, key=key, ema=0.9, chunk=12) for start, key in zip(starts, keys)
    ]
    members = jax.vmap(lambda start: begin(optimizer, start, 0.9))(starts)
    rule = Independent(BackPropagation(loss), optimizer, steps=4, ema=0.9)
    run = run_rounds(rule, (), members, rounds=3, key=jr.key(0), keys=keys)
    for one, member in zip(alone, unstack(run.members)):
        np.testing.assert_allclose(member.params, one.model, rtol=1e-6)
        np.testing.assert_allclose(member.ema, one.ema, rtol=1e-6)
        assert member.step == 12
    np.testing.assert_allclose(run.history.loss[-1], [one.history.loss[-1] for one in alone], rtol=1e-5)


def test_members_are_transplanted_and_go_on_as_alone():
    """Every member is scaled by a factor of its own in mid-run; moments follow, and each goes on as `fit` would."""

    def loss(w, batch, key):
        return jnp.sum((w - 1) ** 2), {}

    optimizer, keys, options = optax.adam(0.05), jr.split(jr.key(3), 2), {"chunk": 5, "key": jr.key(0)}
    starts = jax.vmap(lambda key: begin(optimizer, jr.normal(key, (3,)), None))(keys)
    rule = Independent(BackPropagation(loss), optimizer, steps=1)
    states = unstack(run_rounds(rule, (), starts, rounds=5, keys=keys, **options).members)
    scaled = [Correspondence({".": [Piece(".", factor=factor)]}) for factor in (2.0, 0.5)]
    moved = [transplant(s, f * s.params, where, optimizer) for s, f, where in zip(states, (2.0, 0.5), scaled)]
    ends = run_rounds(rule, (), stack(moved), rounds=5, keys=keys, **options).members.params
    alone = {"optimizer": optimizer, "steps": 10, "ema": None, "progress": False}
    for end, state, key in zip(ends, moved, keys):
        one = fit(state.params, loss, state=state, key=key, **alone)
        np.testing.assert_allclose(end, one.model, rtol=1e-6)
    assert moved[0].step == 5 and not np.allclose(ends[0], ends[1], atol=1e-3)


def test_some_take_part():
    run = tally(some=2, rounds=30)
    chosen = run.history.metrics["chosen"]
    assert chosen.shape == (30, 2) and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(run.members, np.bincount(chosen.ravel(), minlength=5))
    assert run.server == chosen.sum() and run.round == 30
    assert choose_members(jr.key(1), 0, 5, 5).tolist() == [0, 1, 2, 3, 4]


def test_who_is_drawn_is_even():
    drawn = jax.vmap(lambda round: choose_members(jr.key(2), round, 5, 2))(jnp.arange(4000))
    share = np.bincount(np.asarray(drawn).ravel(), minlength=5) / 4000
    assert np.abs(share - 0.4).max() < 4 * (0.4 * 0.6 / 4000) ** 0.5


def test_replies_that_get_lost():
    run = tally(dropout=0.5, rounds=60)
    delivered = run.history.metrics["delivered"]
    assert abs(delivered.mean() - 0.5) < 4 * (0.25 / 300) ** 0.5
    assert run.server == (delivered * np.arange(5)).sum()  # and zero for those that did not come
    np.testing.assert_array_equal(run.members, delivered.sum(0))
    assert run.lost == {}


def test_a_sick_member_is_dropped_and_named():
    with pytest.warns(UserWarning, match=r"not finite were dropped, of member 3 \(6 times\)"):
        run = tally(Tally(3))
    assert run.lost == {3: 6} and run.server == 6 * (10 - 3)
    assert run.members.tolist() == [6, 6, 6, 0, 6]
    with pytest.raises(NotFinite, match="no member gave a finite reply in round 0"):
        tally(Tally(0), NUMBERS[:1])


def test_keys_of_members_do_not_depend_on_their_number():
    few, many = member_keys(jr.key(0), 2), member_keys(jr.key(0), 7)
    assert (jr.key_data(few) == jr.key_data(many[:2])).all()


def test_stacked_and_back():
    members = [{"w": jnp.full(2, i)} for i in range(3)]
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), unstack(stack(members)), members))
    assert replicate(members[1], 4)["w"].tolist() == [[1, 1]] * 4
    assert average({"a": jnp.array([1.0, 5.0, 9.0])}, jnp.array([True, True, False]))["a"] == 3
    with pytest.raises(InputError, match="leaf w of member 1 has shape"):
        stack([{"w": jnp.ones(2)}, {"w": jnp.ones(3)}])
    with pytest.raises(InputError, match="member 1 has other leaves"):
        stack([{"w": jnp.ones(2)}, {"v": jnp.ones(2)}])
    with pytest.raises(InputError, match="members is empty"):
        stack([])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}, "a has 2, b 3"),
        ({"a": jnp.ones(2), "b": jnp.ones(())}, "leaf b is a single number"),
        ({}, "hold no arrays"),
        ({"a": jnp.ones((0, 2))}, "length 0"),
    ],
)
def test_unequal_axes_are_refused_by_name(tree, message):
    with pytest.raises(InputError, match=message):
        count_members(tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"some": 6}, r"some must be in 1\.\.5"),
        ({"some": 0}, "some must be a whole number"),
        ({"rounds": 0}, "rounds must be"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"resume": True}, "needs the folder"),
        ({"keys": jr.split(jr.key(0), 4)}, "one for each of 5 members, got 4"),
        ({"data": jnp.zeros(4)}, "same leading axis"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        run_rounds(Tally(), 0.0, jnp.zeros(5), **({"data": NUMBERS, "rounds": 1, "key": jr.key(0)} | options))


def test_another_run_is_not_resumed(tmp_path):
    whole = tally(rounds=6)
    tally(rounds=3, folder=tmp_path)
    with pytest.raises(InputError, match="already holds a run"):
        tally(rounds=6, folder=tmp_path)
    with pytest.raises(InputError, match="rule/sick was -1, is 2"):
        tally(Tally(2), rounds=6, folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="the data has other values"):
        tally(data=NUMBERS + 1, rounds=6, folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="at round 3 already"):
        tally(rounds=2, folder=tmp_path, resume=True)
    run = tally(rounds=6, folder=tmp_path, resume=True)
    assert run.server == whole.server and (run.history.loss == whole.history.loss).all()


def test_an_aux_without_a_loss_is_refused():
    class Silent(Tally):
        def local(self, server, member, data, key):
            return member, data, {"chosen": data}

    with pytest.raises(InputError, match="must hold 'loss'"):
        tally(Silent())


SCRIPT = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore", message=".*os.fork")
import jax, jax.numpy as jnp, jax.random as jr, numpy as np
from kinema.learn.federated import scaffold_m, simulate

folder = Path(sys.argv[1])
jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_disable_most_optimizations", True)
ROUNDS = 100
rows = {"x": np.random.default_rng(0).normal(size=(6, 9, 3)).astype(np.float32)}
loss = lambda w, batch, key: (jnp.mean((batch["x"] @ w - 1) ** 2) + 0.1 * w.sum() * jr.normal(key), {})

def child(name):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            simulate(scaffold_m(), loss, jnp.zeros(3), rows, rounds=ROUNDS, local_steps=2, local_lr=0.02, batch_size=4,
                     clients_per_round=3, dropout=0.2, key=jr.key(1), chunk=5, checkpoint_every=5, folder=folder / name,
                     resume=True)
            code = 0
        finally:
            os._exit(code)
    return pid

def newest(name):
    return max((int(p.name[5:]) for p in (folder / name / "checkpoints").glob("step-*")), default=-1)

def finish(name):
    return os.waitstatus_to_exitcode(os.waitpid(child(name), 0)[1])

report, dice, reached = {"whole": finish("whole"), "kills": []}, random.Random(os.getpid()), 0
while len(report["kills"]) < 2 and reached < 0.9 * ROUNDS:
    pid, end = child("killed"), time.monotonic() + 60
    while newest("killed") <= reached and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    reached = newest("killed")
    report["kills"].append(reached)
report["finished"] = finish("killed")
print(json.dumps(report))
"""


def test_rounds_that_were_killed_end_with_the_same_bytes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["whole"] == seen["finished"] == 0 and 0 < seen["kills"][0] < 100, seen
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert any(re.search(r"step-00000100.state", name) for name in whole)
    assert whole == killed


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
