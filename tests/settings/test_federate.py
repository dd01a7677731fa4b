import pytest

from medvfm_jax import systems
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.records import BadConfig

ENTRY = MODELS["lite-medsam"]


@pytest.mark.parametrize(("optimizer", "plain_sgd"), [("sgd", False), ("adamw", True)])
def test_sgd_starts_at_a_rate_of_its_own_unless_one_is_given(optimizer, plain_sgd):
    assert (
        FederateConfig("d", optimizer=optimizer).resolved_learning_rate(
            systems.SYSTEMS["samed"], ENTRY, plain_sgd
        )
        == 0.01
    )
    given = FederateConfig("d", optimizer=optimizer, learning_rate=0.5)
    assert given.resolved_learning_rate(systems.SYSTEMS["samed"], ENTRY, plain_sgd) == 0.5


def test_adam_starts_at_the_rate_of_its_adapter():
    config = FederateConfig("d", preset="decoder")
    assert config.resolved_learning_rate(systems.SYSTEMS["decoder"], ENTRY, False) == 3e-4


def test_central_noise_and_secure_aggregation_are_refused_together():
    """One client more may decide whether a round has a sum, and so move it by many clips."""
    private = {"dp_epsilon": 8.0, "secure_aggregation": True}
    with pytest.raises(BadConfig, match="add --dp-noise discrete_gaussian or skellam"):
        FederateConfig("d", **private)
    FederateConfig("d", dp_noise="skellam", **private)
    FederateConfig("d", dp_unit="patient", **private)
