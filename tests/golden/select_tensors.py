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
        "": 30_000,
        "a0.grad.": 0,
        "a4.grad.": EVERY,
        "after.": 768,
        "final.": 768,
        "init.": EVERY,
        "mid.decoder_output.logits": 0,
        "mid.output_neg.": 0,
        "mid.text_output": 0,
    },
    "caption": {
        "": 30_000,
        "gen.": 2048,
        "gen.beam3.": EVERY,
        "grad.": 4096,
        "init.": EVERY,
        "logits": 0,
    },
}


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
    sidecar = json.loads((source / f"{case}.json").read_text())
    sidecar.pop("tensors", None)
    write(target / f"{case}.json", (json.dumps(sidecar, indent=1) + "\n").encode())
    return sum((target / f"{case}{suffix}").stat().st_size for suffix in (".safetensors", ".json"))


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python tests/golden/select_tensors.py SOURCE_DIR (a folder with the full set of golden files)")
    sizes = {case: copy_case(case, Path(sys.argv[1]), Path(__file__).parent) for case in RULES}
    for case, size in sizes.items():
        print(f"{case}: {size / 1e6:.2f} MB")
    print(f"total: {sum(sizes.values()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
