"""What `examples/paper.py` runs, and what it makes of it.

`studies` has the paper's experiments, `lines` the lines of the data files, and `page` the page of those files.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # its modules read and write data files and pages
