"""Rounds with secure aggregation over the loopback network: the right mean, whoever vanishes, and no update seen."""

import jax
import numpy as np
import optax
import pytest

pytest.importorskip("cryptography")
from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated import codecs
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Privacy
from medvfm_jax.federated.network import secure_messages
from medvfm_jax.federated.network.agreement import contract
from medvfm_jax.federated.network.layouts import layout, payload_bytes, read_payload, write_payload
from medvfm_jax.federated.network.messages import decode, encode
from medvfm_jax.federated.network.session import run_session
from medvfm_jax.federated.privacy.discrete import choose
from medvfm_jax.federated.secure.secure_sum import distributed_noise, fixed_point
from tests.federated.cases import STEPS, data, delta, loss
from tests.federated.network.loopback import KEY, NODES, SITES, Loopback, agreement, rows, simulate

GRID = fixed_point(3, 2, reach=4.0, heaviest=100.0)


def secure_agreement(algorithm=None, secure=GRID):
    return agreement(algorithm or alg.fedavg(gradient_of(loss), optax.sgd(0.05)))._replace(secure=secure)


class Net(Loopback):
    """`Loopback` whose rounds run through ``Coordinator.round``; every message is kept."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def run(self, progress, lose=(), tamper=None):
        """lose: pairs (site, kind of message that does not reach it)."""
        names = {node: site for site, node in NODES.items()}

        def exchange(messages, seconds):
            kinds = {node: decode(data, 2**30).header.kind for node, data in messages.items()}
            heard = {n: m for n, m in messages.items() if (names[n], kinds[n]) not in lose}
            replies = self.deliver(heard, tamper)
            self.seen += [(names[n], kinds[n], heard[n], replies.get(n)) for n in heard]
            return replies

        return self.coordinator.round(progress, dict(NODES), exchange, 1.0)


def close(server, expected):
    for a, b in zip(jax.tree.leaves(server.delta), jax.tree.leaves(expected.delta), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return Net(secure_agreement(), tmp_path_factory.mktemp("sites"))


@pytest.fixture
def net(compiled):
    """Every run has a number of its own, so sites keep nothing of one test for the next."""
    compiled.seen.clear()
    return compiled


@pytest.fixture(scope="module")
def expected(compiled):
    """The simulator's server after one round, by who arrived, and after two rounds of all."""
    one = {
        row: simulate(compiled.agreement, None, [list(row)])[0] for row in [(True,) * 3, (True, True, False)]
    }
    return one | {"two": simulate(compiled.agreement, None, [[True] * 3] * 2)[0]}


@pytest.mark.slow
def test_rounds_are_those_of_the_simulator_to_the_resolution_of_the_grid(net, expected):
    progress = net.coordinator.begin(KEY)
    for _ in range(2):
        progress, record = net.run(progress)
        assert set(record.arrived) == set(SITES)
        assert np.isfinite(record.metrics.loss)
    close(progress.server, expected["two"])


@pytest.mark.parametrize("kind", ["join", "deal", "work", "reveal"])
def test_a_site_may_vanish_at_any_step(net, expected, kind):
    progress, record = net.run(net.coordinator.begin(KEY), lose=[("south", kind)])
    gone = kind != "reveal"  # whose update arrived is in the sum all the same
    close(progress.server, expected[True, True, not gone])
    assert ("south" in record.arrived) == (not gone)
    assert record.missing == (("south",) if gone else ())


def test_below_the_threshold_nothing_changes_and_the_round_can_be_tried_again(net, expected):
    progress = net.coordinator.begin(KEY)
    same, record = net.run(progress, lose=[("south", "work"), ("east", "work")])
    assert record.metrics is None
    assert same is progress
    progress, record = net.run(progress)
    assert len(record.arrived) == 3
    close(progress.server, expected[True, True, True])


def test_the_server_sees_no_update(net):
    """What a site sends differs from its update everywhere, and from run to run, as uniform noise does."""
    messages = []
    shapes = contract(net.agreement)
    for _ in range(2):
        net.run(net.coordinator.begin(KEY))
        reply = decode(next(r for s, k, _, r in net.seen if (s, k) == ("north", "work")), 2**30)
        messages.append(read_payload(reply.payload, reply.header.layout, shapes.secure.masked).values)
        net.seen.clear()
    assert (messages[0] != messages[1]).all()
    # A site of another federation cannot be mistaken for one of this: the digests differ.
    assert contract(net.agreement).federation != contract(net.agreement._replace(secure=None)).federation
    # Entries of an update are of the order of 0.1: on the grid all near zero or near 2^32.
    spread = np.abs(messages[0].astype(np.int64) - 2**31)
    assert spread.min() < 2**28 or len(spread) < 20


def secrets_of(net, site, run):
    return net.folder / site / f"{run}.secrets"


def test_what_a_site_keeps_is_its_own_and_gone_after_the_round(net):
    progress = net.coordinator.begin(KEY)
    net.run(progress, lose=[("north", "reveal")])
    waiting, done = (secrets_of(net, site, progress.run) for site in ("north", "south"))
    assert waiting.stat().st_mode & 0o077 == 0
    shapes = contract(net.agreement).secure.kept
    kept = {}
    for path in (waiting, done):
        message = decode(path.read_bytes(), payload_bytes(shapes))
        kept[path] = read_payload(message.payload, message.header.layout, shapes)
    assert kept[waiting].secrets.any()
    assert kept[waiting].shares.any()
    assert not kept[done].secrets.any()
    assert not kept[done].shares.any()


@pytest.mark.parametrize("kind", ["deal", "work", "reveal"])
def test_no_step_is_answered_twice(net, kind):
    """A second answer to another list, another set or with another update would expose this site."""
    net.run(net.coordinator.begin(KEY))
    request = next(m for s, k, m, _ in net.seen if (s, k) == ("east", kind))
    reply = decode(net.answers[NODES["east"]](NODES["east"], request), 2**30)
    assert (reply.header.kind, reply.header.reason) == ("failed", "message")
    assert reply.payload == b""


def test_a_set_too_small_to_hide_anybody_is_not_revealed(net):
    """Were shares revealed for a set of one, the server would have that one's update."""
    net.run(net.coordinator.begin(KEY), lose=[("east", "reveal")])
    request = next(m for s, k, m, _ in net.seen if (s, k) == ("north", "reveal"))
    honest = decode(request, 2**30)
    payload = secure_messages.Answered(np.array([True, False, False]))
    head = honest.header._replace(node=NODES["east"], site="east", client=1, layout=layout(payload))
    reply = decode(net.answers[NODES["east"]](NODES["east"], encode(head, write_payload(payload))), 2**30)
    assert (reply.header.kind, reply.header.reason) == ("failed", "message")


def test_an_update_outside_the_range_leaves_its_site_out_by_name(tmp_path):
    net = Net(secure_agreement(secure=fixed_point(3, 2, reach=4.0, heaviest=1e-3)), tmp_path)
    _, record = net.run(net.coordinator.begin(KEY))
    assert record.metrics is None
    assert set(record.refused) == set(SITES)
    assert "outside the range" in record.refused["north"]


@pytest.mark.slow
def test_noise_of_the_sites_is_in_the_mean(tmp_path):
    """With no signal left (clip 1e-6) the step is noise of the predicted size, fresh in every run."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(delta()))
    privacy = Privacy(1e-6, 1e6, 3, neighbours="zero out one")
    mechanism = choose(privacy, size, 16)
    steps = []
    for name in "ab":
        net = Net(secure_agreement(secure=distributed_noise(mechanism, 2)), tmp_path / name)
        progress, record = net.run(net.coordinator.begin(KEY))
        assert np.isnan(record.metrics.loss)  # losses are not noised, so none is sent
        moved = jax.tree.map(lambda a, b: np.asarray(a - b).ravel(), progress.server.delta, delta())
        steps.append(np.concatenate(jax.tree.leaves(moved)))
    expected = 1e-6 * 1e6 / 3
    assert np.std(np.concatenate(steps)) == pytest.approx(expected, rel=0.5)
    assert (steps[0] != steps[1]).mean() > 0.5  # on a grid two draws may meet in a place


def test_a_server_that_forgets_gets_no_second_sum_of_a_round(tmp_path, caplog):
    """Twenty sums of one round would have twenty draws of the noise: epsilon 59 where 8 was promised."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(delta()))
    mechanism = choose(Privacy(1.0, 1.0, 3, neighbours="zero out one"), size, 16)
    net = Net(secure_agreement(secure=distributed_noise(mechanism, 2, rounds=2)), tmp_path / "sites")
    start = net.coordinator.begin(KEY)
    net.coordinator.save(tmp_path / "server", start)
    first, record = net.run(start)
    assert record.metrics is not None
    # Stopped before it saved: the same round is asked again, and left out, for no site reveals it twice.
    restored = net.coordinator.restore(tmp_path / "server")
    again, record = net.run(restored)
    assert record.metrics is None
    assert all("has revealed its part of this round already" in why for why in record.refused.values())
    assert set(record.refused) == set(SITES)
    assert int(again.server.round) == 1
    jax.tree.map(np.testing.assert_array_equal, again.server.delta, start.server.delta)
    second, record = net.run(again)
    assert (record.round, set(record.arrived)) == (1, set(SITES))
    # The noise was made for two rounds: no site answers a third, whoever asks.
    for progress in (second, first._replace(server=first.server._replace(round=np.int32(2)))):
        same, record = net.run(progress)
        assert same is progress
        assert set(record.refused) == set(SITES)
    assert "the noise was made for 2 rounds" in caplog.text


def test_where_one_site_has_revealed_the_others_go_on_without_it(net):
    """East's shares reached a server that stopped; two of three sites are still enough, and one cannot end a round."""
    progress = net.coordinator.begin(KEY)
    net.run(progress, lose=[("north", "reveal"), ("south", "reveal")])
    _, record = net.run(progress)
    assert record.arrived == ("north", "south")
    assert "has revealed its part" in record.refused["east"]


@pytest.mark.parametrize("failure", ["not finite", "no data"])
def test_a_site_with_nothing_to_add_sends_its_noise(tmp_path, failure):
    """All three must answer: were it left out there would be no sum, and its data would show in that."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(delta()))
    mechanism = choose(Privacy(1.0, 1e-3, 3, neighbours="zero out one"), size, 24)

    def shards(row, round_):
        shard = rows(data(), row)
        if row == 1 and failure == "not finite":
            shard = shard._replace(batches=jax.tree.map(lambda x: np.nan * x, shard.batches))
        return shard, 0 if row == 1 and failure == "no data" else STEPS

    net = Net(secure_agreement(secure=distributed_noise(mechanism, 3)), tmp_path, shards=shards)
    progress, record = net.run(net.coordinator.begin(KEY))
    assert set(record.arrived) == set(SITES)
    moved = jax.tree.map(lambda a, b: np.asarray(a - b).ravel(), progress.server.delta, delta())
    assert 0.01 < np.linalg.norm(np.concatenate(jax.tree.leaves(moved))) < 1


def test_a_session_runs_on_it(net, expected, tmp_path):
    progress = run_session(net.coordinator, net.transport(), 2, tmp_path / "server", key=KEY)
    assert int(progress.server.round) == 2
    close(progress.server, expected["two"])


def test_what_cannot_be_added_up_is_refused(tmp_path):
    with pytest.raises(BadFederation, match="cannot be added up"):
        contract(secure_agreement()._replace(codec=codecs.int8()))
    with pytest.raises(BadFederation, match="looks at every upload"):
        contract(secure_agreement(alg.fedavg(gradient_of(loss), optax.sgd(0.1))._replace(reduction="stack")))
    with pytest.raises(BadFederation, match="for 4 sites and there are 3"):
        Net(secure_agreement(secure=fixed_point(4, 3, 4.0)), tmp_path)
    with pytest.raises(BadFederation, match="the sites add the noise"):
        Net(secure_agreement(), tmp_path, privacy=Privacy(1.0, 1.0, 3))
