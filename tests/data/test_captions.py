from __future__ import annotations

from pathlib import Path

import pytest

from blip_fast.data.captions import CaptionEvalData, CaptionTrainData, NoCapsData
from blip_fast.data.tokens import cached_tokenizer
from blip_fast.data.transforms import eval_transform
from tests.data.conftest import Annotate


def test_captions_are_trained_with_the_prompt(root: Path, annotate: Annotate) -> None:
    entries = [{"image": "a.png", "caption": "A Cat."}, {"image": "b.png", "caption": "dogs " * 50}]
    data = CaptionTrainData([annotate(entries)], root, eval_transform(8))
    batch = data.collate([data[0], data[1]])
    assert batch.captions == ("a picture of a cat", "a picture of " + " ".join(["dogs"] * 30))
    assert data.prompt_length == 4
    assert batch.texts.cu_seqlens.tolist() == [0, 7, 7 + 35]
    labels = batch.texts.next_tokens(data.prompt_length)[:7].tolist()
    a_cat = cached_tokenizer()("a cat", add_special_tokens=False)["input_ids"]
    assert labels == [-100, -100, -100, *a_cat, 102, -100]


def test_long_captions_are_cut_at_forty_tokens(root: Path, annotate: Annotate) -> None:
    data = CaptionTrainData([annotate([{"image": "a.png", "caption": "x1y2z3 " * 30}])], root, eval_transform(8))
    assert len(data[0].tokens) == 40
    assert data[0].tokens[-1] == 102


def test_prompts_may_be_others(root: Path, annotate: Annotate) -> None:
    data = CaptionTrainData([annotate([{"image": "a.png", "caption": "cat"}])], root, eval_transform(8), prompt="")
    assert (data[0].caption, data.prompt_length) == ("cat", 1)


@pytest.mark.parametrize(
    ("entry", "image_id"),
    [
        ({"image": "val2014/COCO_val2014_000000184613.jpg"}, 184613),
        ({"image": "17.png"}, 17),
        ({"image": "x/y_3/COCO_0042.png", "caption": ["read by nobody"]}, 42),
        ({"image": "a.png", "image_id": "1f600"}, "1f600"),
    ],
)
def test_ids_of_images_are_those_of_the_entry_or_the_file_name(
    root: Path, annotate: Annotate, entry: dict[str, str], image_id: int | str
) -> None:
    data = CaptionEvalData(annotate([entry]), root, eval_transform(8), on_broken="blank")
    assert data.collate([data[0]]).image_ids == (image_id,)


def test_images_without_an_id_are_named(root: Path, annotate: Annotate) -> None:
    with pytest.raises(ValueError, match=r"'image' is 'a\.png'; expected a file name that ends in the image's number"):
        CaptionEvalData(annotate([{"image": "a.png"}]), root, eval_transform(8))


def test_nocaps_has_its_own_name_for_ids(root: Path, annotate: Annotate) -> None:
    data = NoCapsData(annotate([{"image": "c.png", "img_id": 4499}]), root, eval_transform(8))
    batch = data.collate([data[0]])
    assert batch.image_ids == (4499,)
    assert batch.images.shape == (1, 3, 8, 8)
    quoted = NoCapsData(annotate([{"image": "c.png", "img_id": "4499"}]), root, eval_transform(8))
    assert quoted[0].image_id == 4499
    with pytest.raises(ValueError, match="'img_id' is None"):
        NoCapsData(annotate([{"image": "c.png", "image_id": 4499}]), root, eval_transform(8))


def test_pictures_to_be_captioned_need_no_captions(root: Path, annotate: Annotate) -> None:
    captions: list[object] = [["x", "y"], [], None, "", "z"]
    entries: list[dict[str, object]] = [{"image": "a.png", "image_id": i, "caption": c} for i, c in enumerate(captions)]
    data = CaptionEvalData(annotate([*entries, {"image": "a.png", "image_id": 5}]), root, eval_transform(8))
    assert [record.captions for record in data.records] == [("x", "y"), (), (), (), ("z",), ()]
