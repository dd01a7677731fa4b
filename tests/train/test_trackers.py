"""Metrics for Weights & Biases and MLflow, with false packages that say what they were given."""

import sys
import threading
import time
import types
from types import SimpleNamespace

import pytest

from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train import adapt, trackers
from medvfm_jax.train.trackers import TrackerError, in_background, to_mlflow, to_wandb, told_settings
from tests.train.small_runs import small

SETTINGS = {"steps": 6, "model": "sam-b"}


class FalseWandb(types.ModuleType):
    def __init__(self):
        super().__init__("wandb")
        self.opened, self.logged, self.codes = [], [], []

    def init(self, **given):
        self.opened.append(given)
        return SimpleNamespace(
            log=lambda values, step: self.logged.append((step, values)),
            finish=lambda exit_code: self.codes.append(exit_code),
        )


@pytest.fixture
def wandb(monkeypatch):
    module = FalseWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class FalseServer:
    """Runs of an MLflow server: {id: {"name", "metrics", "params", "status"}}."""

    def __init__(self):
        self.addresses, self.runs, self.experiments = [], {}, {}

    def client(self, tracking_uri):
        self.addresses.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = "7"
        return "7"

    def create_run(self, experiment, run_name):
        number = f"run{len(self.runs)}"
        self.runs[number] = {
            "name": run_name,
            "in": experiment,
            "metrics": [],
            "params": {},
            "status": "RUNNING",
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=number))

    def update_run(self, run, status):
        self.runs[run]["status"] = status

    def log_batch(self, run, metrics=(), params=()):
        self.runs[run]["metrics"] += metrics
        self.runs[run]["params"] |= dict(params)

    def set_terminated(self, run, status):
        self.runs[run]["status"] = status


@pytest.fixture
def server(monkeypatch):
    found = FalseServer()
    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.MlflowClient = found.client
    entities.Metric, entities.Param = lambda *values: values, lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return found


LINE = {"step": 3, "loss": 0.5, "val_dice": float("nan"), "flag": None, "time": 12.5}


def test_wandb_gets_numbers_and_a_resumed_run_goes_on_there(wandb, tmp_path):
    for _ in range(2):
        with to_wandb(tmp_path, "cells", SETTINGS) as record:
            record(LINE)
    first, second = wandb.opened
    assert first["project"] == "cells"
    assert first["config"] == SETTINGS
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert wandb.logged == [(3, {"loss": 0.5})] * 2
    assert wandb.codes == [0, 0]
    with pytest.raises(RuntimeError), to_wandb(tmp_path, "cells", SETTINGS):
        raise RuntimeError
    assert wandb.codes == [0, 0, 1]


def test_mlflow_gets_numbers_and_a_resumed_run_goes_on_there(server, tmp_path):
    for _ in range(2):
        with to_mlflow(tmp_path, "http://host:5000", SETTINGS) as record:
            record(LINE)
    assert server.addresses == ["http://host:5000"] * 2
    assert server.experiments == {"medvfm": "7"}
    (run,) = server.runs.values()
    assert run["metrics"] == [("loss", 0.5, 12500, 3)] * 2
    assert run["params"] == {"steps": "6", "model": "sam-b"}
    assert (run["in"], run["status"]) == ("7", "FINISHED")
    for error, status in ((RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")):
        with pytest.raises(error), to_mlflow(tmp_path, "http://host:5000", SETTINGS):
            raise error
        assert run["status"] == status


@pytest.mark.parametrize(("name", "open_"), [("wandb", to_wandb), ("mlflow", to_mlflow)])
def test_a_missing_package_is_one_sentence(name, open_, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TrackerError, match=r"medvfm-jax\[tracking\]"), open_(tmp_path, "x", SETTINGS):
        pass


def test_a_tracker_that_refuses_the_run_is_one_sentence(wandb, server, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no key\nand more")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setattr(server, "create_run", refuse)
    with pytest.raises(
        TrackerError, match=r"Weights & Biases does not take the run \(ValueError: no key\); log in"
    ):
        to_wandb(tmp_path, "x", SETTINGS).__enter__()
    with pytest.raises(TrackerError, match=r"http://h does not take the run \(ValueError: no key\)"):
        to_mlflow(tmp_path, "http://h", SETTINGS).__enter__()


def test_settings_that_leave_the_machine_name_no_place_and_no_patient(cells, tmp_path):
    from medvfm_jax.settings.records import to_json

    given = to_json(small(cells, tmp_path / "run", mirror="memory://bucket/run"))
    told = told_settings(given)
    assert told["steps"] == 6
    assert told["model"] == "sam-tiny-test"
    assert {"data", "out", "mirror", "weights", "annotated"} & set(given)
    assert not {"data", "out", "mirror", "weights", "annotated"} & set(told)
    assert "model" not in told_settings({"model": "/home/runs/a"})


def test_a_tracker_that_fails_does_not_hold_training_up_and_is_left_alone_after_a_while():
    said, taken, fails = [], [], set()

    def record(line):
        if line["step"] in fails:
            raise ConnectionError("gone")
        taken.append(line["step"])

    fails |= {2}
    with in_background(record, "MLflow", said.append) as tell:
        for step in range(1, 5):
            tell({"step": step})
    assert taken == [1, 3, 4]
    assert said == [
        "MLflow did not take the metrics of step 2 (ConnectionError: gone); training goes on",
        "MLflow is without 1 line of metrics.jsonl, which has them all",
    ]
    said.clear()
    taken.clear()
    fails |= set(range(2, 7))
    with in_background(record, "MLflow", said.append) as tell:
        for step in range(1, 10):
            tell({"step": step})
    assert taken == [1]
    assert (
        said[1] == "MLflow did not take the metrics of step 6 (ConnectionError: gone); nothing more is sent"
    )
    assert said[2] == "MLflow is without 8 lines of metrics.jsonl, which has them all"


def test_telling_does_not_wait():
    go, seen = threading.Event(), []
    with in_background(lambda line: seen.append(go.wait(30)), "MLflow", print) as tell:
        tell({"step": 1})
        tell({"step": 2})
        assert seen == []  # nothing was heard of a line before all were told
        go.set()
    assert seen == [True, True]


def test_a_server_that_never_answers_does_not_hold_the_end_up():
    """After SIGTERM the copy of the run is made once the trackers are closed, and there are seconds for it."""
    never, said = threading.Event(), []
    with in_background(lambda line: never.wait(30), "MLflow", said.append, patience=0.2) as tell:
        for step in range(1, 4):
            tell({"step": step})
    assert said == [
        "MLflow does not answer and is waited for no longer",
        "MLflow is without 3 lines of metrics.jsonl, which has them all",
    ]
    never.set()


def test_a_slow_server_is_waited_for_at_the_end():
    taken, said = [], []

    def record(line):
        time.sleep(0.2)
        taken.append(line["step"])

    with in_background(record, "MLflow", said.append, patience=1.0) as tell:
        for step in range(1, 8):
            tell({"step": step})
    assert taken == [1, 2, 3, 4, 5, 6, 7]
    assert said == []


def test_a_server_that_does_not_answer_to_the_end_of_a_run_is_left_alone(
    wandb, server, tmp_path, monkeypatch
):
    never = threading.Event()
    monkeypatch.setattr(trackers, "_PATIENCE", 0.1)
    monkeypatch.setattr(server, "set_terminated", lambda run, status: never.wait(30))
    monkeypatch.setattr(
        wandb, "init", lambda **given: SimpleNamespace(finish=lambda exit_code: never.wait(30))
    )
    begun = time.monotonic()
    for open_ in (to_wandb, to_mlflow):
        with open_(tmp_path, "x", SETTINGS):
            pass
    assert time.monotonic() - begun < 20
    never.set()


@pytest.mark.slow
def test_a_run_tells_both_what_its_metrics_file_has(wandb, server, cells, tmp_path):
    result = adapt(
        small(cells, tmp_path / "run", steps=3, validate_every=0, wandb="cells", mlflow="http://host:5000")
    )
    lines = read_metrics(result.folder)
    assert [step for step, _ in wandb.logged] == [line["step"] for line in lines] == [1, 2, 3]
    assert [values["loss"] for _, values in wandb.logged] == [line["loss"] for line in lines]
    (run,) = server.runs.values()
    assert [value for name, value, *_ in run["metrics"] if name == "loss"] == [line["loss"] for line in lines]
    assert (run["name"], run["status"]) == ("run", "FINISHED")
    assert (result.folder / trackers.TRACKING).is_file()


@pytest.mark.slow
def test_a_run_that_is_continued_does_not_need_a_server_that_had_it(
    server, cells, tmp_path, monkeypatch, capsys
):
    """As when a cluster starts it again; a server that never had it may be one that was mistyped."""

    def away(tracking_uri):
        raise ConnectionError("no route")

    def settings(**more):
        return small(cells, tmp_path / "run", steps=2, validate_every=0, mlflow="http://host:5000", **more)

    result = adapt(settings())
    monkeypatch.setattr(sys.modules["mlflow"], "MlflowClient", away)
    adapt(settings(resume=True))
    assert "(ConnectionError: no route)" in (said := capsys.readouterr().err)
    assert "goes on without it" in said
    (result.folder / trackers.TRACKING).unlink()
    with pytest.raises(TrackerError, match="no route"):
        adapt(settings(resume=True))


@pytest.mark.parametrize("option", ["wandb", "mlflow"])
def test_an_empty_name_is_refused(cells, tmp_path, option):
    with pytest.raises(BadConfig, match=option):
        small(cells, tmp_path / "run", **{option: ""})
