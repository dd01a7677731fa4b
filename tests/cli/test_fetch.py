"""A run that was trained on one machine and is scored on another."""

import json

from medvfm_jax.cli.main import main
from medvfm_jax.data import make_phantom_dataset


def test_a_run_goes_to_storage_and_is_scored_where_it_comes_from_there(tmp_path, capsys):
    data, url = make_phantom_dataset(tmp_path / "data", n=8, size=32), f"file://{tmp_path}/bucket/a"
    words = ["adapt", "--data", str(data), "--model", "sam-tiny-test", "--adapter", "decoder", "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "there"), "--mirror", url]) == 0
    capsys.readouterr()
    here = tmp_path / "here"
    assert main(["fetch", url, "--out", str(here), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["trained"]
    assert told["files"] == sum(path.is_file() for path in here.rglob("*"))
    scores = []
    for run in (tmp_path / "there", here):
        assert main(["evaluate", "--run", str(run), "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["summary"])
    assert scores[0] == scores[1]


def test_addresses_that_hold_no_run_are_told_without_a_password(tmp_path, capsys):
    here = tmp_path / "here"
    assert main(["fetch", f"file://{tmp_path}/nothing", "--out", str(here)]) == 1
    assert (
        "holds no copy of a run; give the URL that `adapt` was given as --mirror" in capsys.readouterr().err
    )
    assert not here.exists()
    assert main(["fetch", "s3://user:secret@bucket/a", "--out", str(here)]) == 2
    assert "secret" not in capsys.readouterr().err
