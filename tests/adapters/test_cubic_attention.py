"""Attention in cubic windows: token by token in numpy, and windows that cut the map nowhere else than they should."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from medvfm_jax.adapters import BadAdapterConfig, WrongSite
from medvfm_jax.adapters.cubic_attention import cubic_attention
from medvfm_jax.mesh_axes import SLICES
from tests.adapters.one_site import Root
from tests.adapters.toy_vit import perturbed

HEADS, HEAD_DIM, WINDOW, D, H, W = 2, 3, 2, 3, 3, 4
WIDTH, KEY = HEADS * HEAD_DIM, jax.random.key(0)
X = np.random.default_rng(0).normal(size=(D, H, W, WIDTH)).astype(np.float32)


class Attention(nn.Module):
    """Parameters of SAM's attention, with tables of the size of the window."""

    @nn.compact
    def __call__(self, x):
        shape = (2 * WINDOW - 1, HEAD_DIM)
        for name in ("rel_pos_h", "rel_pos_w"):
            self.param(name, nn.initializers.normal(1.0), shape)
        return nn.Dense(WIDTH, name="proj")(nn.Dense(3 * WIDTH, name="qkv")(x)[..., :WIDTH])


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Attention(name="attn")(x)


def depth_table(site, layer):
    """Entries for differences of -(D-1) ... D-1 slices; linear in between where the window is not the slab's depth."""
    from medvfm_jax.models.interpolation import bilinear_matrix

    table = (layer["rel_pos_h"] + layer["rel_pos_w"]) / 2 + site["depth"]
    return bilinear_matrix(len(table), 2 * D - 1) @ table


def by_hand(layer, site, shift):
    qkv = X @ layer["qkv"]["kernel"] + layer["qkv"]["bias"]
    q, k, v = np.split(qkv.reshape(D, H, W, 3, HEADS, HEAD_DIM), 3, axis=3)
    q, k, v = (part[:, :, :, 0] for part in (q, k, v))
    rel_d, out = depth_table(site, layer), np.zeros((D, H, W, HEADS, HEAD_DIM))
    for s, y, x in np.ndindex(D, H, W):
        same = [
            (t, i, j)
            for t, i, j in np.ndindex(D, H, W)
            if (i + shift) // WINDOW == (y + shift) // WINDOW
            and (j + shift) // WINDOW == (x + shift) // WINDOW
        ]
        for n in range(HEADS):
            query = q[s, y, x, n]
            positions = [
                layer["rel_pos_h"][y - i + WINDOW - 1]
                + layer["rel_pos_w"][x - j + WINDOW - 1]
                + rel_d[s - t + D - 1]
                for t, i, j in same
            ]
            logits = np.array(
                [query @ k[at][n] / HEAD_DIM**0.5 + query @ p for at, p in zip(same, positions, strict=True)]
            )
            weights = np.exp(logits - logits.max())
            out[s, y, x, n] = sum(w * v[at][n] for w, at in zip(weights / weights.sum(), same, strict=True))
    return out.reshape(D, H, W, WIDTH) @ layer["proj"]["kernel"] + layer["proj"]["bias"]


@pytest.mark.parametrize("shift", [0, 1])
def test_by_hand(shift):
    root = Model()
    params = perturbed(root.init(KEY, X[0]))
    adapter = cubic_attention("attn", HEAD_DIM, WINDOW, shift)
    delta = perturbed(adapter.init(KEY, root.apply, params, X[0]))
    assert delta["attn"]["depth"].shape == (2 * WINDOW - 1, HEAD_DIM)
    run = jax.jit(jax.vmap(lambda x: adapter.wrap(root.apply)(params, delta, x), axis_name=SLICES))
    layer, site = jax.tree.map(np.asarray, (params["params"]["attn"], delta["attn"]))
    np.testing.assert_allclose(run(X), by_hand(layer, site, shift), atol=1e-4)


def test_bad_options_and_sites():
    for window, shift in ((0, 0), (4, 4), (4, -1)):
        with pytest.raises(BadAdapterConfig, match="a window of at least 1 and a shift"):
            cubic_attention("attn", HEAD_DIM, window, shift)
    root = Root()
    params = root.init(KEY, X[0])
    with pytest.raises(WrongSite, match="no attention of SAM's ViT"):
        cubic_attention("encoder/site", HEAD_DIM).init(KEY, root.apply, params, X[0])
