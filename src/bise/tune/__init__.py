"""Teaching a model: from rows of data to an adapter, or to a model of its own.

rows of a file -> Sample (ids, and which of them are learnt) -> Pack (flat, with spans) -> states -> loss -> step
"""

import os

# Torch's threads and those of our kernels take turns on the same cores, and torch's would go on spinning for a while
# when theirs is over: 6 to 10 % of a step. (GNU's OpenMP reads it when torch is imported; the number is of loops.)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
