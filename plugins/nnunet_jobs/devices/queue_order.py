"""Orders waiting jobs, without files: first come, first served within a team, and teams take turns.

A job's rank is the number of devices that its team holds or waits for before it. Of jobs with the same rank, the team that was
served longest ago goes first. So with k waiting teams, a team that holds no more than the others gets its next device after at most
k - 1 of their jobs, regardless of how many wait. Jobs without a team count as one team; without teams, the order is first come, first
served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueEntry:
    """A waiting job: its number in the queue, its team, and how many devices it wants."""

    number: int
    team: str
    count: int


def order_of_service(entries: Iterable[QueueEntry], held: Mapping[str, int], served: Mapping[str, int]) -> list[int]:
    """Return the numbers of waiting jobs in the order in which they are served.

    Args:
        held: Devices that each team's running jobs hold.
        served: When each team got a device last, as a number that only increases.
    """
    behind = Counter(held)
    ranked = []
    for entry in sorted(entries, key=lambda entry: entry.number):
        ranked.append((behind[entry.team], served.get(entry.team, -1), entry.number))
        behind[entry.team] += entry.count
    return [number for _, _, number in sorted(ranked)]
