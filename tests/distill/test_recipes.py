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
    (second,) = RECIPES["edge_sam"].configured({"first": "0"})
    assert second.terms == {"binary_masks": 1.0}


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("tiny_sam", {"round": "1"}, "nearest is 'rounds'"),
        ("tiny_sam", {"rounds": "0"}, "rounds at least 1"),
        ("tiny_sam", {"hard_masks": "perhaps"}, "hard_masks must be"),
        ("task", {"masks": "-1"}, "not negative"),
        ("edge_sam", {"first": "1.5"}, "at most 1"),
        ("task", {"masks": "0", "embedding": "0", "labels": "0"}, "nothing would be learned"),
        ("mobile_sam", {"rounds": "1"}, "there are none"),
    ],
)
def test_an_option_without_meaning_is_refused(name, given, words):
    with pytest.raises(BadConfig, match=words):
        RECIPES[name].configured(given)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UnknownRecipe, match="nearest is 'mobile_sam'"):
        RECIPES["mobilesam"]
