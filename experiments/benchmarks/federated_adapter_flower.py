"""Flower's simulation as contender of `federated_adapters`: FedAvg over Ray actors, one CPU each, PyTorch clients.

Run by the benchmark in an environment of its own.  Each actor keeps the model and the mapped pictures (embeddings with
a cache) between messages; only what is trained is in a message.
"""

import logging

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping

from experiments.benchmarks import federated_adapter_problem as given
from experiments.benchmarks import federated_adapter_torch as peer
from experiments.benchmarks.federated_flower import ChosenClients, play, simulate


def main() -> None:
    problem = given.from_command_line()
    folder = problem.folder
    logging.getLogger("flwr").setLevel(logging.WARNING)
    clients = len(given.read(folder, problem.cached).pictures)
    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message, context):
        model, data = peer.kept(folder, problem.cached)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        row = message.content["config"]["client"]
        peer.train(model, *(torch.from_numpy(np.array(x[row])) for x in data[:2]))
        metrics = MetricRecord({"num-examples": given.SAMPLES})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @server_app.main()
    def serve(grid, context):
        model = peer.Adapted(folder, problem.cached)
        strategy = ChosenClients(clients, problem.cohort)
        if problem.private:
            strategy = DifferentialPrivacyServerSideFixedClipping(
                strategy, given.NOISE, given.CLIP, problem.cohort
            )
        play(grid, model, strategy, lambda model: peer.evaluate(model, folder), peer.outputs)

    simulate(server_app, client_app, clients, problem.threads)


if __name__ == "__main__":
    main()
