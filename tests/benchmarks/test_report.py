"""The page of results, its plots, and the README's table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from blip_fast.benchmarks import readme
from blip_fast.benchmarks.environment import REPOSITORY
from blip_fast.benchmarks.job import Variant
from blip_fast.benchmarks.report import read_kernels, write_report
from blip_fast.benchmarks.results import read, write
from blip_fast.benchmarks.roofline import GPUS, roofs
from blip_fast.benchmarks.table import describe_limits
from blip_fast.cli import main
from tests.benchmarks.common import document_of

RESULTS = REPOSITORY / "benchmarks" / "results"
HOSTILE = "<script>alert(1)</script>"


def with_memory(case, peak):
    """The case with so many bytes for each variant: what small ones take is not always seen."""
    return dataclasses.replace(case, rows=[dataclasses.replace(row, peak_extra_bytes=peak) for row in case.rows])


@pytest.fixture(scope="module")
def document():
    peer = Variant("peer", None, unavailable=f"{HOSTILE} is not installed")
    sweep = [
        with_memory(document_of(size=("queue", size), name=f"{size} keys").cases[0], size << 20) for size in (8, 64)
    ]
    plain = document_of(peer, name=f"plain {HOSTILE}")
    return dataclasses.replace(plain, cases=plain.cases + sweep, failures=[f"{HOSTILE} failed"])


def test_the_page_needs_nothing_else_and_escapes_everything(document, tmp_path):
    write_report([document], None, tmp_path / "bench.html", tmp_path / "plots")
    page = (tmp_path / "bench.html").read_text()
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;") >= 3
    for outside in ("src=", "@import", 'href="http', "url(http"):
        assert outside not in page
    assert "Cost against size" in page
    assert page.count("<svg") == 3  # one case, and time and memory of the sweep
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".svg", ".png"}
    assert len(list((tmp_path / "plots").iterdir())) == 6


def test_a_case_of_no_operations_and_bytes_has_no_floor():
    counted, uncounted = (document_of(bytes=count).cases[0] for count in (8000, 0))
    assert describe_limits(counted).endswith("; memory bound, floor 0.8 us")
    assert describe_limits(uncounted).endswith("update in place")


def test_memory_that_was_not_counted_is_not_plotted(document, tmp_path):
    cases = [with_memory(case, None) for case in document.cases]
    write_report([dataclasses.replace(document, cases=cases)], None, tmp_path / "bench.html")
    assert (tmp_path / "bench.html").read_text().count("<svg") == 2


def test_kernels_without_a_gpu(tmp_path):
    kernels = read_kernels(RESULTS / "aot.json")
    write_report([], kernels, tmp_path / "bench.html")
    page = (tmp_path / "bench.html").read_text()
    assert page.count("<tr>") == 2 + len(kernels.rows) + len(kernels.roofs)
    assert "B200" in page


def test_roofs_name_what_binds():
    found = list(roofs())
    assert len(found) % len(GPUS) == 0
    for roof in found:
        times = roof.flops / min(g.fp32 for g in GPUS), roof.bytes / roof.gpu.bandwidth
        assert roof.seconds >= times[1]
        assert roof.bound == ("arithmetic" if roof.seconds > times[1] else "memory")
        assert roof.seconds > 0


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.json").write_text("[1]")
    for option in ([str(tmp_path / "other.json")], ["--kernels", str(tmp_path / "other.json")]):
        done = CliRunner().invoke(main, ["bench", "report", *option, "--output", str(tmp_path / "page.html")])
        assert done.exit_code == 1
        assert "other.json" in done.output
        assert not (tmp_path / "page.html").exists()


def test_the_readme_says_what_the_results_say():
    text = (REPOSITORY / "README.md").read_text()
    paths = [path for kind in ("cpu_*", "h100*", "h200*") for path in sorted(RESULTS.glob(f"{kind}.json"))]
    documents = {readme.label_of(path): read(path) for path in paths}
    assert documents
    assert readme.with_figures(text, documents) == text, "run `blip-fast bench readme benchmarks/results/cpu_*.json`"


def test_machines_of_a_kind_share_a_table(document):
    other = dataclasses.replace(document, machine={**document.machine, "cpu": "Some(R) Other(TM) Processor"})
    fewer = dataclasses.replace(other, cases=other.cases[:1])
    text = readme.figures({"one": document, "other": fewer})
    assert " cores of an Some Other (" in text.partition("; other: ")[2]
    head = next(line for line in text.splitlines() if line.startswith("| case"))
    assert head.split(" | ")[2:6] == ["one", "median", "other", "median"]
    rows = [line for line in text.splitlines() if line.startswith("| ") and line != head]
    assert (
        len(rows)
        == len({row.split(" | ")[0] for row in rows})
        == len(readme.figures({"one": document}).splitlines()) - 4
    )
    assert all(row.count(" | ") == head.count(" | ") for row in rows)


def test_the_readme_shows_the_largest_ratio_of_memory(document):
    def with_ratio(ratio):
        (case, *_) = document.cases
        sizes = {"baseline": 1 << 30, "ours": int(ratio * 2**30)}
        rows = [dataclasses.replace(row, peak_extra_bytes=sizes.get(row.role)) for row in case.rows]
        return dataclasses.replace(document, cases=[dataclasses.replace(case, rows=rows)])

    text = readme.figures({"one": with_ratio(0.25), "other": with_ratio(0.5)})
    assert text.splitlines()[-1].endswith("| 50 % |")


def test_the_readme_command_changes_only_what_is_between_the_marks(document, tmp_path):
    write(document, tmp_path / "results.json")
    file: Path = tmp_path / "README.md"
    file.write_text(f"# before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    arguments = ["bench", "readme", str(tmp_path / "results.json"), "--file", str(file)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    text = file.read_text()
    assert text.startswith(f"# before\n{readme.BEGIN}\n")
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "old" not in text
    assert "| small: plain" in text
    assert "8 keys" not in text  # sweeps are plots
    file.write_text("no marks")
    assert "no pair of marks" in CliRunner().invoke(main, arguments).output
