# %% [markdown]
# # A private round
#
# Differential privacy of whole hospitals: each update is clipped to a length C, Gaussian noise is added to the sum,
# and a guarantee (ε, δ) follows. This page computes the noise for a guarantee, looks at whether it drowns the
# signal, and runs rounds. [What differential privacy covers](../privacy.md) says what is *not* protected; read it
# before a real run, which is `medvfm federate --dp-epsilon 8`.

# %%
import jax
import jax.numpy as jnp
import optax

import medvfm_jax as mv
from medvfm_jax.federated import privacy

fed = mv.federated
CLIENTS, ROUNDS = 64, 20

# %% [markdown]
# ## Which noise, for which guarantee?
#
# Every client takes part in every round, so the closed form of the Gaussian mechanism is exact. With sampling, take
# the accountant `"pld"` (extra `[privacy]`).

# %%
wanted = fed.Privacy(clip=0.5, noise_multiplier=0.0, expected_clients=CLIENTS)
private = privacy.with_epsilon(wanted, 8.0, rounds=ROUNDS, delta=1e-5, accountant="exact")
print(privacy.account(private, rounds=ROUNDS, delta=1e-5, accountant="exact"))

# %% [markdown]
# ## Does the noise drown the signal?
#
# In the mean of m clients the noise on d numbers is about z C sqrt(d) / m long; the signal has at most length C. So
# small deltas and many clients are what makes a private run useful: the ratio should be well below 1.

# %%
for d in (40, 10_000, 4_500_000):
    print(f"d = {d:>9,}: noise / C = {private.noise_multiplier * d**0.5 / CLIENTS:.2f}")

# %% [markdown]
# ## Rounds with noise
#
# A problem of ten numbers that all hospitals share, so that the effect can be seen: each wants its own point, and
# the mean of these points is the best model. The key of a private run comes from the operating system and is never
# written down: who knows it can take the noise off again.

# %%
points = 1.0 + 0.3 * jax.random.normal(jax.random.key(0), (CLIENTS, 10))
data = fed.Shard(jnp.repeat(points[:, None], 5, axis=1), jnp.ones(CLIENTS))


def loss(delta, batch, key):
    return jnp.square(delta["w"] - batch).sum()


def distance(**how):
    federation = fed.make_round(fed.algorithms.fedavg(fed.gradient_of(loss), optax.sgd(0.05)), **how)
    server, clients = federation.init({"w": jnp.zeros(10)}, data)
    key = privacy.draw_secret().key("rounds")
    everybody, steps = jnp.ones(CLIENTS, bool), jnp.full(CLIENTS, 5)
    for _ in range(ROUNDS):
        server, clients, _ = jax.jit(federation.round)(server, clients, data, everybody, steps, key)
    return float(jnp.linalg.norm(server.delta["w"] - points.mean(0)))


print(f"from the best model, without noise: {distance():.3f}")
print(f"from the best model, epsilon 8:     {distance(privacy=private):.3f}")

# %% [markdown]
# Protecting each *patient* instead adds noise at every step inside the hospital: `--dp-unit patient`,
# [`patient_value_and_grad`][medvfm_jax.federated.privacy.patient_value_and_grad].
