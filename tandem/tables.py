"""Plain text for people: aligned columns, a request's timeline as a waterfall. Pure."""

from collections.abc import Sequence

from tandem.messages.common import Timeline, Usage

BAR_WIDTH = 40


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first column is aligned left, the others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def render_timeline(timeline: Timeline, usage: Usage) -> str:
    """The stages of a finished request, each with its begin, its length and a bar."""
    total_s = timeline.finished_s or 0.0
    lines = []
    for name, begin_s, end_s, detail in _stages(timeline, usage):
        if begin_s is None or end_s is None:
            continue
        bar = _bar(begin_s, end_s, total_s)
        span_ms = max(end_s - begin_s, 0.0) * 1000
        text = f"{name:<12} {begin_s * 1000:9.1f} ms {span_ms:+10.1f} ms  {bar}  {detail}"
        lines.append(text.rstrip())
    return "\n".join([*lines, summarise(timeline, usage)])


def summarise(timeline: Timeline, usage: Usage) -> str:
    """Time to first token, time per output token, tokens: one line."""
    parts = [f"{usage.num_prompt_tokens} + {usage.num_output_tokens} tokens"]
    if usage.num_cached_tokens:
        parts.append(f"{usage.num_cached_tokens} of them cached")
    if timeline.first_token_s is not None:
        parts.append(f"TTFT {timeline.first_token_s * 1000:.1f} ms")
        num_after = usage.num_output_tokens - 1
        if timeline.finished_s is not None and num_after > 0:
            tpot_s = (timeline.finished_s - timeline.first_token_s) / num_after
            parts.append(f"TPOT {tpot_s * 1000:.1f} ms")
    if timeline.finished_s is not None:
        parts.append(f"total {timeline.finished_s * 1000:.1f} ms")
    if timeline.num_attempts > 1:
        parts.append(f"{timeline.num_attempts} attempts")
    return ", ".join(parts)


def _stages(timeline: Timeline, usage: Usage) -> list[tuple[str, float | None, float | None, str]]:
    """Name, begin, end, detail. A stage without a begin or an end did not happen."""
    shipped = f"{timeline.transfer_bytes / 1024:,.0f} KiB" if timeline.transfer_bytes else ""
    return [
        ("place", 0.0, timeline.placed_s, ""),
        ("queue", timeline.placed_s, timeline.prefill_start_s, ""),
        (
            "prefill",
            timeline.prefill_start_s,
            timeline.first_token_s,
            f"{timeline.prefill_node or ''} {usage.num_prompt_tokens} tokens",
        ),
        ("transfer", _transfer_begin(timeline), timeline.transfer_end_s, shipped),
        ("admit", timeline.transfer_end_s, timeline.decode_start_s, ""),
        (
            "decode",
            timeline.decode_start_s,
            timeline.finished_s,
            f"{timeline.decode_node or ''} {usage.num_output_tokens} tokens",
        ),
    ]


def _transfer_begin(timeline: Timeline) -> float | None:
    """Only what the transfer added after the prefill: most of it overlaps with computing."""
    if timeline.first_token_s is None or timeline.transfer_end_s is None:
        return None
    return min(timeline.first_token_s, timeline.transfer_end_s)


def _bar(begin_s: float, end_s: float, total_s: float) -> str:
    """`end_s` before `begin_s` (reports of two clocks) is a bar of one mark."""
    if total_s <= 0:
        return " " * BAR_WIDTH
    first = min(round(begin_s / total_s * BAR_WIDTH), BAR_WIDTH - 1)
    last = max(min(round(end_s / total_s * BAR_WIDTH), BAR_WIDTH), first + 1)
    return " " * first + "#" * (last - first) + " " * (BAR_WIDTH - last)
