"""Private runs as somebody sees them who has everything they leave behind but the checkpoints.

Whoever regenerates the noise from what is recorded must fail, and must succeed on a run whose noise came from a number.
"""

import dataclasses
import io
import json
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.privacy import Secret, draw_secret
from medvfm_jax.federated.privacy.client_level import noisy_mean
from medvfm_jax.federated.rounds.federation import _NOISE
from medvfm_jax.federated.run.federate import _shown, federate
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.train import checkpoint
from medvfm_jax.train.loop import StepEnd
from medvfm_jax.train.stored_delta import ForeignDelta, check_run
from medvfm_jax.weights import artifacts
from tests.federated.small_federation import small

pytestmark = pytest.mark.usefixtures("small_runs")

PRIVATE = {
    "dp_epsilon": 4.0, "dp_clip": 0.1, "rounds": 2, "score": False, "val_fraction": 0.0, "local_steps": 1, "seed": 3,
}  # fmt: skip
DP_SEED = 5


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 12, size=32)


class Drawn:
    """Takes the place of `draw_secret`; what the first call returns may be fixed."""

    def __init__(self, *first: Secret):
        self.secrets, self._first = [], list(first)

    def __call__(self, dp_seed: int | None = None) -> Secret:
        self.secrets.append(self._first.pop(0) if self._first else draw_secret(dp_seed))
        return self.secrets[-1]


@pytest.fixture(scope="module")
def watched(cells, tmp_path_factory):
    """A run with default settings -> (result, its secret)."""
    drawn = Drawn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvfm_jax.federated.run.federate.draw_secret", drawn)
        result = federate(small(cells, tmp_path_factory.mktemp("runs") / "watched", **PRIVATE))
    return result, drawn.secrets[0]


@pytest.fixture(scope="module")
def seeded(cells, tmp_path_factory):
    """A run whose noise comes from a number, and which records everything."""
    settings = PRIVATE | {"dp_seed": DP_SEED, "dp_log_unprotected": True, "rounds": 1}
    return federate(small(cells, tmp_path_factory.mktemp("runs") / "seeded", **settings))


def record_of(folder):
    return json.loads((folder / "config.json").read_text())


def regenerated(record, delta, key):
    """The noise of all rounds together, if ``key`` is the run's."""
    privacy = Privacy(record["dp_clip"], record["resolved"]["noise_multiplier"], 2.0)
    zeros, total = jax.tree.map(jnp.zeros_like, delta), None
    for number in range(record["rounds"]):
        noise_key = jax.random.fold_in(jax.random.fold_in(key, number), _NOISE)
        noise = noisy_mean(zeros, record["dp_clip"], privacy, noise_key)
        total = noise if total is None else jax.tree.map(jnp.add, total, noise)
    return total


def norm(tree):
    return float(np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree))))


def keys_from_what_is_recorded(result):
    """Every number in config.json and in the delta's metadata, as a seed, by every way of derivation we ever used."""
    _, metadata = artifacts.load_delta(result.delta)
    text = json.dumps([record_of(result.folder), metadata])
    plain = {
        n for part in text.replace(",", " ").replace("}", " ").split() if (n := part.strip('"[]:')).isdigit()
    }
    for seed in sorted(int(n) for n in plain if int(n) < 2**31)[:12]:
        key = jax.random.key(seed)
        yield from (
            key,
            jax.random.fold_in(key, 1),
            jax.random.fold_in(key, 2),
            draw_secret(seed).key("rounds"),
        )


def residuals(result):
    """Norm of the delta after each regenerated noise is taken off, over its norm before."""
    record, (delta, _) = record_of(result.folder), artifacts.load_delta(result.delta)
    return [
        norm(jax.tree.map(jnp.subtract, delta, regenerated(record, delta, key))) / norm(delta)
        for key in keys_from_what_is_recorded(result)
    ]


@pytest.mark.slow
def test_noise_cannot_be_taken_off_with_what_is_recorded(watched, seeded):
    """A wrong guess adds as much noise again, a factor of sqrt(2); the right one leaves the clipped mean alone."""
    result, secret = watched
    left = residuals(result)
    assert len(left) > 20
    assert min(left) > 1.2  # sqrt(2) within chance, over the 528 entries
    record, (delta, _) = record_of(result.folder), artifacts.load_delta(result.delta)
    own = jax.tree.map(jnp.subtract, delta, regenerated(record, delta, secret.key("rounds")))
    # The attack works: with the right key two clipped means are left.
    assert norm(own) <= record["rounds"] * record["dp_clip"] * 1.001 < 0.12 * norm(delta)
    broken = residuals(seeded)
    assert min(broken) * norm(artifacts.load_delta(seeded.delta)[0]) <= PRIVATE["dp_clip"] * 1.001
    assert sorted(broken)[1] > 1.2
    assert seeded.privacy.startswith(f"NOT PRIVATE: noise and samples were made from --dp-seed {DP_SEED}")
    assert artifacts.load_delta(seeded.delta)[1]["privacy"].startswith("NOT PRIVATE")


@pytest.mark.slow
def test_two_private_runs_with_the_same_settings_are_told_apart(watched, seeded, cells, tmp_path):
    """Their noise differs and so do their deltas; a run with --dp-seed can be made again and needs no word."""
    result, _ = watched
    again = federate(small(cells, tmp_path / "again", **PRIVATE))
    records = [record_of(folder) for folder in (result.folder, again.folder)]
    assert all(len(record["nonce"]) == 32 for record in records)
    assert records[0] | {"out": "", "nonce": ""} == records[1] | {"out": "", "nonce": ""}
    with pytest.raises(ForeignDelta, match="not made with the settings"):
        check_run(records[0], artifacts.read_metadata(again.delta), again.delta)
    assert check_run(records[1], artifacts.read_metadata(again.delta), again.delta) == ""
    assert "nonce" not in record_of(seeded.folder)
    assert records[0]["nonce"] not in json.dumps(artifacts.read_metadata(result.delta))


@pytest.mark.parametrize("tells_all", [False, True])
def test_the_progress_of_a_private_run_shows_no_time_of_a_round(tells_all):
    """A round takes as long as there are clients in it, and amplification assumes that nobody knows how many."""
    run = SimpleNamespace(tells_all=tells_all, steps=5, config=SimpleNamespace(batch_size=2))
    stream = io.StringIO()
    metrics = {"participants": 3.0, "loss": 1.0} if tells_all else {}
    with ProgressDisplay(stream, "federate") as display:
        show = _shown(run, display)
        for number in (1, 2, 3):
            show(StepEnd(number, 3, None, None, metrics, 1, 2.0, number == 3))
    last = stream.getvalue().splitlines()[-1]
    assert last == ("federate 3/3  loss 1.0000  15.0 images/s" if tells_all else "federate 3/3")


def spellings(secret):
    """Bytes, hexadecimal and decimal numbers of a secret and of the key that follows from it."""
    words = np.asarray(jax.random.key_data(secret.key("rounds")))
    found = []
    for data in (secret.data, words.tobytes()):
        found += [data, data[::-1], data.hex().encode(), data.hex().upper().encode()]
        found += [str(int.from_bytes(data, order)).encode() for order in ("little", "big")]
    return [*found, *(str(int(word)).encode() for word in words), *(word.tobytes() for word in words)]


def test_the_secret_is_in_no_file_once_the_run_is_over(watched):
    result, secret = watched
    files = [path for path in result.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        "config.json",
        "metrics.jsonl",
        "delta.safetensors",
        "manifest.json",
    }
    for path in files:
        content = path.read_bytes()
        assert not [word for word in spellings(secret) if word in content], path
    assert [path.name for path in (result.folder / "checkpoints").iterdir()] == ["step_00000002"]


def assert_same_numbers(one, other):
    """Bit by bit; the metadata tell private runs apart that were asked for the same."""
    jax.tree.map(
        np.testing.assert_array_equal, *(artifacts.load_delta(result.delta)[0] for result in (one, other))
    )


@pytest.mark.slow
def test_an_interrupted_private_run_goes_on_with_its_own_secret(watched, cells, tmp_path, monkeypatch):
    """The checkpoint alone has the secret, and nobody else may read it; what is drawn at the resumption is not used."""
    whole, secret = watched
    config = small(cells, tmp_path / "run", **PRIVATE)
    write, seen = checkpoint.write, []

    def write_and_interrupt(folder, written, *args, **kwargs):
        if written.step:
            os.kill(os.getpid(), signal.SIGTERM)
        found = write(folder, written, *args, **kwargs)
        seen.extend(path.stat().st_mode & 0o777 for path in (found, *found.iterdir()))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", write_and_interrupt)
        patch.setattr("medvfm_jax.federated.run.federate.draw_secret", Drawn(secret))
        with pytest.raises(KeyboardInterrupt):
            federate(config)
    assert sorted(seen) == [0o600] * 4 + [0o700] * 2  # before the first round and after it
    for path in config.out.rglob("*"):
        if path.is_file() and "checkpoints" not in path.parts:
            assert not [word for word in spellings(secret) if word in path.read_bytes()], path
    resumed = federate(dataclasses.replace(config, resume=True))
    assert_same_numbers(resumed, whole)
    again = federate(dataclasses.replace(config, resume=True))  # a finished run needs no secret
    assert_same_numbers(again, whole)


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_it_goes_on_with_the_same_noise(
    watched, cells, tmp_path, monkeypatch
):
    """A round that was told already must not be released once more with other noise: epsilon counts it once."""
    whole, secret = watched
    config = small(cells, tmp_path / "run", **PRIVATE)
    write = checkpoint.write

    def killed(folder, written, *args, **kwargs):
        if written.step:
            raise KeyboardInterrupt  # as SIGKILL would: round 1 is in metrics.jsonl, and nothing more is written
        return write(folder, written, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", killed)
        patch.setattr("medvfm_jax.federated.run.federate.draw_secret", Drawn(secret))
        with pytest.raises(KeyboardInterrupt):
            federate(config)
    assert [line["step"] for line in rounds_of(config.out)] == [1]
    resumed = federate(dataclasses.replace(config, resume=True))
    assert_same_numbers(resumed, whole)


def rounds_of(folder):
    return [line for line in read_metrics(folder) if "upload_bytes" in line]


def test_only_public_numbers_are_recorded(watched, seeded):
    folder = watched[0].folder
    line = rounds_of(folder)[0]
    assert set(line) == {"step", "upload_bytes", "download_bytes", "epsilon", "lr"}
    resolved = record_of(folder)["resolved"]
    assert (resolved["holdings"], resolved["training_patients"], resolved["split"]["train"]) == ([], {}, [])
    assert resolved["split"]["test"]
    assert "dp-log-unprotected" not in resolved["privacy"]
    # Asked for, they are there, and the statement says so.
    line = rounds_of(seeded.folder)[0]
    for name in (
        "loss",
        "loss/dark",
        "upload_norm",
        "participants",
        "excluded",
        "clipped",
        "seconds",
        "time",
    ):
        assert name in line
    assert line["clipped"] in (0.0, 0.5, 1.0)
    assert line["clipped"] == (line["upload_norm"] > PRIVATE["dp_clip"])  # here both clients or none
    assert line["upload_bytes"] == rounds_of(folder)[0]["upload_bytes"]
    resolved = record_of(seeded.folder)["resolved"]
    assert resolved["training_patients"] == {"bright": 5, "dark": 5}
    assert "as asked for with --dp-log-unprotected" in resolved["privacy"]


def test_noise_is_announced_before_it_drowns_a_run(watched):
    noise = record_of(watched[0].folder)["resolved"]["noise"]
    delta, _ = artifacts.load_delta(watched[0].delta)
    assert noise["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(delta))
    assert noise["drowned"]
    # Two rounds of it; 528 entries of secret noise have a norm within 3 % (one deviation).
    assert noise["norm"] * np.sqrt(2) == pytest.approx(norm(delta), rel=0.2)
