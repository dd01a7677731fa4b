"""Secrets: 256 bits of the operating system, another stream for every purpose, closed to others on disk."""

import jax
import numpy as np
import pytest

from medvfm_jax.federated.privacy import BadPrivacy, Secret, draw_secret, secret_in


def test_every_secret_is_another_unless_its_number_is_given():
    assert len({draw_secret().data for _ in range(50)}) == 50
    assert draw_secret(3) == draw_secret(3) != draw_secret(4)
    assert draw_secret(3).data.hex() not in repr(draw_secret(3))
    with pytest.raises(BadPrivacy, match="has 32 bytes, not 8"):
        Secret(bytes(8))


def test_purposes_share_nothing_and_repeat_exactly():
    secret = draw_secret(0)
    purposes = [
        ("rounds",),
        ("data", 1, "a", 0),
        ("data", 1, "a", 1),
        ("data", 1, "b", 0),
        ("data", 11, "a", 0),
    ]
    keys = {tuple(np.asarray(jax.random.key_data(secret.key(*p)))) for p in purposes}
    assert len(keys) == len(purposes)
    assert all(len(key) == 2 and key[0] >= 2**16 for key in keys)  # both words, not a 32-bit seed
    drawn = np.stack([secret.generator(*p).random(2000) for p in purposes])
    assert np.abs(np.corrcoef(drawn) - np.eye(len(purposes))).max() < 0.12
    np.testing.assert_array_equal(drawn[1], secret.generator(*purposes[1]).random(2000))


def test_a_secret_on_disk_is_drawn_once_and_closed_to_others(tmp_path):
    path = tmp_path / "state" / "noise.secret"
    found = secret_in(path)
    assert secret_in(path) == found
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert [p.name for p in path.parent.iterdir()] == ["noise.secret"]
    path.write_bytes(b"short")
    with pytest.raises(BadPrivacy, match=r"noise\.secret holds no secret of 32 bytes"):
        secret_in(path)
    with pytest.raises(BadPrivacy, match="cannot be used for the secret"):
        secret_in(path / "below")
