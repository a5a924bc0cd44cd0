"""Figures as a table on the terminal, and as JSON."""

import json
import os
import platform
import pathlib


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    return f"{cpu}, {os.cpu_count()} CPUs, {memory >> 20} GiB, Linux {platform.release()}"


class Report:
    def __init__(self, path):
        self._path = path and pathlib.Path(path)
        self._all = {"machine": machine(), "parts": {}}
        print(self._all["machine"])

    def table(self, title, head, rows):
        widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
        print(f"\n{title}\n")
        for line in [head, *rows]:
            first, *others = [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths))]
            print("  ".join([first, *others]).rstrip())

    def note(self, text):
        print(f"({text})", flush=True)

    def add(self, part, samples, **more):
        """Keeps all samples of a part; written at once, so that a later part that fails takes nothing away."""
        self._all["parts"][part] = {"samples": samples, **more}
        if self._path:
            self._path.write_text(json.dumps(self._all, indent=1) + "\n")
