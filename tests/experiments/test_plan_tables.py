import pytest

from experiments import plan_tables


def plan(topology, devices, collectives, step, sent):
    return {
        "config": {
            "model": "sam-b",
            "adapter": "samed",
            "topology": topology,
            "rules": "replicated",
            "global_batch": 4 * devices,
            "accumulate": 2,
            "keep": "products",
            "unrolled": False,
        },
        "devices": devices,
        "mesh": {"clients": 1, "data": devices, "model": 1},
        "memory": {"peak": 2**30, "capacity": 16 * 2**30, "fits": True},
        "flops": {"model": 1e14, "executed": 2e14},
        "program": {"collectives": [{"sent": part} for part in sent], "traffic": 5 * 2**30},
        "speed": {
            "compiler": step - collectives,
            "collectives": collectives,
            "step": step,
            "utilisation": 0.5,
        },
    }


SMALL, LARGE = plan("v5e:2x2", 4, 0.0, 0.2, [2**20]), plan("v5e:16x16", 256, 0.05, 0.25, [2**30, 2**29])
REFUSED = SMALL | {"program": None, "speed": None, "memory": {**SMALL["memory"], "fits": False}}


def test_what_is_left_of_a_step():
    assert plan_tables.efficiency({"collectives": 0.05, "step": 0.25}) == pytest.approx(0.8)


def test_larger_slices_come_later_and_plans_without_time_are_left_out():
    small, large = plan_tables.scaling_rows([LARGE, REFUSED, SMALL])
    assert small == ("v5e:2x2", "4", "16", "1.0 MiB", "0.00 ms", "200.0 ms", "100.0 %")
    assert large == ("v5e:16x16", "256", "1024", "1.5 GiB", "50.00 ms", "250.0 ms", "80.0 %")


def test_a_row_says_what_was_compiled_and_what_came_of_it():
    (row,) = plan_tables.plan_rows([SMALL])
    memory, flops = "1.0 of 16 GiB", "100 TFLOP (200 executed)"
    assert row[:6] == ("sam-b, samed", "v5e:2x2, data=4", "16", "2, products", memory, flops)
    assert row[6:] == ("5 GiB", "1.0 MiB", "0.20 s", "50 %")
    gpu = SMALL | {"speed": {**SMALL["speed"], "compiler": None}}
    assert plan_tables.plan_rows([gpu])[0][-1] == "at most 50 %"  # its compiler counts no cycles
    (row,) = plan_tables.plan_rows([REFUSED])
    assert row[4:] == (f"{memory}, does not fit", flops, "-", "-", "-", "-")


def test_a_round_counts_the_images_of_all_its_steps():
    cohort = SMALL | {"config": {**SMALL["config"], "clients": 8, "local_steps": 5, "rules": "fsdp"}}
    (row,) = plan_tables.plan_rows([cohort])
    assert row[:3] == ("sam-b, samed, a round of 8 clients", "v5e:2x2, data=4, fsdp", "80")


def test_the_table_is_markdown():
    columns = plan_tables.SCALING
    head, rule, row = plan_tables.markdown(columns, plan_tables.scaling_rows([SMALL])).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == 8
    assert rule.startswith("| --- |")
