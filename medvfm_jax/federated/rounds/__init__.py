"""One federated round as a pure function: a client's work, the reduction of the uploads, the server's step."""
