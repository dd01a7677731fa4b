"""What a report says about federated runs: sites, clients, rounds, and runs side by side."""

from pathlib import Path

import pytest

from medvfm_jax.federated.run.site_scores import site_scores
from medvfm_jax.report import RunRecord, federated_sections, page
from medvfm_jax.report.holdings_chart import holdings_chart
from tests.report.parsed_page import Page
from tests.report.synthetic_run import case_rows, config, scores

HELD = [
    {"client": "north <1>", "patients": 6, "images": 8, "pixels": {"anterior": 300, "posterior": 100}},
    {"client": "south", "patients": 3, "images": 4, "pixels": {"anterior": 0, "posterior": 50}},
]


def settings(**changes) -> dict:
    record = config(preset="decoder", rounds=3, local_steps=5, participation=1.0, codec="int8", memory="ef21")
    record.pop("adapter")
    record["resolved"]["adapter"] |= {"preset": "decoder"}
    record["resolved"] |= {
        "algorithm": "fedprox", "algorithm_options": {"mu": 0.1}, "holdings": HELD, "shifts": {},
        "privacy": None,
    }  # fmt: skip
    resolved = changes.pop("resolved", {})
    record |= changes
    record["resolved"] |= resolved
    return record


LINES = [
    line
    for k in (1, 2, 3)
    for line in (
        {
            "step": k,
            "loss": 1.0 / k,
            "upload_bytes": 2e6,
            "download_bytes": 8e6,
            "seconds": 1.5 * k,
            "epsilon": 2.0 * k,
        },
        {"step": k, "val_dice": 0.5 + 0.1 * k, "val_worst": 0.4 + 0.1 * k, "val_dice/north": 0.6},
    )
]


def run(name="fed", shift=0.0, lines=LINES, **changes) -> RunRecord:
    return RunRecord(name, Path("runs") / name, settings(**changes), list(lines), scores(shift), [])


def plain(name="samed") -> RunRecord:
    return RunRecord(name, Path("runs") / name, config(), [], scores(), [])


def test_only_what_federate_made_has_federated_sections():
    assert federated_sections.one_run(plain()) == ""
    found = Page(federated_sections.one_run(run()))
    assert list(found.sections) == ["Sites", "Federation", "Clients", "Rounds"]


def test_every_site_has_its_interval_and_the_worst_is_named():
    record = run(leave_out="south")
    shown = Page(federated_sections.sites(record)).sections["Sites"]
    for score in site_scores(record.scores["cases"]):
        assert f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f}) n {score.n}" in shown
    assert "mean over sites" in shown
    worst = min(site_scores(record.scores["cases"]), key=lambda score: score.mean)
    assert f"Worst site: {worst.site} , Dice {worst.mean:.3f}" in shown
    assert "south was held out from training." in shown
    assert federated_sections.sites(run()._replace(scores={})) == ""


def test_the_federation_says_how_traffic_and_privacy_came_about():
    text = "(8, 1e-05)-differential privacy of one patient"
    table = dict(Page(federated_sections.federation(run(resolved={"privacy": text}))).tables[0])
    assert table["algorithm"] == "fedprox"
    assert table["its options"] == '{"mu": 0.1}'
    assert table["compression of the updates"] == "int8, ef21"
    assert table["sent to the server"] == "6.0 MB in all, 2.0 MB in a round"
    assert table["sent to the clients"] == "24.0 MB in all, 8.0 MB in a round"
    assert table["privacy"] == text
    silent = dict(
        Page(federated_sections.federation(run(lines=[], memory="none", codec="identity"))).tables[0]
    )
    assert "sent to the server" not in silent
    assert silent["compression of the updates"] == "identity"


def test_what_privacy_does_not_cover_is_said():
    private = {"dp_epsilon": 8.0, "dp_unit": "patient"}
    noise = {"sentence": "the noise is 9 times as much", "drowned": True}
    shown = Page(federated_sections.federation(run(**private, resolved={"noise": noise, "holdings": []})))
    table = dict(shown.tables[0])
    assert table["noise"] == noise["sentence"]
    assert (
        table["share clipped"] == "not recorded, as noise does not cover it: --dp-log-unprotected records it"
    )
    assert "Noise drowns the signal." in shown.text
    assert "not private" not in shown.text
    clients = Page(federated_sections.clients(run(**private, resolved={"holdings": []}))).text
    assert "What each client holds is not recorded in a private run" in clients

    lines = [{"step": 1, "clipped": 0.25}, {"step": 2, "clipped": 0.75}]
    asked = run(lines=lines, **private, dp_seed=0, dp_log_unprotected=True)
    shown = Page(federated_sections.federation(asked))
    assert dict(shown.tables[0])["share clipped"] == "50% of the patients in a step, 75% in the last round"
    assert "This run is not private: its noise was made from --dp-seed 0." in shown.text
    assert "as asked for with --dp-log-unprotected" in shown.text
    rows = Page(federated_sections.side_by_side([asked, plain()])).tables[0]
    assert rows[-1][1] == "not privatenoise from --dp-seed"
    assert "share clipped" not in dict(Page(federated_sections.federation(run())).tables[0])


def test_clients_are_a_table_and_bars_as_long_as_their_images():
    html = federated_sections.clients(run())
    table = Page(html).tables[0]
    assert table[0] == ["client", "patients", "images", "anterior", "posterior"]
    assert table[1:] == [["north <1>", "6", "8", "300", "100"], ["south", "3", "4", "0", "50"]]
    assert "scanner" not in html
    assert "a scanner of its own" in federated_sections.clients(
        run(resolved={"shifts": {"south": {"gamma": 2.0}}})
    )

    chart = Page(holdings_chart(HELD))
    widths = [float(bar["width"]) for bar in chart.all("rect") if bar["height"] == "16"]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)
    assert widths[2] == 0
    assert widths[0] + widths[1] == pytest.approx(2 * (widths[2] + widths[3]), rel=0.01)
    assert "8 images, 6 patients" in chart.text
    assert holdings_chart([]) == ""
    empty = Page(holdings_chart([{"client": "a", "patients": 1, "images": 1, "pixels": {}}]))
    assert "1 image, 1 patient" in empty.text


def test_the_rounds_are_curves():
    found = Page(federated_sections.rounds(run()))
    titles = [svg["aria-label"] for svg in found.all("svg")]
    assert titles == [
        "Training loss, mean over clients", "Validation Dice", "Traffic of a round in MB", "Privacy spent (epsilon)",
    ]  # fmt: skip
    assert (
        "Best validation Dice 0.800 in round 3, whose models are kept. Median time of a round 3 s."
        in found.text
    )
    assert "are kept" not in Page(federated_sections.rounds(run(dp_epsilon=8.0))).text
    assert "No round was logged." in Page(federated_sections.rounds(run(lines=[]))).text


def test_runs_stand_side_by_side_for_every_site():
    local = run("alone", -0.1, lines=[], resolved={"algorithm": "local"})
    private = run("private", dp_epsilon=8.0, dp_unit="patient")
    html = federated_sections.side_by_side([local, private, plain()])
    head, *rows = Page(html).tables[0]
    assert head == ["site", "alonelocal only", "privatefedprox", "samednot federated"]
    names = [row[0] for row in rows]
    assert names == [
        "north",
        "south",
        "mean over sites",
        "worst site",
        "traffic of a round, up and down",
        "privacy",
    ]
    north = site_scores(private.scores["cases"])[0]
    assert rows[0][2] == f"{north.mean:.3f}{north.low:.3f} to {north.high:.3f}n {north.n}"
    assert rows[4][1:] == ["–", "2.0 MB8.0 MB", "–"]
    assert rows[5][1:] == ["–", "ε 8each patient", "–"]
    assert federated_sections.side_by_side([plain(), plain("b")]) == ""
    assert federated_sections.side_by_side([local]) == ""
    one_site = [row | {"site": "all"} for row in case_rows()]
    lonely = local._replace(scores=scores(rows=one_site))
    assert federated_sections.side_by_side([lonely, lonely]) == ""


def test_a_page_about_federated_runs_has_their_sections_and_compares_them():
    one = Page(page.render([run()]))
    assert "Rounds" in one.sections
    assert "Learning curve" not in one.sections
    both = Page(page.render([run("a"), run("b", -0.1)]))
    assert "Site by site" in both.sections
    assert "Paired differences" in both.sections
    assert "Learning curve" in Page(page.render([plain()])).sections
