"""`blip-fast doctor` tells what works and why the rest does not."""

from __future__ import annotations

from click.testing import CliRunner

import blip_fast
from blip_fast.cli import COMMANDS, doctor, main


def run(*arguments: str, width: str = "200") -> str:
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": width})
    assert result.exit_code == 0, result.output
    return result.output


def test_lists_operations_and_reasons():
    output = run("doctor")
    for operation, reasons in blip_fast.backends().items():
        assert operation in output
        for reason in filter(None, reasons.values()):
            assert reason in output
    assert blip_fast.__version__ in output


def test_an_unrelated_apex_is_not_taken_for_nvidias(tmp_path, monkeypatch):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise RuntimeError('not the apex you look for')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "unrelated" in doctor.why_no_apex()


def test_every_listed_command_exists():
    assert "doctor" in run("--help")
    for name in COMMANDS:
        assert run(name, "--help").startswith("Usage:")
