"""Unlabelled images at the server."""

import pytest

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.run.public_images import public_batches
from medvfm_jax.models.catalog import MODELS


def test_models_of_volumes_are_refused_before_a_file_is_read(tmp_path):
    with pytest.raises(BadFederation, match="slice by slice, and sam-med3d-tiny-test sees volumes"):
        public_batches(tmp_path / "none", MODELS["sam-med3d-tiny-test"].spec, (), 1, 1, 0)
