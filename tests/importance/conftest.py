"""The networks that these tests share are importable from every test file here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
