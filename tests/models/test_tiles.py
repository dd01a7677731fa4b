from dataclasses import replace

import jax
import pytest

from medvfm_jax import models
from medvfm_jax.models.transforms import transform
from medvfm_jax.types import MedvfmError

SEMANTIC, PROMPTED = "unet", "sam-tiny-test"
SLAB = {"kind": "slab", "depth": 2, "of": {"kind": "prompt_free", "classes": 2}}


def test_tiles_change_what_is_seen_at_once_and_nothing_else():
    model = models.build(SEMANTIC, classes=2)
    changed, params = transform({"kind": "tile", "side": 128, "of": None}, model, {"params": 1})
    assert params == {"params": 1}
    assert changed.spec.tile == 128
    assert replace(changed.spec, tile=None) == model.spec
    assert changed.apply is model.apply


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (SEMANTIC, {"side": 8}, "a side of 16 to 16384 pixels, a whole number, not 8"),
        (SEMANTIC, {"side": 128.0}, "a whole number, not 128.0"),
        (SEMANTIC, {"side": True}, "a whole number, not True"),
        (SEMANTIC, {"side": 64, "of": {"kind": "tile", "side": 64}}, "leave out --tile"),
        (SEMANTIC, {"side": 64, "of": SLAB}, "only promptable ones convert"),
        (PROMPTED, {"side": 64}, "for models that need no prompts .* leave out --tile"),
        pytest.param(
            PROMPTED,
            {"side": 64, "of": SLAB},
            "see one picture at a time.* leave out --tile",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tiles_that_a_model_does_not_take(model, options, message):
    built = models.build(model, **({"classes": 2} if model != PROMPTED else {}))
    params = built.init(jax.random.key(0)) if model == PROMPTED and "of" in options else {}
    with pytest.raises(MedvfmError, match=message):
        transform({"kind": "tile", **options}, built, params)
