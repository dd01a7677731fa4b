"""`federate`: from the images of several hospitals to one delta, and to what each hospital keeps of its own."""

import contextlib
import functools
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax.data import Case, usual_augmentation
from medvfm_jax.data.annotated_labels import described
from medvfm_jax.federated.core.client_models import Models, model_of
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.privacy import Secret, draw_secret
from medvfm_jax.federated.privacy.spending import validates
from medvfm_jax.federated.run.kept_models import personal_models, references_to_keep, shared_model
from medvfm_jax.federated.run.model_names import REFERENCES, SHARED_MODEL, own_model
from medvfm_jax.federated.run.placement import CohortPlacement
from medvfm_jax.federated.run.resolving import FederatedRun, caches_embeddings, resolve
from medvfm_jax.federated.run.round_data import EVERYBODY, RoundLoader
from medvfm_jax.federated.run.round_hooks import NO_SUM, RoundLine, RoundLog, recorder, site_validation
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.federated.run.secret_checkpoints import forget_secret, remember_secret
from medvfm_jax.federated.systems.feddpa_inference import InstanceMixed
from medvfm_jax.fetch import cache_dir
from medvfm_jax.predict.case_task import by_task
from medvfm_jax.predict.evaluated_cases import readable
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.predict.scored_cases import score_cases
from medvfm_jax.predict.subject import Subject
from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.train import checkpoint, hooks
from medvfm_jax.train.data_check import about, lines
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.embedding_bank import EmbeddingBank, fill_bank, input_of
from medvfm_jax.train.embedding_cache import EmbeddingCache, embed, encoder_settings, make_cache
from medvfm_jax.train.loop import StepEnd, fit
from medvfm_jax.train.optimizer import make_schedule
from medvfm_jax.train.stored_delta import delta_metadata
from medvfm_jax.train.task import make_loss, make_loss_and_overlap
from medvfm_jax.train.validation import Validation
from medvfm_jax.types import Batch
from medvfm_jax.weights import artifacts

_LISTED = 20  # clients that are announced one by one


class FederateResult(NamedTuple):
    """What `federate` leaves behind.

    delta: the shared model, None for local training; personal: what clients keep, None if nothing.  rounds: made.
    val_dice: mean over sites, of the models kept; None without validation or with privacy, where the last are kept.
    upload_bytes, download_bytes: of all clients in all rounds.  scores: file with the scores of the test patients.
    """

    folder: Path
    delta: Path | None
    personal: Path | None
    rounds: int
    val_dice: float | None
    upload_bytes: float
    download_bytes: float
    privacy: str | None
    scores: Path | None


def federate(
    config: FederateConfig, display: ProgressDisplay | None = None, placement: CohortPlacement | None = None
) -> FederateResult:
    """Train as configured, in ``config.out``; with ``resume`` continue exactly where it was.

    placement: divides clients over the devices of a mesh; may change when a run is resumed.
    Raises MedvfmError for everything a user can cause: settings, data, weights, a run directory in use, a full disk.
    """
    with contextlib.ExitStack() as stack:
        display = display or stack.enter_context(ProgressDisplay(title="federate"))
        run_directory.refuse_existing(config.out, config.resume)
        stack.enter_context(run_directory.locked(config.out))
        placement, run = placement or CohortPlacement(), resolve(config, display)
        _check_names(run)
        run.record["placement"] = placement.describe()
        loss = make_loss(run.adapted, run.record["resolved"]["objective"])
        RoundStep(run, loss, placement)  # refuses before anything is left
        run.record.update(_nonce(run))
        run_directory.claim(config.out, run.record, config.resume)
        _announce(run, display.say)
        models, rounds, val_dice = _train(run, placement, display)
        return _finish(run, models, rounds, val_dice, display.say)


def _nonce(run: FederatedRun) -> dict[str, str]:
    """A random word in the settings of a run whose noise is secret, the same when it is continued.

    Two such runs with the same settings make two deltas, which their digests of the settings then tell apart; and
    whoever has the delta alone cannot check a guess of the data against the digest.
    """
    if run.privacy is None or run.config.dp_seed is not None:
        return {}
    path = run.config.out / run_directory.CONFIG
    if not path.exists():
        return {"nonce": secrets.token_hex(16)}
    return {name: value for name, value in run_directory.read_record(path).items() if name == "nonce"}


def _check_names(run: FederatedRun) -> None:
    """What clients keep is stored under their names, after hours of training.  Raises BadFederation."""
    for client in run.clients:
        if artifacts.SEPARATOR in client.name or not client.name.isprintable():
            raise BadFederation(
                f"A client is named {client.name!r:.100}: '{artifacts.SEPARATOR}' and signs that cannot be printed are "
                "not possible in a name that results are stored under; rename the site."
            )


def _announce(run: FederatedRun, say: Callable[[str], None]) -> None:
    config = run.config
    say(f"{config.model} with {config.preset}, {run.algorithm}: {run.size}")
    for client in run.clients[:_LISTED]:
        holds = f": {counted(len(client.patients), 'patient')}, {client.samples} images or slices to train on"
        say(f"{client.name}{holds if run.tells_all else ' trains'}")
    if (others := len(run.clients) - _LISTED) > 0:
        samples = [client.samples for client in run.clients[_LISTED:]]
        holds = f" with {min(samples)} to {max(samples)} images or slices each" if run.tells_all else ""
        say(f"and {others} more{holds}")
    if run.source.dataset.annotated:
        say(described(run.source.dataset.annotated))
    for line in lines(run.checked, run.source.split):
        say(line)
    if run.secure is not None:
        expected = (1 - config.dropout) * run.secure.clients
        if expected < run.secure.threshold:
            say(
                f"warning: with dropout={config.dropout:g} about {expected:.3g} of {run.secure.clients} clients answer "
                f"in a round and {run.secure.threshold} must, so many rounds will have no sum"
            )
    if run.privacy is not None:
        say(
            f"noise multiplier {run.privacy.privacy.noise_multiplier:.3f}: {run.privacy.statement(config.rounds)}"
        )
        say(f"{'warning: ' if run.noise.drowned else ''}{run.noise.sentence()}")
        if config.validate_every and not validates(config, run.keeps):
            say(
                "no validation: scores of models that clients keep without noise tell who took part in a round"
            )


def _train(
    run: FederatedRun, placement: CohortPlacement, display: ProgressDisplay
) -> tuple[Models, int, float | None]:
    """-> models to keep, rounds made, validation Dice of those models."""
    config, folder = run.config, run.config.out
    cache = _cache(run)
    bank = None
    if cache is not None:
        display.say("the encoder is frozen: each image is encoded once and its embedding kept")
        bank = _bank(run, cache, display)
    prepare = functools.partial(embed, cache=cache) if cache else _unchanged
    objective = run.record["resolved"]["objective"]
    asked = {"objective": objective, "cached": cache is not None}
    trained = make_loss(run.adapted, **asked, training=True)
    rate = _rate(config)
    secret = None if run.privacy is None else draw_secret(config.dp_seed)
    loader = _loader(run, placement, rate, prepare, cached=cache is not None, secret=secret, bank=bank)
    step = RoundStep(run, trained, placement, prepare, cached=cache is not None, bank=bank)
    state = step.init(next(loader), None if secret is None else secret.key("rounds"))
    loader.set_state(loader.get_state() | {"round": 0})
    stopping = EarlyStopping(patience=0)
    checkpoints = folder / run_directory.CHECKPOINTS
    found = checkpoint.read(checkpoints, state, run.base.fingerprint, display.say, step.models(state))
    run_directory.truncate_metrics(folder, found.step if found else 0, display.say)
    if found:
        loader.set_state(found.loader_state)
        state, stopping = found.state, found.stopping
        display.say(f"resuming at round {found.step} of {config.rounds}")
    elif secret is not None:
        remember_secret(run, state, loader, stopping)

    score = validation = None
    if validates(config, run.keeps):
        score = site_validation(run, make_loss_and_overlap(run.adapted, **asked), prepare)
    if score is not None:

        def score_there(models: Models) -> dict[str, float]:
            return score(models if placement.mesh is None else placement.fetch(models))

        validation = Validation(score_there, config.validate_every, placement.fetch, step.models)
    keep = hooks.Checkpoints(
        checkpoints,
        run.record,
        run.base.fingerprint,
        config.checkpoint_every,
        config.checkpoint_seconds,
        private=secret is not None,
    )
    display.say("compiling the round ...")
    told = [RoundLog(run, recorder(run), rate), keep, RoundLine(run, display.say), _shown(run, display)]
    fitted = fit(step, state, loader, told, steps=config.rounds, validation=validation, stopping=stopping)
    state, stopping = fitted.state, fitted.stopping
    if cache is not None and (damage := cache.describe_damage()):
        display.say(damage)
    if secret is not None:
        forget_secret(run, state, loader, stopping)
    if run.privacy is not None or stopping.delta is None:  # choosing a round by scores would not be private
        return step.models(state), int(state.step), None
    display.say(f"kept the models of round {stopping.step}, validation Dice {stopping.best:.4f}")
    return stopping.delta, int(state.step), stopping.best


def _unchanged(batch: Batch) -> Batch:
    return batch


def _shown(run: FederatedRun, display: ProgressDisplay) -> Callable[[StepEnd], None]:
    """The progress bar, in images; of a private run without times, which follow from how many clients were drawn."""
    if not run.tells_all:
        return lambda end: display(end._replace(seconds=None))
    images = run.steps * run.config.batch_size

    def shown(end: StepEnd) -> None:
        metrics = dict(end.metrics)
        if metrics.get(NO_SUM):
            metrics.pop("loss")  # nobody counted
        display(end._replace(examples=images * int(metrics["participants"]), metrics=metrics))

    return shown


def _rate(config: FederateConfig) -> Callable[[int], float]:
    schedule = make_schedule(config.schedule, 1.0, config.rounds, 0)
    return lambda number: float(schedule(number))


def _cache(run: FederatedRun) -> EmbeddingCache | None:
    """A cache if the delta leaves the encoder alone and images come without random changes."""
    config, runtime = run.config, "" if run.encoder is None else run.encoder.words
    if not caches_embeddings(config, run.delta):
        return None
    here = functools.partial(jax.jit(run.adapted.encode), run.base.params, run.delta)
    settings = encoder_settings(run.base.fingerprint, config, run.assembled.transform, runtime)
    encode = here if run.encoder is None else run.encoder.encode
    return make_cache(encode, settings, config.embeddings, cache_dir(), like=here)


def _bank(run: FederatedRun, cache: EmbeddingCache, display: ProgressDisplay) -> EmbeddingBank | None:
    """The embeddings of all training examples on the device, where the settings ask for it."""
    if run.config.embeddings != "device":
        return None
    every = [example for client in run.clients for example in client.data.train]
    data = run.clients[0].data
    bank = fill_bank(
        every,
        functools.partial(input_of, data.source.dataset, spec=data.spec),
        cache,
        run.config.embeddings_dtype,
        cache_dir() / "embeddings",
        track=functools.partial(display.track, title="encoding"),
    )
    display.say(bank.describe())
    return bank


def _loader(
    run: FederatedRun,
    placement: CohortPlacement,
    rate: Callable[[int], float],
    prepare: Callable[[Batch], Batch],
    cached: bool,
    secret: Secret | None,
    bank: EmbeddingBank | None,
) -> RoundLoader:
    config = run.config
    augment = config.augment
    if augment == "auto":
        augment = (
            "none" if cached or config.patient_privacy else usual_augmentation(run.source.dataset.dimension)
        )
    rates = run.privacy.rates if config.patient_privacy else None
    multiple = placement.multiple
    given = run.clients, config, run.steps, rate
    if bank is None:
        return RoundLoader(*given, prepare, augment, rates, secret, multiple)
    return RoundLoader(*given, _unchanged, augment, rates, secret, multiple, bank.image)


def _finish(
    run: FederatedRun, models: Models, rounds: int, val_dice: float | None, say: Callable[[str], None]
) -> FederateResult:
    config, folder = run.config, run.config.out
    models = jax.device_get(models)
    metadata = delta_metadata(config.model, config.preset, folder, run.source.dataset)
    metadata |= {"algorithm": run.algorithm, "privacy": run.record["resolved"]["privacy"]}
    shared = shared_model(run, models)
    delta = personal = scores = None
    if shared is not None:
        delta = folder / run_directory.DELTA
        artifacts.save_delta(delta, shared, metadata)
        say(f"shared model: {delta}")
    own = {} if run.clients[0].name == EVERYBODY else personal_models(run, models)
    references = references_to_keep(run, models)
    for name, found in references.items():
        own[name] = own.get(name, {}) | {REFERENCES: found}
    if own:
        personal = folder / run_directory.PERSONAL
        artifacts.save_delta(personal, own, metadata)
        say(f"what each client keeps: {personal}")
    if config.score:
        scores = _score(run, models, references, metadata["prompt"], say)
    up, down = _traffic(folder, say)
    _say_without_sum(folder, say)
    statement = None if run.privacy is None else run.privacy.statement(rounds)
    return FederateResult(folder, delta, personal, rounds, val_dice, up, down, statement, scores)


def _traffic(folder: Path, say: Callable[[str], None]) -> tuple[float, float]:
    """Bytes up and down over all rounds, of the lines that are whole."""
    damaged: list[int] = []
    lines = run_directory.read_metrics(folder, damaged)
    if damaged:
        path = folder / run_directory.METRICS
        say(f"{run_directory.describe_damage(path, damaged)}: their rounds are missing in the sum of bytes")
    up, down = ([line.get(f"{way}_bytes") for line in lines] for way in ("upload", "download"))
    return tuple(sum(x for x in way if isinstance(x, int | float)) for way in (up, down))


def _say_without_sum(folder: Path, say: Callable[[str], None]) -> None:
    """How many rounds secure aggregation could not open, if any."""
    opened = [not line[NO_SUM] for line in run_directory.read_metrics(folder, []) if NO_SUM in line]
    if not all(opened):
        say(
            f"{opened.count(False)} of {len(opened)} rounds had no sum, because too few clients answered: they changed "
            "nothing"
        )


def _score(
    run: FederatedRun,
    models: Models,
    references: Mapping[str, NDArray],
    prompt: str,
    say: Callable[[str], None],
) -> Path:
    """Scores of the test patients, each with the model that its site uses."""
    config, dataset = run.config, run.source.dataset
    settings = EvaluateConfig(
        run=config.out,
        profile=config.profile,
        seed=config.seed,
        skip_bad=config.skip_bad,
        save_predictions=True,
        runtime=config.runtime,
    )
    console = Console(stderr=True, highlight=False)
    cases, checked = readable(dataset, _first_of_each(run), settings, console)
    label = f"{config.preset}, {run.algorithm}"
    asked = "box" if prompt == "mixed" else prompt
    record = {} if run.encoder is None else {"runtime": dict(run.encoder.record)}
    subject = Subject(config.model, label, run.base, run.adapted, models.shared, asked, record=record)

    shared = Predictor(run.adapted, run.base.params, model_of(models, 0), encoder=run.encoder)

    @functools.cache
    def of_client(index: int | None) -> Predictor:
        delta = model_of(models, index)
        if index is None or not references:
            return shared.with_delta(delta)
        return mixed().of_client(delta, references[run.clients[index].name])

    @functools.cache
    def mixed() -> InstanceMixed:
        first = next(iter(references.values()))
        return InstanceMixed(run.adapted, run.base.params, model_of(models, 0), first)

    keeps = bool(jax.tree.leaves(models.own)) and run.clients[0].name != EVERYBODY

    index_of = run.index_of()

    def predictor_of(case: Case) -> Predictor:
        return of_client(index_of(case.site) if jax.tree.leaves(models.own) else None)

    def model(case: Case) -> str:
        return SHARED_MODEL if index_of(case.site) is None else own_model(case.site)

    out = config.out / run_directory.SCORES
    names = {case.id: model(case) for case in cases} if keeps else None
    score_cases(
        settings,
        out,
        run.source,
        cases,
        about(checked, asked, run.base.model.spec, dataset.preparation),
        subject,
        by_task(predictor_of, run.assembled.adapter),
        console,
        names,
    )
    say(f"scores: {out}")
    return out


def _first_of_each(run: FederatedRun) -> list[str]:
    """Test cases, of each site the first ``cases``."""
    taken: dict[str, int] = {}
    chosen = []
    for name in run.source.split.test:
        site = run.source.dataset.case(name).site
        taken[site] = taken.get(site, 0) + 1
        if run.config.cases is None or taken[site] <= run.config.cases:
            chosen.append(name)
    return chosen
