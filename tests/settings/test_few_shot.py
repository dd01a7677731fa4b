import pytest

from medvfm_jax.settings import BadConfig
from medvfm_jax.settings.few_shot import FewShotConfig


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"most_objects": 3},
            "--most-objects is an option of --method persam, and does nothing with prototype",
        ),
        ({"method": "linear", "size_margin": 0.1}, "--size-margin is an option of --method transductive"),
        (
            {"method": "persam", "steps": 5},
            "--steps is an option of --method linear and spatial and transductive",
        ),
        ({"method": "linear", "temperature": 0.1}, "--temperature is an option of --method prototype"),
        ({"method": "spatial", "merged_masks": 2}, "--merged-masks is an option of --method matcher"),
        ({"prototypes": 5000}, "at most 256"),
        ({"temperature": float("inf")}, "between 1e-6 and 1e6"),
        ({"temperature": 1e-45}, "between 1e-6 and 1e6"),
        ({"method": "linear", "learning_rate": float("inf")}, "at most 10"),
        ({"seeds": 5}, "give --shots with it"),
    ],
)
def test_an_option_that_does_nothing_is_refused(settings, said):
    with pytest.raises(BadConfig, match=said):
        FewShotConfig("data", **settings)


def test_options_of_the_method_are_taken():
    for given in (
        {"method": "transductive", "steps": 5, "size_margin": 0.1},
        {"method": "linear", "steps": 5, "shots": (1, 2), "seeds": 5},
        {"temperature": 0.1, "prototypes": 2},
    ):
        config = FewShotConfig("data", **given)
        assert {name: getattr(config, name) for name in given} == given
