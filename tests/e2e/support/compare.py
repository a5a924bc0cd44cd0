#!/usr/bin/env python3
"""Runs a script in one process again and again: COMPARE.PY's main(), whose start costs more than most of its work.

    compare.py SCRIPT

In:  on each line the arguments of one run, as a JSON list.
Out: on each line its exit status and all that it printed, as a JSON list.
"""
import contextlib
import importlib.util
import io
import json
import sys
import traceback


def run(script, arguments):
    sys.argv[1:] = arguments
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            script.main()
            status = 0
        except SystemExit as end:
            status = end.code
        except Exception:
            traceback.print_exc()
            status = 3
    return status, printed.getvalue()


def main():
    spec = importlib.util.spec_from_file_location("script", sys.argv[1])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for line in sys.stdin:
        print(json.dumps(run(script, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
