from types import SimpleNamespace

from medvfm_jax.data.check import DatasetCheck
from medvfm_jax.data.findings import Finding
from medvfm_jax.federated.run.federate import _announce as announce_federate
from medvfm_jax.train.adaptation import _announce as announce_adapt


def test_what_was_noticed_about_the_cases_is_said_once_before_training():
    """By adapt and by federate."""
    checked = DatasetCheck({}, (Finding("as read", "note", "2 cases (a, b): turned", ("a", "b")),))
    source = SimpleNamespace(split=None, dataset=SimpleNamespace(annotated={}))
    data = SimpleNamespace(describe=lambda: "data", source=source)
    config = SimpleNamespace(model="m", adapter="lora", preset="lora")
    for announce, run in [
        (announce_adapt, {"assembled": SimpleNamespace(prompt="box", size=1), "data": data}),
        (
            announce_federate,
            {"algorithm": "fedavg", "clients": (), "source": source, "privacy": None, "secure": None},
        ),
    ]:
        said: list[str] = []
        announce(SimpleNamespace(config=config, size=1, checked=checked, **run), said.append)
        assert said.count("note: 2 cases (a, b): turned") == 1
