"""Goals, and what a run reached of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """``at_least``: more is better. ``scale`` and ``unit`` are for print."""

    key: str
    what: str
    bound: float
    at_least: bool = True
    scale: float = 1.0
    unit: str = ""

    def text(self, value: float) -> str:
        digits = (
            0 if self.scale * value >= 1000 else 2 if self.unit in ("s", "ms", "x", "GiB") else 1
        )
        return f"{self.scale * value:,.{digits}f} {self.unit}"

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def goal_rows(goals: Sequence[Goal], reached: Mapping[str, float]) -> list[list[str]]:
    """Rows of a table, heading first. Reached: by key; goals without one were not measured."""
    rows = [["", "goal", "reached", ""]]
    for goal in goals:
        sign = ">=" if goal.at_least else "<="
        row = [goal.what, f"{sign} {goal.text(goal.bound)}"]
        if goal.key not in reached:
            rows.append([*row, "not measured", ""])
            continue
        value = reached[goal.key]
        rows.append([*row, goal.text(value), "met" if goal.is_met(value) else "missed"])
    return rows
