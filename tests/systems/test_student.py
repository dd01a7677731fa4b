"""The system `student`: everything `full` tunes, and the numbers that a student takes over with it."""

import jax

from medvfm_jax import systems
from medvfm_jax.adapters import adapt_model, from_config
from medvfm_jax.models.catalog import build


def leaves(name):
    model = build("lite-tiny-test")
    params = jax.eval_shape(model.init, jax.random.key(0))
    adapter = from_config(systems.adapter_config(name, model.spec))
    delta = jax.eval_shape(adapt_model(adapter, model).init, jax.random.key(0), params)
    return {(module, name) for part in delta.values() for module, arrays in part.items() for name in arrays}


def test_a_student_has_the_buffers_beside_what_full_tunes():
    added = leaves("student") - leaves("full")
    assert leaves("full") < leaves("student")
    assert {name for _, name in added} == {"mean", "var", "positional_encoding_gaussian_matrix"}
