"""`medvfm federate`, killed at random rounds, ends with the bits of an undisturbed run."""

import random

import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.runs.run_directory import read_metrics
from tests.cli.commands import options
from tests.cli.killed_commands import after, disturbed_run, starting, while_it_compiles
from tests.federated.small_federation import SMALL

SEED, ROUNDS = 20, 100


@pytest.mark.slow
def test_killed_at_random_rounds_it_ends_with_the_same_bits(tmp_path):
    """Half of the clients take part, their codec remembers, and the server has moments: all of it is resumed."""
    cells = make_phantom_dataset(tmp_path / "cells", "cells", 12, size=32)
    settings = SMALL | {
        "data": cells, "rounds": ROUNDS, "algorithm": "fedadam", "codec": "int8", "memory": "error_feedback",
        "down_codec": "int8", "down_memory": "error_feedback", "participation": 0.5, "validate_every": 19,
        "checkpoint_every": 5,
    }  # fmt: skip

    def words(out):
        return ["federate", "--no-score", *options(**settings, out=out)]

    rng = random.Random(SEED)
    moments = [
        after(rng.randrange(1, 3)),  # before the first checkpoint
        after(rng.randrange(8, 14)),
        while_it_compiles,
        after(rng.randrange(18, 24)),
        after(rng.randrange(30, 36)),
    ]
    with starting(words, tmp_path, tmp_path / "programs") as start:
        start(tmp_path / "undisturbed").finish()
        disturbed_run(start, tmp_path / "disturbed", moments)
    whole, resumed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert (whole / "delta.safetensors").read_bytes() == (resumed / "delta.safetensors").read_bytes()
    logs = [
        [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in read_metrics(f)]
        for f in (whole, resumed)
    ]
    assert logs[0] == logs[1]
    assert [r["step"] for r in logs[0] if "upload_bytes" in r] == list(range(1, ROUNDS + 1))
