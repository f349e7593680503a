"""What every script needs: errors, files, flags, devices, metrics.

Nothing here imports another package of the toolkit.
"""

import os

# How often an idle thread of torch polls for work before it sleeps. Read when torch is imported, which the toolkit does
# after this. Waking a thread takes longer than many operations: with threads that sleep at once, training takes a
# third more time. With threads that spin for milliseconds, the default, a second program on the machine makes both
# several times slower (bench/README.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
