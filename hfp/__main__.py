"""``python -m hfp`` is the command ``hfp``."""

import sys

from hfp.commands.program import main

if __name__ == "__main__":
    sys.exit(main())
