"""From files to tokens: which rows, which ids, and which of these are learnt.

files.py     lines and rows out of a file             messages.py rows.py   whose spelling is this; what does it say
ids.py       rows to ids, and what is learnt          store.py              all of them in one piece of memory
mixture.py   weights, and what is held out            faults.py report.py   what was wrong; what there is
dataset.py   all of it: `read`
"""

from .dataset import Dataset, read
from .faults import BadData, BadRow, Fault, Faults
from .mixture import Source, source_of
from .report import Report

__all__ = ["BadData", "BadRow", "Dataset", "Fault", "Faults", "Report", "Source", "read", "source_of"]
