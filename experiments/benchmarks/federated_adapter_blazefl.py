"""BlazeFL as contender of `federated_adapters`: its own FedAvg, clients one after the other in one process.

Run by the benchmark in an environment of its own.  The trainer without a pool is taken, as one thread is measured; a
client's batches are slices of tensors in memory, so that BlazeFL is spared the data loader of its own example.
"""

from types import SimpleNamespace

import torch
from blazefl.contrib.fedavg import FedAvgBaseClientTrainer, FedAvgBaseServerHandler

from experiments.benchmarks import federated_adapter_problem as given
from experiments.benchmarks import federated_adapter_torch as peer
from experiments.benchmarks import federated_problem


class Server(FedAvgBaseServerHandler):
    """Samples the cohorts of the benchmark."""

    def sample_clients(self) -> list[int]:
        """Clients of this round."""
        return federated_problem.chosen(self.round, self.num_clients, self.num_clients_per_round).tolist()


class Batches:
    """The dataset in BlazeFL's sense: batches of one client, in a fixed order."""

    def __init__(self, pictures: torch.Tensor, targets: torch.Tensor):
        self._pictures, self._targets = pictures, targets

    def get_dataloader(self, type_, cid, batch_size, generator=None):
        """[(pictures, targets), ...] of client `cid`."""
        return list(zip(self._pictures[cid].split(batch_size), self._targets[cid].split(batch_size)))


def main() -> None:
    problem = given.from_command_line()
    folder = problem.folder
    if problem.private or problem.personal:
        raise SystemExit("BlazeFL has no algorithm of its own for private updates or a personal head")
    torch.set_num_threads(problem.threads)
    pictures, targets = peer.tensors(folder, problem.cached)[:2]
    models = SimpleNamespace(select_model=lambda name: peer.Adapted(folder, problem.cached))
    data, clients = Batches(pictures, targets), len(pictures)
    share = (problem.cohort + 0.5) / clients  # BlazeFL rounds the product with the number of clients down
    server = Server(models, "adapted", data, 0, clients, share, "cpu", given.BATCH, 0)
    trainer = FedAvgBaseClientTrainer(
        models, "adapted", data, "cpu", clients, 1, given.BATCH, given.RATE, seed=0
    )
    trainer.criterion = torch.nn.BCEWithLogitsLoss()
    for _ in federated_problem.turns(
        lambda: peer.evaluate(server.model, folder), lambda: peer.outputs(server.model)
    ):
        trainer.local_process(server.downlink_package(), server.sample_clients())
        for package in trainer.uplink_package():
            server.load(package)


if __name__ == "__main__":
    main()
