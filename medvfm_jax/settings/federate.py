"""What `federate` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medvfm_jax.settings.groups import Augment, ScheduleName, TrainingConfig
from medvfm_jax.settings.records import BadConfig, require
from medvfm_jax.settings.runtime import RuntimeName

if TYPE_CHECKING:
    from medvfm_jax.models.entry import ModelEntry
    from medvfm_jax.systems import System

PartitionName = Literal["site", "patient", "dirichlet", "quantity", "intensity"]
DpNoise = Literal["central", "discrete_gaussian", "skellam"]
MemoryName = Literal["none", "error_feedback", "ef21", "diana"]


@dataclasses.dataclass(frozen=True)
class FederateConfig(TrainingConfig):
    """Adapt a model to the images of several hospitals that share updates instead of images."""

    _: dataclasses.KW_ONLY
    sites: Path | None = None
    """Table with the columns file, site and maybe patient; by default sites.csv in the data folder."""
    algorithm: str = "auto"
    """How updates are combined: fedavg, fedprox, scaffold, ...; `local` and `centralised` are the baselines.
    `auto`: that of the system given as --preset, else fedavg."""
    public_data: Path | None = None
    """Folder with unlabelled images at the server, on which feddf distils the ensemble of the clients."""
    set: tuple[str, ...] = ()
    """Options of parts of the run: of the adapter (lora.rank=8), the algorithm (algorithm.mu=0.1, or one per client:
    algorithm.ranks=2,4,8), the codecs (codec.fraction=0.05, down_codec.rank=2); may be given several times."""
    preset: str = "decoder"
    """What trains: an adapter preset (decoder, samed, lora, ...) or a published system (fedsam, fedmsa, flap_sam)."""
    rounds: int = 20
    """Rounds of exchange."""
    local_steps: int = 5
    """Optimiser steps of each client in a round; centralised training makes as many as all clients together."""
    batch_size: int = 2
    """Images per step; with patient-level privacy the expected number of patients per step."""
    participation: float = 1.0
    """Share of the clients in a round; drawn at random, independently for each with client-level privacy."""
    codec: str = "identity"
    """Compression of the updates: identity, int8, int4, top_k, powersgd, drive, ..."""
    memory: MemoryName = "none"
    """What remembers the error of the codec at the client."""
    down_codec: str = "identity"
    """Compression of the server's step on its way to the clients, which all receive it: int8, top_k, ..."""
    down_memory: Literal["none", "error_feedback"] = "none"
    """Whether the server sends later what its codec left out."""
    dp_epsilon: float | None = None
    """Differential privacy with this epsilon over all rounds; needs the extra [privacy] unless everyone takes part."""
    dp_unit: Literal["client", "patient"] = "client"
    """Whom the noise protects: a whole client (noise on the sum of updates) or each patient (noise in each step)."""
    dp_delta: float = 1e-5
    """delta of (epsilon, delta)-differential privacy; choose it below one in the number of units."""
    dp_clip: float = 1.0
    """l2 norm to which an update (client) or a gradient (patient) is clipped."""
    dp_seed: int | None = None
    """Make noise and samples from this number instead of the operating system's randomness, for tests: whoever reads
    the number can take the noise off, so the run is not private, and says so."""
    dp_log_unprotected: bool = False
    """Record what the noise does not cover and a private run otherwise leaves out: losses, norms, who took part, who
    was excluded, the share that was clipped, what each client holds, times. The statement of privacy says so."""
    dp_noise: DpNoise = "central"
    """Who adds the noise of unit client: the server (central), or each client its share in whole numbers
    (discrete_gaussian, skellam), so that nobody has to be trusted; the latter needs --secure-aggregation."""
    dp_bits: int = 16
    """Bits of each number a client sends with distributed noise; the sum is known modulo 2 to this power."""
    secure_aggregation: bool = False
    """The server opens the sum of a round alone, never an update (a simulation of its arithmetic, see docs/hospital.md
    for hospitals); algorithms that average updates, without a codec."""
    secure_threshold: float = 0.67
    """Share of the clients of a round that must answer, above one half; with fewer the round has no sum."""
    secure_reach: float = 8.0
    """Largest absolute value of an update that secure aggregation can carry; a client beyond it is left out by name."""
    dropout: float = 0.0
    """Probability with which a client of a round vanishes before its update arrives."""
    dp_slices: int = 4
    """Slices of a patient in one step, at most, with patient-level privacy; drawn at random from all it has."""
    partition: PartitionName = "site"
    """What a client is: a site of the table, or patients dealt out evenly, with label skew (dirichlet), with quantity
    skew, or evenly with a scanner of its own (intensity)."""
    clients: int = 5
    """Number of clients, unless a client is a site."""
    alpha: float = 0.5
    """Parameter of the Dirichlet distribution of label and quantity skew; smaller is more skewed."""
    shift: float = 0.5
    """Strength of the scanner shifts of --partition intensity."""
    min_patients: int = 1
    """Sites with fewer patients are left out."""
    leave_out: str | None = None
    """Site held out from training; its test patients are scored all the same."""
    out: Path = Path("runs/federate")
    """Run directory to create."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser of the clients; scaffold, fednova and qfedavg are defined for SGD only."""
    keep_optimizer: bool = False
    """Keep each client's optimiser state (Adam's moments) from round to round; by default every algorithm starts it
    anew in each round, `local` and `centralised` too."""
    learning_rate: float | None = None
    """Learning rate of the first round; the default depends on the adapter, and is 0.01 for SGD."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls over the rounds."""
    augment: Augment = "auto"
    """Random changes of the images, as for `adapt`. `auto`: full for pictures, upright for volumes, none where
    embeddings are cached or patients are protected."""
    validate_every: int = 1
    """Rounds between validations; 0 never validates. The model of the best round is kept, with privacy the last."""
    validation_images: int = 8
    """Images (slices) of each client that a validation looks at, at most."""
    validation_clients: int = 100
    """Clients whose models a validation looks at, at most, the same in every round."""
    measure_every: int = 10
    """Rounds between measurements that need every update of a round in memory (the aggregation error of LoRA
    algorithms); 0 never measures."""
    checkpoint_every: int = 1
    """Rounds between checkpoints."""
    score: bool = True
    """Score the test patients at the end, each with the model of its client; `evaluate` does it later otherwise."""
    cases: int | None = None
    """Score the first so many test cases of each client only."""
    profile: str = "strict"
    """Metric profile of the scores: strict, nnunet, transunet_compat, medsam_compat."""
    backend: Literal["auto", "loop", "vmap"] = "auto"
    """Clients one after the other or side by side; `auto`: loop on CPU."""
    runtime: RuntimeName = "jax"
    """What encodes images where the encoder is frozen: another runtime on the CPU, with float32 or 8-bit products
    (-int8), needs its extra, [onnx] or [litert]. What is trained stays in JAX."""
    chunk: int | None = None
    """Clients side by side at most, for cohorts that do not fit in memory."""
    seed: int = 0
    """Seed of partition, split, initial values and, without privacy, of sampling: noise has no public seed."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        for name, least in [
            ("rounds", 1),
            ("local_steps", 1),
            ("clients", 1),
            ("min_patients", 1),
            ("validation_clients", 1),
            ("dp_slices", 1),
        ]:
            require(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        if self.spacing == (0,):
            raise BadConfig(
                "spacing=0 is the median over the volumes of all clients, which none of them knows; give --spacing "
                "millimetres."
            )
        require(0 < self.participation <= 1, "participation", self.participation, "above 0 and at most 1")
        require(self.dp_epsilon is None or self.dp_epsilon > 0, "dp_epsilon", self.dp_epsilon, "positive")
        require(0 < self.dp_delta < 1, "dp_delta", self.dp_delta, "between 0 and 1")
        require(self.dp_clip > 0, "dp_clip", self.dp_clip, "positive")
        require(self.dp_seed is None or self.dp_seed >= 0, "dp_seed", self.dp_seed, "at least 0")
        for name, off in (("dp_seed", None), ("dp_log_unprotected", False)):
            if self.dp_epsilon is None and getattr(self, name) is not off:
                raise BadConfig(
                    f"{name}={getattr(self, name)} is about privacy; add --dp-epsilon or leave it out."
                )
        require(2 <= self.dp_bits <= 32, "dp_bits", self.dp_bits, "2 to 32")
        require(
            0.5 < self.secure_threshold <= 1,
            "secure_threshold",
            self.secure_threshold,
            "above 0.5, at most 1",
        )
        require(self.secure_reach > 0, "secure_reach", self.secure_reach, "positive")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        if self.dp_noise != "central" and not (self.secure_aggregation and self.client_privacy):
            raise BadConfig(
                f"dp_noise={self.dp_noise} is noise of the clients, which only a sum opened by secure aggregation "
                "holds: add --secure-aggregation, --dp-epsilon and --dp-unit client."
            )
        if self.client_privacy and self.secure_aggregation and not self.distributed_noise:
            raise BadConfig(
                "Central noise does not protect what secure aggregation opens, because one client more may decide "
                "whether a round has a sum at all: add --dp-noise discrete_gaussian or skellam, or leave "
                "--secure-aggregation out."
            )
        require(self.measure_every >= 0, "measure_every", self.measure_every, "at least 0")
        require(self.cases is None or self.cases >= 1, "cases", self.cases, "at least 1")
        if self.dp_epsilon is not None and self.algorithm in ("local", "centralised"):
            raise BadConfig(
                f"algorithm={self.algorithm} is a baseline without exchange and without noise; leave --dp-epsilon out."
            )
        if self.memory != "none" and self.codec == "identity":
            raise BadConfig(
                f"memory={self.memory} remembers the error of a codec; add --codec int8 or another."
            )
        if self.keep_optimizer and self.optimizer == "sgd":
            raise BadConfig("Plain SGD has no state to keep between rounds; leave --keep-optimizer out.")
        if self.patient_privacy and self.augment not in ("auto", "none"):
            raise BadConfig("Patient-level privacy trains without augmentation; use --augment none.")

    @property
    def patient_privacy(self) -> bool:
        """Whether noise protects each patient."""
        return self.dp_epsilon is not None and self.dp_unit == "patient"

    @property
    def client_privacy(self) -> bool:
        """Whether noise protects each client."""
        return self.dp_epsilon is not None and self.dp_unit == "client"

    @property
    def distributed_noise(self) -> bool:
        """Whether the clients add the noise, so that their number in a round is fixed."""
        return self.client_privacy and self.dp_noise != "central"

    def in_round(self, clients: int) -> int:
        """How many of the clients are chosen in a round, where the number is fixed."""
        return max(1, round(self.participation * clients))

    def least_answers(self, clients: int) -> int:
        """How many of the clients of a round must answer for secure aggregation to open their sum."""
        chosen = self.in_round(clients)
        return min(chosen, max(math.ceil(self.secure_threshold * chosen), chosen // 2 + 1))

    def resolved_learning_rate(self, system: "System", entry: "ModelEntry", plain_sgd: bool = False) -> float:
        """The learning rate, given or by optimiser and system."""
        if self.learning_rate is None and (plain_sgd or self.optimizer == "sgd"):
            return 0.01  # at 0.1 SCAFFOLD diverges on the decoder of LiteMedSAM (experiments.five_sites)
        return super().resolved_learning_rate(system, entry)
