"""`make mutants`: remove every defence in turn and print who notices.

Usage: python -m tests.mutation [TEXT]: only those whose name or file contains the text.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.defences import DEFENCES
from tests.mutation.runner import copy_tree, imports_from, remove, restore, run_tests

wanted = sys.argv[1] if len(sys.argv) > 1 else ""
chosen = [one for one in DEFENCES if wanted in one.name or wanted in one.file]
missed = []
with tempfile.TemporaryDirectory(prefix="optmigd-mutants-") as name:
    tree = Path(name).resolve()
    copy_tree(tree)
    if not imports_from(tree):
        sys.exit("the tests would not import the copy")
    for test in dict.fromkeys(one.test for one in chosen):
        whole = run_tests([test], tree)
        if not whole.all_passed:
            sys.exit(f"{test} does not pass with every defence in place:\n{whole.output}")
    for defence in chosen:
        begun_s = time.monotonic()
        remove(defence, tree)
        ran = run_tests([defence.test], tree)
        restore(defence, tree)
        word = "noticed" if ran.noticed else "MISSED"
        seconds = time.monotonic() - begun_s
        print(f"{word:8} {seconds:5.1f} s  {defence.name}  ({defence.test})", flush=True)
        if not ran.noticed:
            missed.append(defence)
            print(ran.output[-3000:])
print(f"{len(chosen) - len(missed)} of {len(chosen)} removed defences were noticed")
sys.exit(bool(missed))
