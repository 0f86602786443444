"""The examples in docstrings of tables, reports and studies are true."""

import doctest
import importlib

import pytest

MODULES = [
    "kinema.report.charts",
    "kinema.report.learning",
    "kinema.report.page",
    "kinema.studies.evidence",
    "kinema.tables",
    "kinema.verify.table",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
