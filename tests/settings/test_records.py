"""Settings from ``config.json``, also of an earlier version, which kept options in lists of their own."""

import pytest

from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.records import BadConfig, as_of_today, from_json, to_json

OLD = {
    "data": "d",
    "set": ["lora.rank=8"],
    "algorithm_set": ["mu=0.1", "personal=a=b"],
    "codec_set": [],
    "down_codec_set": ["rank=2"],
}
TODAY = ("lora.rank=8", "algorithm.mu=0.1", "algorithm.personal=a=b", "down_codec.rank=2")


def test_options_of_an_earlier_record_are_named_after_their_part():
    assert as_of_today(OLD) == {"data": "d", "set": list(TODAY)}
    assert from_json(FederateConfig, OLD) == FederateConfig("d", set=TODAY)
    assert as_of_today({"codec_set": ["fraction=0.1"]}) == {"set": ["codec.fraction=0.1"]}


def test_a_record_of_today_stays_as_it_is():
    record = to_json(FederateConfig("d", set=TODAY))
    assert as_of_today(record) is record
    assert from_json(FederateConfig, record).set == TODAY


@pytest.mark.parametrize("damage", [{"codec_set": "fraction=0.1"}, {"algorithm_set": [3]}, {"set": {"a": 1}}])
def test_a_damaged_list_of_an_earlier_record_is_named(damage):
    name = next(iter(damage))
    with pytest.raises(
        BadConfig, match=f"The settings of a run have {name}=.*; expected a list of option=value"
    ):
        from_json(FederateConfig, OLD | damage)
