"""`make model-check`: the model, deeper than the tests take it.

Usage: python -m tests.model [FAULTS]: how many faults together, 3 if not given.
"""

import sys

from tests.model.checker import check
from tests.model.faults import Budget

budget = Budget(together=int(sys.argv[1]) if len(sys.argv) > 1 else 3)
print(f"exploring every run with {budget}", flush=True)
verdict = check(budget=budget)
print(verdict)
sys.exit(bool(verdict.broken))
