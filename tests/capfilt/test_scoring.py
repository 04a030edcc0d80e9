"""Captions and scores of a unit, against the models' own methods."""

from __future__ import annotations

import shutil
import struct
import zlib

import pytest
import torch
from PIL import Image

from blip_fast.capfilt import scoring
from blip_fast.capfilt.captioning import sample_captions, sample_seed
from blip_fast.capfilt.models import join_models, load_models, same_encoders
from blip_fast.capfilt.scoring import UnitScorer
from blip_fast.capfilt.settings import ScoreSettings
from blip_fast.capfilt.units import list_units
from blip_fast.data.demo_pairs import demo_root
from blip_fast.data.tokenizer import load_tokenizer
from blip_fast.data.transforms import eval_transform
from blip_fast.models import BlipCaptioner, BlipITM
from tests.capfilt.common import (
    SCORE,
    config,
    demo_entries,
    models,
    save_checkpoint,
    strong_weights,
    tokenizer,
    write_list,
)

CPU = torch.device("cpu")


def records_of(path, settings=SCORE, given=None):
    scorer = UnitScorer(given or models(), settings, CPU, demo_root(), 2)
    return [record for unit in list_units([path], settings.unit_size) for record in scorer.records(unit)]


def pictures(entries, size=32):
    transform = eval_transform(size)
    return torch.stack([transform(Image.open(demo_root() / entry["image"]).convert("RGB")) for entry in entries])


def scored_alone(model, image, text):
    """Cosine and matching probability of one pair by the model's published methods, with [ENC] for the latter."""
    tokens = tokenizer()([text], return_tensors="pt", truncation=True, max_length=35)
    cosine = model.itc(image[None], tokens.input_ids, tokens.attention_mask)
    ids = tokens.input_ids.clone()
    ids[:, 0] = model.config.enc_token_id
    return float(cosine), float(model.itm(image[None], ids, tokens.attention_mask).softmax(-1)[0, 1])


@torch.no_grad()
def test_scores_are_those_of_each_pair_alone(tmp_path):
    entries = demo_entries(7)
    records = records_of(write_list(tmp_path / "web.json", entries), SCORE.model_copy(update={"num_captions": 2}))
    assert [record["web"]["text"] for record in records] == [entry["caption"] for entry in entries]
    seen = set()
    for record, image in zip(records, pictures(entries), strict=True):
        assert len(record["synthetic"]) == 2
        for text in (record["web"], *record["synthetic"]):
            if "dropped" in text:
                assert text["dropped"] in ("empty", "repeated")
                continue
            cosine, match = scored_alone(models().filter, image, scoring.clean(text["text"], 30))
            assert text["cosine"] == pytest.approx(cosine, abs=1e-5)
            assert text["itm"] == pytest.approx(match, abs=1e-5)
            seen.add(round(match, 3))
    assert len(seen) > 7  # the scores of different pairs differ


def test_captions_depend_on_the_key_and_not_on_the_batch(tmp_path):
    entries = demo_entries(7)
    first = records_of(write_list(tmp_path / "web.json", entries))
    other = records_of(write_list(tmp_path / "back.json", entries[::-1]), SCORE.model_copy(update={"batch_size": 3}))
    assert [r["synthetic"][0]["text"] for r in first] == [r["synthetic"][0]["text"] for r in other[::-1]]
    assert [r["seed"] for r in first] == [sample_seed(42, r["key"]) for r in first]
    again = records_of(tmp_path / "web.json", SCORE.model_copy(update={"seed": 43}))
    assert [r["synthetic"][0]["text"] for r in first] != [r["synthetic"][0]["text"] for r in again]


@torch.no_grad()
def test_captions_are_the_captioners_own_sampling():
    images, options = pictures(demo_entries(3)), dict(max_length=SCORE.max_length, min_length=SCORE.min_length)
    states = models().captioner.visual_encoder(images)
    captions = sample_captions(models().captioner, states, [5, 1, 9], SCORE)
    plain = BlipCaptioner(models().captioner.config)
    plain.load_state_dict(models().captioner.state_dict())
    prompt = torch.tensor(tokenizer()(SCORE.prompt).input_ids)
    ids = plain.eval().generate_ids(images, prompt, do_sample=True, seed=[5, 1, 9], **options)
    texts = tokenizer().batch_decode(ids, skip_special_tokens=True)
    assert [caption for (caption,) in captions] == [text[len(SCORE.prompt) :].strip() for text in texts]


def test_the_image_encoder_runs_once_where_both_have_the_same(monkeypatch):
    calls = []
    real = scoring.CapFiltModels.encode

    def encode(self, images):
        calls.append([image.shape for image in images])
        return real(self, images)

    monkeypatch.setattr(scoring.CapFiltModels, "encode", encode)
    assert models().shared
    assert models().filter.visual_encoder is models().captioner.visual_encoder
    scorer = UnitScorer(models(), SCORE, CPU, demo_root(), 1)
    assert len(scorer.transforms) == 1
    other = BlipITM(config(image_size=40))
    other.tokenizer = tokenizer()
    apart = join_models(models().captioner, other)
    assert not apart.shared
    assert apart.image_sizes == [32, 40]


def test_encoders_with_other_weights_or_heads_are_not_the_same():
    first, second = BlipCaptioner(config()), BlipITM(config())
    assert not same_encoders(first, second)
    second.visual_encoder.load_state_dict(first.visual_encoder.state_dict())
    assert same_encoders(first, second)
    other_heads = BlipITM(config(vit_heads=4))
    other_heads.visual_encoder.load_state_dict(first.visual_encoder.state_dict())
    assert not same_encoders(first, other_heads)


def test_two_encoders_of_different_sizes_are_both_used(tmp_path):
    other = BlipITM(config(image_size=40))
    strong_weights(other, seed=1)
    other.tokenizer = tokenizer()
    apart = join_models(models().captioner, other.eval())
    entries = demo_entries(3)
    records = records_of(write_list(tmp_path / "web.json", entries), given=apart)
    same = records_of(tmp_path / "web.json")
    assert [r["synthetic"][0]["text"] for r in records] == [r["synthetic"][0]["text"] for r in same]
    with torch.no_grad():
        for record, image in zip(records, pictures(entries, 40), strict=True):
            _, match = scored_alone(other, image, scoring.clean(record["web"]["text"], 30))
            assert record["web"]["itm"] == pytest.approx(match, abs=1e-5)


def test_dissimilar_texts_are_spared_the_matching_head(tmp_path, monkeypatch):
    path = write_list(tmp_path / "web.json", demo_entries(8))
    everything = records_of(path)
    cosines = sorted(text["cosine"] for record in everything for text in (record["web"], *record["synthetic"]))
    limit = (cosines[7] + cosines[8]) / 2
    judged = []
    real = scoring.match_probabilities

    def counted(model, states, texts, image_of_text):
        judged.append((len(states), len(texts)))
        return real(model, states, texts, image_of_text)

    monkeypatch.setattr(scoring, "match_probabilities", counted)
    staged = records_of(path, SCORE.model_copy(update={"itc_threshold": limit}))
    assert sum(texts for _, texts in judged) == len(cosines) - 8
    for record, full in zip(staged, everything, strict=True):
        for text, other in zip((record["web"], *record["synthetic"]), (full["web"], *full["synthetic"]), strict=True):
            assert text["cosine"] == pytest.approx(other["cosine"], abs=1e-5)
            if other["cosine"] < limit:
                assert text["dropped"] == "below_itc"
                assert "itm" not in text
            else:
                assert text["itm"] == pytest.approx(other["itm"], abs=1e-5)


def test_odd_samples_are_rejected_or_read_as_documented(tmp_path):
    good = demo_entries(6)
    shutil.copytree(demo_root() / "images", tmp_path / "images")
    (tmp_path / "broken.png").write_bytes((demo_root() / good[0]["image"]).read_bytes()[:200])
    (tmp_path / "bomb.png").write_bytes(png_header(60000, 60000))
    entries = [
        good[0],
        {"image": "broken.png", "caption": "x"},
        {"image": "missing.png", "caption": "x"},
        {"image": "bomb.png", "caption": "x"},
        {"image": good[1]["image"], "caption": ""},
        {"image": good[2]["image"], "caption": " .!? \n"},
        {"image": good[3]["image"], "caption": "red apple " * 1000},
        {"image": good[4]["image"], "caption": "x" * 10_000},
        {"image": good[5]["image"], "caption": "half a pair \ud83d and \0 <script>"},
        good[0],
    ]
    path = write_list(tmp_path / "web.json", entries)
    (unit,) = list_units([path], 100)
    records = list(UnitScorer(models(), SCORE, CPU, None, 2).records(unit))
    assert [record.get("rejected") for record in records] == [
        None, "broken_picture", "broken_picture", "broken_picture", None, None, None, None, None, "duplicate_key"]  # fmt: skip
    assert "missing.png" in records[2]["detail"]
    dropped = [records[number]["web"].get("dropped") for number in (4, 5, 6, 7, 8)]
    assert dropped == ["empty", None, None, None, None]  # "?" is no punctuation to the published clean-up
    assert records[6]["web"]["long"]
    assert "long" not in records[7]["web"]
    first_words = scoring.clean(" ".join(["red apple"] * 15), 30)
    image = pictures([good[3]])[0]
    with torch.no_grad():
        assert records[6]["web"]["itm"] == pytest.approx(scored_alone(models().filter, image, first_words)[1], abs=1e-5)
    assert all("itm" in record["synthetic"][0] for record in records if "rejected" not in record)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims to be huge."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("text", ["", " ", "\t", "\xa0", "\u3000", " ! \n"])
def test_white_space_is_no_text(text):
    assert scoring.candidate(text)["dropped"] == "empty"


def test_repeated_captions_count_once():
    texts = scoring.synthetic_texts(["a cat", "", "a cat", "a dog"])
    assert [text.get("dropped") for text in texts] == [None, "empty", "repeated", None]


def test_scores_that_are_no_numbers_stop_the_run():
    with pytest.raises(FloatingPointError, match="score of nan"):
        scoring.significant(float("nan"))


def test_batches_follow_from_the_samples_alone():
    problem = ("broken_picture", "")
    loaded = [scoring.LoadedSample(None, problem=problem if n % 3 else None) for n in range(20)]  # type: ignore[arg-type]
    sizes = [len(batch) for batch in scoring.batches(iter(loaded), 2)]
    assert sizes == [4, 6, 6, 4]
    assert [len(batch) for batch in scoring.batches(iter(loaded[1:2] * 40), 2)] == [16, 16, 8]


def test_checkpoints_bring_their_tokenizers(tmp_path):
    folder = save_checkpoint(tmp_path / "model", seed=1)
    loaded = load_models(folder, folder, CPU)
    assert loaded.shared
    assert loaded.captioner.tokenizer.get_vocab() == tokenizer().get_vocab()
    assert loaded.fingerprint() == load_models(folder, folder, CPU).fingerprint() != models().fingerprint()
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        load_models(folder, folder, CPU)
    loaded.filter.tokenizer = load_tokenizer()
    with pytest.raises(ValueError, match=r"filter has vocab_size=\d+ and a tokenizer of 30524 entries"):
        join_models(loaded.captioner, loaded.filter)


def test_bfloat16_is_close(tmp_path):
    path = write_list(tmp_path / "web.json", demo_entries(4))
    exact, rough = records_of(path), records_of(path, ScoreSettings(**SCORE.model_dump() | {"bfloat16": True}))
    for one, other in zip(exact, rough, strict=True):
        assert one["web"]["cosine"] != other["web"]["cosine"]
        assert one["web"]["cosine"] == pytest.approx(other["web"]["cosine"], abs=0.05)
