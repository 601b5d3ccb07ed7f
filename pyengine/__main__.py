"""`python -m pyengine`."""

import sys

from pyengine._cli import main

sys.exit(main())
