import functools
import io
import json

import jax
import numpy as np
import optax
import pytest

from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train import checkpoint, hooks
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.hooks import Checkpoints, MetricsLog
from medvfm_jax.train.loop import fit
from medvfm_jax.train.state import init_state
from medvfm_jax.train.step import make_step
from medvfm_jax.train.validation import Validation
from tests.train import toy

OPTIMIZER = optax.adam(0.01)
STEP = functools.partial(make_step(toy.loss, OPTIMIZER), toy.PARAMS)


def run(steps, *list_of_hooks, loader=None, state=None, **options):
    state = state or init_state(toy.delta(), OPTIMIZER, jax.random.key(5))
    return fit(STEP, state, loader or toy.Loader(), list_of_hooks, steps=steps, **options)


def test_metrics_are_averaged_between_lines_and_the_last_step_is_always_logged(tmp_path):
    each = []
    record = hooks.to_file(tmp_path)
    run(5, MetricsLog(record, lambda t: 0.1 * t, every=2), lambda e: each.append(e.metrics["loss"]))
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 5]
    np.testing.assert_allclose(
        [line["loss"] for line in lines], [np.mean(each[:2]), np.mean(each[2:4]), each[4]]
    )
    np.testing.assert_allclose([line["lr"] for line in lines], [0.1, 0.3, 0.4])
    assert all(line["images_per_s"] > 0 for line in lines)


def test_tensorboard_gets_the_same_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    with hooks.to_tensorboard(tmp_path) as record:
        run(2, MetricsLog(record, lambda t: 0.1))
    (events,) = tmp_path.glob("events*")
    content = events.read_bytes()
    assert content.count(b"images_per_s") == 2
    assert b"loss" in content


def test_tensorboard_drops_what_a_killed_attempt_told_of_steps_that_are_taken_again(tmp_path):
    pytest.importorskip("tensorboardX")
    with hooks.to_tensorboard(tmp_path, 4) as record:
        record({"step": 5, "loss": 1.0})
    events = _events(next(tmp_path.glob("events*")).read_bytes())
    begun = [event for event in events if event.HasField("session_log")]
    # TensorBoard removes events of this step and later ones from the files before.
    assert [(event.step, event.session_log.status) for event in begun] == [(5, begun[0].session_log.START)]
    assert [event.step for event in events if event.HasField("summary")] == [5]


def _events(content):
    """The records of an event file: length (8 bytes), its checksum (4), an event, its checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    events, at = [], 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 16 + length
    return events


def test_missing_tensorboard_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with (
        pytest.raises(hooks.MissingTensorBoard, match=r"medvfm-jax\[tensorboard\]"),
        hooks.to_tensorboard(tmp_path),
    ):
        pass


def test_validation_keeps_the_best_delta_and_ends_the_run():
    scores = iter([0.2, 0.8, 0.7, 0.6, 0.5])
    deltas, lines = [], []

    def score(delta):
        deltas.append(jax.tree.map(np.array, delta))
        return {"dice": next(scores), "loss": 1.0}

    log = MetricsLog(lines.append, lambda t: 0.1)
    fitted = run(20, log, validation=Validation(score, 2), stopping=EarlyStopping(patience=2))
    assert int(fitted.state.step) == 8
    validations = [(line["step"], line["val_dice"]) for line in lines if "val_dice" in line]
    assert validations == [(2, 0.2), (4, 0.8), (6, 0.7), (8, 0.6)]
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]
    assert fitted.stopping.step == 4
    jax.tree.map(np.testing.assert_array_equal, fitted.stopping.delta, deltas[1])


def test_a_run_that_no_longer_improved_takes_no_further_step():
    start = init_state(toy.delta(), OPTIMIZER, jax.random.key(5))
    over = EarlyStopping(patience=1, waited=1)
    fitted = run(5, state=start, validation=Validation(lambda delta: {"dice": 1.0}, 1), stopping=over)
    assert fitted == (start, over)


def test_a_checkpoint_holds_the_validation_of_its_own_step(tmp_path):
    hook = Checkpoints(tmp_path, {}, "base", every=2)
    scores = iter([0.1, 0.9, 0.5])
    run(3, hook, validation=Validation(lambda delta: {"dice": next(scores)}, 1))
    like = init_state(toy.delta(), OPTIMIZER, jax.random.key(5))
    found = checkpoint.read(tmp_path, like, "base")
    assert (found.step, found.stopping.step, found.stopping.best) == (3, 2, 0.9)


def test_checkpoints_by_steps_by_time_and_at_the_end(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, "write", lambda folder, c: written.append(c.step))
    arguments = (tmp_path, {}, "base")
    run(7, Checkpoints(*arguments, every=3, seconds=1e9))
    assert written == [3, 6, 7]
    written.clear()
    run(3, Checkpoints(*arguments, every=10**9, seconds=0.0))
    assert written == [1, 2, 3]


def test_continuing_from_any_checkpoint_gives_the_bits_of_the_run_that_was_not_stopped(tmp_path):
    undisturbed = run(9).state
    for stop in (1, 4, 8):
        folder = tmp_path / str(stop)
        hook = Checkpoints(folder, {}, "base", every=1)

        def die(end, stop=stop):
            if end.step == stop:
                raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            run(9, hook, die)
        like = init_state(toy.delta(), OPTIMIZER, jax.random.key(5))
        back = checkpoint.read(folder, like, "base")
        assert back.step == stop
        loader = toy.Loader()
        loader.set_state(back.loader_state)
        resumed = run(9, loader=loader, state=back.state).state
        jax.tree.map(np.testing.assert_array_equal, undisturbed.delta, resumed.delta)
        jax.tree.map(np.testing.assert_array_equal, undisturbed.opt_state, resumed.opt_state)


def test_plain_lines_without_a_terminal_and_a_bar_with_one():
    stream = io.StringIO()
    with ProgressDisplay(stream, "adapt") as display:
        display.say("starting [not markup]")
        run(3, display)
    first, one, last = stream.getvalue().splitlines()
    assert first == "starting [not markup]"
    assert one.startswith("adapt 1/3  loss ")
    assert last.startswith("adapt 3/3  loss ")
    assert "images/s" in last
    json.dumps(stream.getvalue())
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with ProgressDisplay(terminal, "adapt") as display:
        run(3, display)
    assert "\x1b[" in terminal.getvalue() or "3/3" in terminal.getvalue()


def test_a_trace_has_the_steps_asked_for_and_ends_with_a_run_that_ends_early(tmp_path, monkeypatch):
    seen, now = [], {"step": 0}
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(("start", now["step"])))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(("stop", now["step"])))

    def counting(end):
        now["step"] = end.step

    for first, last, steps, expected in (
        (3, 4, 6, [("start", 2), ("stop", 4)]),
        (1, 2, 6, [("start", 0), ("stop", 2)]),
        (2, 5, 3, [("start", 1), ("stop", 3)]),
    ):
        seen.clear()
        now["step"] = 0
        with hooks.Profile(tmp_path, first, last) as profile:
            run(steps, counting, profile)
        assert seen == expected


def test_a_run_that_is_asked_to_end_saves_without_a_validation_that_it_would_not_have_had():
    """A validation can take longer than the seconds after SIGTERM, and its best could be that of this step."""
    scored, ends, asked = [], [], []
    validation = Validation(lambda delta: scored.append(1) or {"dice": 0.9, "loss": 1.0}, 3)

    def agree(flag):
        asked.append(flag)
        return len(asked) == 4

    with pytest.raises(KeyboardInterrupt):
        run(9, lambda end: ends.append((end.step, end.last, end.scores)), validation=validation, agree=agree)
    assert [end[:2] for end in ends] == [(1, False), (2, False), (3, False), (4, True)]
    assert ends[3][2] is None
    assert len(scored) == 1  # of step 3


def test_a_checkpoint_that_is_whole_some_steps_after_it_was_begun_is_copied_then(tmp_path):
    """Such as orbax writes in the background; the copy would otherwise always be that of the checkpoint before."""
    copied, part = [], tmp_path / "2.orbax-checkpoint-tmp"

    def write(end):
        if end.step == 2:
            part.mkdir()
        elif end.step == 5:
            part.rename(tmp_path / "2")

    class Log:
        def reads_state(self, step, last):
            return step == 2

        def __call__(self, end):
            write(end)

    copies = hooks.Copies(tmp_path, lambda: copied.append(sorted(p.name for p in tmp_path.iterdir())), 0.0)
    run(9, Log(), copies)
    assert copied == [["2"]]
    part.mkdir()
    run(9, hooks.Copies(tmp_path, lambda: copied.append("early"), 3600.0))
    assert copied == [["2"]]


@pytest.mark.parametrize(
    ("asked", "expected", "sentence"),
    [
        (
            (1, 3),
            [],
            "it goes on after step 4",
        ),  # would trace to the end of the run, for its last step never comes
        ((5, 6), [("start", 4), ("stop", 6)], None),
        ((3, 6), [("start", 4), ("stop", 6)], None),
        ((9, 9), [], "it ended before step 9"),
    ],
)
def test_a_trace_of_a_resumed_run_has_the_steps_that_are_its_own(
    asked, expected, sentence, tmp_path, monkeypatch
):
    """The run goes on after step 4 and takes steps 5 to 8."""
    seen, now, said = [], {"step": 4}, []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(("start", now["step"])))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(("stop", now["step"])))
    state = init_state(toy.delta(), OPTIMIZER, jax.random.key(5))._replace(step=jax.numpy.int32(4))
    with hooks.Profile(tmp_path, *asked, 4, said.append) as profile:
        run(8, lambda end: now.update(step=end.step), profile, state=state)
    assert seen == expected
    steps = f"no trace of steps {asked[0]} to {asked[1]} was written by this attempt"
    assert said == ([] if sentence is None else [f"{steps}: {sentence}"])


def test_a_trace_is_written(tmp_path):
    with hooks.Profile(tmp_path / "profile", 2, 2) as profile:
        run(2, profile)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("asked", ["5", "0:2", "4:2", "1:401", "a:b", "1:"])
def test_steps_that_cannot_be_traced(asked, tmp_path):
    with pytest.raises(BadConfig, match=f"profile={asked} is no START:STOP with 1 <= START <= STOP <= 400"):
        AdaptConfig(str(tmp_path), out=tmp_path / "run", profile=asked)
