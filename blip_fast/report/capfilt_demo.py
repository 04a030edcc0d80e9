"""The page about the CapFilt demo: the four rows of the paper's Table 1 on drawings, and the filter's worth."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from blip_fast.report.page import render
from blip_fast.tasks.capfilt_demo import ROWS

COLUMNS = {
    "txt_r1": "caption R@1",
    "txt_r5": "caption R@5",
    "img_r1": "picture R@1",
    "img_r5": "picture R@5",
    "CIDEr": "CIDEr",
    "exact": "exact captions",
}


def capfilt_demo_page(result: dict[str, Any]) -> str:
    """The report as HTML, from what ``run_capfilt_demo`` returns."""
    return render("capfilt_demo.html", result=result, rows=ROWS, columns=COLUMNS, gains=gains(result))


def gains(result: dict[str, Any]) -> dict[str, dict[str, int]]:
    """In how many seeds each row is better than the web texts as they are, by column."""
    return {
        row: {
            column: sum(run["rows"][row][column] > run["rows"]["web"][column] for run in result["seeds"])
            for column in COLUMNS
        }
        for row in ROWS
        if row != "web"
    }


def result_table(result: dict[str, Any]) -> Table:
    """The numbers for the terminal: mean, and least to largest over the seeds."""
    table = Table(title=f"{len(result['seeds'])} seeds, held-out drawings, per cent: mean (least to largest)")
    table.add_column("pre-trained on clean pairs and")
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row, title in ROWS.items():
        cells = (result["summary"]["rows"][row][column] for column in COLUMNS)
        table.add_row(title, *(f"{cell['mean']:.1f} ({cell['min']:.1f}-{cell['max']:.1f})" for cell in cells))
    filter_, captions = result["summary"]["filter"], result["summary"]["captions"]
    table.caption = (
        f"filter: ROC-AUC {filter_['auc_itm']['mean']:.3f}, keeps {filter_['right_kept']['mean']:.0%} of right and "
        f"{filter_['wrong_kept']['mean']:.0%} of wrong web texts; captioner: {captions['exact']['mean']:.0%} exact, "
        f"{captions['exact_of_kept']['mean']:.0%} of those kept"
    )
    return table
