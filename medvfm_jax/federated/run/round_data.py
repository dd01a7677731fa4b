"""The clients of a run and the data of each round: who takes part, which images, as one stacked ``Shard``.

Everything of a round follows from the seed, the round and the name of the client, so a run goes on exactly without
storing more than the number of the round, and leaving a client out changes nothing for the others.  With privacy a
secret takes the place of the seed, because amplification by sampling assumes that nobody knows who was drawn; it is
part of the loader's state.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data import Example, make_loader
from medvfm_jax.data.examples import NothingLeft
from medvfm_jax.data.loader import ImageFn
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.records import Shard, Tree
from medvfm_jax.federated.privacy.patient_level import PatientBatch
from medvfm_jax.federated.privacy.secret_randomness import Secret
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.train.training_data import SplitData, TrainingData, training_data
from medvfm_jax.types import Batch, ModelSpec

EVERYBODY = "everybody"  # the one client of centralised training
_IMAGES, _PATIENTS, _CLIENTS, _DROPOUT = range(4)  # purposes of random numbers


class ClientData(NamedTuple):
    """What one client trains and validates on."""

    name: str
    data: TrainingData
    patients: Mapping[str, tuple[Example, ...]]  # training patients and their examples

    @property
    def samples(self) -> int:
        """Training examples: the client's weight in a mean."""
        return len(self.data.train)


class RoundData(NamedTuple):
    """The k rows of a round: who takes part, in order, then padding.

    shard: leaves (k, ...); padding repeats the first row.  participation (k,) bool.  rows (k,) int32: number of each
    row's client, for padding the number of all clients.  dropped (k,) bool: who vanishes before its update arrives.
    """

    shard: Shard
    participation: NDArray[np.bool_]
    rows: NDArray[np.int32]
    dropped: NDArray[np.bool_]


def cohort(
    source: SplitData, spec: ModelSpec, prompt: str, config: FederateConfig, clients: Sequence[str]
) -> list[ClientData]:
    """List the examples of each client; reads and checks every training and validation case.

    Raises BadCase unless ``config.skip_bad``, BadFederation for a client without anything to train on, or whose
    patients show nothing that the model can be asked about.
    """
    found, parts = [], {n: _by_site(source, cases) for n, cases in source.split._asdict().items()}
    for name in clients:
        chosen = {
            n: getattr(source.split, n) if name == EVERYBODY else tuple(cases.get(name, ()))
            for n, cases in parts.items()
        }
        if not chosen["train"]:
            raise BadFederation(
                f"Client '{name}' has no patient left to train on after validation and test; leave it out with "
                "--min-patients, or lower the fractions."
            )
        own = source._replace(split=source.split._replace(**chosen))
        try:
            data = training_data(own, spec, prompt, config)
        except NothingLeft as error:
            raise BadFederation(
                f"Client '{name}', its patients for training or those for validation: {error} Take fewer --clients, so "
                "that each has more patients, leave out what is small with --min-patients, or choose a --model "
                "that draws finer masks."
            ) from error
        patients: dict[str, tuple[Example, ...]] = {}
        for example in data.train:
            patient = source.dataset.case(example.case).patient
            patients[patient] = (*patients.get(patient, ()), example)
        found.append(ClientData(name, data, patients))
    return found


def _by_site(source: SplitData, cases: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for case in cases:
        found.setdefault(source.dataset.case(case).site, []).append(case)
    return found


def cohort_size(count: int, clients: int, independent: bool = False, multiple: int = 1) -> int:
    """Rows of a round of ``count`` out of ``clients``, of few different numbers, so that few programs are compiled.

    independent: the count differs from round to round, so it is padded to 1, 2, 3, 4, 6, 8, 12, 16, ..., at most all.
    multiple: what the rows are divided over.
    """
    size = max(count, 1)
    if independent:
        power = 1 << (size - 1).bit_length()
        size = min(power * 3 // 4 if power >= 4 and size <= power * 3 // 4 else power, clients)
    return -(-size // multiple) * multiple


class RoundLoader:
    """Endless rounds, from any round on; every leaf of a round has a leading axis over those who take part.

    Only their images are loaded.

    steps: local steps of a round.  rate: round -> factor on the learning rate.  prepare: what is done to each batch,
    such as replacing images by cached embeddings.  rates: batches of patients, drawn independently (Poisson) with
    these rates per client, see `privacy.spending.plan`, instead of images in shuffled order.  secret: of a private run.
    multiple: of which the number of rows is one, for a mesh.  image_fn: what a batch has in the place of an example's
    image, such as its row in a bank of embeddings.

    Raises BadFederation for privacy without a secret.
    """

    def __init__(
        self,
        clients: Sequence[ClientData],
        config: FederateConfig,
        steps: int,
        rate: Callable[[int], float],
        prepare: Callable[[Batch], Batch],
        augment: str,
        rates: Mapping[str, float] | None = None,
        secret: Secret | None = None,
        multiple: int = 1,
        image_fn: ImageFn | None = None,
    ):
        if (secret is None) != (config.dp_epsilon is None):
            raise BadFederation(
                "A private run, and no other, draws its samples from a secret: give both or neither."
            )
        self._secret = secret
        self._clients, self._config, self._steps, self._rate = clients, config, steps, rate
        self._prepare, self._augment, self._rates = prepare, augment, rates
        self._multiple, self._image_fn = multiple, image_fn
        largest = max(len(examples) for client in clients for examples in client.patients.values())
        self._slices = min(config.dp_slices, largest)
        self._round = 0

    def __next__(self) -> RoundData:
        """The data of the next round."""
        number = self._round
        self._round += 1
        chosen = np.flatnonzero(self._participation(number))
        clients = [self._clients[row] for row in chosen] or list(
            self._clients[:1]
        )  # shapes even if nobody comes
        if self._rates is None:
            batches = [self._images(client, number) for client in clients]
        else:
            draws = [self._draw(client, number) for client in clients]
            most = max(1, *(len(step) for draw in draws for step in draw))
            # Of few different sizes, so that few programs are compiled.
            capacity = 1 << (most - 1).bit_length()
            batches = [self._patients(c, number, draw, capacity) for c, draw in zip(clients, draws)]
        n, independent = len(self._clients), self._independent
        size = cohort_size(len(chosen), n, independent, self._multiple)
        rows = np.full(size, n, np.int32)
        rows[: len(chosen)] = chosen
        padding = size - len(clients)
        samples = np.array([client.samples for client in clients + clients[:1] * padding], np.float32)
        rates = np.full(size, self._rate(number), np.float32)
        shard = Shard(_stack(batches + batches[:1] * padding), samples, rates)
        return RoundData(shard, rows < n, rows, self._dropped(number, rows))

    def get_state(self) -> dict[str, Any]:
        """Position, and the secret of a private run: for a checkpoint alone."""
        secret = {} if self._secret is None else {"secret": self._secret.data.hex()}
        return {"round": self._round} | secret

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Return to a position. Raises BadFederation if it lacks the secret of a private run."""
        if self._secret is not None:
            if "secret" not in state:
                raise BadFederation(
                    "This run drew its noise from the seed in config.json, as earlier versions did, so it is not "
                    "private: start a new one."
                )
            self._secret = Secret(bytes.fromhex(state["secret"]))
        self._round = int(state["round"])

    def _rng(self, purpose: int, client: str, number: int) -> np.random.Generator:
        if self._secret is not None:
            return self._secret.generator("data", purpose, client, number)
        return np.random.default_rng([self._config.seed, purpose, zlib.crc32(client.encode()), number])

    def _participation(self, number: int) -> NDArray[np.bool_]:
        n, share = len(self._clients), self._config.participation
        rng = self._rng(_CLIENTS, "", number)
        if self._independent:
            return rng.random(n) < share  # what the accountant assumes; nobody at all is possible
        chosen = np.zeros(n, bool)
        chosen[rng.permutation(n)[: self._config.in_round(n)]] = True
        return chosen

    @property
    def _independent(self) -> bool:
        """Whether each client is drawn for itself; noise of the clients needs a fixed number of them."""
        return self._config.client_privacy and not self._config.distributed_noise

    def _dropped(self, number: int, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Who of these rows vanishes in mid-round."""
        n, share = len(self._clients), self._config.dropout
        if not share:
            return np.zeros(rows.shape, bool)
        gone = np.append(self._rng(_DROPOUT, "", number).random(n) < share, False)
        return gone[rows]

    def _images(self, client: ClientData, number: int) -> Batch:
        """Leaves (steps, batch, ...): the next images of an endless sequence of shuffled epochs."""
        n, count = client.samples, self._steps * self._config.batch_size
        epochs, places = np.divmod(np.arange(number * count, (number + 1) * count), n)
        orders = {
            epoch: self._rng(_IMAGES, client.name, int(epoch)).permutation(n)
            for epoch in set(epochs.tolist())
        }
        chosen = [
            client.data.train[orders[epoch][place]] for epoch, place in zip(epochs.tolist(), places.tolist())
        ]
        return _stack(
            [self._prepare(batch) for batch in self._load(client, chosen, number, self._config.batch_size)]
        )

    def _draw(self, client: ClientData, number: int) -> list[list[list[Example]]]:
        """Step -> patient drawn -> its examples, at most ``dp_slices``, a random choice of all it has."""
        rng = self._rng(_PATIENTS, client.name, number)
        draws = []
        for _ in range(self._steps):
            drawn = [
                examples for examples in client.patients.values() if rng.random() < self._rates[client.name]
            ]
            draws.append(
                [[e[i] for i in sorted(rng.permutation(len(e))[: self._config.dp_slices])] for e in drawn]
            )
        return draws

    def _patients(
        self, client: ClientData, number: int, draws: list[list[list[Example]]], capacity: int
    ) -> PatientBatch:
        """Leaves (steps, capacity, slices, ...); what is not there repeats an image and is masked out."""
        flat = [example for step in draws for patient in step for example in patient]
        loaded = self._load(client, flat or client.data.train[:1], number, max(len(flat), 1))
        slices = self._prepare(loaded[0])
        index = np.zeros((self._steps, capacity, self._slices), np.int64)
        mask = np.zeros(index.shape, bool)
        position = 0
        for i, step in enumerate(draws):
            for j, patient in enumerate(step):
                end = position + len(patient)
                index[i, j, : len(patient)], mask[i, j, : len(patient)] = range(position, end), True
                position = end
        return PatientBatch(jax.tree.map(lambda x: x[index], slices), mask)

    def _load(self, client: ClientData, chosen: Sequence[Example], number: int, size: int) -> list[Batch]:
        """These examples in this order, as batches of ``size``."""
        data = client.data
        seed = int(self._rng(_IMAGES, client.name + "#", number).integers(1 << 31))
        return list(
            make_loader(
                data.source.dataset, chosen, data.spec, data.task, batch_size=size, seed=seed,
                prompts=data.prompts, augment=self._augment, shuffle=False, epochs=1, threads=0,
                image_fn=self._image_fn,
            )
        )  # fmt: skip


def _stack(batches: Sequence[Tree]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
