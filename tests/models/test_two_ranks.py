"""Pre-training and retrieval on two ranks (two processes, gloo) against the original implementation, on both paths."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from blip_fast import models, reference
from tests import golden

RANKS = 2
BATCH = 4
# How to build the model, the case with inputs and results, prefix of the results, and of the state after the step.
# Which negatives are chosen makes no difference to the queues: the file has them once for both retrieval runs.
RUNS: dict[str, tuple[Any, str, str, str]] = {}
for path, classes in (("reference", reference), ("fused", models)):
    retrieval = partial(golden.build, classes.BlipRetrieval, "retrieval")
    RUNS |= {
        f"{path}-pretrain": (
            partial(golden.build, classes.BlipPretrain, "pretrain"),
            "pretrain_2ranks",
            "",
            "after.",
        ),
        f"{path}-allrank": (
            partial(retrieval, negative_all_rank=True),
            "retrieval_2ranks",
            "allrank.",
            "allrank.after.",
        ),
        f"{path}-local": (retrieval, "retrieval_2ranks", "local.", "allrank.after."),
    }


def average_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients averaged over ranks, as data-parallel training does."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient.div_(RANKS)
    return gradients


def one_step(run: str, rank: int) -> dict[str, Any]:
    """Losses, averaged gradients and buffers of one rank's step."""
    build, case, prefix, _ = RUNS[run]
    tensors, _ = golden.load(case)
    model = build().train()
    own, drawn = f"rank{rank}.", f"{prefix}rank{rank}."
    pointer = "queue_ptr" if run.endswith("pretrain") else "ptr_queue"
    model.get_buffer(pointer).copy_(tensors[f"{pointer}_initial"])
    negatives = (tensors[f"{drawn}neg_image_idx"], tensors[f"{drawn}neg_text_idx"])
    ids = {} if run.endswith("pretrain") else {"ids": tensors[f"{own}idx"]}
    batch = (tensors[f"{own}image"], tensors[f"{own}ids"], tensors[f"{own}mask"])
    out = model(*batch, **ids, alpha=0.4, negatives=negatives)
    out.loss.backward()
    losses = [out.loss_itc, out.loss_itm] + ([out.loss_lm] if run.endswith("pretrain") else [])
    return {
        "losses": torch.stack(losses).detach(),
        "gradients": average_gradients(model),
        "buffers": dict(model.named_buffers()),
    }


def mined(run: str, rank: int) -> Tensor:
    """Images that a rank draws, 200 times over, for its texts (B), all of different ids: (200, B)."""
    model = RUNS[run][0]()
    torch.manual_seed(rank)
    features = torch.nn.functional.normalize(torch.randn(2, BATCH, model.config.embed_dim), dim=-1)
    ids = torch.arange(BATCH) + rank * BATCH
    return torch.stack([model.mine_negatives(*features, ids).image_for_text for _ in range(200)])


def worker(rank: int, folder: str) -> None:
    """One process: all runs, results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    drawn = {run: mined(run, rank) for run in ("fused-local", "fused-allrank")}
    torch.save({run: one_step(run, rank) for run in RUNS} | {"mined": drawn}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    # forked from a process that has imported everything: quicker
    multiprocessing.set_forkserver_preload(["blip_fast.models", "blip_fast.reference"])
    mp.start_processes(worker, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks(run: str, results: list[dict[str, Any]]) -> None:
    _, case, prefix, after = RUNS[run]
    tensors, sidecar = golden.load(case)
    for rank, result in enumerate(results):
        losses = tensors[f"{prefix}rank{rank}.loss"]
        torch.testing.assert_close(result[run]["losses"], losses, rtol=1e-5, atol=0)
        for name, expected in golden.with_prefix(case, after).items():
            torch.testing.assert_close(result[run]["buffers"][name], expected, rtol=1e-5, atol=1e-6, msg=name)
        gradients = result[run]["gradients"]
        for name, expected in golden.with_prefix(case, f"{prefix}avg_grad.").items():
            if not name.endswith("key.bias"):  # their true gradient is zero
                assert golden.relative_error(gradients[name], expected) < 1e-4, name
        if run.endswith("pretrain"):
            norms = torch.stack([gradients[name].norm() for name in sidecar["avg_grad_norms_names"]])
            torch.testing.assert_close(norms, tensors["avg_grad_norms"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("run", "candidates"), [("fused-local", BATCH), ("fused-allrank", RANKS * BATCH)])
def test_negatives_are_mined_among_the_candidates(run: str, candidates: int, results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        drawn = result["mined"][run]
        own = torch.arange(BATCH) + (rank * BATCH if run == "fused-allrank" else 0)
        assert set(drawn.flatten().tolist()) == set(range(candidates))
        assert not (drawn == own).any()
