r"""Sites that annotate different labels: apart, in pairs, together and federated, and whether affinity tells who gains.

python -m experiments.cross_task --data DATA/Dataset004_Hippocampus --out runs/cross_task

Volumes of the hippocampus at four sites made here; two keep the anterior and two the posterior part in their label
maps. A small U-Net from random weights with the marginal loss, Adam, two patches of 32 voxels a step, as many steps on
the volumes of each site in every row; the test patients of all sites are scored on both labels.  A site gains from
another by the Dice of its own label after training on both, less that after as many steps on its own alone, so that
what is compared is the other site's data and not more steps.  The predictions are those of `medvfm analyze conflict`:
cosines of gradients and affinity, at the start and in the middle of joint training.  Nuclei are not among the sites: a
model has one form, volumes or pictures.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
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
from medvfm_jax.crosstask import task_affinity
from medvfm_jax.data import Dataset, read_case
from medvfm_jax.federated import Shard, algorithms, gradient_of, make_round
from medvfm_jax.metrics import profiles, score_case
from medvfm_jax.metrics.bootstrap import interval
from medvfm_jax.predict.case_prediction import predict_case
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings import AdaptConfig
from medvfm_jax.settings.analyze import ConflictConfig
from medvfm_jax.theory import analyze_conflict, rank_agreement
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training import resolve
from medvfm_jax.types import Batch, Delta

RESULTS = Path(__file__).parent / "results" / "cross_task.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "cross_task_conflict.svg"
ANNOTATED = {"east": "anterior", "north": "anterior", "south": "posterior", "west": "posterior"}
FEDERATED = ("fedavg", "pcgrad", "cagrad", "clustered", "fedhca2")
TOGETHER = "together"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the experiment."""

    data: str
    """Folder Dataset004_Hippocampus."""
    out: Path = Path("runs/cross_task")
    """Where the copy with sites goes."""
    volumes: int = 48
    """Volumes in all, dealt out to the four sites in order of name."""
    model: str = "unet-3d-tiny-test"
    """U-Net that starts from random weights."""
    window: tuple[int, int, int] = (32, 32, 32)
    """Patch in voxels."""
    steps: int = 80
    """Steps on the volumes of each site."""
    local_steps: int = 5
    """Of them in a round."""
    batch_size: int = 2
    """Patches of a step."""
    rate: float = 0.01
    """Learning rate of Adam."""
    cases: int = 8
    """Patches of each site whose gradients are taken."""
    test_cases: int | None = None
    """Score the first so many test patients only."""
    algorithms: tuple[str, ...] = FEDERATED
    """Federated rows."""
    seed: int = 0
    """Of the split, the weights and the patches."""


class Problem(NamedTuple):
    """Batches by site, and functions of a delta.

    loss: (delta, batch) -> ().  score: (delta) -> {label: Dice of each test patient}.
    """

    delta: Delta
    batches: dict[str, list[Batch]]
    loss: Callable[[Delta, Batch], Any]
    score: Callable[[Delta], dict[str, NDArray]]


def run(plan: Plan, results: Path = RESULTS, picture: Path = PICTURE) -> dict[str, Any]:
    """Train all rows, then the table as JSON and the picture."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False)

    folder, start = with_sites(plan), time.process_time()
    conflict = analyze_conflict(
        ConflictConfig(
            data=str(folder), model=plan.model, adapter="full", prompt="none", annotated=_annotated(), cases=plan.cases,
            window=plan.window, seed=plan.seed,
        ),
        say,
    )  # fmt: skip
    problem = opened(plan, folder)
    trained, middle = rows_of(plan, problem, say)
    cosine, affinity = conflicts_at(problem, middle, plan.cases)
    predictions = {
        "cosine at the start": conflict.cosine,
        "affinity at the start": conflict.affinity,
        "cosine in the middle": cosine.tolist(),
        "affinity in the middle": affinity.tolist(),
    }
    table = {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("data", "out")},
        "annotated": ANNOTATED,
        "sites": [site.site for site in conflict.sites],
        "halves": [site.agreement for site in conflict.sites],
        "predictions": predictions,
        "trained": {row: {k: spread(v) for k, v in scores.items()} for row, scores in trained.items()},
        **gains_of(trained, predictions),
        "processor_seconds": time.process_time() - start,
        "versions": versions(),
        "device": device(),
    }
    run_directory.write_json(results, table)
    picture.write_text(heat_maps(table), encoding="utf-8")
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def _annotated() -> tuple[str, ...]:
    return tuple(f"{site}={label}" for site, label in ANNOTATED.items())


def with_sites(plan: Plan) -> Path:
    """A copy of the first volumes with a table of sites, made once."""
    source, folder = Path(plan.data), plan.out / f"hippocampus{plan.volumes}"
    if (folder / "sites.csv").exists():
        return folder
    labels = sorted((source / "labelsTr").glob("*.nii.gz"))[: plan.volumes]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for label in labels:
        image = label.name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(label, folder / "labelsTr")
        shutil.copy(source / "imagesTr" / image, folder / "imagesTr")
    record = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    run_directory.write_json(folder / "dataset.json", record | {"numTraining": len(labels)})
    names = list(ANNOTATED)
    table = [f"{label.name},{names[i % len(names)]}" for i, label in enumerate(labels)]
    (folder / "sites.csv").write_text("\n".join(["file,site", *table, ""]), encoding="utf-8")
    return folder


def opened(plan: Plan, folder: Path) -> Problem:
    """A model at its start, batches of each site, and the test patients."""
    config = AdaptConfig(
        data=str(folder), model=plan.model, adapter="full", prompt="none", window=plan.window, augment="none",
        annotated=_annotated(), batch_size=plan.batch_size, seed=plan.seed, validate_every=0,
    )  # fmt: skip
    with ProgressDisplay(title="cross_task") as display:
        resolved = resolve(config, display=display)
    assembled, source = resolved.assembled, resolved.data.source
    batches = {}
    for site in ANNOTATED:
        own = [e for e in resolved.data.train if source.dataset.case(e.case).site == site]
        loader = resolved.data._replace(train=own).loader("none")
        batches[site] = [next(loader) for _ in range(plan.steps)]
    full, params = make_loss(assembled.adapted, assembled.objective, training=True), assembled.base.params
    delta = jax.tree.map(jnp.asarray, assembled.delta)
    predictor, rules = Predictor(assembled.adapted, params, delta), profiles.get("strict")
    rules = dataclasses.replace(rules, scores=("dice",))
    cases = [read_case(source.dataset, case) for case in source.split.test[: plan.test_cases]]

    def score(delta: Delta) -> dict[str, NDArray]:
        now = predictor.with_delta(delta)
        found: dict[str, list[float]] = {label: [] for label in sorted(set(ANNOTATED.values()))}
        for case in cases:
            labels = predict_case(now, source.dataset, case, "none", plan.seed).labels
            rows = score_case(case.label, labels, _labels(source.dataset), case.image.spacing, rules)
            for row in rows:
                if row["label"] in found:
                    found[row["label"]].append(float(row["dice"]))
        return {label: np.array(values) for label, values in found.items()}

    return Problem(delta, batches, lambda at, batch: full(params, at, batch, jax.random.key(0))[0], score)


def _labels(dataset: Dataset) -> dict[str, int]:
    return dict(dataset.labels)


def rows_of(
    plan: Plan, problem: Problem, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, NDArray]], Delta]:
    """Row -> label -> Dice of each test patient; and the delta in the middle of joint training."""
    optimizer, sites = optax.adam(plan.rate), list(problem.batches)

    @jax.jit
    def step(delta: Delta, state: Any, batch: Batch) -> Any:
        updates, state = optimizer.update(jax.grad(problem.loss)(delta, batch), state, delta)
        return optax.apply_updates(delta, updates), state

    def trained(members: Sequence[str], wanted: Sequence[int]) -> dict[int, Delta]:
        delta, state, kept = problem.delta, optimizer.init(problem.delta), {}
        for i in range(max(wanted)):
            own = problem.batches[members[i % len(members)]]
            delta, state = step(delta, state, own[(i // len(members)) % len(own)])
            if i + 1 in wanted:
                kept[i + 1] = delta
        return kept

    found: dict[str, dict[str, NDArray]] = {}

    def add(row: str, delta: Delta) -> None:
        found[row] = problem.score(delta)
        say(f"{row}: {', '.join(f'{label} {values.mean():.3f}' for label, values in found[row].items())}")

    n = plan.steps
    for site in sites:
        for times, delta in zip((1, 2, len(sites)), trained([site], (n, 2 * n, len(sites) * n)).values()):
            add(f"{site} alone, {times} x", delta)
    for i, site in enumerate(sites):
        for other in sites[i + 1 :]:
            add(f"{site} + {other}", trained([site, other], [2 * n])[2 * n])
    joint = trained(sites, [len(sites) * n // 2, len(sites) * n])
    add(TOGETHER, joint[len(sites) * n])
    for name in plan.algorithms:
        for row, delta in federated(plan, problem, name).items():
            add(row, delta)
    return found, joint[len(sites) * n // 2]


def federated(plan: Plan, problem: Problem, name: str) -> dict[str, Delta]:
    """Rounds of an algorithm -> the model of each client that has one of its own, or the shared one."""
    sites = list(problem.batches)
    options = {"clients": len(sites)} if name in ("clustered", "fedhca2") else {}

    def loss(delta: Delta, batch: Batch, key: Any) -> Any:
        del key
        return problem.loss(delta, batch)

    algorithm = getattr(algorithms, name)(gradient_of(loss), optax.adam(plan.rate), **options)
    federation = make_round(algorithm, backend="loop")
    round_, state = jax.jit(federation.round), None
    everybody, steps = jnp.ones(len(sites), bool), jnp.full(len(sites), plan.local_steps)
    for first in range(0, plan.steps, plan.local_steps):
        rows = [
            jax.tree.map(lambda *x: np.stack(x), *own[first : first + plan.local_steps])
            for own in problem.batches.values()
        ]
        data = Shard(jax.tree.map(lambda *x: np.stack(x), *rows), jnp.ones(len(sites)))
        state = state or federation.init(problem.delta, data)
        *state, _ = round_(*state, data, everybody, steps, jax.random.key(plan.seed))
    server, clients = state
    models = [
        algorithm.model(server, jax.tree.map(lambda x, i=i: x[i], clients.state)) for i in range(len(sites))
    ]
    same = all(
        bool(jnp.array_equal(a, b))
        for m in models[1:]
        for a, b in zip(jax.tree.leaves(models[0]), jax.tree.leaves(m))
    )
    return {name: models[0]} if same else {f"{name}, {site}": m for site, m in zip(sites, models)}


def conflicts_at(problem: Problem, delta: Delta, cases: int) -> tuple[NDArray, NDArray]:
    """Cosines and affinity of the sites elsewhere than at the start, as `analyze conflict` takes them."""
    value_and_gradient = jax.jit(jax.value_and_grad(problem.loss))
    value = jax.jit(problem.loss)
    chosen = [own[: max(1, cases // 2)] for own in problem.batches.values()]  # of two patches each
    before, flat, trees = [], [], []
    for batches in chosen:
        losses, gradients = zip(*(value_and_gradient(delta, batch) for batch in batches))
        mean = jax.tree.map(lambda *x: sum(x) / len(x), *gradients)
        before.append(float(np.mean(losses)))
        trees.append(mean)
        flat.append(np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(mean)]))
    gram = np.array(flat) @ np.array(flat).T
    rate = 0.01 * np.mean(before) / np.diagonal(gram).mean()
    after = np.empty(gram.shape)
    for i, gradient in enumerate(trees):
        moved = jax.tree.map(lambda x, g: x - rate * g, delta, gradient)
        after[i] = [np.mean([float(value(moved, b)) for b in batches]) for batches in chosen]
    return task_affinity.cosines(gram), task_affinity.lookahead_affinity(np.array(before), after)


def gains_of(
    trained: Mapping[str, Mapping[str, NDArray]], predictions: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, Any]:
    """What each site gains from each other in its own label, from all, and how predictions go with it."""
    sites = list(ANNOTATED)
    pairs, gains = [], {}
    for i, site in enumerate(sites):
        label, alone = ANNOTATED[site], trained[f"{site} alone, 2 x"]
        for j, other in enumerate(sites):
            if i != j:
                both = trained[f"{sites[min(i, j)]} + {sites[max(i, j)]}"]
                gains[f"{site} from {other}"] = spread(both[label] - alone[label])
                pairs.append((i, j))
    measured = [one["mean"] for one in gains.values()]
    agreement = {
        name: rank_agreement([matrix[j][i] for i, j in pairs], measured)._asdict()
        for name, matrix in predictions.items()
    }
    same = [float(ANNOTATED[sites[i]] == ANNOTATED[sites[j]]) for i, j in pairs]
    agreement["annotates the same label"] = rank_agreement(same, measured)._asdict()
    longest = f"{len(sites)} x"
    whole = {
        site: {
            "with as many steps each": spread(
                trained[TOGETHER][label] - trained[f"{site} alone, 1 x"][label]
            ),
            "with as many steps in all": spread(
                trained[TOGETHER][label] - trained[f"{site} alone, {longest}"][label]
            ),
        }
        for site, label in ANNOTATED.items()
    }
    return {"gains": gains, "gains_together": whole, "agreement": agreement}


def spread(values: NDArray) -> dict[str, float | None]:
    """Mean over patients and its 95 % interval."""
    low, high = interval(values, 0, 2000, bounds=(-1.0, 1.0))
    return {"mean": float(values.mean()), "low": low, "high": high, "n": len(values)}


def heat_maps(table: Mapping[str, Any]) -> str:
    """SVG: one square of numbers for each prediction, and one of the measured gains."""
    sites = list(table["annotated"])
    gains = [
        [0.0 if a == b else table["gains"][f"{b} from {a}"]["mean"] for b in sites] for a in sites
    ]  # as the affinities: of the row onto the column
    maps = {**table["predictions"], "measured gain in Dice": gains}
    side, left, top, gap = 52, 70, 58, 46
    width = left + len(maps) * (len(sites) * side + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + len(sites) * side + 34}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (title, matrix) in enumerate(maps.items()):
        x = left + number * (len(sites) * side + gap)
        apart = [abs(v) for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j]
        most = max(*apart, 1e-9)
        parts.append(f'<text x="{x}" y="18" font-size="13">{escape(title)}</text>')
        for i, site in enumerate(sites):
            parts.append(f'<text x="{x + i * side + 4}" y="{top - 8}">{escape(site)}</text>')
            if not number:
                parts.append(f'<text x="6" y="{top + i * side + side / 2 + 4}">{escape(site)}</text>')
            for j, value in enumerate(matrix[i]):
                share = min(abs(value) / most, 1.0)
                rest = round(255 - 150 * share)
                colour = f"rgb({rest},{rest},255)" if value >= 0 else f"rgb(255,{rest},{rest})"
                fill = "#eee" if i == j else colour
                at = f'x="{x + j * side}" y="{top + i * side}"'
                parts.append(f'<rect {at} width="{side - 2}" height="{side - 2}" fill="{fill}"/>')
                if i != j:
                    where = f'x="{x + j * side + 7}" y="{top + i * side + side / 2 + 4}"'
                    parts.append(f"<text {where}>{value:+.3f}</text>")
    foot = "Row onto column; east and north annotate the anterior part, south and west the posterior one."
    parts.append(f'<text x="{left}" y="{top + len(sites) * side + 22}">{foot}</text></svg>\n')
    return "".join(parts)


def markdown(table: Mapping[str, Any]) -> str:
    """The tables as text."""

    def span(found: Mapping[str, float], sign: str = "") -> str:
        return f"{found['mean']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"

    labels = sorted(set(table["annotated"].values()))
    lines = [f"| row | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    lines += [
        f"| {row} | {' | '.join(span(scores[k]) for k in labels)} |"
        for row, scores in table["trained"].items()
    ]
    lines += ["", "| gain of | Dice of its own label |", "|---|---|"]
    lines += [f"| {name} | {span(one, '+')} |" for name, one in table["gains"].items()]
    lines += [
        "",
        "| site | together less alone, as many steps each | as many steps in all |",
        "|---|---|---|",
    ]
    lines += [
        f"| {site} | {' | '.join(span(one, '+') for one in both.values())} |"
        for site, both in table["gains_together"].items()
    ]
    lines += ["", "| prediction | Spearman | 95 % interval | p |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one['rho']:+.2f} | {one['low']:+.2f} to {one['high']:+.2f} | {one['p']:.3f} |"
        for name, one in table["agreement"].items()
    ]
    halves = ", ".join(f"{site} {v:.2f}" for site, v in zip(table["sites"], table["halves"]))
    return "\n".join([*lines, "", f"Halves: {halves}. {table['processor_seconds']:.0f} s of processor time."])


if __name__ == "__main__":
    run(tyro.cli(Plan))
