"""`python -m arvrm` is the command `arvrm`."""

import sys

from arvrm.cli import main

if __name__ == "__main__":
    sys.exit(main())
