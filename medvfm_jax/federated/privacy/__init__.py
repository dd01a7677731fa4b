"""Differential privacy in a federation: mechanisms, accounting and empirical checks."""

from medvfm_jax.federated.privacy.accounting import Guarantee, MissingPrivacyExtra, account, with_epsilon
from medvfm_jax.federated.privacy.canary_audit import Audit, canary_scores, canary_update, epsilon_lower_bound
from medvfm_jax.federated.privacy.errors import BadPrivacy
from medvfm_jax.federated.privacy.membership import Membership, loss_attack, per_patient
from medvfm_jax.federated.privacy.patient_level import (
    PatientBatch,
    group_by_patient,
    patient_gradient,
    patient_value_and_grad,
)
from medvfm_jax.federated.privacy.secret_randomness import Secret, draw_secret, secret_in

__all__ = [
    "Audit",
    "BadPrivacy",
    "Guarantee",
    "Membership",
    "MissingPrivacyExtra",
    "PatientBatch",
    "Secret",
    "account",
    "canary_scores",
    "canary_update",
    "draw_secret",
    "epsilon_lower_bound",
    "group_by_patient",
    "loss_attack",
    "patient_gradient",
    "patient_value_and_grad",
    "per_patient",
    "secret_in",
    "with_epsilon",
]
