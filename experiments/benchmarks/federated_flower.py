"""Flower's simulation as contender of `federated_rounds`: FedAvg over Ray actors, one CPU each, PyTorch clients.

Run by the benchmark in an environment of its own.  Each actor keeps the model and the mapped images between messages.
Which client an actor plays comes with the message, so that the cohorts are those of the other contenders.
"""

import logging

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.benchmarks import federated_problem as given
from experiments.benchmarks import federated_torch


class ChosenClients(FedAvg):
    """FedAvg of a cohort of all clients, whose messages name the client to play."""

    def __init__(self, clients, cohort):
        super().__init__(
            fraction_train=cohort / clients,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=clients,
        )
        self.chosen, self.number = lambda number: given.chosen(number, clients, cohort), 0

    def configure_train(self, server_round, arrays, config, grid):
        """Train messages of one round."""
        rows = self.chosen(self.number)
        self.number += 1
        for row, message in zip(
            rows, super().configure_train(server_round, arrays, config, grid), strict=True
        ):
            message.content = RecordDict({"arrays": arrays, "config": ConfigRecord({"client": int(row)})})
            yield message


def play(grid, model, strategy, evaluate, outputs) -> None:
    """Rounds as the benchmark asks for them, from the model's weights; evaluate and outputs take the model."""
    arrays = ArrayRecord(model.state_dict())

    def current():
        model.load_state_dict(arrays.to_torch_state_dict())
        return model

    for _ in given.turns(lambda: evaluate(current()), lambda: outputs(current())):
        arrays = strategy.start(grid, arrays, num_rounds=1).arrays


def simulate(server_app, client_app, clients: int, threads: int) -> None:
    """Flower's simulation, one CPU for each actor."""
    run_simulation(
        server_app,
        client_app,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": threads, "include_dashboard": False},
        },
    )


def main() -> None:
    problem = given.from_command_line()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    clients = len(given.read(problem.folder).images)
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message, context):
        model, data = federated_torch.kept(problem)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        row = message.content["config"]["client"]
        labels = torch.from_numpy(np.array(data.labels[row])).long()
        federated_torch.train(model, torch.from_numpy(np.array(data.images[row])), labels)
        metrics = MetricRecord({"num-examples": len(labels)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @server_app.main()
    def serve(grid, context):
        model = federated_torch.build(problem)
        play(
            grid, model, ChosenClients(clients, problem.cohort),
            lambda model: federated_torch.evaluate(model, problem.folder), federated_torch.outputs,
        )  # fmt: skip

    simulate(server_app, client_app, clients, problem.threads)


if __name__ == "__main__":
    main()
