"""Evaluation divided between two processes (gloo) gives what one process gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from blip_fast.models import BlipNLVR, BlipRetrieval
from blip_fast.tasks.evaluation.nlvr import accuracy
from blip_fast.tasks.evaluation.results import save_results
from blip_fast.tasks.evaluation.retrieval import retrieval_scores
from blip_fast.tasks.evaluation.shards import join_shards, shard
from tests import golden
from tests.tasks.evaluation.common import NLVR_RIGHT, nlvr_batches

RANKS = 2


def evaluate(rank: int, folder: Path) -> dict[str, Any]:
    tensors, sidecar = golden.load("retrieval_eval")
    images = tensors["images"]
    own = images[list(shard(len(images), rank, RANKS))]
    texts, k_test = (tensors["ids"], tensors["mask"]), sidecar["k_test"]
    model = golden.build(BlipRetrieval, "retrieval")
    scores = retrieval_scores(model, own.split(2), len(images), texts, k_test, rank, RANKS)
    nlvr = golden.build(BlipNLVR, "nlvr")
    entries = [{"question_id": number, "answer": f"of rank {rank}"} for number in (7, 10 + rank)]
    return {
        "scores": scores,
        "accuracy": accuracy(nlvr, nlvr_batches(shard(3, rank, RANKS))),
        "merged": save_results(entries, folder / "result", "vqa_result", key="question_id"),
        "joined": join_shards(torch.tensor(list(shard(5, rank, RANKS))), 5, RANKS),
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    torch.save(evaluate(rank, Path(folder)), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=RANKS)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_retrieval_scores(results: list[dict[str, Any]]) -> None:
    tensors, _ = golden.load("retrieval_eval")
    for result in results:
        for found, name in zip(result["scores"], ("score_i2t", "score_t2i"), strict=True):
            torch.testing.assert_close(found, tensors[name], rtol=1e-5, atol=1e-5)


def test_accuracy_counts_each_sample_once(results: list[dict[str, Any]]) -> None:
    right = [sample in NLVR_RIGHT for sample in (0, 1, 2)]  # shares of one and two samples
    for result in results:
        assert result["accuracy"] == pytest.approx(sum(right) / 3)


def test_result_files(folder: Path, results: list[dict[str, Any]]) -> None:
    expected = [(7, "of rank 0"), (10, "of rank 0"), (11, "of rank 1")]
    merged = json.loads((folder / "result" / "vqa_result.json").read_text())
    assert [(entry["question_id"], entry["answer"]) for entry in merged] == expected
    assert results[0]["merged"] == merged
    assert results[1]["merged"] == []
    own = json.loads((folder / "result" / "vqa_result_rank1.json").read_text())
    assert [entry["question_id"] for entry in own] == [7, 11]


def test_joined_shards(results: list[dict[str, Any]]) -> None:
    assert all(result["joined"].tolist() == [0, 1, 2, 3, 4] for result in results)
