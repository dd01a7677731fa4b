"""pfl-research as contender of `federated_rounds`: its simulated backend, FedAvg and PyTorch model in one process.

Run by the benchmark in an environment of its own.  Users are datasets of tensors in memory, and no evaluation takes
place between rounds.
"""

import types

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional

from experiments.benchmarks import federated_problem as given
from experiments.benchmarks import federated_torch

MANY = 10**9


class Turns(TrainingProcessCallback):
    """Wait for the benchmark before the first round and after each."""

    def __init__(self, rounds):
        self._rounds = rounds

    def on_train_begin(self, *, model):
        """Before the first round."""
        next(self._rounds)
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """After each."""
        stop = next(self._rounds, "stop") == "stop"
        return stop, Metrics()


def average(cohort, data, steps, model, rounds, rate: float, batch: int) -> None:
    """FedAvg as the benchmark asks for its rounds; steps: what is done to the updates before they are added."""
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=MANY,
            evaluation_frequency=MANY,
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=steps),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=rate, local_batch_size=batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Turns(rounds)],
    )


def main() -> None:
    problem = given.from_command_line()
    torch.set_num_threads(problem.threads)
    torch.manual_seed(0)
    images, labels = federated_torch.tensors(problem.folder)[:2]
    module = federated_torch.build(problem)
    module.loss = types.MethodType(_loss, module)
    module.metrics = types.MethodType(_metrics, module)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))

    users = (int(i) for number in range(MANY) for i in given.chosen(number, len(images), problem.cohort))
    data = FederatedDataset.from_slices(list(zip(images, labels)), lambda: next(users))
    rounds = given.turns(
        lambda: federated_torch.evaluate(module, problem.folder), lambda: federated_torch.outputs(module)
    )
    average(problem.cohort, data, [WeightByDatapoints()], model, rounds, given.RATE, given.BATCH)


def _loss(self, images, labels):
    self.train()
    return functional.cross_entropy(self(images), labels)


@torch.no_grad()
def _metrics(self, images, labels):
    self.eval()
    total = functional.cross_entropy(self(images), labels, reduction="sum")
    return {"loss": Weighted(float(total), len(labels))}


if __name__ == "__main__":
    main()
