"""Federated adaptation: one compiled round over a cohort of clients, with codec and privacy."""
