"""The scripts of tpu/ with false `gcloud`, `srun`, `scontrol`: what they ask for, again when; gke.yaml as it reads."""

import math
import os
import subprocess
from pathlib import Path

import pytest
import tyro
import yaml

from medvfm_jax.cli.options.adapt import AdaptArgs

SCRIPTS = Path(__file__).parents[2] / "tpu"
# The slice exists after "create"; the command takes it away (code 255) as often as TAKEN says, then ends with CODE.
GCLOUD = """#!/bin/bash
echo "$4 ${@:6}" >> "$HERE/calls"
case "$4" in
  create) [[ -n ${TOO_LARGE-} && $* == *$TOO_LARGE* ]] && exit 1
          [[ -n ${REFUSED-} && ! -e $HERE/refused ]] && { touch "$HERE/refused"; exit 1; }; touch "$HERE/slice";;
  delete) rm -f "$HERE/slice" "$HERE/preempted";;
  describe) [[ -n ${LOST-} && ! -e $HERE/lost ]] && { touch "$HERE/lost"; exit 1; }
            [[ -e $HERE/preempted ]] && echo PREEMPTED || { [[ -e $HERE/slice ]] && echo READY; } ;;
  ssh) [[ -n ${TAKEN_EARLY-} && ! -e $HERE/early ]] && { touch "$HERE/early" "$HERE/preempted"; exit 255; }
       [[ $* == *adapt* ]] || exit "${SETUP_CODE-0}"
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
    assert r"pip\ install" in setup
    assert command.endswith("medvfm adapt --data two\\ words  --resume --distributed --mesh all")
    assert "--worker all" in command


def test_a_slice_that_is_taken_away_is_asked_for_again_and_the_run_resumed(run):
    code, calls = on_slice(run, TAKEN="2", REFUSED="1")
    assert code == 0
    assert [call.split()[0] for call in calls] == [
        "create", "create", "ssh", "ssh", "delete", "create", "ssh", "ssh", "delete", "create", "ssh", "ssh",
    ]  # fmt: skip


def test_a_slice_that_is_taken_away_while_it_is_set_up_is_asked_for_again(run):
    code, calls = on_slice(run, TAKEN_EARLY="1")
    assert code == 0
    assert [call.split()[0] for call in calls] == ["create", "ssh", "delete", "create", "ssh", "ssh"]


def test_a_slice_that_is_there_is_set_up_where_that_has_not_been_done_and_is_not_deleted(run, tmp_path):
    """Its first answer is lost on the way: what is there is found at the next question."""
    (tmp_path / "slice").touch()
    code, calls = on_slice(run, LOST="1", REFUSED="1")
    assert code == 0
    assert [call.split()[0] for call in calls] == ["create", "ssh", "ssh"]
    condition, then = calls[1].partition("--command ")[2].split(" || ")
    assert condition == "test -e /tmp/medvfm_set_up"
    assert then.endswith("&& touch /tmp/medvfm_set_up")


def test_the_setup_runs_once_and_is_remembered_only_if_it_succeeded(run, tmp_path):
    marker = tmp_path / "marker"
    for setup, before, after in (
        ("echo a  b; false", 1, False),
        ("echo 'a  b' # c", 0, True),
        ("false", 0, True),
    ):
        _, calls = on_slice(run, SETUP=setup)
        command = calls[-2].partition("--command ")[2].replace("/tmp/medvfm_set_up", str(marker))
        assert (subprocess.run(["bash", "-c", command]).returncode, marker.exists()) == (before, after)


def test_a_setup_that_fails_keeps_the_slice_and_ends(run):
    code, calls = on_slice(run, SETUP_CODE="3")
    assert code == 3
    assert [call.split()[0] for call in calls] == ["create", "ssh"]


@pytest.mark.parametrize("words", [["--mesh", "replica=4,data=16"], ["--mesh=replica=4,data=16"]])
def test_a_mesh_of_its_own_stays_with_the_command(run, words):
    """The last --mesh holds: FSDP on 64 chips would silently be divided over all of them."""
    _, calls = run("launch_slice.sh", "name", "medvfm", "adapt", *words, ZONE="z", TYPE="t")
    assert calls[-1].replace("\\,", ",").endswith(f"medvfm adapt {' '.join(words)}  --resume --distributed")
    _, calls = run("slurm.sbatch", "medvfm", "adapt", *words, CODE="0", SLURM_JOB_ID="7")
    assert calls[-1] == f"srun --kill-on-bad-exit=1 medvfm adapt {' '.join(words)} --resume --distributed"


def test_a_command_that_fails_is_not_repeated(run):
    code, calls = on_slice(run, CODE="1")
    assert code == 1
    assert [call.split()[0] for call in calls] == ["create", "ssh", "ssh"]


def test_where_the_preferred_slice_is_refused_the_run_goes_on_with_fewer_hosts(run):
    two = {"TYPE": "v5litepod-32 v5litepod-16", "TOO_LARGE": "v5litepod-32"}
    code, calls = run("launch_slice.sh", "name", "medvfm", "adapt", ZONE="z", TAKEN="1", **two)
    assert code == 0
    asked = [call.split("--accelerator-type ")[1].split()[0] for call in calls if call.startswith("create")]
    assert asked == ["v5litepod-32", "v5litepod-16"] * 2
    assert calls[-1].endswith("medvfm adapt  --resume --distributed --mesh all")


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_flags_of_a_chip_are_set_for_the_command(run, chip):
    code, calls = on_slice(run, FLAGS=chip)
    assert code == 0
    lines = (SCRIPTS / "flags" / f"{chip}.txt").read_text().splitlines()
    flags = [line for line in lines if not line.startswith("#")]
    assert all(flag.startswith("--xla_") and "=" in flag for flag in flags)
    assert len(set(flags)) == len(flags)
    assert any("github.com/AI-Hypercomputer/maxtext" in line for line in lines)
    assert f"LIBTPU_INIT_ARGS='{' '.join(flags)}' medvfm adapt" in calls[-1]


def test_flags_of_an_unknown_chip_are_refused_before_anything_is_asked_for(run, tmp_path):
    (tmp_path / "calls").touch()
    assert run("launch_slice.sh", "name", "medvfm", ZONE="z", TYPE="t", FLAGS="v9") == (2, [])


def test_the_job_of_gke_asks_for_the_hosts_of_its_slice_and_a_command_that_there_is():
    job = yaml.safe_load((SCRIPTS / "gke.yaml").read_text())
    (part,) = job["spec"]["replicatedJobs"]
    pods = part["template"]["spec"]
    pod = pods["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert chips == pods["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert pods["completions"] == pods["parallelism"]
    name, command, *words = container["command"]
    assert (name, command) == ("medvfm", "adapt")
    args = tyro.cli(AdaptArgs, args=words)
    assert args.resume
    assert args.distributed
    assert args.mirror.startswith("gs://")
    assert args.batch_size % chips == 0
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {args.data, str(args.out.parent)} <= mounted


@pytest.mark.parametrize(
    ("code", "expected", "requeued"), [(0, 0, False), (1, 1, False), (130, 0, True), (143, 0, True)]
)
def test_a_slurm_job_that_was_asked_to_end_is_queued_again(run, code, expected, requeued):
    ended, calls = run("slurm.sbatch", "medvfm", "adapt", CODE=str(code), SLURM_JOB_ID="7")
    assert ended == expected
    assert calls[0] == "srun --kill-on-bad-exit=1 medvfm adapt --resume --distributed --mesh all"
    assert ("scontrol requeue 7" in calls) == requeued
