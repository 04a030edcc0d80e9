"""Copies the tensors that the tests need out of the full set of golden files.

    python tests/golden/select_tensors.py SOURCE_DIR

writes ``<case>.safetensors`` and ``<case>.json`` beside this script, byte for byte the same each time. The full set is
larger than a repository should carry: gradients of a second run, momentum parameters and optimizer results are
thinned out to the small tensors, values are never rounded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

EVERY = 1 << 60
# Per case: the prefixes to keep, each with the size in elements up to which a tensor is kept. The longest prefix
# decides; what matches none is dropped.
RULES: dict[str, dict[str, int]] = {
    "pretrain": {
        "": 0,
        "a0.loss": EVERY,
        "a4.loss": EVERY,
        "a4.grad.": 8192,
        "a4.grad.text_encoder.embeddings.word_embeddings.": EVERY,
        "after.": 768,
        "final.": 768,
        "ids": EVERY,
        "image": EVERY,
        "init.": EVERY,
        "mask": EVERY,
        "mid.image": 2560,
        "mid.sim_": EVERY,
        "mid.text_feat": EVERY,
        "mid.weights_": EVERY,
        "neg_": EVERY,
        "step": EVERY,
    },
    "pretrain_2ranks": {"": EVERY},
    "caption": {
        "": 0,
        "gen.": 1024,
        "gen.beam3.": EVERY,
        "gen.nucleus.": EVERY,
        "gen_images": EVERY,
        "grad.": 1024,
        "ids": EVERY,
        "image": EVERY,
        "init.": EVERY,
        "loss": EVERY,
        "mask": EVERY,
        "prompt_ids": EVERY,
    },
    "retrieval": {
        "": 0,
        "a0.loss": EVERY,
        "a4.loss": EVERY,
        "a4.grad.": 256,
        "after.": 768,
        "id": EVERY,
        "image": EVERY,
        "init.": EVERY,
        "mask": EVERY,
        "mid.image_feat": EVERY,
        "mid.sim_": EVERY,
        "mid.text_feat": EVERY,
        "mid.weights_": EVERY,
        "neg_": EVERY,
    },
    "retrieval_2ranks": {
        "": 300,
        "allrank.after.": EVERY,
        "allrank.avg_grad.": 256,
        "local.avg_grad.": 64,
        "rank0.image": EVERY,
        "rank1.image": EVERY,
    },
    "retrieval_eval": {"": EVERY},
    "vqa": {"": 30_000, "answer_logits": 0, "gen.step": 0, "grad.": 256, "init.": EVERY},
    "nlvr": {"": 30_000, "grad.": 256, "init.": EVERY},
    "itm_features": {"": 30_000, "init.": EVERY, "itm_grad.": 256},
    "pos_embed_and_schedules": {"": EVERY},
}
STATE_DICTS = [
    *(f"statedict_{model}_base" for model in ("pretrain", "retrieval", "decoder", "vqa", "nlvr", "itm")),
    "statedict_base_feature_extractor_base",
    "statedict_vqa_large",
]


def selected(name: str, tensor: Tensor, rules: dict[str, int]) -> bool:
    """Whether a case keeps this tensor."""
    prefix = max((prefix for prefix in rules if name.startswith(prefix)), key=len)
    return tensor.numel() <= rules[prefix]


def write(path: Path, data: bytes) -> None:
    """Write beside the target and rename, so that no reader sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def copy_case(case: str, source: Path, target: Path) -> int:
    """Copy one case; returns the bytes written."""
    tensors = load_file(source / f"{case}.safetensors")
    kept = {name: tensors[name] for name in sorted(tensors) if selected(name, tensors[name], RULES[case])}
    part = target / f"{case}.safetensors.part"
    save_file(kept, part)
    part.replace(target / f"{case}.safetensors")
    copy_json(case, source, target)
    return sum((target / f"{case}{suffix}").stat().st_size for suffix in (".safetensors", ".json"))


def copy_json(case: str, source: Path, target: Path) -> int:
    """Copy a sidecar without its list of tensors, which repeats the tensor file; returns the bytes written."""
    sidecar = json.loads((source / f"{case}.json").read_text())
    sidecar.pop("tensors", None)
    text = json.dumps(sidecar, separators=(",", ":")) + "\n"
    write(target / f"{case}.json", text.encode())
    return len(text)


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python tests/golden/select_tensors.py SOURCE_DIR (a folder with the full set of golden files)")
    source, target = Path(sys.argv[1]), Path(__file__).parent
    sizes = {case: copy_case(case, source, target) for case in RULES}
    sizes |= {case: copy_json(case, source, target) for case in STATE_DICTS}
    for case, size in sizes.items():
        print(f"{case}: {size / 1e6:.2f} MB")
    print(f"total: {sum(sizes.values()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
