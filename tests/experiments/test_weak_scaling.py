import json

import pytest

from experiments import weak_scaling


def plan(topology, devices, collectives, step, sent):
    return {
        "config": {"topology": topology, "global_batch": 4 * devices},
        "devices": devices,
        "program": {"collectives": [{"sent": part} for part in sent]},
        "speed": {"collectives": collectives, "step": step},
    }


SMALL, LARGE = plan("v5e:2x2", 4, 0.0, 0.2, [2**20]), plan("v5e:16x16", 256, 0.05, 0.25, [2**20, 2**19])


def test_what_is_left_of_a_step():
    assert weak_scaling.efficiency({"collectives": 0.05, "step": 0.25}) == pytest.approx(0.8)


def test_larger_slices_come_later_and_plans_without_time_are_left_out():
    refused = SMALL | {"program": None, "speed": None}
    small, large = weak_scaling.rows([LARGE, refused, SMALL])
    assert small == ("v5e:2x2", "4", "16", "1.0 MiB", "0.00 ms", "200.0 ms", "100.0 %")
    assert large == ("v5e:16x16", "256", "1024", "1.5 MiB", "50.00 ms", "250.0 ms", "80.0 %")


def test_the_table_is_markdown():
    head, rule, row = weak_scaling.markdown(weak_scaling.rows(json.loads(json.dumps([SMALL])))).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == 8
    assert rule.startswith("| --- |")
