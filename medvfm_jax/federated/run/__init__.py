"""A federated run over a folder of images: settings resolved, the data of each round, files, scores, audit."""
