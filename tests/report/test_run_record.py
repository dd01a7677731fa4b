import io
import json
import shutil

import numpy as np
import pytest

from medvfm_jax.report import NothingToReport, load
from medvfm_jax.report.record_shapes import damaged_settings
from medvfm_jax.report.sections import notes
from medvfm_jax.runs.seen_cases import Seen, rows
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.train.stored_delta import RESOLVED, SETTINGS, ForeignDelta
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts
from tests.report.synthetic_run import arrays, change_scores, pixels, scores, write_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "samed")


@pytest.fixture
def run(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "samed")


def refused(path) -> str:
    with pytest.raises(NothingToReport) as caught:
        load(path)
    sentence = str(caught.value)
    assert isinstance(caught.value, MedvfmError)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_a_run_is_read_as_it_was_written(whole):
    record = load(whole)
    assert (record.name, record.folder) == ("samed", whole)
    written = json.loads((whole / "scores.json").read_text())
    assert record.scores == {key: part for key, part in written.items() if part is not None}
    assert record.config["adapter"] == "samed"
    assert len(record.metrics) == 208
    assert record.trained["parameters"] == 4_200_123
    assert [(o.label, o.rank, o.dice) for o in record.overlays] == [
        ("anterior", "best", 0.9), ("anterior", "median", 0.8), ("anterior", "worst", pytest.approx(0.7)),
    ]  # fmt: skip
    assert all(pixels(o.png).shape == (480, 480, 3) for o in record.overlays)


def test_records_of_a_run_alone_are_no_scores(run):
    (run / "metrics.jsonl").write_bytes(b"[" * 100_000)
    assert "metrics.jsonl holds no record of a run" in refused(run)


def test_a_delta_that_does_not_say_its_settings_is_said_and_one_of_other_settings_refused(run):
    config = json.loads((run / "config.json").read_text())
    metadata = {"base": config["model"], "seed": 0}
    metadata |= {name: config["resolved"].get(name) for name in RESOLVED}
    delta = {"layer": {"bias": np.zeros(1, np.float32)}}
    artifacts.save_delta(run / "delta.safetensors", delta, metadata)
    assert any("does not say which settings it was made with" in note for note in notes(load(run)))
    own = metadata | {SETTINGS: settings_digest(config)}
    artifacts.save_delta(run / "delta.safetensors", delta, own)
    assert not any("settings" in note for note in notes(load(run)))
    (run / "config.json").write_text(json.dumps(config | {"steps": 100}))
    with pytest.raises(ForeignDelta, match="not made with the settings"):
        load(run)


def test_summary_rows_are_those_over_all_labels_or_the_only_ones(whole):
    record = load(whole)
    assert record.summary_row("dice")["label"] == "all"
    assert record.summary_row("dice", "posterior")["label"] == "posterior"
    assert record.summary_row("dice", "liver") is None
    assert record.summary_row("aji") is None
    only = record._replace(scores={"summary": [{"metric": "dice", "label": "cell", "mean": 0.5}]})
    assert only.summary_row("dice")["label"] == "cell"


@pytest.mark.parametrize("kept", ["scores.json", "config.json", "metrics.jsonl"])
def test_any_one_of_the_files_is_enough(run, kept):
    for path in run.iterdir():
        if path.is_file() and path.name != kept:
            path.unlink()
    record = load(run)
    assert [bool(record.scores), bool(record.config), bool(record.metrics)].count(True) == 1
    assert record.trained == ({"parameters": 4_200_123, "total": 9_790_000, "bytes": 16_812_345}
                              if kept == "scores.json" else {})  # fmt: skip


def test_a_file_with_scores_is_a_run_without_settings(run):
    other = run / "scores_val.json"
    other.write_text((run / "scores.json").read_text())
    record = load(other)
    assert record.name == "samed/scores_val"
    assert (record.config, record.metrics) == ({}, [])
    assert len(record.overlays) == 3


def test_what_is_no_run_is_one_sentence(tmp_path):
    assert "There is no" in refused(tmp_path / "missing")
    assert "is not a run directory" in refused(tmp_path)
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "holds no scores" in refused(tmp_path / "other.json")


@pytest.mark.parametrize("name", ["scores.json", "config.json"])
@pytest.mark.parametrize(
    "content",
    [b'{"summary": [', b"\xff\xfe\x00", b"", b"[1, 2]", b"3", b"[" * 9999, b'{"seed": NaN}', b'{"a": 1e999}'],
)
def test_damaged_files_are_named(run, name, content):
    (run / name).write_bytes(content)
    assert name in refused(run)


def test_metrics_that_are_not_text_are_named_and_lines_that_are_no_records_left_out(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('7\n"x"\n{"step": 201, "lo')
    record = load(run)
    assert len(record.metrics) == 208
    assert record.damaged == (209, 210)  # the last line, cut off by a kill, is expected
    assert any("2 lines of metrics.jsonl could not be read (line 209, 210)" in note for note in notes(record))
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'\n{"step": \xff}\n{"step": 202, "loss": 0.5}\n')
    record = load(run)
    assert len(record.metrics) == 209
    assert record.damaged == (209, 210, 211, 212)
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00\n")
    assert "metrics.jsonl" in refused(run)


def with_provenance(**changes) -> dict:
    return {"provenance": scores()["provenance"] | changes}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"summary": 5}, "summary"),
        ({"summary": [1]}, "summary"),
        ({"summary": [{"metric": "dice", "mean": 0.5}]}, "summary"),
        ({"summary": [{"metric": ["dice"], "label": "all"}]}, "summary"),
        ({"cases": {"a": 1}}, "cases"),
        ({"cases": [{"case": "a", "dice": 0.5}]}, "cases"),
        ({"cases": [{"label": "organ", "dice": 0.5}]}, "cases"),
        ({"cases": [{"case": "a", "label": "organ", "dice": {"mean": 1}}]}, "cases"),
        (
            {"cases": [{"case": c, "label": "organ", "dice": d} for c, d in (("a", 0.5), ("b", "high"))]},
            "cases",
        ),
        ({"overlays": "none"}, "overlays"),
        ({"skipped": ["case_001"]}, "skipped"),
        ({"empty": [0, 0]}, "empty"),
        ({"provenance": "me"}, "provenance"),
        (with_provenance(versions=["jax"]), "versions"),
        (with_provenance(trained=7), "trained"),
    ],
)
def test_scores_of_another_shape_are_refused_by_name(run, changes, named):
    change_scores(run, **changes)
    assert f"'{named}' is damaged" in refused(run)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"step": None}, "holds no scores"),
        (scores() | {"format": 99}, "has format 99 where this version of medvfm reads format 1"),
        (scores() | {"format": "1"}, 'has format "1" where'),
        ({"summary": [], "cases": []}, "has no format where"),
        ({"format": 1, "summary": []}, "'cases' is damaged"),
        ({"format": 1, "cases": []}, "'summary' is damaged"),
        ({}, "holds no scores"),
    ],
)
def test_scores_that_are_none_or_of_another_version_are_refused(run, content, why):
    (run / "scores.json").write_text(json.dumps(content))
    sentence = refused(run)
    assert why in sentence
    assert "scores.json" in sentence


@pytest.mark.parametrize("name", ["weights", "data", "out", "sites"])
def test_settings_with_a_path_elsewhere_are_refused(run, name):
    settings = json.loads((run / "config.json").read_text())
    elsewhere = "s3://key:hidden@bucket/cells" if name == "data" else "gs://bucket/weights.pth"
    for path in (elsewhere, "a\0b", 7):
        (run / "config.json").write_text(json.dumps(settings | {name: path}))
        assert f"config.json is not what adapt writes: '{name}' is damaged" in refused(run)
    (run / "config.json").write_text(json.dumps(settings | {name: "weights.pth"}))
    assert load(run).config[name] == "weights.pth"


def test_settings_of_slabs_and_patches_are_no_damage(run):
    settings = json.loads((run / "config.json").read_text())
    resolved = settings["resolved"] | {
        "transform": {"kind": "slab", "depth": 3, "of": {"kind": "prompt_free", "classes": 2}},
        "input_shape": [16, 16, 16, 1],
    }
    (run / "config.json").write_text(json.dumps(settings | {"window": [16, 16, 16], "resolved": resolved}))
    assert damaged_settings(json.loads((run / "config.json").read_text())) is None
    assert damaged_settings(settings | {"window": [[16]]}) == "window"
    assert damaged_settings({"resolved": resolved | {"input_shape": {}}}) == "resolved.input_shape"
    ranks = {"algorithm_options": {"ranks": [1, 2], "prune": 1.0}}
    assert damaged_settings({"codec_set": ["fraction=0.1"], "resolved": ranks}) is None
    assert (
        damaged_settings({"resolved": {"algorithm_options": {"ranks": [[1]]}}})
        == "resolved.algorithm_options"
    )


@pytest.mark.parametrize("seen", [(), (Seen("digest", frozenset({"a", "b"})),)])
def test_what_a_teacher_has_seen_is_no_damage(seen):
    teacher = {"model": "lite-medsam", "fingerprint": "0f", "seen": rows(seen)}
    assert damaged_settings({"resolved": {"teacher": teacher}}) is None
    for damage in ({"seen": 3}, {"seen": [{"cases": [["a"]]}]}, {"seen": ["a"]}, {"model": []}):
        assert damaged_settings({"resolved": {"teacher": teacher | damage}}) == "resolved.teacher"


def test_settings_that_contradict_each_other_are_refused(run):
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"adapter": "lora"}))
    expected = "config.json contradicts itself: its adapter is 'lora' and resolved.adapter is that of 'samed'"
    assert expected in refused(run)


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"step": null, "loss": 1}', b'{"step": 3, "loss": "low"}', b"7"]
)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_of_metrics_that_is_no_record_is_counted_wherever_it_stands(run, line, end):
    """Only the beginning of a record was cut off by a kill."""
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(line + end)
    record = load(run)
    assert len(record.metrics) == 208
    assert record.damaged == (209,)
    assert any("1 line of metrics.jsonl" in note for note in notes(record))


def test_settings_of_another_shape_are_refused(run):
    (run / "config.json").write_text('{"resolved": "samed"}')
    assert "'resolved' is damaged" in refused(run)


def ways_out(run):
    outside = run.parent / "outside.npz"
    np.savez(outside, **arrays())
    (run / "overlays" / "link.npz").symlink_to(outside)
    return ["../outside.npz", str(outside), "overlays/../../outside.npz", "overlays/link.npz"]


def test_arrays_outside_the_run_directory_are_ignored(run):
    for name in ways_out(run):
        entry = {"case": "a", "label": "b", "rank": "best", "dice": 0.5}
        change_scores(run, overlays=[entry | {"arrays": name}])
        record = load(run)
        assert (record.overlays, record.unread) == ([], 1), name
        assert any("1 overlay that the scores name could not be read" in note for note in notes(record))
    np.savez(run / "inside.npz", **arrays())
    change_scores(run, overlays=[entry | {"arrays": "inside.npz"}])
    assert len(load(run).overlays) == 1


def npz(**members) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **members)
    return buffer.getvalue()


BROKEN = {
    "empty": b"",
    "text": b"hello",
    "cut off": npz(**arrays())[:2000],
    "one array missing": npz(image=np.zeros((4, 4))),
    "other shapes": npz(image=np.zeros((4, 4)), reference=np.zeros((3, 3)), prediction=np.zeros((3, 3))),
    "objects": npz(image=np.array([{}], dtype=object), reference=np.zeros(1), prediction=np.zeros(1)),
    "no pixels": npz(image=np.zeros((0, 0)), reference=np.zeros((0, 0)), prediction=np.zeros((0, 0))),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_picture_is_left_out_and_the_others_stay(run, content):
    (run / "overlays" / "anterior_median.npz").write_bytes(content)
    assert [o.rank for o in load(run).overlays] == ["best", "worst"]


def test_pictures_that_are_missing_or_unnamed_are_left_out(run):
    names = ["overlays/gone.npz", "", None, "overlays", "x" * 5000, "a\0b"]
    change_scores(
        run, overlays=[{"case": "a", "label": "b", "rank": "best", "arrays": name} for name in names]
    )
    assert load(run).overlays == []
