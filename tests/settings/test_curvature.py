"""Settings of `analyze curvature`."""

import pytest

from medvfm_jax.settings import BadConfig
from medvfm_jax.settings.analyze import CurvatureConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "sam-tiny-test"), ("adapter", "decoder"), ("set", ("lora.rank=8",)), ("prompt", "none")],
)
def test_what_a_run_decides_cannot_be_given_beside_it(tmp_path, name, value):
    CurvatureConfig(run=tmp_path)
    with pytest.raises(BadConfig, match=f"leave out --{name}"):
        CurvatureConfig(run=tmp_path, **{name: value})
