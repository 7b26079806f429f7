"""The cases on which planners are judged: chains keep their sums, clusters are sound, random plans fit."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from greentrain.errors import InfeasibleError, UnavailableError, UsageError
from greentrain.objective import Problem
from greentrain.plan import Plan, validate
from greentrain.planners import PLANNERS, Planner
from greentrain_datasets.catalogue import catalogue_entry
from greentrain_harness.bench import _planner_compare, planners
from greentrain_harness.bench._planner_cases import boards, clusters, load_modes, make_problem, random_plan
from greentrain_harness.bench._planner_compare import (
    GOALS,
    SEARCHING,
    Goal,
    PlannerRow,
    compare_pair,
    compare_table,
    flaws,
    run_planner,
    savings_table,
)
from greentrain_harness.bench._planner_errors import error_rows, error_table
from greentrain_harness.bench._planner_profiles import (
    LayerChain,
    load_chains,
    merged,
    read_pipedream,
    read_pipeedge,
)
from greentrain_harness.bench._planner_speed import SpeedCase, SpeedRow, measure_case, speed_table

IMAGE_BYTES = 3 * 224 * 224 * 4
HEAD = "family,model,node,layer,fwd_ms,bwd_ms,activation_bytes,param_bytes,stage_id\n"
# A diamond, batch 2: node2 feeds node3 and, past it, node4.
DIAMOND = f"""image,toy,node4,Add,1.0,2.0,400.0,0.0,
image,toy,node1,Input,500.0,0.0,{2 * IMAGE_BYTES}.0,0.0,
image,toy,node3,"Conv2d(1, 1)",4.0,8.0,600.0,4000.0,
image,toy,node2,"Conv2d(1, 1)",2.0,4.0,1000.0,8000.0,
"""
DIAMOND_EDGES = "family,model,src,dst\n" + "".join(
    f"image,toy,{src},{dst}\n" for src, dst in (("node1", "node2"), ("node2", "node3"), ("node2", "node4"),
                                                ("node3", "node4"))
)  # fmt: skip


def write_profiles(folder: Path, rows: str, edges: str) -> Path:
    (folder / "pipedream_layer_profiles.csv").write_text(HEAD + rows)
    (folder / "pipedream_edges.csv").write_text(edges)
    return folder


def public_data() -> Path:
    folder = os.environ.get("GREENTRAIN_PUBLIC_DATA")
    if folder is None:
        pytest.skip("GREENTRAIN_PUBLIC_DATA names no folder of public measurements")
    return Path(folder)


def toy(tmp_path: Path) -> LayerChain:
    return read_pipedream(write_profiles(tmp_path, DIAMOND, DIAMOND_EDGES))[0]


def test_a_graph_becomes_a_chain_and_each_tensor_crosses_a_cut_once(tmp_path: Path) -> None:
    chain = toy(tmp_path)
    assert chain.batch == 2
    assert chain.input_bytes == IMAGE_BYTES
    assert [layer.name.split()[0] for layer in chain.layers] == ["node1", "node2", "node3", "node4"]
    # After node3 the outputs of node2 and node3 are both still needed; node2's is used twice, sent once.
    assert [layer.cut_bytes for layer in chain.layers] == [IMAGE_BYTES, 500, 800, 0]
    assert [layer.forward_s for layer in chain.layers] == [0.0, 0.001, 0.002, 0.0005]


@pytest.mark.parametrize("most_layers", [1, 2, 3, 9])
def test_merging_keeps_the_sums(tmp_path: Path, most_layers: int) -> None:
    chain = toy(tmp_path)
    short = merged(chain, most_layers)
    assert len(short.layers) == min(most_layers, 3)  # The input joins the layer behind it.
    assert short.layers[-1].cut_bytes == 0
    for field in ("forward_s", "backward_s", "param_bytes", "stash_bytes", "passes_n"):
        before, after = (sum(getattr(layer, field) for layer in each.layers) for each in (chain, short))
        assert after == pytest.approx(before), field


def test_merging_gives_up_the_dear_cut_first(tmp_path: Path) -> None:
    assert [layer.cut_bytes for layer in merged(toy(tmp_path), 2).layers] == [500, 0]


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    edges = DIAMOND_EDGES + "image,toy,node4,node2\n"
    with pytest.raises(UsageError, match="cycle: 3 of 4"):
        read_pipedream(write_profiles(tmp_path, DIAMOND, edges))


def test_an_unknown_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch size"):
        read_pipedream(write_profiles(tmp_path, DIAMOND.replace("node1,Input", "node1,Other"), DIAMOND_EDGES))


def test_a_folder_without_profiles_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="planner_profiles"):
        load_chains(tmp_path)


def test_a_transformer_of_pipeedge(tmp_path: Path) -> None:
    tokens, width = 197, 8
    outputs = [2 * tokens * width, tokens * width, 5 * tokens * width, 10]
    (tmp_path / "pipeedge_block1.yml").write_text(
        f"a/vit-toy:\n  layers: 4\n  mem_MB: [1.0,\n    2.0]\n  parameters_in: {3 * 224 * 224}\n"
        f"  parameters_out: {outputs}\n"
    )
    (tmp_path / "pipeedge_block2.yml").write_text(
        "RCC-VE-C2000:\n  bw_Mbps: 1000\n  mem_MB: 8192\n  model_profiles:\n    a/vit-toy:\n    - batch_size: 4\n"
        "      dtype: torch.float32\n      time_s: [4.0, 2.0,\n        4.0, 2.0]\n"
    )
    (chain,) = read_pipeedge(tmp_path)
    assert chain.model == "vit-toy"
    assert [layer.forward_s for layer in chain.layers] == [1.0, 0.5, 1.0, 0.5]
    block_weights = 12 * width * width + 13 * width
    weights = block_weights + (3 * 256 * width + width) + (width + 1) * 10
    assert sum(layer.param_bytes for layer in chain.layers) == 4 * weights
    assert [layer.cut_bytes for layer in chain.layers] == [4 * value for value in (*outputs[:3], 0)]


@pytest.mark.parametrize("points_n", [1, 2, 3, 4])
def test_points_of_a_board_lie_between_idle_and_default(points_n: int) -> None:
    entry = catalogue_entry("jetson-nano-4gb")
    first, second = boards("nano", 2, points_n=points_n)
    assert len(first.points) == points_n
    assert first.points == second.points
    for point in first.points:
        assert entry.idle_w < first.curve(point.name).busy_w <= entry.points[0].busy_w


def test_clusters_differ_in_devices_and_networks() -> None:
    found = clusters()
    assert len(found) >= 8
    assert len(found["boards-64"].devices) == 64
    assert {len(device.points) for device in found["different-8"].devices} == {4}
    assert any(cluster.media for cluster in found.values())
    assert any(cluster.links for cluster in found.values())


def test_a_slower_clock_takes_longer_and_rows_cost_affinely(tmp_path: Path) -> None:
    problem = make_problem(merged(toy(tmp_path), 3), clusters()["mixed-6"])
    nano = problem.cluster.device("nano-1")
    totals = [sum(sum(row) for row in problem.model.times_of(nano.kind, point.name).forward_s_LB)
              for point in sorted(nano.points, key=lambda point: -(point.gpu_hz or 0))]  # fmt: skip
    assert totals == sorted(totals)
    assert len(set(totals)) == 3


def test_random_plans_are_valid_fit_and_differ(tmp_path: Path) -> None:
    problem = make_problem(merged(toy(tmp_path), 3), clusters()["mixed-6"])
    rng = random.Random(3)
    plans = [random_plan(problem, rng) for _ in range(40)]
    for plan in plans:
        validate(plan, problem)
        assert plan.estimate is not None
        assert not plan.estimate.violations
    assert {len(plan.stages) for plan in plans} == {1, 2, 3}
    assert len({plan.stages for plan in plans}) > 30


def test_no_random_plan_fits_where_nothing_does(tmp_path: Path) -> None:
    rows = DIAMOND.replace("8000.0", "80000000000000.0")
    chain = read_pipedream(write_profiles(tmp_path, rows, DIAMOND_EDGES))[0]
    with pytest.raises(InfeasibleError, match="none of"):
        random_plan(make_problem(chain, clusters()["nano-4"]), random.Random(1), tries_n=5)


def test_one_stage_costs_what_the_simulator_finds(tmp_path: Path) -> None:
    rows = list(error_rows([(merged(toy(tmp_path), 1), clusters()["mixed-6"])], plans_n=5))
    assert len(rows) == 5
    for one in rows:
        assert one.error == pytest.approx(0.0, abs=1e-3)
    assert "stages: 1" in error_table(rows)


def test_published_profiles_have_their_published_weights() -> None:
    data = public_data()
    chains = load_chains(data)
    weights_n = {name: sum(layer.param_bytes for layer in chain.layers) / 4e6 for name, chain in chains.items()}
    # From the papers of VGG, ResNet and ViT, millions.
    assert weights_n["vgg16"] == pytest.approx(138.4, rel=0.01)
    assert weights_n["resnet50"] == pytest.approx(25.6, rel=0.01)
    assert weights_n["vit-base-patch16-224"] == pytest.approx(86.6, rel=0.01)
    assert all(len(chain.layers) <= 32 for chain in chains.values())
    assert {chain.batch for chain in chains.values()} == {8, 32, 64, 128, 256}
    assert len(load_modes(data)) > 20


def row(planner: str, value: float | None, *, goal: Goal = "energy", bound: float | None = None) -> PlannerRow:
    return PlannerRow(
        model="toy", cluster="home", goal=goal, planner=planner, reason="" if value else "too large", plan_s=0.1,
        value=value, energy_j_per_sample=value, samples_per_s=None if value is None else 2 * value, lower_bound=bound,
    )  # fmt: skip


def test_a_searching_planner_that_is_beaten_is_told() -> None:
    assert flaws([row("auto", 2.0), row("data", 2.5), row("pipeline", None)]) == []
    assert flaws([row("auto", 2.0), row("data", 1.0, goal="time")]) == []
    (found,) = flaws([row("auto", 2.0), row("data", 1.0)])
    assert found == "toy × home, least energy: auto is beaten by data by 100.00%"


def test_a_bound_above_a_plan_is_told() -> None:
    (found,) = flaws([row("auto", 2.0, bound=2.2), row("data", 3.0)])
    assert "bound of auto is 10.00% above auto" in found


def test_savings_are_against_each_yardstick() -> None:
    text = savings_table([row("auto", 2.0), row("auto", 4.0, goal="time"), row("data", 8.0), row("data-equal", 5.0)])
    cells = text.splitlines()[1].split()
    # Half the joules of the fastest plan at half its speed; data parallelism by its better variant.
    assert cells == ["toy", "×", "home", "50.0%", "×2.00", "60.0%", "×2.50", "–", "–", "–"]


def test_every_planner_is_run_and_priced_alike(tmp_path: Path) -> None:
    chain = merged(toy(tmp_path), 3)
    cluster = clusters()["nano-4"].restricted_to(("nano-1", "nano-2"))
    rows = list(compare_pair(chain, cluster, limit_s=20.0))
    assert {(one.goal, one.planner) for one in rows} == {
        (goal, name) for goal in GOALS for name in set(PLANNERS) - {"exact", "beam"}
    }
    assert flaws(rows) == []
    assert all((one.value is None) == bool(one.reason) for one in rows)
    assert "nano-4, least energy" in compare_table(rows)


def test_a_planner_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_: Problem) -> Plan:
        while True:
            pass

    def load(_: str) -> Planner:
        return endless

    monkeypatch.setattr(_planner_compare, "load_planner", load)
    problem = make_problem(merged(toy(tmp_path), 3), clusters()["nano-4"])
    outcome = run_planner("auto", problem, limit_s=0.05)
    assert outcome.plan is None
    assert outcome.reason == "out of time after 0.05 s"


def test_speed_rows_know_their_bars() -> None:
    def speed(plan_s: float, gap: float | None, bar_s: float | None = 1.0) -> SpeedRow:
        return SpeedRow(
            case="c", goal="energy", planner="auto", reason="", plan_s=plan_s, cpu_s=plan_s, gap_ratio=gap,
            peak_bytes=1 << 20, bar_s=bar_s, bar_gap=0.0 if bar_s else None,
        )  # fmt: skip

    rows = [speed(0.5, 0.0), speed(1.5, 0.0), speed(0.5, 0.1), speed(0.5, None), speed(0.5, 0.0, bar_s=None)]
    assert [one.holds for one in rows] == [True, False, False, False, None]
    assert speed_table(rows).count("MISSED") == 3


def test_a_case_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    cluster = clusters()["nano-4"].restricted_to(("nano-1",))
    case = SpeedCase("one", make_problem(merged(toy(tmp_path), 2), cluster))
    rows = list(measure_case(case, limit_s=20.0))
    assert {one.planner for one in rows} == {name for name in SEARCHING if name in PLANNERS}
    assert all(one.reason == "" and one.gap_ratio is not None for one in rows)


def test_the_command_wants_a_data_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GREENTRAIN_PUBLIC_DATA", raising=False)
    with pytest.raises(SystemExit) as stopped:
        planners.main([])
    assert stopped.value.code == 2
    assert "--data" in capsys.readouterr().err


def test_the_command_writes_its_rows(tmp_path: Path) -> None:
    chosen = ["--table", "errors", "--only", "gnmt × nano-4", "--plans", "2"]
    with pytest.raises(SystemExit) as stopped:
        planners.main(["--data", str(public_data()), *chosen, "-o", str(tmp_path)])
    assert stopped.value.code == 0
    assert len((tmp_path / "errors.csv").read_text().splitlines()) == 3


def test_a_table_goes_on_where_it_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = clusters()["nano-4"].restricted_to(("nano-1",))
    pairs = [(merged(toy(tmp_path), layers_n), cluster) for layers_n in (1, 2)]
    pairs = [(msgspec.structs.replace(chain, model=f"toy-{at}"), cluster) for at, (chain, _) in enumerate(pairs)]
    offered = pairs[:1]

    def some(*_: object, **__: object) -> list[planners.Pair]:
        return offered

    monkeypatch.setattr(planners, "_pairs", some)
    chosen = ["--data", str(tmp_path), "--table", "plans", "-o", str(tmp_path)]
    with pytest.raises(SystemExit):
        planners.main(chosen)
    first = (tmp_path / "plans.csv").read_text()
    offered = pairs
    with pytest.raises(SystemExit):
        planners.main([*chosen, "--resume"])
    whole = (tmp_path / "plans.csv").read_text()
    assert whole.startswith(first)
    assert "toy-1" in whole
    assert "toy-1" not in first
