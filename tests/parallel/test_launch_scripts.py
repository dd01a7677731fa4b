"""tpu/launch_slice.sh and tpu/slurm.sbatch with false `gcloud`, `srun`, `scontrol`: what they ask for, again when."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "tpu"
# The slice exists after "create"; the command takes it away (code 255) as often as TAKEN says, then ends with CODE.
GCLOUD = """#!/bin/bash
echo "$4 ${@:6}" >> "$HERE/calls"
case "$4" in
  create) [[ -n ${REFUSED-} && ! -e $HERE/refused ]] && { touch "$HERE/refused"; exit 1; }; touch "$HERE/slice";;
  delete) rm -f "$HERE/slice" "$HERE/preempted";;
  describe) [[ -e $HERE/preempted ]] && echo PREEMPTED || { [[ -e $HERE/slice ]] && echo READY; } ;;
  ssh) [[ $* == *adapt* ]] || exit 0
       taken=$(grep -c '^ssh.*adapt' "$HERE/calls")
       [[ $taken -le ${TAKEN-0} ]] && { touch "$HERE/preempted"; exit 255; }
       exit "${CODE-0}";;
esac
"""
SRUN = """#!/bin/bash
echo "srun $*" >> "$HERE/calls"
exit "$CODE"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$HERE/calls"
"""


@pytest.fixture
def run(tmp_path):
    """(script, words, environment) -> (exit code, what the false programs were asked)."""
    for name, text in {"gcloud": GCLOUD, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run_(script, *words, **environment):
        found = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HERE": str(tmp_path), "PAUSE": "0"}
        done = subprocess.run(
            [SCRIPTS / script, *words], env=found | environment, capture_output=True, text=True, timeout=60
        )
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return run_


def on_slice(run, **environment):
    words = ["name", "medvfm", "adapt", "--data", "two words"]
    code, calls = run("launch_slice.sh", *words, ZONE="z", TYPE="v5litepod-16", **environment)
    return code, [call for call in calls if not call.startswith("describe")]


def test_a_slice_is_created_set_up_once_and_told_the_command(run):
    code, calls = on_slice(run)
    assert code == 0
    create, setup, command = calls
    assert create.startswith("create --zone z --accelerator-type v5litepod-16")
    assert "--spot" in create
    assert "pip install" in setup
    assert command.endswith("medvfm adapt --data two\\ words  --resume --distributed --mesh all")
    assert "--worker all" in command


def test_a_slice_that_is_taken_away_is_asked_for_again_and_the_run_resumed(run):
    code, calls = on_slice(run, TAKEN="2", REFUSED="1")
    assert code == 0
    assert [call.split()[0] for call in calls] == [
        "create", "create", "ssh", "ssh", "delete", "create", "ssh", "ssh", "delete", "create", "ssh", "ssh",
    ]  # fmt: skip


def test_a_command_that_fails_is_not_repeated(run):
    code, calls = on_slice(run, CODE="1")
    assert code == 1
    assert [call.split()[0] for call in calls] == ["create", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("code", "expected", "requeued"), [(0, 0, False), (1, 1, False), (130, 0, True), (143, 0, True)]
)
def test_a_slurm_job_that_was_asked_to_end_is_queued_again(run, code, expected, requeued):
    ended, calls = run("slurm.sbatch", "medvfm", "adapt", CODE=str(code), SLURM_JOB_ID="7")
    assert ended == expected
    assert calls[0] == "srun --kill-on-bad-exit=1 medvfm adapt --resume --distributed --mesh all"
    assert ("scontrol requeue 7" in calls) == requeued
