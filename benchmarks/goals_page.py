"""The records of all benches as a page: every goal, reached or not, and how it was measured."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import machine
from benchmarks.goal import GOOD, MISSED, NOT_RUN, Record

Found = Mapping[str, Any]
HEAD = """# Goals, reached and missed

Made by `python -m benchmarks.goals {benches}--size {size}`; do not edit.
{summary} What they mean, and what they do not: [docs/performance.md](../../docs/performance.md).

{machine}; load average at the start {load:.1f}.
"""


def page(found: Found) -> str:
    records = [Record(**record) for record in found["records"]]
    parts = [HEAD.format(benches="".join(f"{name} " for name in found["benches"]),
                         size=found["size"], summary=summary(records),
                         machine=machine.line(found["facts"]), load=found["load"]),
             _table(("goal", "what", "target", "reached", "", "how"), map(_cells, records)),
             _reasons(records), _seconds(found["seconds"])]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def summary(records: Iterable[Record]) -> str:
    counts = Counter(record.verdict for record in records)
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common()) + "."


def _cells(record: Record) -> tuple[str, ...]:
    verdict = f"**{record.verdict}**" if record.verdict in (MISSED, NOT_RUN) else record.verdict
    return (str(record.goal or "-"), record.words, record.asked, record.value, verdict,
            record.how or "-")


def _reasons(records: Iterable[Record]) -> str:
    lines = [f"- {record.goal or 'beside'}, {record.words}: {record.reason}" for record in records
             if record.verdict != GOOD and record.reason]
    return "\n".join(["## Missed, told without a target, or not run, and why", "", *lines]
                     ) if lines else ""


def _seconds(seconds: Mapping[str, float]) -> str:
    return "\n\n".join([
        f"## How long it took: {sum(seconds.values()) / 60:.1f} minutes",
        _table(("bench", "s"), [(name, f"{each:.0f}") for name, each in seconds.items()])])


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
                     for cells in lines)
