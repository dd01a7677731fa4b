from types import SimpleNamespace

from medvfm_jax.data.case_notes import ALLOWED, CaseNotes
from medvfm_jax.federated.federate import _announce as announce_federate
from medvfm_jax.train.adapt import _announce as announce_adapt


def test_what_was_noticed_about_the_cases_is_said_once_before_training():
    """By adapt and by federate: how many cases, and the largest displacement that was allowed."""
    notes = CaseNotes()
    notes.add(ALLOWED, "a", 0.25)
    notes.add(ALLOWED, "b", 0.5)
    source = SimpleNamespace(dataset=SimpleNamespace(notes=notes))
    data = SimpleNamespace(describe=lambda: "data", skipped={}, source=source)
    config = SimpleNamespace(model="m", adapter="lora", preset="lora")
    expected = f"note: 2 cases (a, b): {ALLOWED} (by at most 0.5 mm)"
    for announce, run in [
        (announce_adapt, {"record": {"resolved": {"prompt": "box"}}, "data": data}),
        (
            announce_federate,
            {"algorithm": "fedavg", "clients": (), "skipped": {}, "source": source, "privacy": None},
        ),
    ]:
        said: list[str] = []
        announce(SimpleNamespace(config=config, size=1, **run), said.append)
        assert said.count(expected) == 1
