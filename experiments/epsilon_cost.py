r"""What epsilon costs: the noise that is predicted before a run beside the Dice after it, patient-level privacy.

python -m experiments.epsilon_cost --data DATA/dsb2018 --out runs/epsilon_cost

Sites of nuclei as hospitals train one logistic regression on LiteMedSAM's frozen features, places of each picture, by
federated averaging with DP-SGD inside each hospital, one picture a patient.  The rate table, before any training, says
which noise multiplier a budget needs, and how long the noise in the mean of a round is beside the longest signal (the
clipping bound): above 1 `medvfm federate` says that it "drowns the signal, and this run will hardly learn".  Beside it
is the Dice of places on test pictures of these sites, over several draws of the noise (from known seeds: the runs are a
simulation, not private).
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax import compilation_cache, cpu
from medvfm_jax.federated import Privacy, Shard, algorithms, gradient_of, make_round, privacy
from medvfm_jax.federated.privacy.noise_prediction import NoisePrediction
from medvfm_jax.federated.privacy.patient_level import PatientBatch, patient_value_and_grad
from medvfm_jax.few_shot.dense_features import class_shares, pictures_of
from medvfm_jax.metrics.bootstrap import interval
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.theory import rank_agreement
from medvfm_jax.theory.runs.pictures import open_encoder
from medvfm_jax.train.training_data import open_split

RESULTS = Path(__file__).parent / "results" / "epsilon_cost.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the runs."""

    data: str
    """Folder dsb2018."""
    out: Path = Path("runs/epsilon_cost")
    """Where the features are kept."""
    model: str = "lite-medsam"
    """Frozen encoder."""
    sites: tuple[str, ...] = ("A_fluo_256x256", "B_histology_256x320", "C_fluo_360x360")
    """Hospitals."""
    train: int = 14
    """Pictures of each to train on."""
    test: int = 5
    """Test pictures of each, at most."""
    places: int = 256
    """Places of a picture that a step looks at."""
    epsilons: tuple[float, ...] = (1.0, 8.0, 32.0, 128.0)
    """Budgets; rows without noise, with and without clipping, are there in any case."""
    delta: float = 0.01
    """Of the guarantee, below one in the pictures of a hospital."""
    clip: float = 0.2
    """Length to which a picture's gradient is clipped."""
    rounds: int = 40
    """Rounds of one step each, with all pictures."""
    rate: float = 20.0
    """Learning rate of SGD."""
    draws: int = 5
    """Of the noise."""


class Features(NamedTuple):
    """train (sites, pictures, places, d) and its shares of nuclei; test: one (places, d) and shares of each picture."""

    train: NDArray
    shares: NDArray
    test: list[NDArray]
    test_shares: list[NDArray]


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """All budgets, then the table as JSON."""
    cpu.tune()
    compilation_cache.enable()
    start = time.process_time()
    console = Console(highlight=False)
    features = features_of(plan, lambda text: console.print(text, markup=False))
    rows = {}
    clipped = Privacy(plan.clip, 0.0, float(plan.train), unit="patient")
    cells = {f"{e:g}": predicted(plan, features.train.shape[-1], e) for e in plan.epsilons}
    for name, (said, guarded) in {
        **cells,
        "no noise, clipped": (None, clipped),
        "neither": (None, None),
    }.items():
        found = np.array(
            [trained(plan, features, guarded, draw) for draw in range(plan.draws if said else 1)]
        )
        low, high = interval(found.mean(0), 0, 2000, bounds=(0.0, 1.0))
        rows[name] = {
            "predicted": said,
            "dice": {"mean": float(found.mean()), "low": low, "high": high, "draws": found.mean(1).tolist()},
        }
        console.print(name, rows[name], markup=False)
    noisy = [row for row in rows.values() if row["predicted"] is not None]
    table = {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("data", "out")},
        "budgets": rows,
        "all_nuclei": float(np.mean([dice(np.ones(len(y), bool), y > 0.5) for y in features.test_shares])),
        "agreement": rank_agreement(
            [-row["predicted"]["ratio"] for row in noisy], [row["dice"]["mean"] for row in noisy]
        )._asdict(),
        "processor_seconds": time.process_time() - start,
        "versions": versions(),
        "device": device(),
    }
    run_directory.write_json(results, run_directory.finite(table))
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def features_of(plan: Plan, say: Callable[[str], None]) -> Features:
    """Places of each picture, each of length 1 and with a 1 behind; from the folder where they are there."""
    path = plan.out / "features.npz"
    if not path.exists():
        source, encoder = (
            open_split(plan.data, seed=0, val=0.15, test=0.2),
            open_encoder(plan.model, offline=False),
        )
        found: dict[str, NDArray] = {}
        for site in plan.sites:
            for part, cases, most in (
                ("train", source.split.train, plan.train), ("test", source.split.test, plan.test)
            ):  # fmt: skip
                own = [case for case in cases if source.dataset.case(case).site == site][:most]
                for number, case in enumerate(own):
                    ((picture, label),) = pictures_of(source.dataset, case, slices=1)
                    grid, frame = encoder(picture)
                    shares = class_shares(frame, label, source.dataset.classes)
                    x = np.concatenate(
                        [grid.reshape(-1, grid.shape[-1]), shares.reshape(len(shares), -1).T], -1
                    )
                    found[f"{part}/{site}/{number:03d}"] = x[shares.reshape(len(shares), -1).sum(0) > 0]
                say(f"{site}: {len(own)} {part} pictures encoded")
        plan.out.mkdir(parents=True, exist_ok=True)
        np.savez(path, **{name.replace("/", "|"): x.astype(np.float32) for name, x in found.items()})
    with np.load(path) as stored:
        found = {name: stored[name] for name in sorted(stored.files)}
    classes = 2
    rng, train, shares, test, test_shares = np.random.default_rng(0), [], [], [], []
    for name, x in found.items():
        whole, y = scaled(x[:, :-classes]), x[:, -1]
        if name.startswith("train"):
            chosen = rng.choice(len(whole), plan.places, replace=len(whole) < plan.places)
            train.append(whole[chosen])
            shares.append(y[chosen])
        else:
            test.append(whole)
            test_shares.append(y)
    size = (len(plan.sites), plan.train)
    return Features(
        np.stack(train).reshape(*size, *train[0].shape),
        np.stack(shares).reshape(*size, -1),
        test,
        test_shares,
    )


def scaled(x: NDArray) -> NDArray[np.float32]:
    """Each place by itself: less the mean of its channels, of length 1, with a 1 behind for the intercept.

    Nothing of other pictures enters, so that a picture's gradient is its own.
    """
    x = x - x.mean(-1, keepdims=True)
    x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1).astype(np.float32)


def predicted(
    plan: Plan, numbers: int, epsilon: float | None
) -> tuple[dict[str, Any] | None, Privacy | None]:
    """The rate table's row of a budget, and the mechanism; None without noise."""
    if epsilon is None:
        return None, None
    wanted = Privacy(plan.clip, 1.0, float(plan.train), unit="patient")
    found = privacy.with_epsilon(wanted, epsilon, rounds=plan.rounds, delta=plan.delta, accountant="exact")
    norm = found.noise_multiplier * plan.clip * math.sqrt(numbers) / plan.train
    said = NoisePrediction("patient", norm, plan.clip, numbers, len(plan.sites), float(plan.train), 1.0)
    return {
        "noise_multiplier": found.noise_multiplier, "ratio": said.ratio, "drowned": said.drowned,
        "over_all_rounds": said.ratio / math.sqrt(plan.rounds),
    }, found  # fmt: skip


def trained(plan: Plan, features: Features, guarded: Privacy | None, draw: int) -> NDArray:
    """Rounds with one draw of the noise -> Dice of each test picture."""

    def loss(delta: Any, one: Any, key: Any) -> Any:
        del key
        x, y = one
        return optax.sigmoid_binary_cross_entropy(x @ delta["w"], y).mean()

    def of_batch(delta: Any, batch: Any, key: Any) -> Any:
        return jax.vmap(lambda *one: loss(delta, one, key))(*batch).mean()

    x, y = (
        jnp.asarray(z)[:, None] for z in (features.train, features.shares)
    )  # (sites, steps, pictures, ...)
    if guarded is None:
        gradient, batches = gradient_of(of_batch), (x, y)
    else:
        gradient = patient_value_and_grad(loss, guarded)
        slices = (x[:, :, :, None], y[:, :, :, None])
        batches = PatientBatch(slices, jnp.ones(slices[1].shape[:4], bool))
    federation = make_round(algorithms.fedavg(gradient, optax.sgd(plan.rate)))
    n = len(plan.sites)
    data = Shard(batches, jnp.ones(n))
    server, clients = federation.init({"w": jnp.zeros(x.shape[-1])}, data)
    round_, everybody = jax.jit(federation.round), jnp.ones(n, bool)
    for _ in range(plan.rounds):
        server, clients, _ = round_(
            server, clients, data, everybody, jnp.ones(n, jnp.int32), jax.random.key(1000 + draw)
        )
    w = np.asarray(server.delta["w"])
    return np.array([dice(at @ w > 0, y > 0.5) for at, y in zip(features.test, features.test_shares)])


def dice(one: NDArray, other: NDArray) -> float:
    """Of two masks; 1 where both are empty.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    both = one.sum() + other.sum()
    return float(2 * (one & other).sum() / both) if both else 1.0


def markdown(table: Mapping[str, Any]) -> str:
    """The table as text."""
    lines = [
        "| epsilon | noise multiplier | noise over signal | all rounds | drowned | Dice | lowest and highest draw |",
        "|---" * 7 + "|",
    ]
    for name, row in table["budgets"].items():
        said, cells, found = row["predicted"], ["-"] * 4, row["dice"]
        if said is not None:
            cells = [
                f"{said['noise_multiplier']:.3g}", f"{said['ratio']:.2f}", f"{said['over_all_rounds']:.2f}",
                "yes" if said["drowned"] else "no",
            ]  # fmt: skip
        measured = f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
        draws = f"{min(found['draws']):.3f} to {max(found['draws']):.3f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {measured} | {draws} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Every place a nucleus: {table['all_nuclei']:.3f}. {table['processor_seconds']:.0f} s of processor time.",
        ]
    )


if __name__ == "__main__":
    run(tyro.cli(Plan))
