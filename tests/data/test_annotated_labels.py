"""Sites that annotate some labels: what is told of it, what a loss gets, and what is refused."""

import numpy as np
import pytest

from medvfm_jax.data import BadDataset, examples, make_batch, make_phantom_dataset, open_dataset
from medvfm_jax.data.annotated_labels import described, with_annotated
from medvfm_jax.data.loader import make_loader
from medvfm_jax.data.store import store_of
from medvfm_jax.types import IGNORE, UNANNOTATED
from tests.data.small_folders import SPEC


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Two cases with shell and core, at two sites."""
    folder = make_phantom_dataset(tmp_path_factory.mktemp("data") / "volumes", "volumes", 2, size=16)
    (folder / "sites.csv").write_text("file,site\ncase_000,north\ncase_001,south\n")
    return open_dataset(folder)


def targets(dataset):
    cases = sorted(dataset.by_id)
    listed = [examples(dataset, [case], SPEC, "semantic", empty=0.0)[0] for case in cases]
    return make_batch(dataset, listed, SPEC, "semantic").target


def test_what_a_site_does_not_annotate_is_background_and_marked(volumes):
    partial = with_annotated(volumes, ["north=shell"])
    north, south = targets(partial)
    whole = targets(volumes)
    counted = whole[0][0] != IGNORE
    assert (north[2][counted] == UNANNOTATED).all()
    np.testing.assert_array_equal(north == IGNORE, whole[0] == IGNORE)
    np.testing.assert_allclose(north[0][counted], (whole[0][0] + whole[0][2])[counted], atol=1e-6)
    np.testing.assert_array_equal(north[1], whole[0][1])
    np.testing.assert_array_equal(south, whole[1])
    assert set(np.unique(store_of(partial)("case_000").label)) == {0, 1}
    assert set(np.unique(store_of(volumes)("case_000").label)) == {0, 1, 2}
    assert described(partial.annotated) == "north annotates shell"


def test_a_checkpoint_of_other_annotations_is_not_continued(volumes):
    listed = examples(volumes, ["case_000"], SPEC, "semantic")

    def state(dataset):
        return make_loader(dataset, listed, SPEC, "semantic", batch_size=1, seed=0, threads=0).get_state()[
            "data"
        ]

    assert state(volumes) != state(with_annotated(volumes, ["north=shell"]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["north"], "expected site=label"),
        (["north="], "expected site=label"),
        (["west=shell"], "names the site 'west'.*has north, south"),
        (["north=liver"], "the label 'liver'; the labels are shell, core"),
        (["north=background"], "the label 'background'"),
        (["north=shell", "north=core"], "twice"),
        (["north=shell", "south=shell"], "No site annotates 'core'"),
    ],
)
def test_what_means_nothing_is_refused(volumes, texts, message):
    with pytest.raises(BadDataset, match=message):
        with_annotated(volumes, texts)
    assert with_annotated(volumes, []) is volumes
