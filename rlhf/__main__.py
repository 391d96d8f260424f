"""`python -m rlhf`."""

import sys

from rlhf.main import main

sys.exit(main())
