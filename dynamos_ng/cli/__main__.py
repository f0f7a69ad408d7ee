"""Lets ``python3 -m dynamos_ng.cli`` run the command line without any set-up."""

import sys

from dynamos_ng.cli import main

sys.exit(main())
