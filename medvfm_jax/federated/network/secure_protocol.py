"""Secure aggregation between real nodes: the server carries messages and learns the sum of those that answered.

Four exchanges a round: public keys; shares of each site's secrets, sealed for their receivers; masked updates; shares
of what the server needs to take the masks off.  Site i sends, modulo 2^b,
y_i = q_i + PRG(b_i) + Σ_{j>i} PRG(s_ij) - Σ_{j<i} PRG(s_ij).
Of a site that answered, b_i is reconstructed, of one that vanished its mask key, never both.

Keys are agreed on by X25519 and HKDF-SHA256, shares are sealed by ChaCha20-Poly1305 and the masks are ChaCha20 streams,
all from the package ``cryptography``; secrets come from the operating system.  Everything is bound to the run, the
round and the list of all public keys, so shares sealed under one list do not open under another.

**What this holds against**: a server that follows the protocol and looks at all it receives, together with fewer than
threshold sites.  It does not hold against a server that makes up sites: their public keys pass through it unsigned.

References: Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, figure 4,
without the round of signatures (consistency check), which needs a public-key infrastructure among the sites.
"""

import hashlib
import secrets as system_random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.network.messages import BadMessage
from medvfm_jax.federated.secure.secret_sharing import reconstruct, share

PRIME = 2**521 - 1  # a Mersenne prime above every 256-bit secret
SECRET, SHARE = 32, 66  # bytes
_TAG = 16
SEALED = 2 * SHARE + _TAG


class MissingCryptography(BadFederation, ImportError):
    """The package ``cryptography`` is not installed."""


class Secrets(NamedTuple):
    """The secrets of one site for one round, 32 bytes each; one message is masked with them, never two."""

    seal: bytes  # X25519 private key, for shares
    mask: bytes  # X25519 private key, for pairwise masks
    own: bytes  # b_i, seed of the mask of its own


class Round(NamedTuple):
    """What all of one round agree on; keys {row: (public seal key, public mask key)} of those that joined."""

    run: str
    number: int
    keys: Mapping[int, tuple[bytes, bytes]]
    threshold: int

    def bound(self, *purpose: object) -> bytes:
        """A digest that differs for every run, round, list of keys and purpose."""
        listed = [f"{row}:{a.hex()}:{b.hex()}" for row, (a, b) in sorted(self.keys.items())]
        text = "|".join([self.run, str(self.number), str(self.threshold), *listed, *map(str, purpose)])
        return hashlib.sha256(text.encode()).digest()


def new_secrets() -> Secrets:
    """Fresh secrets from the operating system."""
    _crypto()
    return Secrets(*(system_random.token_bytes(SECRET) for _ in range(3)))


def public_keys(own: Secrets) -> tuple[bytes, bytes]:
    """What a site shows to all others."""
    return _public(own.seal), _public(own.mask)


def deal(own: Secrets, me: int, about: Round) -> dict[int, bytes]:
    """{row: shares of b_i and of the mask key, sealed for that row}, for every site that joined, this one included.

    Raises BadFederation for a threshold that would let a server ask two disjoint groups.
    """
    rows = sorted(about.keys)
    if not len(rows) / 2 < about.threshold <= len(rows):
        raise BadFederation(
            f"{len(rows)} sites joined; the threshold {about.threshold} must be above half of them and at most all."
        )
    dealt = [
        share(int.from_bytes(secret, "little"), len(rows), about.threshold, PRIME)
        for secret in (own.own, own.mask)
    ]
    return {
        row: _seal(own, me, row, about, b"".join(_bytes(part[place]) for part in dealt))
        for place, row in enumerate(rows)
    }


def open_shares(
    own: Secrets, me: int, about: Round, sealed: Mapping[int, bytes]
) -> dict[int, tuple[bytes, bytes]]:
    """{sender: sealed for me} -> {sender: (share of its b, share of its mask key)}.

    Raises BadMessage for shares that were changed, or sealed for another round or under another list of keys.
    """
    found = {}
    for sender, data in sealed.items():
        text = _open(own, me, sender, about, data)
        found[sender] = (text[:SHARE], text[SHARE:])
    return found


def mask(
    own: Secrets, me: int, about: Round, partners: Mapping[int, object], values: NDArray[np.uint32], bits: int
) -> NDArray[np.uint32]:
    """values (d,) in [0, 2^bits) -> the message (d,); ``partners``: rows whose shares arrived, oneself among them."""
    total = values + _stream(_derive(own.own, about.bound("own", me)), values.size)
    for row in partners:
        if row != me:
            total += _pair_stream(own.mask, about, me, row, values.size)
    return total & np.uint32(2**bits - 1)


def reveal(shares: Mapping[int, tuple[bytes, bytes]], answered: frozenset[int]) -> dict[int, bytes]:
    """{row: the one share the server may have}: of b for those that answered, of the mask key for the others.

    To be called once a round: both shares of one site would expose its message.
    """
    return {row: parts[0 if row in answered else 1] for row, parts in shares.items()}


def unmask(
    total: NDArray[np.uint32],
    about: Round,
    partners: frozenset[int],
    answered: frozenset[int],
    revealed: Mapping[int, Mapping[int, bytes]],
    bits: int,
) -> NDArray[np.uint32]:
    """Sum of the messages of those that ``answered`` (d,), and {holder: {row: share}} -> sum of their values (d,).

    Raises secret_sharing.BelowThreshold with too few holders, and MedvfmError if shares contradict each other.
    """
    places = {row: place for place, row in enumerate(sorted(about.keys))}
    total = total.copy()
    for row in sorted(partners):
        shares = {places[h]: int.from_bytes(found[row], "little") for h, found in revealed.items()}
        number = reconstruct(shares, about.threshold, PRIME)
        if number >= 2 ** (8 * SECRET):
            raise BadMessage("The shares that were revealed do not make a secret; one of them is wrong.")
        secret = number.to_bytes(SECRET, "little")
        if row in answered:
            total -= _stream(_derive(secret, about.bound("own", row)), total.size)
            continue
        if _public(secret) != about.keys[row][1]:
            raise BadMessage(
                "The shares that were revealed do not make the key of a site; one of them is wrong."
            )
        for other in answered:  # their messages still hold what they share with it
            total -= _pair_stream(secret, about, other, row, total.size, holder=row)
    return total & np.uint32(2**bits - 1)


def _pair_stream(
    private: bytes, about: Round, me: int, other: int, size: int, holder: int | None = None
) -> NDArray[np.uint32]:
    """±PRG(s) as ``me`` adds it; ``private`` is the mask key of ``holder``, by default of ``me``."""
    peer = other if holder in (None, me) else me
    low, high = min(me, other), max(me, other)
    seed = _agree(private, about.keys[peer][1], about.bound("pair", low, high))
    stream = _stream(seed, size)
    return stream if me == low else np.uint32(0) - stream


def _bytes(number: int) -> bytes:
    return number.to_bytes(SHARE, "little")


def _seal(own: Secrets, sender: int, receiver: int, about: Round, text: bytes) -> bytes:
    return _cipher(own, receiver, sender, receiver, about).encrypt(bytes(12), text, None)


def _open(own: Secrets, receiver: int, sender: int, about: Round, data: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return _cipher(own, sender, sender, receiver, about).decrypt(bytes(12), bytes(data), None)
    except InvalidTag as error:
        raise BadMessage(
            "Shares of another site do not open: they were changed, or sealed for another round or list of sites."
        ) from error


def _cipher(own: Secrets, peer: int, sender: int, receiver: int, about: Round) -> "object":
    """Of a key for this direction, round and list of keys alone, so the nonce may be constant."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(_agree(own.seal, about.keys[peer][0], about.bound("seal", sender, receiver)))


def _agree(private: bytes, public: bytes, info: bytes) -> bytes:
    x25519 = _crypto()
    try:
        secret = x25519.X25519PrivateKey.from_private_bytes(private).exchange(
            x25519.X25519PublicKey.from_public_bytes(bytes(public))
        )
    except ValueError as error:  # a point of small order
        raise BadMessage("A site's public key is not one.") from error
    return _derive(secret, info)


def _public(private: bytes) -> bytes:
    return _crypto().X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _derive(secret: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), SECRET, b"medvfm secure aggregation", info).derive(secret)


def _stream(seed: bytes, size: int) -> NDArray[np.uint32]:
    """PRG: (size,) words of the ChaCha20 stream of a seed that is used for nothing else."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    stream = Cipher(ChaCha20(seed, bytes(16)), None).encryptor().update(bytes(4 * size))
    return np.frombuffer(stream, "<u4").astype(np.uint32)


def _crypto() -> "object":
    try:
        from cryptography.hazmat.primitives.asymmetric import x25519
    except ImportError as error:
        raise MissingCryptography(
            "Secure aggregation between nodes needs the package cryptography; install it with "
            "pip install 'medvfm-jax[federated]'."
        ) from error
    return x25519
