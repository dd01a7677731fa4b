import numpy as np
import pytest

from medvfm_jax.weights.port import PortError, check
from medvfm_jax.weights.tables.sam import SAM
from medvfm_jax.weights.tables.tiny_vit import TINY_VIT_SAM
from tests.weights.dumps import read_dump, targets_of

COVERED = {
    "sam_vit_b": SAM,
    "sam_vit_l": SAM,
    "sam_vit_h": SAM,
    "samed_base_vit_b_512_8cls": SAM,
    "mobile_sam_vit_t": TINY_VIT_SAM,
}


@pytest.mark.parametrize("name", sorted(COVERED))
def test_the_table_covers_the_reference_dump_both_ways(reference_data, name):
    table = COVERED[name]
    state = read_dump(reference_data / "specs" / "state_dicts" / f"{name}.txt")
    ignored = {key for key in state if table.is_ignored(key)}
    assert len(ignored) == {"mobile_sam_vit_t": 31}.get(name, 0)
    plan = check(table, state, targets_of(table, state))
    used = [key for sources, _ in plan.values() for key in sources]
    assert sorted(used) == sorted(set(state) - ignored)


def test_lite_medsam_encoder_dump(reference_data):
    state = read_dump(
        reference_data / "specs" / "state_dicts" / "litemedsam_image_encoder_tinyvit_256.txt",
        "image_encoder.",
    )
    plan = check(TINY_VIT_SAM, state, targets_of(TINY_VIT_SAM, state))
    assert sum(np.prod(state[key].shape) for (key,), _ in plan.values()) > 5_700_000


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("efficient_sam_vits", "mlp.fc1"),
        ("efficient_sam_vitt", "mlp.fc1"),
        ("edge_sam_image_encoder_repvit_m1", "features.0.0.c.weight"),
        ("sam_med2d_vit_b_256_adapter", "Adapter"),
    ],
)
def test_models_we_do_not_have_are_refused_with_both_lists(reference_data, name, key):
    folder = reference_data / "specs" / "state_dicts"
    base = read_dump(folder / "sam_vit_b.txt")
    state = read_dump(folder / f"{name}.txt")
    with pytest.raises(PortError) as caught:
        check(SAM, state, targets_of(SAM, base), where=name)
    assert any(key in unused for unused in caught.value.unused_sources)
    assert caught.value.missing_targets or caught.value.problems
    assert len(str(caught.value).splitlines()) < 30
