"""What `audit` found in a run, on its page."""

import json

import pytest

from medvfm_jax.report.audit_section import audit
from medvfm_jax.report.record_shapes import damaged_audit
from medvfm_jax.report.run_record import AUDIT, NothingToReport, RunRecord, load

ATTACK = {"auc": 0.61, "auc_error": 0.05, "advantage": 0.3, "threshold": 1.0, "members": 30, "others": 12}
CANARY = {
    "claimed_epsilon": 8.0, "lower_bound": 2.5, "confidence": 0.95, "largest_possible": 9.0, "trials": 40000,
    "contradicts": False,
}  # fmt: skip
FOUND = {
    "canary": CANARY,
    "membership": {"loss": ATTACK, "loss_change": ATTACK | {"auc_error": None}}
    | {"allowed_auc": 0.9, "allowed_advantage": 0.8},
}


def page(found, tmp_path):
    return audit(RunRecord("r", tmp_path, {}, [], {}, [], audit=found))


def test_both_attacks_are_told_with_what_they_allow_to_say(tmp_path):
    text = page(FOUND, tmp_path)
    for words in ("epsilon at least 2.5", "8 is claimed: not contradicted", "AUC 0.610 ± 0.050", "AUC 0.900"):
        assert words in text
    assert page({}, tmp_path) == ""
    assert "NOT PRIVATE: a known seed" in page(FOUND | {"not_private": "NOT PRIVATE: a known seed"}, tmp_path)
    assert "not tried: masks" in page(FOUND | {"canary": CANARY | {"left_out": "masks"}}, tmp_path)
    assert "REFUTED" in page(FOUND | {"canary": CANARY | {"contradicts": True}}, tmp_path)
    assert "show at most 3" in page(FOUND | {"canary": CANARY | {"largest_possible": 3.0}}, tmp_path)
    assert "no differential privacy" in page(FOUND | {"canary": None}, tmp_path)


@pytest.mark.parametrize(
    ("found", "part"),
    [
        (FOUND | {"canary": [1]}, "canary"),
        (FOUND | {"canary": CANARY | {"trials": "many"}}, "canary"),
        (FOUND | {"canary": CANARY | {"left_out": 1}}, "canary.left_out"),
        (FOUND | {"not_private": 1}, "not_private"),
        (FOUND | {"membership": None}, "membership"),
        ({"canary": None, "membership": {"loss": ATTACK}}, "membership.loss_change"),
        (FOUND | {"membership": FOUND["membership"] | {"allowed_auc": "a"}}, "membership.allowed_auc"),
    ],
)
def test_a_damaged_file_is_one_sentence(found, part, tmp_path):
    assert damaged_audit(found) == part
    (tmp_path / "config.json").write_text('{"steps": 1}')
    (tmp_path / AUDIT).write_text(json.dumps(found))
    with pytest.raises(NothingToReport, match=part):
        load(tmp_path)
