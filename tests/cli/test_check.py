"""`medvfm check`, and what a dataset of somebody else can do to the files of the reader."""

import json

import numpy as np
import pytest

from medvfm_jax.data import check_cache
from tests.cli.commands import SAM, adapt_words, contents
from tests.data.planted_problems import PLANTED, plant
from tests.data.small_folders import nnunet_folder, plain_folder, save_picture, write_info


def test_all_planted_problems_are_named_and_the_exit_code_says_so(medvfm, tmp_path):
    folder = plant(tmp_path / "d", tmp_path / "outside.nii.gz")
    result = medvfm("check", "--data", folder)
    assert result.code == 1
    lines = result.out.splitlines()
    for severity, kind, words in PLANTED:
        named = [
            line
            for line in lines
            if line.startswith(f"{severity} ({kind}): ") and all(w in line for w in words)
        ]
        assert len(named) == 1, (kind, lines)
    errors = sum(severity == "error" for severity, _, _ in PLANTED)
    # Too few cases of one site are no error of the split.
    assert f"{folder}: 15 cases, {errors} errors, {len(PLANTED) - errors} notes; " in lines[-1]
    assert "organ" in result.out


def test_a_folder_in_order_and_its_numbers_for_programs(medvfm, cells):
    record = medvfm("check", "--data", cells, "--json").json
    assert (record["errors"], [f["kind"] for f in record["findings"]]) == (0, ["mask values"])
    assert [(p["part"], p["cases"], p["sites"]) for p in record["parts"]] == [
        ("all", 6, 2), ("training", 4, 2), ("validation", 1, 1), ("test", 1, 1),
    ]  # fmt: skip
    assert record["parts"][0]["size"]["median"] == [32, 32]
    background, foreground = record["labels"]
    assert (foreground["value"], foreground["cases"]) == (255, 6)
    assert background["pixels"] + foreground["pixels"] == 6 * 32 * 32
    assert background["share"] + foreground["share"] == pytest.approx(1)
    assert set(record["cases"]["cell_000"]) >= {"grid", "spacing", "pixels", "pieces", "digest"}
    text = medvfm("check", "--data", cells).out
    assert "part" in text
    assert "32×32" in text
    assert text.splitlines()[-1].startswith(f"{cells}: 6 cases, 0 errors, 1 note; ")


def test_with_json_errors_are_in_the_object_and_in_the_exit_code(medvfm, tmp_path):
    folder = nnunet_folder(tmp_path / "d")
    (folder / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    result = medvfm("check", "--data", folder, "--json")
    assert result.code == 1
    (finding,) = [f for f in json.loads(result.out)["findings"] if f["severity"] == "error"]
    assert (finding["kind"], finding["cases"]) == ("unusable image", ["a"])


@pytest.mark.parametrize("kind", ["no folder", "no dataset", "split"])
def test_what_has_no_cases_or_no_split_is_an_error_too(medvfm, tmp_path, kind):
    folder = tmp_path / "d"
    if kind != "no folder":
        nnunet_folder(folder)
    if kind == "no dataset":
        write_info(folder, remove=("labels",))
    if kind == "split":
        (folder / "splits_final.json").write_text('[{"train": ["a", "\\u001b[2J/../z"], "val": ["b"]}]')
    result = medvfm("check", "--data", folder)
    words = {"no folder": "is not a folder", "no dataset": "no 'labels'", "split": "'\\x1b[2J/../z'"}[kind]
    assert result.code == 1
    assert words in result.out
    assert result.out.splitlines()[-1].split("; ")[0].endswith("1 error, 0 notes")


def test_a_damaged_cache_is_said_and_a_fresh_check_reads_again(medvfm, cells, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))  # other tests share the usual one
    medvfm("check", "--data", cells)
    for path in check_cache.cache_file().parent.glob("*.json"):
        path.write_text("{")
    result = medvfm("check", "--data", cells)
    assert result.code == 0
    assert "what earlier checks found is damaged" in result.err
    assert medvfm("check", "--data", cells, "--fresh").code == 0


def test_check_has_help_with_an_example(medvfm):
    text = medvfm("check", "--help").out
    assert "Example: medvfm check --data data/dsb2018" in " ".join(text.split())
    assert "--follow-links" in text


# A dataset as a weapon


def victims(folder):
    """Files of the user that hostile names point at."""
    for name in ("x.nii.gz", "x.png", "b.nii.gz"):
        (folder / name).write_bytes(b"mine")
    return contents(folder)


@pytest.mark.parametrize("name", ["../../x", "{absolute}/x", "a/../../../b", "..\\..\\x"])
@pytest.mark.parametrize("command", ["adapt", "evaluate", "federate", "check"])
def test_a_case_name_writes_no_file_of_the_user(medvfm, tmp_path, name, command):
    home = tmp_path / "home"
    (home / "runs" / "new").mkdir(parents=True)
    before = victims(home)
    folder = nnunet_folder(tmp_path / "d")
    entry = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    write_info(folder, dataset={"a": entry, name.format(absolute=home): entry})
    out = home / "runs" / "new" / ("scores.json" if command == "evaluate" else "run")
    words = {
        "adapt": adapt_words(folder, out),
        "federate": ["federate", "--data", folder, "--model", SAM, "--out", out],
        "evaluate": ["evaluate", "--model", SAM, "--data", folder, "--split", "all", "--out", out],
        "check": ["check", "--data", folder],
    }[command]
    result = medvfm(*words)
    if command == "check":
        assert (result.code, "path separator" in result.out) == (1, True)
    else:
        result.refused("has a case named", "path separator", code=1)
    assert contents(home) == before


def test_a_link_in_the_place_of_an_image_reads_no_file_of_the_user(medvfm, tmp_path):
    secret = save_picture(tmp_path / "secret.png", np.eye(16, dtype=np.uint8))
    folder = plain_folder(tmp_path / "d", {"a": np.eye(16, dtype=np.uint8)})
    (folder / "images" / "a.png").unlink()
    (folder / "images" / "a.png").symlink_to(secret)
    medvfm(*adapt_words(folder, tmp_path / "run", val_fraction=0, test_fraction=0)).refused(
        "leads out of", "--follow-links", code=1
    )
    assert (
        medvfm("check", "--data", folder, "--follow-links", "--test-fraction", 0, "--val-fraction", 0).code
        == 0
    )
