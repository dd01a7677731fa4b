"""tpu/plan.sh: one JSON file per line, what is there is kept, a plan that does not fit does not stop the others."""

import json
import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tpu/plan.sh"
MEDVFM = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *sam-x*) echo "medvfm: no model" >&2; exit 1;; esac
echo '{"words": "'"$*"'"}'
case "$*" in *large*) exit 1;; esac
"""
TABLE = """# comment
sam-x samed v5e:2x2 data=4 replicated 8
large full v5e:2x2 data=4 fsdp 8 --keep everything
small samed v5e:2x2 data=4 replicated 16 --accumulate 2
small samed v5e:2x2 clients=4 replicated 16 --clients 16
"""


def test_every_line_becomes_a_file_and_none_stops_the_others(tmp_path):
    fake = tmp_path / "bin/medvfm"
    fake.parent.mkdir()
    fake.write_text(MEDVFM)
    fake.chmod(0o755)
    calls = tmp_path / "calls"
    environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}", "CALLS": str(calls)}

    def run():
        words = [str(SCRIPT), str(tmp_path / "out")]
        return subprocess.run(words, input=TABLE, text=True, capture_output=True, env=environment)

    first = run()
    assert first.returncode == 1
    assert "sam-x samed v5e:2x2: exit code 1" in first.stderr
    assert "large full v5e:2x2: exit code 1" in first.stderr
    assert "small" not in first.stderr
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [
        "large_full_v5e_2x2_fsdp.json",
        "small_samed_v5e_2x2_replicated.json",
        "small_samed_v5e_2x2_replicated_16_clients.json",
    ]
    small = json.loads((tmp_path / "out" / files[1]).read_text())["words"]
    assert small.endswith("--mesh data=4 --rules replicated --global-batch 16 --accumulate 2")
    assert len(calls.read_text().splitlines()) == 4
    run()
    assert len(calls.read_text().splitlines()) == 5  # only the one without a file again
