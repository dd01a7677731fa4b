"""The examples in the docstrings of the records that users write themselves run and print what they say."""

import doctest
import sys

import pytest

from medvfm_jax.adapters import Adapter
from medvfm_jax.federated import Algorithm, Codec
from medvfm_jax.systems import System


@pytest.mark.parametrize("record", [Adapter, Algorithm, Codec, System], ids=lambda record: record.__name__)
def test_the_example_of_a_record_runs(record):
    module = sys.modules[record.__module__]
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(record, module=module, globs={})
    assert example.examples
    runner = doctest.DocTestRunner(verbose=False)
    shown = []
    assert runner.run(example, out=shown.append).failed == 0, "".join(shown)
