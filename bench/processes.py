#!/usr/bin/env python
"""Two processes with one thread each against one process with one thread: speed, communication, memory.

  one CPU with two cores or more:
    python bench/processes.py --device cpu
  one GPU: the same; it measures processes on a CPU (gloo), and leaves several GPUs to torchrun and nccl.

Every process uses the same micro-batch size, so two of them process twice the tokens per step. Adapters are
trained beside a frozen backbone: only the added parameters' gradients need to be sent. Then the whole model is trained
by two processes that each hold all of it, and by two that shard it (--fsdp). All sides are processes of their own,
which wait during the others' turns. Bytes are those that collectives were called with, counted in the first
process; memory is the largest resident set of a process, without mapped files.
"""

import os
import socket
import statistics
import sys
import time
from pathlib import Path

import common

ONE, TWO = "adapters, one process", "adapters, two"
WHOLE, SHARED = "whole model, two", "whole model, two, shared out"
SIDES = {ONE: 1, TWO: 2, WHOLE: 2, SHARED: 2}


def parse(argv=None):
    p = common.parser(__doc__)
    common.add_model_flags(p)
    common.add_training_flags(p, 4)
    p.set_defaults(threads=1)
    return common.parse_training(p, argv)


def main(argv=None):
    args = parse(argv)
    args.device = "cpu"
    device = common.start(args)
    sides = {}
    try:
        for name, count in SIDES.items():
            sides[name] = Side(name, count, args)
        rates = common.interleaved({name: side.turn for name, side in sides.items()}, args.repeats, device)
        about = {name: side.close() for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.kill()
    rows = [[name, statistics.median(rates[name]), own["trained_mb"], own["sent_mb"], own["calls"], own["memory_mb"],
             own["held_mb"]] for name, own in about.items()]  # fmt: skip
    head = ["a process", "tokens/s", "trained, MB", "sent, MB/step", "calls/step", "peak, MB", "model and state, MB"]
    print(common.table(head, rows))
    print(common.verdict("two processes over one, one thread each: training", rates, TWO, ONE, 1.7))
    # Tokens are those of all processes; the seconds are those of the first.
    print(f"by the processor time of each process it would be {about[ONE]['cpu'] / about[TWO]['cpu']:.2f}x on two idle "
          "cores, not counting the time they wait for each other")  # fmt: skip
    two, whole, shared = about[TWO], about[WHOLE], about[SHARED]
    report("sent over the trained parameters' own bytes", two["sent_mb"] / two["trained_mb"], 1.01)
    report("model and state of a process that shares it, over one that holds all", shared["held_mb"] / whole["held_mb"],
           0.6)  # fmt: skip
    common.record("peak memory of a process that shares it, over one that holds all",
                  *[shared["memory_mb"] / whole["memory_mb"]] * 3, lower=True)  # fmt: skip
    common.save(args, rates=rates, about=about)


def report(what, ratio, target):
    """The line of a ratio for which lower is better."""
    common.record(what, ratio, ratio, ratio, lower=True)
    print(f"ratio: {what} {ratio:.3f}x (target at most {target:g}x {'reached' if ratio <= target else 'NOT reached'})")


class Side:
    """One or two processes that take their turns together."""

    def __init__(self, name, count, args):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = dict(WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        self.workers = []
        for rank in map(str, range(count)):
            variables = {} if count == 1 else shared | dict(RANK=rank, LOCAL_RANK=rank)
            self.workers.append(common.Worker(__file__, (name,), args, environment=variables))
        self.answers()

    def answers(self):
        """The next report of each process."""
        return [worker.answer() for worker in self.workers]

    def turn(self, turn):
        """Some optimizer steps of all processes; returns their number of tokens."""
        for worker in self.workers:
            worker.ask()
        # Each process counts the tokens of all.
        first, *_ = self.answers()
        return first["tokens"]

    def close(self):
        """The first process's report on itself."""
        for worker in self.workers:
            worker.process.stdin.close()
        first, *_ = self.answers()
        return first

    def kill(self):
        for worker in self.workers:
            worker.process.kill()


# --- in the sides' processes -----------------------------------------------------------------------------


def work(name, flags):
    """Answer each line of the input with a turn."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    args = common.worker_flags(flags)
    import torch
    from versatile.utils.devices import parallel

    with parallel():
        side = common.Ours(args, common.examples(args), torch.float32, full=name in (WHOLE, SHARED),
                           sharded=name == SHARED)  # fmt: skip
        wire = Wire(side)
        common.answer_turns(wire, memory_mb=anonymous_mb, **wire.about())


class Wire:
    """A side with its collectives counted: the bytes of the tensors that this process passes to them."""

    def __init__(self, side):
        from torch import distributed

        self.side, self.bytes, self.calls, self.steps, self.cpu = side, 0, 0, 0, []
        parallel = side.trainer.parallel
        if parallel is not side.model:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

            # As DDP does without a hook, but through a Python function.
            parallel.register_comm_hook(None, allreduce_hook)
        # The last two are FSDP's; older versions of torch name them differently.
        for name in ("all_reduce", "all_gather_single", "reduce_scatter_single"):
            if not hasattr(distributed, name):
                continue
            original = getattr(distributed, name)
            setattr(distributed, name, self.counted(original, 0 if name == "all_reduce" else 1))

    def about(self):
        """{name: function that returns the value to report at the side's end}."""
        return dict(
            trained_mb=lambda: megabytes(map(local, self.side.parameters)),
            held_mb=lambda: megabytes(held_tensors(self.side)),
            sent_mb=lambda: self.bytes / self.steps / 2**20,
            calls=lambda: round(self.calls / self.steps, 1),
            cpu=lambda: statistics.median(self.cpu),
        )

    def counted(self, function, position):
        def call(*args, **kwargs):
            tensor = args[position] if len(args) > position else kwargs["input"]
            self.calls += 1
            self.bytes += tensor.numel() * tensor.element_size()
            return function(*args, **kwargs)

        return call

    def turn(self, turn):
        self.steps += self.side.args.turn_steps
        began = time.process_time()
        tokens = self.side.turn(turn)
        self.cpu.append((time.process_time() - began) / tokens)
        return tokens


def local(tensor):
    from versatile.training import sharding

    return sharding.local(tensor)


def held_tensors(side):
    """The tensors of the model and of the optimizer, as far as this process holds them."""
    state = [value for own in side.trainer.optimizer.state.values() for value in own.values()]
    return [local(tensor.data) for tensor in [*side.model.parameters(), *state] if hasattr(tensor, "data")]


def megabytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def anonymous_mb():
    """The largest resident set so far, without mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    kilobytes = {name: int(fields[name].split()[0]) for name in ("VmHWM", "RssFile")}
    return round((kilobytes["VmHWM"] - kilobytes["RssFile"]) / 2**10)


if __name__ == "__main__":
    sys.exit(work(*sys.argv[2:]) if sys.argv[1:2] == ["--worker"] else main())
