"""When this process began: this module is imported before everything else in the package."""

import time

BEGAN = time.perf_counter()
