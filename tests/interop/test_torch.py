"""A PyTorch denoiser inside compiled JAX: values, batches, gradients, whole solvers."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kinema import generate
from kinema.errors import InputError
from kinema.generate import solver
from kinema.generate.solver import grids
from kinema.interop import from_torch, table_index

torch.set_num_threads(1)  # small tensors: more threads only wait for each other


class Denoiser(torch.nn.Module):
    """A small module that counts its calls and the rows that they carry."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        self.seen = []

    def forward(self, x, time, cond=None):
        self.seen.append(len(x))
        out = self.layers(torch.cat([x, 0.1 * time[:, None].to(x.dtype)], 1))
        return out if cond is None else out + cond["push"] * cond["kind"][:, None]


@pytest.fixture
def denoiser():
    return Denoiser()


def twin(denoiser):
    """The same function in JAX."""
    (A, a), (B, b) = (
        (jnp.asarray(layer.weight.detach().numpy()), jnp.asarray(layer.bias.detach().numpy()))
        for layer in (denoiser.layers[0], denoiser.layers[2])
    )

    def net(x, signal, cond=None):
        out = B @ jnp.tanh(A @ jnp.concatenate([x, jnp.asarray(0.1 * signal)[None]]) + a) + b
        return out if cond is None else out + cond["push"] * cond["kind"]

    return net


def test_value_and_batch(denoiser, key):
    net, truth = from_torch(denoiser), twin(denoiser)
    x = jr.normal(key, (5, 3))
    np.testing.assert_allclose(net(x[0], jnp.float32(0.3)), truth(x[0], 0.3), rtol=1e-5, atol=1e-6)
    denoiser.seen.clear()
    batched = jax.jit(jax.vmap(net, in_axes=(0, None)))(x, jnp.float32(0.3))
    assert denoiser.seen == [5]
    np.testing.assert_allclose(batched, jax.vmap(truth, (0, None))(x, 0.3), rtol=1e-5, atol=1e-6)


def test_nested_batches_of_times_and_conditions(denoiser, key):
    net, truth = from_torch(denoiser), twin(denoiser)
    x, times = jr.normal(key, (4, 3)), jnp.linspace(-1, 1, 3)
    cond = {"push": jnp.arange(12.0).reshape(4, 3), "kind": jnp.arange(4)}

    def both(net):
        return jax.vmap(lambda t: jax.vmap(lambda x, c: net(x, t, c))(x, cond))(times)

    denoiser.seen.clear()
    np.testing.assert_allclose(jax.jit(lambda: both(net))(), both(truth), rtol=1e-5, atol=1e-5)
    assert denoiser.seen == [12]


def test_reverse_gradients_are_torchs(denoiser, key):
    net, truth = from_torch(denoiser), twin(denoiser)
    x = jr.normal(key, (4, 3))
    cond = {"push": jnp.ones(3), "kind": jnp.asarray(2)}

    def total(net, x, t, push):
        return (jax.vmap(lambda x: net(x, t, cond | {"push": push}))(x) ** 2).sum()

    arguments = (x, jnp.float32(0.4), jnp.ones(3))
    ours, true = (jax.grad(lambda *a, net=net: total(net, *a), (0, 1, 2))(*arguments) for net in (net, truth))
    for own, other in zip(ours, true):
        np.testing.assert_allclose(own, other, rtol=2e-5, atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: net(x, jnp.float32(0.4)), (x[0],), (x[0],))


def test_a_denoiser_that_ignores_its_input_has_gradient_zero(key):
    net = from_torch(lambda x, time: torch.ones_like(x))
    assert not jax.grad(lambda x: net(x, jnp.float32(0.0)).sum())(jnp.ones(3)).any()


@pytest.mark.parametrize("name", ["dpmpp-2m", "heun", "ancestral"])
def test_solvers_run_on_it(denoiser, key, name):
    path = generate.VP()
    plan = (
        solver.dpmpp(path, grids.log_snr(path, 6, low=-5.0, high=4.0))
        if name == "dpmpp-2m"
        else solver.make(name, path, 6)
    )
    gens = [generate.Generator(path, net, predicts="velocity") for net in (from_torch(denoiser), twin(denoiser))]
    denoiser.seen.clear()
    ours, truth = (generate.sample(gen, plan, 4, key=key, shape=(3,)) for gen in gens)
    np.testing.assert_allclose(ours.x, truth.x, rtol=1e-4, atol=1e-4)
    assert denoiser.seen == [4] * ours.nfe


def test_adaptive_solve_runs_on_it(denoiser, key):
    path = generate.VP()
    gens = [generate.Generator(path, net, predicts="noise") for net in (from_torch(denoiser), twin(denoiser))]
    ours, truth = (generate.solve_adaptive(gen, jnp.ones(3), rtol=1e-4, atol=1e-4).x for gen in gens)
    np.testing.assert_allclose(ours, truth, rtol=1e-2, atol=1e-2)


def test_table_index_inverts_the_table(x64):
    table = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    index = table_index(table)
    k = np.array([0, 17, 500, 999])
    np.testing.assert_allclose(index(jnp.asarray(0.5 * np.log(table[k] / (1 - table[k])))), k, atol=1e-6)
    with pytest.raises(InputError, match="alphas_cumprod must be"):
        table_index(table[::-1])


def test_bad_denoisers_are_refused(key):
    with pytest.raises(InputError, match="denoiser must be"):
        from_torch(3)
    x = jnp.ones((2, 3))

    def run(denoiser, x=x):
        jax.block_until_ready(jax.vmap(from_torch(denoiser), (0, None))(x, jnp.float32(0.0)))

    with pytest.raises(Exception, match=r"of the shape of x, \(2, 3\), got \(2, 1\)"):
        run(lambda x, time: x[:, :1])
    with pytest.raises(Exception, match="writes into its arguments"):
        run(lambda x, time: x.mul_(2))
    with pytest.raises(InputError, match="got bfloat16"):
        run(lambda x, time: x, x.astype(jnp.bfloat16))
