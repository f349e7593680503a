"""What a published row needs, before it is started: weights, data, memory, and hours here and on a GPU.

    ./run.sh plan vlm-mt-adapter
    ./run.sh plan lifelong-wcs-lamol          any published row of ./run.sh list: vlm-*, lifelong-*, t5-*, camtl-*

The other rows (small-*, e2e-*, superni-*, …) cannot be planned: they run on the packaged SmolLM2 or MiniLM, on data
whose rows are only counted when the original files are converted.

The row's settings are those of its recipe, read from recipes.sh by the parser of its script; trained parameters are
counted on the model itself, built without its weights. Operations are those of matrix products: a forward pass takes
two per parameter and token, training three times as many, or twice as many beside a frozen backbone. Hours are
operations over the share of a device's peak that is reached: for this machine the peak is measured now and the
share is that of bench/train_adapter.py; for the GPUs both are in bench/plan/tables.py. Expect a factor of two either
way: rows' lengths are averages of samples, and the share depends on batches and on the machine.
"""

import argparse
import sys

from versatile.utils.errors import exit_on_user_error

from bench.plan.arithmetic import measure_peak, render
from bench.plan.rows import make_plan
from bench.plan.tables import CPU_SHARE, Device


def parser():
    p = argparse.ArgumentParser(prog="./run.sh plan", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    p.add_argument("row", metavar="ROW", help="the name of a published row's recipe")
    p.add_argument("--peak", type=float, metavar="GFLOPS",
                   help="this machine's peak of matrix products in the precision of the row (default: measured)")
    return p


@exit_on_user_error
def main(argv=None):
    args = parser().parse_args(argv)
    plan = make_plan(args.row)
    peak = args.peak * 1e9 if args.peak else measure_peak(plan.precision) if plan.phases else 0
    this_machine = Device("this machine", {plan.precision: peak}, CPU_SHARE)
    print(render(plan, this_machine))


if __name__ == "__main__":
    sys.exit(main())
