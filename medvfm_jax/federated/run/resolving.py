"""Everything of a federated run resolved from its settings, nothing trained yet."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from medvfm_jax.adapters import AdaptedModel, Count, count, touches_encoder
from medvfm_jax.catalog import did_you_mean
from medvfm_jax.data import Dataset, Split, open_dataset, split
from medvfm_jax.data.annotated_labels import with_annotated
from medvfm_jax.data.check import DatasetCheck
from medvfm_jax.data.partition import (
    Partition,
    assign,
    by_patient,
    by_site,
    dirichlet,
    holdings,
    intensity,
    quantity,
)
from medvfm_jax.data.site_tasks import site_tasks
from medvfm_jax.data.sites import with_sites
from medvfm_jax.export.frozen_encoder import FrozenEncoder, frozen_encoder
from medvfm_jax.federated import systems
from medvfm_jax.federated.algorithms import catalog as algorithm_catalog
from medvfm_jax.federated.algorithms.catalog import BASELINES, AlgorithmEntry, read_options
from medvfm_jax.federated.codecs import CODECS, guarantee, make_codec
from medvfm_jax.federated.codecs.feedback import diana, diana_rate, ef21, error_feedback
from medvfm_jax.federated.core.base_increments import adapter_with_increments, without_increments
from medvfm_jax.federated.core.client_models import keeps_a_part
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Codec
from medvfm_jax.federated.privacy.noise_prediction import NoisePrediction, predict_noise
from medvfm_jax.federated.privacy.spending import PrivacyPlan, plan
from medvfm_jax.federated.run.public_images import public_batches
from medvfm_jax.federated.run.round_data import EVERYBODY, ClientData, cohort
from medvfm_jax.federated.secure.secure_sum import SecureSum, distributed_noise, fixed_point
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.settings.records import BadConfig, to_json
from medvfm_jax.systems import SYSTEMS, System, parse_assignments
from medvfm_jax.train.assemble import Assembled, assemble
from medvfm_jax.train.base_model import Base, entry_of
from medvfm_jax.train.data_check import about, check_dimensions, check_split, recorded_objects
from medvfm_jax.train.preparation import prepared, recorded_preparation
from medvfm_jax.train.seen_at_once import asked_shape, slab_depth
from medvfm_jax.train.task_of_site import with_site_tasks
from medvfm_jax.train.training_data import SplitData, data_digest
from medvfm_jax.types import Batch, Delta


class FederatedRun(NamedTuple):
    """A run before its first round.

    record: config.json.  source: its sites are the clients, its split is that of the whole run.  clients: who trains.
    sites: whose models are validated, the same but for centralised training.  steps: local
    steps of a round.  rate: learning rate of the first round.  noise: what to expect of the noise, if there is any.
    secure: secure aggregation, None without.  public: unlabelled batches at the server, or none.  keeps: whether
    clients keep a part of the model.  encoder: outside JAX, None for JAX.
    """

    config: FederateConfig
    record: dict[str, Any]
    assembled: Assembled
    source: SplitData
    checked: DatasetCheck
    clients: list[ClientData]
    sites: list[ClientData]
    size: Count
    algorithm: str
    entry: AlgorithmEntry
    options: dict[str, Any]
    codec: Codec
    down: Codec | None
    privacy: PrivacyPlan | None
    steps: int
    rate: float
    noise: NoisePrediction | None
    secure: SecureSum | None
    public: list[Batch]
    keeps: bool
    encoder: FrozenEncoder | None = None

    @property
    def base(self) -> Base:
        """The model that every client adapts."""
        return self.assembled.base

    @property
    def adapted(self) -> AdaptedModel:
        """The same with its adapter."""
        return self.assembled.adapted

    @property
    def delta(self) -> Delta:
        """Where every client starts."""
        return self.assembled.delta

    @property
    def tells_all(self) -> bool:
        """Whether exact numbers about the training data may be shown and recorded."""
        return self.privacy is None or self.config.dp_log_unprotected

    def index_of(self) -> Callable[[str], int | None]:
        """Site -> which client's model it uses; None: the shared one, as the site took no part."""
        if [client.name for client in self.clients[:2]] == [EVERYBODY]:
            return lambda site: 0
        return {client.name: place for place, client in enumerate(self.clients)}.get


def resolve(config: FederateConfig, display: ProgressDisplay | None = None) -> FederatedRun:
    """Open data and weights, check every case, divide the patients, choose algorithm, codec and noise.

    display: shows how far the check is. Raises MedvfmError.
    """
    display = display or ProgressDisplay(title="federate")
    given = parse_assignments(config.set)
    model = entry_of(config.model)
    config.check_start(model, "preset", config.preset)
    name, entry, options = _algorithm(config, given)
    codec_options, down_options = (
        read_options(given, part, CODECS[codec].options, f"{part.replace('_', '-')} {codec}")
        for part, codec in (("codec", config.codec), ("down_codec", config.down_codec))
    )
    parts = {"algorithm": options, "codec": codec_options, "down_codec": down_options}
    source, partition = divide(config)
    checked = check_split(source, skip_bad=config.skip_bad, track=display.track, say=display.say)
    system = _system(config)
    check_dimensions(checked, source.dataset, config, model, config.preset, system)
    training = [case for case in source.split.train if case not in checked.bad_cases()]
    source = source._replace(dataset=prepared(source.dataset, training, config, model))
    assembled = assemble(
        config,
        config.preset,
        system,
        classes=source.dataset.classes,
        seed=config.seed,
        offline=config.offline,
        shape=asked_shape(config, model, len(source.dataset.channel_names)),
        depth=slab_depth(config),
        elsewhere=[f"{part}.{option}" for part, taken in parts.items() for option in taken],
        tasks=site_tasks(source.dataset),
    )
    source = with_site_tasks(source, assembled, display.say)
    algorithm_catalog.check_rates(assembled.adapter)
    if entry.on_base:
        adapter = adapter_with_increments(assembled.adapter, assembled.delta)
        assembled = assembled.with_adapter(adapter, config.seed)
    base, delta, prompt = assembled.base, assembled.delta, assembled.prompt
    checked = about(checked, prompt, base.model.spec, source.dataset.preparation)
    trained = [site for site in partition.clients if site != config.leave_out]
    if entry.needs_clients:
        options |= {"clients": len(trained)}
    options = algorithm_catalog.with_ranks(options, delta, trained)
    algorithm_catalog.check_fit(entry, options, delta)
    keeps = keeps_a_part(algorithm_catalog.outline(entry, options), delta)
    public = _public(config, entry, options, base, source.dataset)
    sites = cohort(source, base.model.spec, prompt, config, trained)
    clients = cohort(source, base.model.spec, prompt, config, [EVERYBODY]) if name == "centralised" else sites
    training = sorted({example.case for client in clients for example in client.data.train})
    numbers = 0
    if config.dp_epsilon is not None:
        numbers = algorithm_catalog.noised_numbers(entry, options, delta, config.dp_unit)
    steps = config.local_steps * (len(sites) if name == "centralised" else 1)
    patients = {client.name: len(client.patients) for client in clients}
    privacy = plan(config, patients, keeps, numbers, steps)
    noise = None
    if privacy is not None:
        noise = predict_noise(
            privacy,
            numbers,
            len(clients),
            config.participation,
            algorithm_catalog.outline(entry, options).applies,
        )
    if config.embeddings == "device" and not caches_embeddings(config, assembled.delta):
        raise BadConfig(
            f"--embeddings device holds what a frozen encoder makes of unchanged images, and here --preset "
            f"{config.preset} trains inside the encoder or --augment {config.augment} changes them: leave --embeddings "
            "out, or take a preset that leaves the encoder frozen, like decoder, without --augment."
        )
    encoder = _encoder(config, assembled, display.say)
    tells_all = privacy is None or config.dp_log_unprotected
    whole_split = source.split_record()
    rate = config.resolved_learning_rate(system, model, entry.plain_sgd)
    record = to_json(config) | {
        "resolved": {
            "data": source.dataset.source,
            "checked": checked.record() if tells_all else None,
            **assembled.record(),
            **recorded_preparation(source.dataset),
            "objects": recorded_objects(source.dataset, prompt),
            "algorithm": name,
            "algorithm_options": options,
            "codec_options": codec_options,
            "down_codec_options": down_options,
            "learning_rate": rate,
            "classes": source.dataset.classes,
            "labels": dict(source.dataset.labels),
            "data_sha256": source.sha256,
            # Under privacy nothing says who was trained on; evaluation needs the cases held out.
            "split": whole_split if tells_all else whole_split | {"train": []},
            "holdings": [h._asdict() for h in holdings(source.dataset, training)] if tells_all else [],
            "training_patients": {c.name: len(c.patients) for c in clients} if tells_all else {},
            "shifts": {client: shift._asdict() for client, shift in partition.shifts.items()},
            "noise_multiplier": None if privacy is None else privacy.privacy.noise_multiplier,
            "privacy": None if privacy is None else privacy.statement(config.rounds),
            "noise": None if noise is None else noise.record(),
        }
    }
    if encoder is not None:
        record["resolved"]["runtime"] = {key: encoder.record[key] for key in ("name", "version", "bits")}
    if public:
        images = hashlib.sha256(b"".join(batch.image.tobytes() for batch in public))
        record["resolved"]["public_images_sha256"] = images.hexdigest()
    codec = _with_memory(config, make_codec(config.codec, **codec_options), delta, codec_options)
    size = count(without_increments(delta), base.params)
    return FederatedRun(
        config, record, assembled, source, checked, clients, sites, size, name, entry, options, codec,
        _down(config, down_options), privacy, steps, rate, noise,
        _secure(config, name, entry, options, clients, privacy), public, keeps, encoder,
    )  # fmt: skip


def _encoder(
    config: FederateConfig, assembled: Assembled, say: Callable[[str], None]
) -> FrozenEncoder | None:
    """What encodes outside JAX; raises BadConfig where images are encoded by what is trained, or in each step."""
    if config.runtime == "jax":
        return None
    if touches_encoder(assembled.delta):
        raise BadConfig(
            f"--preset {config.preset} trains inside the encoder, which JAX alone can do; leave out --runtime "
            f"{config.runtime}, or take a preset that leaves the encoder frozen, like decoder."
        )
    if not caches_embeddings(config, assembled.delta):
        raise BadConfig(
            f"--runtime {config.runtime} encodes each image once and keeps its embedding; leave out --embeddings off "
            "and --augment, which ask for something else."
        )
    return frozen_encoder(config.runtime, assembled.base.model, assembled.base.params, say=say)


def caches_embeddings(config: FederateConfig, delta: Delta) -> bool:
    """Whether the delta leaves the encoder alone and images come without random changes."""
    return not (
        config.embeddings == "off" or config.augment not in ("auto", "none") or touches_encoder(delta)
    )


def divide(config: FederateConfig) -> tuple[SplitData, Partition]:
    """Open the dataset, give each client its patients, and split each client by patient.

    The split is made before a site is left out, so that the same patients are tested whoever trains.
    Raises BadDataset, BadPartition, BadSplit, BadFederation.
    """
    dataset = open_dataset(
        config.data,
        offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch,
        follow_links=config.follow_links,
        objects=config.objects,
    )
    dataset = dataset if config.sites is None else with_sites(dataset, config.sites)
    digest = data_digest(dataset)
    partition = _partition(config, dataset)
    odd = next((name for name in partition.clients if ":" in name or "/" in name or name == EVERYBODY), None)
    if odd is not None:
        raise BadFederation(
            f"A site is called '{odd}'; rename it without ':' and '/', and not '{EVERYBODY}'."
        )
    if config.leave_out is not None and config.leave_out not in partition.clients:
        raise BadFederation(
            f"There is no client '{config.leave_out}' to leave out; the clients are {', '.join(partition.clients)}."
        )
    dataset = with_annotated(assign(dataset, partition), config.annotated)
    if partition.shifts:  # other images, so scores are not compared with those of the images as they are
        shifts = json.dumps({name: list(shift) for name, shift in partition.shifts.items()}, sort_keys=True)
        digest = hashlib.sha256(f"{digest} {shifts}".encode()).hexdigest()
    chosen = split(dataset, seed=config.seed, val=config.val_fraction, test=config.test_fraction)

    def taking_part(cases: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(case for case in cases if dataset.case(case).site != config.leave_out)

    chosen = Split(taking_part(chosen.train), taking_part(chosen.val), chosen.test)
    return SplitData(dataset, chosen, digest), partition


def _partition(config: FederateConfig, dataset: Dataset) -> Partition:
    if config.partition == "site":
        found = by_site(dataset, config.min_patients)
        if len(found.clients) < 2:
            raise BadFederation(
                f"{dataset.folder} has {len(found.clients)} site with at least {config.min_patients} patients; a "
                "federation needs two: give a table with --sites, or divide with --partition patient."
            )
        return found
    n, seed = config.clients, config.seed
    if config.partition == "dirichlet":
        return dirichlet(dataset, n, config.alpha, seed, config.min_patients)
    if config.partition == "quantity":
        return quantity(dataset, n, config.alpha, seed, config.min_patients)
    even = by_patient(dataset, n, seed)
    return intensity(even, config.shift, seed) if config.partition == "intensity" else even


def _secure(
    config: FederateConfig,
    algorithm: str,
    entry: AlgorithmEntry,
    options: Mapping[str, Any],
    clients: list[ClientData],
    privacy: PrivacyPlan | None,
) -> SecureSum | None:
    if not config.secure_aggregation:
        return None
    if algorithm in BASELINES:
        raise BadFederation(f"algorithm={algorithm} sends nothing; leave --secure-aggregation out.")
    n = len(clients)
    if config.in_round(n) < 2:
        raise BadFederation(
            f"participation={config.participation:g} of {n} clients is one client in a round, whose sum would be its "
            "update, so no round could ever have one: raise --participation, or leave --secure-aggregation out."
        )
    if privacy is not None and privacy.mechanism is not None:
        return distributed_noise(privacy.mechanism, privacy.answered)
    alike = algorithm_catalog.outline(entry, options).weights == "equal"
    heaviest = 1.0 if alike else float(max(client.samples for client in clients))
    return fixed_point(config.in_round(n), config.least_answers(n), config.secure_reach, heaviest)


def _system(config: FederateConfig) -> System:
    if config.preset in systems.SYSTEMS:
        return systems.SYSTEMS[config.preset].system
    return SYSTEMS[config.preset]


def _algorithm(
    config: FederateConfig, given: Mapping[str, str]
) -> tuple[str, AlgorithmEntry, dict[str, Any]]:
    """Name, entry and options; "auto" is the algorithm of the system, else FedAvg."""
    known = (*SYSTEMS, *systems.SYSTEMS)
    if config.preset not in known:
        raise BadFederation(f"There is no system '{config.preset}'{did_you_mean(config.preset, known)}.")
    if config.algorithm == "auto" and config.preset in systems.SYSTEMS:
        name, entry = _entry_of(config.preset, systems.SYSTEMS[config.preset])
    else:
        name = "fedavg" if config.algorithm == "auto" else config.algorithm
        entry = algorithm_catalog.ALGORITHMS[name]
    if name == "local" and config.leave_out is not None:
        raise BadFederation(
            "Local training has no model for a site that is left out; choose another --algorithm."
        )
    if name in BASELINES and (config.codec, config.down_codec) != ("identity", "identity"):
        raise BadFederation(f"algorithm={name} sends nothing; leave --codec and --down-codec out.")
    options = read_options(given, "algorithm", entry.options, f"algorithm {name}")
    if config.patient_privacy:
        algorithm_catalog.check_gradient_alone(name, entry, options)
    return name, entry, options


def _entry_of(name: str, system: systems.FederatedSystem) -> tuple[str, AlgorithmEntry]:
    """An algorithm of the catalogue under its own name, or a system's own under the system's."""
    make = system.algorithm
    for known, entry in algorithm_catalog.ALGORITHMS.items():
        if entry.make is make:
            return known, entry
    parameters = list(inspect.signature(make).parameters.values())
    takes = next((p.name for p in parameters if p.name in ("params", "split")), "")
    options = {p.name: p.default for p in parameters if p.default is not p.empty and p.name != takes}
    needs_clients = any(p.name == "clients" for p in parameters)
    mixing = system.instance_mixing
    return name, AlgorithmEntry(
        make, options, needs_clients=needs_clients, takes=takes, instance_mixing=mixing
    )


def _public(
    config: FederateConfig, entry: AlgorithmEntry, options: Mapping[str, Any], base: Base, dataset: Dataset
) -> list[Batch]:
    if entry.takes != "logits":
        if config.public_data is not None:
            raise BadFederation("Only feddf learns from public images; leave --public-data out.")
        return []
    if config.public_data is None:
        raise BadFederation(
            "feddf distils at the server on unlabelled images; give a folder with some as --public-data."
        )
    steps = options["server_steps"]
    if steps < 1:
        raise BadFederation(f"feddf: server_steps must be at least 1, not {steps}.")
    spec, channels = base.model.spec, dataset.channel_names
    return public_batches(config.public_data, spec, channels, steps, config.batch_size, config.seed)


def _down(config: FederateConfig, options: Mapping[str, Any]) -> Codec | None:
    if config.down_codec == "identity":
        return None
    codec = make_codec(config.down_codec, **options)
    return error_feedback(codec) if config.down_memory == "error_feedback" else codec


def _with_memory(config: FederateConfig, codec: Codec, delta: Delta, options: Mapping[str, Any]) -> Codec:
    if config.memory == "none":
        return codec
    if config.memory == "error_feedback":
        return error_feedback(codec)
    if config.memory == "ef21":
        return ef21(codec)
    omega = guarantee(config.codec, delta, **options).omega
    if omega is None:
        able = [name for name in CODECS if name != "identity" and guarantee(name, delta).omega is not None]
        raise BadFederation(
            f"DIANA needs an unbiased codec, and {config.codec} with these options is none; choose --codec from "
            f"{', '.join(able)}, or use --memory ef21 or error_feedback."
        )
    return diana(codec, diana_rate(omega))
