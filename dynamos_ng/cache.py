"""Where dynamos keeps what it can make anew: what is built for the running kernel, and what is unpacked of it."""

import os
from pathlib import Path

#: DYNAMOS_CACHE names another folder.
FOLDER = Path(os.environ.get("DYNAMOS_CACHE", "/var/cache/dynamos_ng"))
