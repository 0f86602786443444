"""Programs compiled fast rather than to run fast: most of a smoke run is compilation."""

from contextlib import contextmanager

import jax


@contextmanager
def unoptimised():
    """What is compiled inside is left as it is by LLVM, which changes no more than its speed and its rounding."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
