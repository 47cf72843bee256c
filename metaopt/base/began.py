"""When this process began, as near as the package can know: it is imported before all else."""

import time

BEGAN = time.perf_counter()
