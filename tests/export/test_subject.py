"""What is said of an exported run beside its files."""

from types import SimpleNamespace

import pytest

from medvfm_jax.export import subject
from medvfm_jax.predict.ready import loaded_alone
from medvfm_jax.settings.export import ExportConfig
from medvfm_jax.settings.records import BadConfig


@pytest.mark.parametrize(
    ("compression", "unmerged", "words"),
    [
        ({"method": "low_rank", "factorised": 3}, False, "--unmerged keeps them thin"),
        ({"method": "low_rank", "factorised": 3}, True, None),
        ({"method": "weight_only", "bits": 4}, False, "weights of 32 bits here; --int8"),
        ({"method": "integers", "bits": 8}, True, "weights of 32 bits here; --int8"),
        ({"method": "prune", "neurons": "1 of 2"}, True, None),
        (None, False, None),
    ],
)
def test_what_a_file_does_not_keep_of_a_compression_is_said(compression, unmerged, words):
    metadata = {} if compression is None else {"compression": compression}
    loaded = SimpleNamespace(note="", metadata=metadata)
    notes, warnings = subject._what_is_left_out(SimpleNamespace(run=None, unmerged=unmerged), loaded)
    assert notes == warnings
    assert [words in note for note in notes] == ([] if words is None else [True])


def test_what_rounds_activations_is_found_in_a_chain():
    weights = {"kind": "integer_weights", "at": ".*"}
    for kind in ("integer_inputs", "integer_products", "grouped_inputs"):
        assert subject.rounds_activations({"kind": "chain", "parts": {"a": weights, "b": {"kind": kind}}})
    assert not subject.rounds_activations({"kind": "chain", "parts": {"a": weights}})
    assert not subject.rounds_activations({"kind": "lora", "rank": 4})


def test_random_weights_are_no_published_model(tmp_path):
    with pytest.raises(BadConfig, match="student-tiny-test starts from random weights"):
        subject.subject(ExportConfig(model="student-tiny-test", out=tmp_path))
    with pytest.raises(BadConfig, match="student-tiny-test starts from random weights"):
        loaded_alone("student-tiny-test", "float32", None, True)
