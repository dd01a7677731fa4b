"""What `medvfm audit` prints of what was found."""

from medvfm_jax.cli import audit as command

ATTACK = {
    "auc": 0.6, "auc_error": None, "advantage": 0.3, "members": 30, "others": 12, "found": 0.2, "found_at": 0.1,
}  # fmt: skip
CANARY = {
    "unit": "client", "claimed_epsilon": 8.0, "lower_bound": 2.5, "confidence": 0.95, "largest_possible": 9.0,
    "trials": 40000, "contradicts": False, "left_out": None,
}  # fmt: skip
FOUND = {
    "not_private": None, "canary": CANARY, "membership": {"loss": ATTACK, "loss_change": ATTACK}, "file": "a.json",
}  # fmt: skip


def printed(monkeypatch, capsys, found, tmp_path):
    monkeypatch.setattr(command, "audit", lambda config, console: found)
    assert command.run(command.AuditArgs(tmp_path)) == 0
    return capsys.readouterr().out.splitlines()


def test_a_run_whose_noise_came_from_a_known_number_is_called_so_first(monkeypatch, capsys, tmp_path):
    lines = printed(monkeypatch, capsys, FOUND | {"not_private": "NOT PRIVATE: dp-seed 5"}, tmp_path)
    assert lines[0] == "NOT PRIVATE: dp-seed 5"
    assert printed(monkeypatch, capsys, FOUND, tmp_path)[0].startswith("canary (client)")


def test_what_the_canary_did_not_try_is_said(monkeypatch, capsys, tmp_path):
    found = FOUND | {"canary": CANARY | {"left_out": "masks"}}
    assert printed(monkeypatch, capsys, found, tmp_path)[1] == "the canary did not try: masks"
