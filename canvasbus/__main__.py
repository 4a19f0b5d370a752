"""python -m canvasbus: the command `canvasbus`."""

import sys

from canvasbus.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
