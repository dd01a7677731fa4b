"""What a benchmark can be asked for, and what is refused."""

import pytest

from medvfm_jax.bench.measure import spec_of
from medvfm_jax.models.errors import UnknownModel
from medvfm_jax.settings.bench import ROW_NAMES, BadBench, BenchConfig


def test_small_models_have_all_rows_and_large_ones_are_encoded_unless_asked_for_more():
    config = BenchConfig()
    assert config.rows_of(spec_of("lite-medsam")) == ROW_NAMES
    assert config.rows_of(spec_of("sam-b")) == ("encode",)
    asked = BenchConfig(rows=("loader", "samed"))
    assert asked.rows_of(spec_of("sam-b")) == asked.rows_of(spec_of("lite-medsam")) == ("samed", "loader")


def test_a_quick_look_is_two_rounds_of_one_image():
    assert (BenchConfig(quick=True).resolved_rounds, BenchConfig(quick=True).resolved_batch) == (2, 1)
    assert BenchConfig(quick=True, rounds=1).resolved_rounds == 1
    assert (BenchConfig(rounds=9).resolved_rounds, BenchConfig(batch_size=3).resolved_batch) == (9, 3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"models": ()}, "There is no model to time"),
        ({"models": ("sam-b", "sam-b")}, "sam-b is given twice in models"),
        ({"rows": ("encode", "encode")}, "encode is given twice in rows"),
    ],
)
def test_what_has_no_meaning_is_refused(settings, sentence):
    with pytest.raises(BadBench, match=sentence):
        BenchConfig(**settings)


def test_models_that_take_no_prompts_or_do_not_exist():
    for name in ("vit-b", "unet"):
        with pytest.raises(BadBench, match=f"'{name}' takes no prompts; the rows are for models that do"):
            spec_of(name)
    with pytest.raises(UnknownModel):
        spec_of("lite-medsma")
