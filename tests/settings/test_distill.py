"""Settings of a distillation that have no meaning together."""

import pytest

from medvfm_jax.settings.distill import DistillConfig
from medvfm_jax.settings.records import BadConfig


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_embeddings_of_changing_pictures_are_not_kept_and_not_promised(tier):
    with pytest.raises(BadConfig, match=f"add --augment none, or leave out --embeddings {tier}"):
        DistillConfig(data="cells", embeddings=tier)
    assert DistillConfig(data="cells", embeddings=tier, augment="none").embeddings == tier
