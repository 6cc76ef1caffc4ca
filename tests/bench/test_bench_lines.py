"""Lines are kept whole, and two runs are told apart only beyond their noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gpt_oss_native._core")

from gpt_oss_native import InvalidArgument
from gpt_oss_native.bench.compare import Comparison, compare, comparison_table
from gpt_oss_native.bench.lines import HEADING, Line, cells, read_lines, table, write_lines
from gpt_oss_native.bench.plot import plot


def line(*seconds: float, op: str = "rope", engine: str = "avx2", **more: object) -> Line:
    values: dict[str, object] = {
        "op": op,
        "case": "1 token",
        "device": "cpu",
        "engine": engine,
        "threads": 1,
        "warm": False,
        "seconds": seconds,
    }
    return Line(**(values | more))  # type: ignore[arg-type]


def test_rates_and_shares_are_of_the_median_repeat() -> None:
    one = line(0.3, 0.1, 0.2, num_bytes=8e9, operations=4e9, read_peak=80e9, peak=100e9)
    assert one.median == 0.2
    assert one.bytes_per_second == pytest.approx(40e9)
    assert one.read_share == pytest.approx(0.5)
    assert one.operations_per_second == pytest.approx(20e9)
    assert one.peak_share == pytest.approx(0.2)


def test_what_was_not_counted_has_no_share() -> None:
    one = line(0.1)
    shares = (one.bytes_per_second, one.read_share, one.operations_per_second, one.peak_share)
    assert shares == (None,) * 4
    assert line(0.1, num_bytes=1.0).read_share is None
    assert len(cells(one)) == len(HEADING[0]) == len(HEADING[1])


def test_noise_is_half_the_distance_of_the_quartiles(rng: np.random.Generator) -> None:
    seconds = rng.uniform(1, 2, 41)
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    assert line(*seconds).noise == pytest.approx((high - low) / 2 / middle)


def test_noise_is_not_moved_by_a_single_repeat_that_was_disturbed() -> None:
    assert line(*[1.0] * 9, 50.0).noise == 0
    assert line(1.0, 1.1, 1.2).noise == pytest.approx(0.1 / 1.1)
    assert line(1.0).noise == 0


def test_a_file_of_lines_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "lines.json"
    lines = [line(0.5, 0.25, extra={"depth": 7}), line(1e-6, num_bytes=3.0, others=0.5)]
    write_lines(path, {"machine": {"cpu": "x"}}, lines[:1])
    write_lines(path, {"machine": {"cpu": "y"}}, lines[1:])
    headers, found = read_lines(path)
    assert [header["machine"]["cpu"] for header in headers] == ["x", "y"]
    assert found == lines
    assert json.loads(path.read_text().splitlines()[1])["depth"] == 7


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "3",
        "[]",
        "{}",
        '{"op": "rope", "seconds": [1]}',
        line(1.0).json().replace("[1.0]", "[]"),
        line(1.0).json().replace("[1.0]", "[0.0]"),
        line(1.0).json().replace("[1.0]", '["x"]'),
    ],
)
def test_another_file_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines.json"
    path.write_text(f"{line(1.0).json()}\n\n{text}\n")
    with pytest.raises(InvalidArgument, match="line 3"):
        read_lines(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot read"):
        read_lines(tmp_path / "none.json")


def test_a_ratio_above_one_says_that_the_second_is_faster() -> None:
    (pair,) = compare([line(2.0, 2.0)], [line(1.0, 1.0)])
    assert (pair.ratio, pair.noise, pair.verdict) == (2.0, 0.0, "faster")
    (pair,) = compare([line(1.0, 1.0)], [line(2.0, 2.0)])
    assert (pair.ratio, pair.verdict) == (0.5, "slower")


def test_what_lies_within_the_noise_of_both_is_called_so() -> None:
    steady, noisy = line(*[1.0] * 5), line(0.8, 0.9, 1.05, 1.2, 1.3)
    assert Comparison(steady, noisy).is_noise
    assert Comparison(noisy, steady).is_noise
    assert not Comparison(steady, line(*[1.05] * 5)).is_noise
    # The same factor in both directions is judged the same.
    for factor in (1.1, 1.4):
        judged = {
            Comparison(a, b).is_noise
            for a, b in ((noisy, line(*[1.05 * factor] * 5)), (noisy, line(*[1.05 / factor] * 5)))
        }
        assert len(judged) == 1


def test_runs_of_the_same_thing_rarely_differ_beyond_their_noise(rng: np.random.Generator) -> None:
    # Medians of 15 lie within half a quartile distance of the truth nearly always: about one pair
    # in fifteen differs, so 36 of 200 is more than six deviations off.
    differing = 0
    for _ in range(200):
        first, second = (line(*np.exp(rng.normal(0, 0.1, 15))) for _ in range(2))
        differing += not Comparison(first, second).is_noise
    assert differing < 36


def test_lines_of_one_run_only_are_left_out() -> None:
    first = [line(1.0), line(1.0, op="embed")]
    second = [line(1.0, op="swiglu"), line(1.0, op="embed")]
    assert [pair.first.op for pair in compare(first, second)] == ["embed"]
    with pytest.raises(InvalidArgument, match="found none"):
        compare(first[:1], second)


def test_two_instruction_sets_are_compared_where_nothing_else_can_be() -> None:
    (pair,) = compare([line(2.0)], [line(1.0, engine="avx512")])
    assert (pair.first.engine, pair.second.engine) == ("avx2", "avx512")
    both = [line(1.0), line(5.0, engine="avx512")]
    (pair,) = compare([line(2.0)], both)
    assert pair.second.engine == "avx2"


def test_repeats_of_a_line_measured_twice_are_taken_together() -> None:
    twice = [line(1.0, 3.0, read_peak=10.0), line(2.0, read_peak=20.0)]
    (pair,) = compare(twice, [line(1.0)])
    assert pair.first.seconds == (1.0, 3.0, 2.0)
    assert pair.first.read_peak == 15.0


def test_the_comparison_ends_with_the_geometric_mean() -> None:
    first, second = [line(2.0), line(1.0, op="embed")], [line(1.0), line(2.0, op="embed")]
    *rows, last = comparison_table(compare(first, second))
    assert len(rows) == 3
    assert last.endswith("A / B 1.000")


def test_columns_of_a_table_stand_under_each_other() -> None:
    rows = [("a", "bb"), ("ccc", "d")]
    assert list(table(rows, "<>")) == ["a    bb", "ccc   d"]


def test_a_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(InvalidArgument, match="pip install"):
        plot([line(1.0, num_bytes=1.0)], tmp_path / "roof.png", title="")


def test_a_plot_is_written_in_the_format_of_its_name(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [
        line(1.0, num_bytes=1e9, operations=1e9, read_peak=2e9, peak=4e9, peak_name="fma_avx2"),
        line(3.0, num_bytes=1e9, op="embed"),
    ]
    plot(lines, tmp_path / "roof.svg", title="a machine")
    assert "fma_avx2" in (tmp_path / "roof.svg").read_text()
    with pytest.raises(InvalidArgument, match="plot"):
        plot(lines, tmp_path / "roof.nothing", title="a machine")
