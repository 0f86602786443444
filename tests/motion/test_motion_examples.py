"""The examples in docstrings say the truth."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["brownian", "integrate", "invariants", "law", "readers", "reversible", "trajectory"])
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"kinema.motion.{name}"))
    assert result.attempted and not result.failed
