"""`blip-fast doctor` tells what works and why the rest does not."""

from __future__ import annotations

import os

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


def test_broken_tools_are_told_like_missing_ones(tmp_path, monkeypatch):
    for name, text in (("nvidia-smi", "#!/nonexistent\n"), ("nvcc", "#!/bin/sh\nprintf '\\377 1.0\\n'\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor._driver() == "none"
    assert doctor._last_line("nvcc") == "\ufffd 1.0"


def test_every_listed_command_exists():
    assert "doctor" in run("--help")
    for name in COMMANDS:
        assert run(name, "--help").startswith("Usage:")
