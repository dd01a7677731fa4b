"""The table of what tools cost, and one that is measured."""

import json
import subprocess

import pytest

from experiments import theory_costs
from experiments.theory_costs import TOOLS, Plan, Tool, markdown, measured, run

ROW = {
    "words": ["--cases", "2", "--data"],
    "processor_seconds": 9.6,
    "megabytes": 512.4,
    "gradients": 2,
    "passes": 0,
}


def test_a_row_is_kept(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"tools": {"kernel": ROW}}))
    assert run(Plan("data", tools=("kernel",)), path)["tools"]["kernel"] == ROW
    assert "| kernel | `--cases 2` | 2 | 0 | 10 | 512 |" in markdown({"tools": {"kernel": ROW}})


@pytest.mark.slow
def test_a_process_is_measured(tmp_path, monkeypatch):
    curve = {"curve": [{"shots": n, "label": "all", "seeds": [0.9 - 0.4 / n]} for n in (1, 2, 4, 8)]}
    (tmp_path / "curve.json").write_text(json.dumps(curve))
    monkeypatch.setattr(theory_costs, "TOOLS", {"scaling": Tool((), 3, 4)})
    row = measured("scaling", ("--curve", str(tmp_path / "curve.json")), 300.0)
    assert row["processor_seconds"] > 0.1
    assert 10 < row["megabytes"] < 10_000
    assert (row["gradients"], row["passes"]) == (3, 4)
    assert row["words"] == ["--curve"]  # no path of a machine
    with pytest.raises(subprocess.CalledProcessError):
        measured("scaling", ("--curve", str(tmp_path / "nothing.json")), 300.0)


def test_no_tool_is_named_that_analyze_does_not_have():
    from medvfm_jax.settings import analyze

    names = {name.removesuffix("Config").lower() for name in dir(analyze) if name.endswith("Config")}
    assert {tool.replace("-", "") for tool in TOOLS} <= names
