import io

from rich.console import Console

from medvfm_jax.predict.score_table import show
from medvfm_jax.runs import provenance as p


def test_data_digest_depends_on_names_and_contents_not_on_order_or_place(tmp_path):
    for root in ("one", "two"):
        (tmp_path / root / "sub").mkdir(parents=True)
        (tmp_path / root / "a.png").write_bytes(b"1")
        (tmp_path / root / "sub" / "b.png").write_bytes(b"2")

    def digest(root, order=1):
        return p.digest_files(list((tmp_path / root).rglob("*.png"))[::order], tmp_path / root)

    assert digest("one") == digest("two", -1)
    (tmp_path / "two" / "a.png").write_bytes(b"3")
    assert digest("one") != digest("two")
    (tmp_path / "one" / "a.png").rename(tmp_path / "one" / "c.png")
    (tmp_path / "two" / "a.png").write_bytes(b"1")
    assert digest("one") != digest("two")


def test_large_files_are_read_at_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(p, "_READ_WHOLE", 8)
    path, digests = tmp_path / "a", set()
    for content in (b"0123456789abcdef", b"0123456789abcdeX", b"X123456789abcdef", b"0123456789abcdefg"):
        path.write_bytes(content)
        digests.add(p.digest_files([path]))
    assert len(digests) == 4


def test_the_record_names_versions_and_device():
    record = p.provenance(seed=1, weights_sha256="w", data_sha256="d", trained={"parameters": 3})
    assert {"jax", "python"} <= record["versions"].keys()
    assert record["device"].startswith(("cpu", "gpu"))
    assert record["trained"] == {"parameters": 3}


def test_the_table_says_what_it_is():
    rows = [
        {"metric": "dice", "label": "all", "mean": 0.51234, "low": 0.4, "high": 0.6, "n": 7, "median": 0.5},
        {"metric": "hd95", "label": "all", "mean": 3.456, "low": None, "high": None, "n": 1, "median": 3.4},
    ]
    scores = {
        "model": "m", "prompt": "box", "flips": True, "split": "test", "metric_profile": "strict",
        "n_patients": 7, "n_cases": 9, "empty": {"reference": 1, "prediction": 2, "both": 3}, "summary": rows,
    }  # fmt: skip
    stream = io.StringIO()
    show(scores, Console(file=stream, width=120))
    text = " ".join(stream.getvalue().split())
    expected = "box prompts from the reference|flips|0.5123|0.4000 to 0.6000|3.46|n = 7 patients|strict"
    for part in [*expected.split("|"), "1 reference, 2 prediction, 3 both"]:
        assert part in text
