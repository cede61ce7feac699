"""`make mutants`: remove every defence in turn and print who notices.

Usage: python -m tests.mutation [TEXT]: only those whose name or file contains the text.
"""

import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.defences import DEFENCES
from tests.mutation.runner import copy_tree, imports_from, remove, restore, run_tests

ALL_S = 1800

wanted = sys.argv[1] if len(sys.argv) > 1 else ""
chosen = [one for one in DEFENCES if wanted in one.name or wanted in one.file]
if not chosen:
    sys.exit(f"no defence's name or file contains {wanted!r}")
missed = []
with tempfile.TemporaryDirectory(prefix="optmigd-mutants-") as name:
    tree = Path(name).resolve()
    copy_tree(tree)
    if not imports_from(tree):
        sys.exit("the tests would not import the copy")
    whole = run_tests(list(dict.fromkeys(one.test for one in chosen)), tree, timeout_s=ALL_S)
    if not whole.all_passed:
        sys.exit(f"with every defence in place a test fails:\n{whole.output}")
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
