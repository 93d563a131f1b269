"""The examples in the docstrings of the study say what happens."""

import doctest
import importlib
import pkgutil

import pytest

from topoprune import study


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(study.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"topoprune.study.{name}")).failed == 0
