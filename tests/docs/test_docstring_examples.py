"""The examples in the docstrings of the records that users make themselves: they run, and give what they say."""

import doctest

import pytest

from medvfm_jax.adapters import core as adapters
from medvfm_jax.federated.core import records as federated
from medvfm_jax.systems import record as systems


@pytest.mark.parametrize(
    ("module", "records"),
    [(adapters, {"Adapter"}), (systems, {"System"}), (federated, {"Algorithm", "Codec"})],
)
def test_examples_give_what_they_say(module, records):
    examples = {
        test.name.rsplit(".", 1)[-1]: test for test in doctest.DocTestFinder().find(module) if test.examples
    }
    assert examples.keys() >= records
    for name, example in examples.items():
        failed = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(example).failed
        assert not failed, f"the example of {name} gives something else"
