"""The order of the calls that wait: by priority, and within one fair by device.

Start-time fair queueing (Goyal, Vin, Cheng, 1996): a call gets a tag when it comes, and the smallest tag runs first.
The tag is the virtual time, or the end of the device's last call if that is later. The end is the tag plus the cost of
the call, in seconds of a compute thread. So a device with a hundred calls in the queue, or with expensive ones, delays
its own calls and not those of others. The virtual time is the tag of the call that was taken last.
When nothing waits any more, all devices begin anew.
"""

from __future__ import annotations

import heapq

from .job import Job, Lane

KEPT = 256
"""Entries beyond this number are removed once they are the larger part: of devices without calls, of calls that ran."""


class FairQueue:
    """Calls that wait. Not safe between threads.

    count, cost_s: how many wait, and their cost in seconds of a compute thread.
    """

    def __init__(self) -> None:
        self.count = 0
        self.cost_s = 0.0
        self._levels: dict[int, dict[Lane, list[tuple[float, int, Job]]]] = {}
        self._latest: list[tuple[int, float, int, Job]] = []
        self._ends: dict[tuple[int, str], float] = {}
        self._virtual = 0.0
        self._number = 0

    def tag(self, level: int, device: str) -> float:
        """The tag that a call of a device would get now."""
        return max(self._virtual, self._ends.get((level, device), 0.0))

    def push(self, job: Job) -> None:
        """Add a call."""
        number = self._number = self._number + 1
        job.tag, job.waits = self.tag(job.level, job.device), True
        self._ends[job.level, job.device] = job.tag + job.cost_s
        lane = job.lane
        if not lane.images:
            lane.first_arrived = job.arrived
        lane.images += job.images
        heapq.heappush(self._levels.setdefault(job.level, {}).setdefault(lane, []), (job.tag, number, job))
        heapq.heappush(self._latest, (-job.level, -job.tag, -number, job))
        self.count += 1
        self.cost_s += job.cost_s
        if len(self._ends) > KEPT + 2 * self.count:
            self._ends = {key: end for key, end in self._ends.items() if end > self._virtual}
        if len(self._latest) > KEPT + 2 * self.count:
            self._latest = [entry for entry in self._latest if entry[3].waits]
            heapq.heapify(self._latest)

    def lanes(self) -> list[Lane]:
        """The lanes with calls, in the order in which their first calls would run."""
        heads: dict[Lane, tuple[int, float, int]] = {}
        for level in sorted(self._levels):
            for lane, entries in self._levels[level].items():
                while entries and not entries[0][2].waits:
                    heapq.heappop(entries)
                if entries:
                    heads.setdefault(lane, (level, *entries[0][:2]))
        return sorted(heads, key=heads.__getitem__)

    def take(self, lane: Lane) -> list[Job]:
        """Take out the calls of a lane's next batch: at most `lane.limit` images, or one call with more."""
        jobs: list[Job] = []
        images = 0
        for level in sorted(self._levels):
            entries = self._levels[level].get(lane, [])
            while entries:
                tag, _, job = entries[0]
                if job.waits:
                    if jobs and images + job.images > lane.limit:
                        break
                    self.remove(job)
                    self._virtual = max(self._virtual, tag)
                    jobs.append(job)
                    images += job.images
                heapq.heappop(entries)
            if not entries:
                self._levels[level].pop(lane, None)
        if not self.count:
            self._levels.clear()
            self._latest.clear()
            self.cost_s = 0.0  # what rounding has left
            # Nobody waits, so nobody owes anything to anybody.
            self._virtual = max([self._virtual, *self._ends.values()])
            self._ends.clear()
        elif lane.images:
            lane.first_arrived = min(d[lane][0][2].arrived for d in self._levels.values() if lane in d)
        return jobs

    def latest(self) -> Job | None:
        """The call that would run last; None if none waits."""
        while self._latest and not self._latest[0][3].waits:
            heapq.heappop(self._latest)
        return self._latest[0][3] if self._latest else None

    def waiting(self) -> list[Job]:
        """All calls that wait, in no order."""
        return [entry[3] for entry in self._latest if entry[3].waits]

    def remove(self, job: Job, *, unused: bool = False) -> None:
        """Take a call out. unused: it will not run, so its device does not pay for it."""
        job.waits = False
        self.count -= 1
        self.cost_s -= job.cost_s
        job.lane.images -= job.images
        if unused:
            key = (job.level, job.device)
            if key in self._ends:
                self._ends[key] -= job.cost_s
