"""A run's folder: outputs, counts, restarts, other settings."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter

import pytest
import torch
import webdataset
from pydantic import ValidationError

from blip_fast.capfilt import job, run_capfilt
from blip_fast.capfilt.job import RECORDS, Job
from blip_fast.capfilt.outputs import write_human_shard
from blip_fast.capfilt.outputs import write_shard as write_web_shard
from blip_fast.capfilt.scoring import UnitScorer
from blip_fast.capfilt.settings import ScoreSettings, SelectSettings
from blip_fast.capfilt.tally import Tally, check_counts
from blip_fast.capfilt.units import list_units
from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.pretrain import PretrainData
from blip_fast.data.shards import ShardData
from blip_fast.data.transforms import eval_transform
from tests.capfilt.common import (
    SCORE,
    demo_entries,
    files_of,
    models,
    records_of,
    settings,
    shard_members,
    write_list,
    write_shard,
)


def run(given, **options):
    return run_capfilt(given, models=models(), **options)


def middle(path, tmp_path):
    """A threshold that keeps half of all texts."""
    run(settings(path, tmp_path / "scores"))
    texts = [text for r in records_of(tmp_path / "scores") for text in (r["web"], *r["synthetic"])]
    scores = sorted(text["itm"] for text in texts if "itm" in text)  # an empty caption has none
    return (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2


def test_the_list_holds_kept_and_human_pairs_and_trains(tmp_path):
    entries = demo_entries(16)
    path = write_list(tmp_path / "web.json", entries)
    human = write_list(tmp_path / "human.json", [
        {"image": entries[0]["image"], "caption": ["one", "two"]}, {"image": "../x.png", "caption": "out"},
        {"image": "images/x.png", "caption": "\xa0"}, {"image": 3}, "no object"])  # fmt: skip
    threshold = middle(path, tmp_path)
    manifest = run(settings(path, tmp_path / "out", threshold=threshold, human=(human,), human_root=demo_root()))
    records = records_of(tmp_path / "out")
    assert [r["web"]["text"] for r in records] == [entry["caption"] for entry in entries]
    expected = []
    for record in records:
        for text in (record["web"], *record["synthetic"]):
            assert text["kept"] == ("dropped" not in text) == (text.get("itm", -1) >= threshold)
            if text["kept"]:
                expected.append({"image": str(demo_root() / record["image"]), "caption": text["text"]})
    assert 0 < len(expected) < 32
    expected += [{"image": str(demo_root() / entries[0]["image"]), "caption": caption} for caption in ("one", "two")]
    written = json.loads((tmp_path / "out" / "bootstrapped.json").read_text())
    assert written == expected
    assert manifest["human"] == {"kept": 2, "rejected": {"bad_entry": 2, "empty": 1, "outside_of_root": 1}}
    assert manifest["pairs"] == len(expected) == manifest["web"]["kept"] + manifest["synthetic"]["kept"] + 2
    pairs = PretrainData([tmp_path / "out" / "bootstrapped.json"], "/", lambda picture: torch.zeros(3, 8, 8))
    assert len([pairs[index] for index in range(len(pairs))]) == len(expected)


@pytest.mark.parametrize("form", ["list", "shards"])
def test_texts_that_are_no_unicode_train(tmp_path, form):
    entries = [entry | {"caption": "cat \ud83d"} for entry in demo_entries(2)]
    path = write_list(tmp_path / "web.json", entries[:1])
    human = write_list(tmp_path / "human.json", entries[1:])
    run(settings(path, tmp_path / "out", form=form, threshold=0.0, human=(human,), human_root=demo_root()))
    to_tensor = eval_transform(8)
    pairs = PretrainData([tmp_path / "out" / "bootstrapped.json"], "/", to_tensor) if form == "list" else (
        ShardData([tmp_path / "out" / "shards" / "*.tar"], to_tensor))  # fmt: skip
    captions = [pairs[index].caption for index in range(len(pairs))]
    assert len(captions) == 3
    assert (captions[0], captions[2]) == ("cat ?", "cat ?")


def test_shards_come_out_as_shards_with_the_same_pictures(tmp_path):
    entries = demo_entries(9)
    members = shard_members(entries)
    paths = [write_shard(tmp_path / "a.tar", members[:8]), write_shard(tmp_path / "b.tar", members[8:])]
    human = write_list(tmp_path / "human.json", [*entries[:2], {"image": "gone.png", "caption": "x"}])
    options = dict(form="shards", human=(human,), human_root=demo_root())
    manifest = run(settings(paths, tmp_path / "out", threshold=0.0, **options))
    assert manifest["samples"]["scored"] == 9
    assert manifest["human"] == {"kept": 2, "rejected": {"broken_picture": 1}}
    shards = sorted(str(path) for path in (tmp_path / "out" / "shards").iterdir())
    assert [path.rsplit("/", 1)[1] for path in shards] == ["000000.tar", "000001.tar", "human-000000.tar"]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == manifest["pairs"] == 9 * 2 + 2
    pictures = Counter((demo_root() / entry["image"]).read_bytes() for entry in entries)
    assert {sample["png"] for sample in samples} == set(pictures)
    web = [sample["txt"].decode() for sample in samples if json.loads(sample["json"])["kind"] == "web"]
    assert web == [entry["caption"] for entry in entries]
    keys = [json.loads(sample["json"])["key"] for sample in samples[:18:2]]
    assert keys == [f"{number:04d}" for number in (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    with pytest.raises(ValueError, match="form='shards'"):
        run(settings(paths, tmp_path / "other", form="list"))


def test_human_pictures_that_would_never_end_are_counted(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    pairs, rejected = [{"image": str(tmp_path / "pipe.png"), "caption": "x"}], Counter()
    assert write_human_shard(tmp_path / "human.tar", pairs, "human", rejected) == 0
    assert rejected == {"broken_picture": 1}


def test_lists_come_out_as_shards_where_asked(tmp_path):
    path = write_list(tmp_path / "web.json", demo_entries(4))
    manifest = run(settings(path, tmp_path / "out", form="shards", threshold=0.0))
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "shards" / "000000.tar"), shardshuffle=False))
    assert len(samples) == manifest["pairs"] == 8
    assert not (tmp_path / "out" / "bootstrapped.json").exists()


def test_every_sample_and_text_is_counted(tmp_path):
    good = demo_entries(8)
    entries = [*good, "bad", {"image": "gone.png", "caption": "x"}, good[0], {"image": good[1]["image"], "caption": ""}]
    path = write_list(tmp_path / "web.json", entries)
    manifest = run(settings(path, tmp_path / "out", SCORE.model_copy(update={"unit_size": 100, "num_captions": 2})))
    assert manifest["samples"] == {
        "in": 12, "scored": 9, "without_text": manifest["samples"]["without_text"], "long_texts": 0,
        "rejected": {"bad_entry": 1, "broken_picture": 1, "duplicate_key": 1}}  # fmt: skip
    assert manifest["web"]["in"] == 9
    assert manifest["web"]["dropped"]["empty"] == 1
    assert manifest["synthetic"]["in"] == 18
    assert [record.get("rejected") for record in records_of(tmp_path / "out")][8:] == [
        "bad_entry", "broken_picture", "duplicate_key", None]  # fmt: skip


def test_counts_that_do_not_add_up_are_an_error():
    tally = Tally()
    tally.add({"web": {"text": "x"}, "synthetic": [{"text": "y"}]})
    counts = tally.to_dict()
    check_counts(counts, 1, 1)
    for read, captions in ((2, 1), (1, 2)):
        with pytest.raises(RuntimeError, match="counts do not add up"):
            check_counts(counts, read, captions)
    counts["web"]["kept"] = 0
    with pytest.raises(RuntimeError, match="web texts kept and dropped"):
        check_counts(counts, 1, 1)


def test_a_lost_sample_stops_the_run(tmp_path, monkeypatch):
    path = write_list(tmp_path / "web.json", demo_entries(6))
    real = UnitScorer.records
    monkeypatch.setattr(UnitScorer, "records", lambda self, unit: (r for r in real(self, unit) if r["number"] != 3))
    with pytest.raises(RuntimeError, match="sample 3 of"):
        run(settings(path, tmp_path / "out"))
    monkeypatch.setattr(UnitScorer, "records", lambda self, unit: (r for r in real(self, unit) if r["number"] != 5))
    with pytest.raises(RuntimeError, match="counts do not add up"):
        run(settings(path, tmp_path / "again"))


def test_one_and_three_ranks_give_the_same_files(tmp_path, monkeypatch):
    path = write_list(tmp_path / "web.json", demo_entries(20))
    alone = run(settings(path, tmp_path / "alone", threshold=0.4))
    monkeypatch.setenv("WORLD_SIZE", "3")
    results = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        results.append(run(settings(path, tmp_path / "three", threshold=0.4)))
    assert results == [None, None, alone]
    assert files_of(tmp_path / "three") == files_of(tmp_path / "alone")


def test_a_run_that_stopped_repeats_only_what_is_unfinished(tmp_path, monkeypatch):
    path = write_list(tmp_path / "web.json", demo_entries(20))
    run(settings(path, tmp_path / "whole"))
    given = settings(path, tmp_path / "stopped")
    real, done = UnitScorer.score, []

    def stopping(self, batch):
        done.append(len(batch))
        if len(done) == 4:  # in the middle of the second unit
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(UnitScorer, "score", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(given)
    (tmp_path / "stopped" / "scores" / ".000001.jsonl.123").write_text("left over by a process that was killed")
    units = []
    run(given, on_unit=lambda unit, counts: units.append(unit.index))
    assert units == [1, 2, 3]
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    run(given, on_unit=lambda unit, counts: units.append(unit.index))
    assert units == [1, 2, 3]


@pytest.mark.parametrize("between", [{"form": "shards", "threshold": 0.99999}, {"form": "list", "threshold": 0.0}])
def test_shards_of_another_selection_that_stopped_are_not_taken_for_this_ones(tmp_path, monkeypatch, between):
    path = write_list(tmp_path / "web.json", demo_entries(12))
    given = settings(path, tmp_path / "out", form="shards", threshold=0.0)
    run(given)
    whole = files_of(tmp_path / "out")
    real = Job._write_stage

    def stopping(self, stage, *arguments):
        if stage == RECORDS:  # the shard has been replaced, or removed, and its counts are not yet written
            raise KeyboardInterrupt
        return real(self, stage, *arguments)

    monkeypatch.setattr(Job, "_write_stage", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(settings(path, tmp_path / "out", **between))
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.setattr(Job, "_write_stage", real)
    run(given)
    assert files_of(tmp_path / "out") == whole


def test_no_manifest_stands_while_shards_are_missing(tmp_path, monkeypatch):
    path = write_list(tmp_path / "web.json", demo_entries(4))
    human = write_list(tmp_path / "human.json", demo_entries(2))
    given = settings(path, tmp_path / "out", form="shards", human=(human,), human_root=demo_root())
    run(given)
    monkeypatch.setattr(Job, "_write_human_shards", lambda self, rejected: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        run(given)
    assert not (tmp_path / "out" / "shards" / "human-000000.tar").exists()
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_was_left_half_written_of_the_set_is_removed(tmp_path):
    path = write_list(tmp_path / "web.json", demo_entries(4))
    given = settings(path, tmp_path / "out", form="shards")
    run(given)
    whole = files_of(tmp_path / "out")
    for name in (".manifest.json.77", ".bootstrapped.json.77", "shards/.human-000000.tar.77", "shards/.000000.tar.77"):
        (tmp_path / "out" / name).write_text("left over by a process that was killed")
    run(given)
    assert files_of(tmp_path / "out") == whole


def test_pairs_that_are_lost_on_the_way_to_a_shard_stop_the_run(tmp_path, monkeypatch):
    path = write_list(tmp_path / "web.json", demo_entries(4))
    monkeypatch.setattr(job, "write_shard", lambda *arguments: write_web_shard(*arguments) - 1)
    with pytest.raises(RuntimeError, match="7 pairs are written and 8 are kept"):
        run(settings(path, tmp_path / "out", form="shards", threshold=0.0))


def test_another_threshold_needs_no_new_scores(tmp_path, monkeypatch):
    path = write_list(tmp_path / "web.json", demo_entries(20))
    threshold = middle(path, tmp_path)
    everything = run(settings(path, tmp_path / "out", threshold=0.0))
    fresh = run(settings(path, tmp_path / "fresh", threshold=threshold))
    monkeypatch.setattr(UnitScorer, "score", lambda self, batch: pytest.fail("scored again"))
    half = run(settings(path, tmp_path / "out", threshold=threshold))
    assert half == fresh
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")
    assert half["pairs"] < everything["pairs"]


def test_another_form_leaves_nothing_of_the_first(tmp_path):
    path = write_list(tmp_path / "web.json", demo_entries(8))
    human = write_list(tmp_path / "human.json", demo_entries(2))
    for form in ("shards", "list", "shards"):
        run(settings(path, tmp_path / "out", form=form, threshold=0.0, human=(human,), human_root=demo_root()))
        run(settings(path, tmp_path / form, form=form, threshold=0.0, human=(human,), human_root=demo_root()))
        assert files_of(tmp_path / "out") == files_of(tmp_path / form)


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_a_share_of_all_texts_is_kept_over_all_units(tmp_path, fraction):
    path = write_list(tmp_path / "web.json", demo_entries(20))
    manifest = run(settings(path, tmp_path / "out", keep_fraction=fraction))
    records = records_of(tmp_path / "out")
    texts = [text for r in records for text in (r["web"], *r["synthetic"])]
    scores = sorted((text["itm"] for text in texts if "itm" in text), reverse=True)
    wanted = int(fraction * len(texts))
    assert manifest["threshold"] == scores[wanted - 1]
    assert manifest["pairs"] == sum(score >= scores[wanted - 1] for score in scores)


def test_a_folder_goes_on_only_with_the_same_inputs_settings_and_weights(tmp_path):
    path = write_list(tmp_path / "web.json", demo_entries(8))
    given = settings(path, tmp_path / "out")
    run(given)
    with pytest.raises(ValueError, match="with other score; expected another folder"):
        run(settings(path, tmp_path / "out", SCORE.model_copy(update={"seed": 1})))
    with pytest.raises(ValueError, match="with other weights"):
        Job(given, "others")
    with pytest.raises(ValueError, match="with other image_root"):
        run(given.model_copy(update={"image_root": None}))
    write_list(tmp_path / "web.json", demo_entries(9))
    with pytest.raises(ValueError, match="with other units"):
        run(given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"score": SCORE.model_copy(update={"max_length": 600})}, "max_length=600; expected at most max_position_emb"),
        ({"score": ScoreSettings(max_length=4, min_length=0)}, "prompt='a picture of ' has 4 tokens"),
        ({"human": ("gone.json",)}, "human='gone.json' is no file"),
        ({"human_root": "gone", "human": (__file__,)}, "human_root='gone' is not a folder"),
        ({"human": (__file__,)}, "does not begin with"),
        ({"image_root": "gone"}, "image_root='gone' is not a folder"),
    ],
)  # fmt: skip
def test_wrong_settings_do_not_claim_the_folder(tmp_path, monkeypatch, wrong, message):
    path = write_list(tmp_path / "web.json", demo_entries(2))
    monkeypatch.setattr(UnitScorer, "score", lambda self, batch: pytest.fail("scored"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(settings(path, tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


def test_runs_without_anything_to_use_say_so(tmp_path):
    path = write_list(tmp_path / "web.json", [])
    with pytest.raises(ValueError, match="hold no entries"):
        run(settings(path, tmp_path / "out"))
    path = write_list(tmp_path / "web.json", demo_entries(3))
    with pytest.raises(ValueError, match="not one of 3 samples could be used"):
        run(settings(path, tmp_path / "other", image_root=tmp_path))


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="expected one of them"):
        SelectSettings(threshold=0.5, keep_fraction=0.5)
    with pytest.raises(ValidationError, match="min_length=5; expected a number from 0 to max_length=4"):
        ScoreSettings(max_length=4)
    for wrong in ({"top_p": 0}, {"num_captions": 0}, {"unknown": 1}, {"itc_threshold": 2}):
        with pytest.raises(ValidationError):
            ScoreSettings(**wrong)


def test_units_know_their_place(tmp_path):
    path = write_list(tmp_path / "web.json", demo_entries(8))
    (first, second) = list_units([path], 6)
    assert (first.index, first.entries, second.index, second.entries) == (0, 6, 1, 2)
    assert type(first)(**dataclasses.asdict(first)) == first
