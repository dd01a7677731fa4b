"""Differential privacy in a federation: mechanisms, accounting and empirical checks."""
