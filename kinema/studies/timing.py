"""How long a call takes, for studies that claim so."""

import time
from collections.abc import Callable

import jax


def least_seconds(call: Callable, times: int) -> float:
    """The least of several calls, after one that compiles."""
    jax.block_until_ready(call())
    found = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - start)
    return min(found)
