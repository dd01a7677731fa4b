import pytest

from medvfm_jax.runs.settings_record import contradiction, settings_digest


def test_what_decides_a_delta_is_in_the_digest_of_the_settings_and_where_files_lie_is_not():
    config = {
        "steps": 3,
        "data": "a",
        "out": "b",
        "weights": None,
        "resolved": {"data": "/a", "data_sha256": "1"},
    }
    digest = settings_digest(config)
    moved = {"data": "c", "out": "d", "weights": "w", "resume": True, "placement": {"devices": 2}}
    resolved = {"data": "/c", "checked": {"cases": 3, "findings": []}}
    assert settings_digest(config | moved | {"resolved": config["resolved"] | resolved}) == digest
    assert settings_digest(config | {"steps": 4}) != digest
    assert settings_digest(config | {"resolved": config["resolved"] | {"data_sha256": "2"}}) != digest
    assert settings_digest({}) == settings_digest({"resolved": None})


def config(done="samed", **asked):
    found = {"prompt": "none", "objective": "samed", "learning_rate": 0.001, "algorithm": "fedprox"}
    return {"adapter": "samed"} | asked | {"resolved": found | {"adapter": {"kind": "chain", "preset": done}}}


@pytest.mark.parametrize(
    ("asked", "clause"),
    [
        ({"adapter": "lora"}, "its adapter is 'lora' and resolved.adapter is that of 'samed'"),
        ({"prompt": "box"}, "its prompt is 'box' and resolved.prompt is 'none'"),
        ({"objective": "sam"}, "its objective is 'sam' and resolved.objective is 'samed'"),
        ({"learning_rate": 0.01}, "its learning_rate is 0.01 and resolved.learning_rate is 0.001"),
        ({"algorithm": "fedavg"}, "its algorithm is 'fedavg' and resolved.algorithm is 'fedprox'"),
        ({"prompt": "auto", "objective": "samed", "learning_rate": None, "algorithm": "auto"}, ""),
        ({}, ""),
    ],
)
def test_what_was_asked_for_is_what_was_done(asked, clause):
    assert contradiction(config(**asked)) == clause


def test_a_system_may_use_the_adapter_of_a_preset_and_a_preset_no_other():
    record = config()
    del record["adapter"]
    assert contradiction(record | {"preset": "fedsam"}) == ""
    assert contradiction(record | {"preset": "samed"}) == ""
    assert contradiction(record | {"preset": "decoder"}).startswith("its preset is 'decoder' and")
    assert contradiction({}) == contradiction({"resolved": None, "adapter": ["x"]}) == ""
