import numpy as np
import pytest
from scipy import stats

from medvfm_jax.metrics import NothingInCommon, compare
from medvfm_jax.metrics.compare import sign_flip_test, wilcoxon_test


def rows(values, label="organ", metric="dice"):
    return [{"case": f"c{k}", "label": label, metric: v} for k, v in enumerate(values)]


def test_sign_flips_are_exact_for_few_patients():
    # All positive: only the observed pattern and its mirror are as extreme, 2 of 2^n.
    assert sign_flip_test(np.array([0.1, 0.2, 0.3, 0.05, 0.4])) == (2 / 32, True)
    assert sign_flip_test(np.zeros(4)) == (1.0, True)
    d = np.random.default_rng(0).normal(0.3, 1.0, 12)
    peer = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_test(d)[0] == pytest.approx(peer.pvalue)


def test_a_pattern_counts_as_extreme_if_it_is_as_far_but_for_rounding():
    """(0.1, 0.2, 0.3): two of eight patterns. A pattern that is a millionth less far does not count."""
    assert sign_flip_test(np.array([0.1, 0.2, 0.3])) == (0.25, True)
    for few in ([0.1] * 3, [0.1, 0.3, 0.7], [1.1, 2.2, 3.3, 4.4, 5.5, 6.6, 7.7]):
        assert sign_flip_test(np.array(few)) == (2 / 2 ** len(few), True)
    assert sign_flip_test(np.array([1.0, 5e-7])) == (0.5, True)


def test_drawn_sign_flips_approach_the_t_test_and_never_reach_zero():
    d = np.random.default_rng(1).normal(0.25, 1.0, 60)
    p, exact = sign_flip_test(d)
    assert not exact
    assert p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    assert sign_flip_test(np.ones(60))[0] == pytest.approx(1 / 20_001)


def test_wilcoxon_drops_zeros():
    d = np.array([0.0, 0.3, -0.1, 0.4, 0.25, 0.6])
    assert wilcoxon_test(d) == pytest.approx(stats.wilcoxon(d[d != 0]).pvalue)
    assert wilcoxon_test(np.zeros(5)) == 1.0


def test_difference_is_b_minus_a_over_common_patients():
    a, b = rows([0.5, 0.6, 0.7, 0.9]), rows([0.6, 0.8, None])
    result = compare(a, b)
    assert result["n"] == 2
    assert result["difference"] == pytest.approx(0.15)
    assert result["mean_b"] - result["mean_a"] == pytest.approx(0.15)
    assert (result["left_out_a"], result["left_out_b"]) == (2, 0)
    assert result["low"] <= 0.15 <= result["high"]


def test_only_cells_both_runs_define_are_compared():
    a = rows([0.5, 0.5]) + rows([0.1, 0.1], label="tumour")
    b = rows([0.6, 0.6]) + rows([0.5, None], label="tumour")
    assert compare(a, b)["difference"] == pytest.approx(np.mean([(0.1 + 0.4) / 2, 0.1]))
    assert compare(a, b, label="tumour")["n"] == 1


def test_pairing_finds_what_an_unpaired_look_cannot():
    hard = np.random.default_rng(2).uniform(0.2, 0.9, 30)
    result = compare(rows(hard.tolist()), rows((hard + 0.02).tolist()))
    assert result["p_permutation"] < 1e-3
    assert result["p_wilcoxon"] < 1e-3
    assert result["low"] > 0.0


def test_object_level_metrics_compare_on_their_own_row():
    a, b = rows([0.5, 0.6], "instances", "pq"), rows([0.6, 0.8], "instances", "pq")
    assert compare(a, b, metric="pq")["difference"] == pytest.approx(0.15)


def test_nothing_in_common_is_named():
    with pytest.raises(NothingInCommon, match="dice"):
        compare(rows([0.5]), [{"case": "other", "label": "organ", "dice": 0.5}])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("b", [[2.0, 1.0, np.inf], [2.0, 1.0, 3.0]])
def test_an_infinite_distance_has_no_p_value(b):
    """Signs of an infinite difference say nothing about means; nor is a difference of two infinite ones a number."""
    found = compare(rows([1.0, 2.0, np.inf], metric="hd95"), rows(b, metric="hd95"), metric="hd95")
    assert (found["p_permutation"], found["p_wilcoxon"], found["interval"]) == (None, None, None)
    assert not np.isfinite(found["difference"])
