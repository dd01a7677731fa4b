"""pfl-research as contender of `federated_adapters`: its simulated backend, FedAvg and central privacy in one process.

Run by the benchmark in an environment of its own.  Users are datasets of tensors in memory (embeddings with a cache).
"""

import types

import torch
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.data.federated_dataset import FederatedDataset
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

from experiments.benchmarks import federated_adapter_problem as given
from experiments.benchmarks import federated_adapter_torch as peer
from experiments.benchmarks import federated_problem
from experiments.benchmarks.federated_pfl import MANY, average


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
    average(problem.cohort, data, steps, model, rounds, given.RATE, given.BATCH)


@torch.no_grad()
def _metrics(self, pictures, targets):
    return {"loss": Weighted(float(peer.loss(self, pictures, targets)) * len(targets), len(targets))}


if __name__ == "__main__":
    main()
