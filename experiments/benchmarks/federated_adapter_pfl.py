"""pfl-research as contender of `federated_adapters`: its simulated backend, FedAvg and central privacy in one process.

Run by the benchmark in an environment of its own.  Users are datasets of tensors in memory (embeddings with a cache).
"""

import types

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

from experiments.benchmarks import federated_adapter_problem as given
from experiments.benchmarks import federated_adapter_torch as peer
from experiments.benchmarks import federated_problem
from experiments.benchmarks.federated_pfl import MANY, Turns


def main() -> None:
    problem = given.from_command_line()
    folder = problem.folder
    torch.set_num_threads(problem.threads)
    torch.manual_seed(0)
    pictures, targets = peer.tensors(folder, problem.cached)[:2]
    module = peer.Adapted(folder, problem.cached)
    module.loss = types.MethodType(lambda self, x, y: peer.loss(self, x, y), module)
    module.metrics = types.MethodType(_metrics, module)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    users = (
        int(i)
        for number in range(MANY)
        for i in federated_problem.chosen(number, len(pictures), problem.cohort)
    )
    data = FederatedDataset.from_slices(list(zip(pictures, targets)), lambda: next(users))
    steps = [WeightByDatapoints()]
    if problem.private:
        steps = [WeightByUser(), CentrallyAppliedPrivacyMechanism(GaussianMechanism(given.CLIP, given.NOISE))]
    rounds = federated_problem.turns(lambda: peer.evaluate(module, folder), lambda: peer.outputs(module))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=MANY,
            evaluation_frequency=MANY,
            train_cohort_size=problem.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=steps),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=given.RATE, local_batch_size=given.BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Turns(rounds)],
    )


@torch.no_grad()
def _metrics(self, pictures, targets):
    return {"loss": Weighted(float(peer.loss(self, pictures, targets)) * len(targets), len(targets))}


if __name__ == "__main__":
    main()
