import io

import pytest
from rich.console import Console

from medvfm_jax.runs import progress
from medvfm_jax.runs.progress import ProgressDisplay, tracked
from medvfm_jax.train.loop import StepEnd


class Clock:
    """time.monotonic that moves when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def end(step, steps=50, loss=1.0, seconds=2.0):
    return StepEnd(step, steps, None, None, {"loss": loss}, 4, seconds, step == steps)


def test_plain_lines_at_the_first_and_last_step_and_every_ten_seconds(clock):
    stream = io.StringIO()
    with ProgressDisplay(stream, "adapt") as display:
        for step in range(1, 51):
            assert display(end(step)) is None  # a hook that never stops the run
            clock.now += 1
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert steps == ["1/50", "11/50", "21/50", "31/50", "41/50", "50/50"]


def test_speed_leaves_out_the_first_step_and_gives_the_time_that_is_left(clock):
    stream = io.StringIO()
    display = ProgressDisplay(stream, "adapt")
    display(end(1, loss=2.0, seconds=1000.0))
    clock.now += 60
    display(end(2, loss=1.0))
    clock.now += 60
    display(end(3, loss=1.9))
    clock.now += 60
    display(end(50))
    first, second, third, last = stream.getvalue().splitlines()
    assert first == "adapt 1/50  loss 2.0000"
    assert second == "adapt 2/50  loss 1.9000"
    assert third == "adapt 3/50  loss 1.9000  2.0 images/s  1.6 min left"
    assert last == "adapt 50/50  loss 1.8100  2.0 images/s"


def test_steps_that_a_device_reports_in_pairs_have_the_speed_of_the_pair(clock):
    stream = io.StringIO()
    display = ProgressDisplay(stream, "adapt")
    for step in range(1, 42):
        display(end(step, seconds=4.0 if step % 2 else 0.004))
    clock.now += 60
    display(end(42, seconds=0.004))
    speed = float(stream.getvalue().splitlines()[-1].split("images/s")[0].split()[-1])
    assert speed == pytest.approx(end(1).examples / 2.002, rel=0.2)


def test_the_first_speed_that_is_shown_is_that_of_a_pair_of_steps(clock):
    stream = io.StringIO()
    display = ProgressDisplay(stream, "adapt")
    for step, seconds in ((1, 90.0), (2, 0.2), (3, 15.8)):
        display(end(step, steps=800, seconds=seconds))
        clock.now += 60
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[2:] for line in lines] == [[], [], ["0.5 images/s", "106.3 min left"]]


def test_what_is_said_is_printed_as_it_is_on_one_line():
    stream = io.StringIO()
    ProgressDisplay(stream).say("[bold]" + " word" * 60 + " [/nonsense]")
    assert stream.getvalue() == "[bold]" + " word" * 60 + " [/nonsense]\n"


def test_a_terminal_gets_a_bar_that_ends_with_the_display():
    stream = Terminal()
    with ProgressDisplay(stream, "adapt") as display:
        display(end(1))
        display.say("skipped: a file")
        display(end(50))
    text = stream.getvalue()
    assert "50/50" in text
    assert "skipped: a file" in text
    assert "━" in text
    assert display._bar is None


def test_tracked_gives_every_item_in_order_with_a_line_now_and_then(clock):
    stream = io.StringIO()
    seen = []
    for item in tracked(range(10), "evaluate", Console(file=stream)):
        seen.append(item)
        clock.now += 4
    assert seen == list(range(10))
    assert stream.getvalue().splitlines() == [
        "evaluate 3/10  28 s left",
        "evaluate 6/10  16 s left",
        "evaluate 9/10  4 s left",
    ]


def test_a_long_first_item_is_not_taken_for_the_pace(clock):
    stream = io.StringIO()
    for item in tracked(range(5), "evaluate", Console(file=stream)):
        clock.now += 600 if item == 0 else 6
    assert stream.getvalue().splitlines() == ["evaluate 1/5", "evaluate 3/5  12 s left"]


def test_tracked_on_a_terminal_gives_the_same_items():
    console = Console(file=Terminal(), force_terminal=True)
    assert list(tracked([3, 1, 2], "evaluate", console)) == [3, 1, 2]
    assert "evaluate" in console.file.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_without_seconds_neither_speed_nor_time_is_shown(clock, stream):
    with ProgressDisplay(stream, "federate") as display:
        for step in range(1, 5):
            display(end(step, 4)._replace(seconds=None))
            clock.now += 60
    text = stream.getvalue()
    assert "4/4" in text
    assert not any(word in text for word in ("images/s", " left", " min", ":"))
