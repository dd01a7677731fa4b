import pytest

from medvfm_jax.distill import RECIPES, TERMS, UnknownRecipe
from medvfm_jax.distill.record import ENCODER
from medvfm_jax.settings.records import BadConfig


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_made_of_terms_there_are(name):
    for stage in RECIPES[name].configured({}):
        assert set(stage.terms) <= set(TERMS)
        assert stage.share > 0
    assert RECIPES[name].description


def test_ablations_are_options():
    (stage,) = RECIPES["tiny_sam"].configured({"rounds": "1", "hard_masks": "false", "iou": "0"})
    assert (stage.rounds, stage.hard, "iou" in stage.terms) == (1, False, False)
    assert len(RECIPES["efficient_vit_sam"].configured({"first": "0"})) == 1
    assert len(RECIPES["efficient_vit_sam"].configured({})) == 2
    assert [set(stage.terms) for stage in RECIPES["plain"].configured({})] == [{"labels"}]
    (first,) = RECIPES["mobile_sam"].configured({})
    assert set(first.terms) == {"embedding"}
    assert first.trained == ENCODER
    (labels,) = RECIPES["sami"].configured({"first": "0"})
    assert not labels.hidden
    assert [stage.hidden for stage in RECIPES["sami"].configured({"hidden": "0.5"})] == [0.5, 0]
    (learned,) = RECIPES["mean_teacher"].configured({"average": "false", "noise": "0"})
    assert (learned.kept, learned.noise) == ("student", 0)
    first, _ = RECIPES["sam_lightening"].configured({"moving": "false"})
    assert not first.moving
    assert len(RECIPES["sam_lightening"].configured({"first": "1"})) == 1
    early, late = RECIPES["dear_kd"].configured({"depth": "0.5"})
    assert (early.depths, set(late.terms)) == ((0.25, 0.5), {"labels"})
    (only,) = RECIPES["emkd"].configured({"masks": "0", "importance": "0"})
    assert only.terms == {"regions": 0.9, "labels": 1.0}
    (peers,) = RECIPES["mutual"].configured({"labels": "0"})
    assert set(peers.terms) == {"peer"}
    (second,) = RECIPES["edge_sam"].configured({"first": "0"})
    assert second.terms == {"binary_masks": 1.0}


def test_any_term_joins_the_stages_that_see_whole_pictures():
    stages = RECIPES["efficient_vit_sam"].configured({"pkd": "3"})
    assert [stage.terms["pkd"] for stage in stages] == [3.0, 3.0]
    first, second = RECIPES["sami"].configured({"pkd": "3"})
    assert (set(first.terms), set(second.terms)) == ({"reconstruction"}, {"labels", "pkd"})
    (only,) = RECIPES["task"].configured({"embedding": "2"})  # its own option
    assert only.terms["embedding"] == 2.0
    assert stages[0].kinds == {"embedding", "batch"}


def test_a_term_of_one_stage_is_weighed_in_that_stage():
    first, second = RECIPES["efficient_vit_sam"].configured({"labels": "0.5"})
    assert (first.terms, second.terms) == ({"embedding": 1.0}, {"labels": 0.5})
    first, second = RECIPES["edge_sam"].configured({"embedding": "2", "pkd": "1"})
    assert first.terms == {"embedding": 2.0, "pkd": 1.0}
    assert second.terms == {"binary_masks": 1.0, "pkd": 1.0}


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("task", {"peer": "1"}, "choose --recipe mean_teacher or mutual"),
        ("task", {"reconstruction": "1"}, "choose --recipe sami"),
        ("task", {"pdk": "1"}, "the nearest is 'pkd'"),
        ("task", {"pkd": "much"}, "pkd must be a finite number"),
        ("mean_teacher", {"decay": "1"}, "below 1"),
        ("sami", {"hidden": "1"}, "below 1"),
        ("tiny_sam", {"round": "1"}, "nearest is 'rounds'"),
        ("tiny_sam", {"rounds": "0"}, "rounds is 0; expected at least 1"),
        ("tiny_sam", {"rounds": "1000"}, "rounds is 1000; expected at most 16"),
        ("sami", {"hidden": "0"}, "hidden above 0"),
        ("tiny_sam", {"hard_masks": "perhaps"}, "hard_masks must be"),
        ("task", {"masks": "-1"}, "masks is -1.0; expected at least 0"),
        ("task", {"masks": "1e39"}, "masks is 1e[+]39; expected at most 1e[+]06"),
        ("mobile_sam", {"first": "0"}, "known are embedding, embedding_l1, .*, labels[.]"),
        ("edge_sam", {"first": "1.5"}, "at most 1"),
        ("task", {"masks": "0", "embedding": "0", "labels": "0"}, "nothing would be learned"),
        ("mobile_sam", {"rounds": "1"}, "no option 'rounds', nor is there such a term"),
    ],
)
def test_an_option_without_meaning_is_refused(name, given, words):
    with pytest.raises(BadConfig, match=words):
        RECIPES[name].configured(given)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UnknownRecipe, match="nearest is 'mobile_sam'"):
        RECIPES["mobilesam"]
