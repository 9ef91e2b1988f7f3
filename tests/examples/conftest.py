"""Lets the tests import the examples, which import their common module.

The quick forms take most of the time. What they assert is the network's behaviour, not
a framework's: plain nox trains one of them on one backend, `nox -t full` all on all.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
