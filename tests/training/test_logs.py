from __future__ import annotations

from pathlib import Path

from blip_fast.training.logs import append_line, forget_from, log_line, read_lines


def test_lines_have_the_published_keys_and_formats() -> None:
    line = log_line({"lr": 1e-5, "loss": 1.23456}, {"val": {"acc": 0.5}, "test": {"acc": 0.25}}, {"epoch": 3})
    assert line == {"train_lr": "0.000", "train_loss": "1.235", "val_acc": 0.5, "test_acc": 0.25, "epoch": 3}
    assert list(line) == ["train_lr", "train_loss", "val_acc", "test_acc", "epoch"]
    assert log_line({"loss": 1.0}, {"val": {"acc": 0.5}}, {}, "{:.4f}", "{:.4f}") == {
        "train_loss": "1.0000",
        "val_acc": "0.5000",
    }


def test_steps_that_are_taken_again_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    places = [(0, 0), (0, 5), (1, 0), (1, 5), (1, 6)]
    for epoch, step in places:
        append_line(path, {"epoch": epoch, "step": step})
    append_line(path, '{"epoch": 1, "st')  # torn by a crash
    forget_from(path, 1, 5)
    assert [(line["epoch"], line["step"]) for line in read_lines(path)] == places[:3]


def test_epochs_that_are_finished_again_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    for epoch in range(3):
        append_line(path, {"epoch": epoch})
    append_line(path, "best epoch: 2")
    forget_from(path, 1)
    assert path.read_text() == '{"epoch": 0}\n'
    forget_from(tmp_path / "absent.txt", 1)


def test_lines_of_earlier_runs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    append_line(path, {"epoch": 1})
    append_line(path, "best epoch: 1")
    earlier = path.read_text()
    for epoch in range(2):
        append_line(path, {"epoch": epoch})
    forget_from(path, 1, start=len(earlier))
    assert path.read_text() == earlier + '\n{"epoch": 0}\n'
    forget_from(path, 0, start=len(earlier))
    assert path.read_text() == earlier


def test_lines_begin_on_a_line_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    append_line(path, "best epoch: 2")
    append_line(path, {"val_acc": 0.5})
    append_line(path, {"val_acc": 0.25})
    assert path.read_text() == 'best epoch: 2\n{"val_acc": 0.5}\n{"val_acc": 0.25}\n'
