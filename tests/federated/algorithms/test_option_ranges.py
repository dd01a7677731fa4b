"""Every number that an algorithm can be given has a range, and what lies outside is refused in one sentence."""

import inspect

import jax.numpy as jnp
import pytest

from medvfm_jax.federated import systems
from medvfm_jax.federated.algorithms.catalog import ALGORITHMS, check_fit, read_options
from medvfm_jax.federated.algorithms.option_ranges import RANGES, Range, check_range
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.robust import multi_krum


def numbers(options):
    return {name for name, value in options.items() if type(value) in (int, float)}


def test_every_number_has_a_range_and_its_default_lies_within():
    for name, entry in ALGORITHMS.items():
        for option in numbers(entry.options):
            check_range(option, entry.options[option], name)
            assert option in RANGES, (name, option)
    for name, system in systems.SYSTEMS.items():
        options = {n: p.default for n, p in inspect.signature(system.algorithm).parameters.items()}
        for option in numbers(options):
            check_range(option, options[option], name)
            assert option in RANGES, (name, option)


@pytest.mark.parametrize(
    ("algorithm", "option", "value", "expected"),
    [
        ("feddyn", "alpha", "0", "alpha is 0.0, expected above 0"),
        ("fedavgm", "momentum", "1", "momentum is 1.0, expected at least 0 and below 1"),
        ("multi_krum", "chosen", "0", "chosen is 0, expected at least 1"),
        ("krum", "byzantine", "-1", "byzantine is -1, expected at least 0"),
        ("geometric_median", "iterations", str(2**70), "expected at least 1 and at most 2.14748e"),
        ("fedadam", "tau", "nan", "tau must be a finite number, not 'nan'"),
        ("fedadam", "tau", "1e400", "tau must be a finite number, not '1e400'"),
        ("hetlora", "prune", "1.5", "prune is 1.5, expected above 0 and at most 1"),
        (
            "iat",
            "decoders",
            "[",
            "iat: decoders '\\['.* is no regular expression: unterminated character set",
        ),
        ("fedper", "personal", "*x", "is no regular expression: nothing to repeat"),
    ],
)
def test_what_lies_outside_is_refused(algorithm, option, value, expected):
    defaults = ALGORITHMS[algorithm].options
    with pytest.raises(Exception, match=expected):
        read_options({f"algorithm.{option}": value}, "algorithm", defaults, f"algorithm {algorithm}")


def test_every_text_is_a_pattern_and_its_default_is_one():
    texts = [
        (name, option, default)
        for name, entry in ALGORITHMS.items()
        for option, default in entry.options.items()
        if isinstance(default, str)
    ]
    assert texts
    for name, option, default in texts:
        check_range(option, default, name)
        with pytest.raises(Exception, match=option):
            check_range(option, "(", name)


@pytest.mark.parametrize("name", ["iat", "fedhca2"])
def test_a_pattern_for_decoders_that_matches_nothing_is_refused(name):
    both = {
        part: {"a": jnp.ones((5, 2)), "b": jnp.ones((2, 4))} for part in ("image_encoder", "mask_decoder")
    }
    entry = ALGORITHMS[name]
    options = entry.options | ({"clients": 2} if entry.needs_clients else {})
    check_fit(entry, options | {"decoders": "mask_decoder.*"}, both)
    check_fit(entry, options, {"image_encoder": both["image_encoder"]})  # the default may match nothing
    with pytest.raises(
        BadFederation, match=r"'mask_decodr.\*' matches no part of the adapter.*image_encoder/a"
    ):
        check_fit(entry, options | {"decoders": "mask_decodr.*"}, both)


def test_ranges_hold_at_their_ends():
    assert Range(0).holds(0)
    assert not Range(0, open_least=True).holds(0)
    assert Range(0, 1).holds(1)
    assert not Range(0, 1, open_most=True).holds(1)
    assert not Range(0).holds(float("nan"))


@pytest.mark.parametrize(("byzantine", "chosen"), [(-1, 1), (1, 0)])
def test_krum_from_python_is_refused_too(byzantine, chosen):
    with pytest.raises(BadFederation, match="at least 0 and chosen at least 1"):
        multi_krum(byzantine, chosen)
