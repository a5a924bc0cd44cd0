"""Which fault was there when, and whether it explains what a reader met. For scripts/soak-chaos."""

import threading
import time

from network import DEAD, HARD, LYING

# The longest pause between two tries of a request: so long a fault may be over before the read that it struck fails (registry/patience.rs).
PAUSE = 5.0
# What takes readers their time, and gives no right to an error by itself.
DELAYING = [*DEAD, *HARD, "stop", "freeze", "memory", "busy"]
GONE = ["ENOTCONN", "ECONNABORTED", "ENOENT", "ENODEV", "EIO"]


class History:
    def __init__(self, deadline):
        self.deadline, self.start, self.records, self.violations = deadline, time.monotonic(), [], []
        self._lock = threading.Lock()

    def say(self, text):
        with self._lock:
            print(f"{time.monotonic() - self.start:7.1f} s  {text}", flush=True)

    def violation(self, text):
        """Something that must not be."""
        self.violations.append(f"{time.monotonic() - self.start:.1f} s: {text}")
        self.say(f"VIOLATION: {text}")

    def begin(self, kind, target, note=""):
        """`target` is None for what is everybody's."""
        record = {"kind": kind, "target": target, "start": time.monotonic(), "end": None}
        self.records.append(record)
        self.say(f"{kind} of {target or 'all'} begins{note and ': ' + note}")
        return record

    def busy(self, start, end):
        """The machine had so much else to do that a healthy proxy, too, did not answer from then to then."""
        self.records.append({"kind": "busy", "target": None, "start": start, "end": end})

    def end(self, record, note=""):
        record["end"] = time.monotonic()
        self.say(f"{record['kind']} of {record['target'] or 'all'} ends after {record['end'] - record['start']:.1f} s{note and ': ' + note}")

    def overlap(self, kinds, target, start, end):
        """Seconds between the two in which there was any of these faults."""
        parts = sorted(
            (max(start, record["start"]), min(end, record["end"] or end))
            for record in list(self.records)
            if record["kind"] in kinds and record["target"] in (target, None)
        )
        seconds = 0.0
        for begin, stop in parts:
            if stop > max(begin, start):
                seconds += stop - max(begin, start)
                start = stop
        return seconds

    def explains(self, target, error, start, end):
        """Which fault makes that error right, or None."""
        if error in GONE and self.overlap(["dead"], target, start - 1, end + 1):
            return "dead"
        if error != "EIO":
            return None
        if self.overlap(LYING, target, start - 1, end):
            return "flip"
        # What moves nothing for the deadline, together. A stopped server's clock goes on.
        dead = self.overlap([*DEAD, "stop", "freeze", "busy"], target, end - self.deadline - PAUSE, end)
        return "network" if dead >= self.deadline - PAUSE else None

    def is_stuck(self, target, start, end, slack):
        """Whether a read from then to then has taken longer than the faults that were there meanwhile let it."""
        return end - start - self.overlap([*DELAYING, "kill", "dead"], target, start, end) > self.deadline + slack

    def counts(self):
        kinds = {}
        for record in self.records:
            kinds[record["kind"]] = kinds.get(record["kind"], 0) + 1
        return kinds
