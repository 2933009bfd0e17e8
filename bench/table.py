"""Markdown tables, and that of ``bench engine`` in the columns that llama-bench users know."""

from __future__ import annotations

from collections.abc import Sequence

from .engine import EngineRow, Report

_HEADS = ("model", "size", "params", "backend", "threads", "test", "t/s", "of bandwidth")
_RIGHT = ("size", "params", "threads", "test", "t/s", "of bandwidth")


def markdown(report: Report) -> str:
    """The whole table, one line a test; about 110 columns wide."""
    model = report.model
    size, params = _size(model.size), _params(model.params)
    head = (f"{model.architecture} {model.format}", size, params, report.backend)
    rows = [(*head, str(report.threads), *_cells(row)) for row in report.rows]
    return markdown_table(_HEADS, rows, _RIGHT)


def compact(report: Report) -> str:
    """The same facts within 80 columns: the constant ones once, above the table."""
    model = report.model
    above = (
        f"{model.architecture} {model.format}, {_size(model.size)}, {_params(model.params)} "
        f"params, {report.backend}, {report.threads} threads"
    )
    return above + "\n\n" + markdown_table(_HEADS[5:], [_cells(row) for row in report.rows], _RIGHT)


def _cells(row: EngineRow) -> tuple[str, str, str]:
    share = row.bandwidth_share
    return (
        row.test.title,
        f"{row.mean:.2f} ± {row.sd:.2f}",
        "" if share is None else f"{share:.0%}",
    )


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]
) -> str:
    """A markdown table, padded so that it also reads well as it is; ``right`` are flush right."""
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    ends = [head in right for head in heads]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, ends, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = "|".join(
        " " + ("-" * (width - 1) + ":" if flush else "-" * width) + " "
        for width, flush in zip(widths, ends, strict=True)
    )
    return "\n".join([line(heads), f"|{rule}|", *(line(row) for row in rows)])


def _size(count: int) -> str:
    """Bytes as llama-bench shows them."""
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.2f} MiB"


def _params(count: int) -> str:
    """Weights as llama-bench shows them."""
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.2f} M"
