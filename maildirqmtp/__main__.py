"""`python -m maildirqmtp`."""

import sys

from maildirqmtp.cli import main

sys.exit(main())
