"""Secure aggregation within a round: shared secrets, masks that cancel, and the sum of which nothing else is opened."""
