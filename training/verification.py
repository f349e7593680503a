"""Verify combined models: their scores and greedy outputs, against those of every source loaded on its own."""

import ignite.distributed as idist
import torch
from versatile.adapters import checkpoint, inference
from versatile.adapters import combine as combining
from versatile.adapters.backbones.family import max_length_of
from versatile.data import instances
from versatile.training.decoding import Decoding, decode
from versatile.utils.errors import UserError
from versatile.utils.screen import counted, shortest_path


def verify_groups(groups, open_source, compare, flags):
    """Compare a combined model with its sources, one of which is loaded at a time.

    Args:
        groups: [(a source's directory, its tasks)].
        open_source: (directory, its tasks) -> the source, ready for inference.
        compare: (source, task) -> (the task's entry of what is returned, the difference of scores as a share of the
            largest).
        flags: {task: the flag that named its source, for errors}.

    Returns:
        {task: dict(data, examples, max_abs_difference, and outputs_equal if there are outputs)}

    Raises:
        UserError: a score or an output differs from the source's.
    """
    proofs = {}
    for directory, tasks in groups:
        theirs = open_source(directory, tasks)
        for task in tasks:
            proof, share = compare(theirs, task)
            gap, equal = proof["max_abs_difference"], proof.get("outputs_equal", proof["examples"])
            outputs = f", {equal} of {proof['examples']} outputs are equal" if "outputs_equal" in proof else ""
            if not share <= combining.SCORE_TOLERANCE or equal < proof["examples"]:
                raise UserError(f"the combined model answers differently: scores of {task} differ by up to "
                                f"{gap:.3g}" + outputs, location=flags[task],
                                expected=f"the scores and outputs of {directory}",
                                remedy="nothing was written; report this")  # fmt: skip
            proofs[task] = proof
        # Its memory is needed for the next.
        del theirs
    return proofs


def verify(directory, sources, inputs, tokens):
    """Compare the language model in `directory` with every source, each loaded by itself.

    Args:
        sources: the `adapters.combine.Source` of every task.
        inputs: {task: `MarkerSplit`} with the inputs to compare on.
        tokens: maximum tokens of an output.

    Returns:
        {task: dict(data, examples, max_abs_difference, outputs_equal: how many were equal)}

    Raises:
        UserError: a logit or an output differs from the source's.
    """
    device, flags = idist.device(), {s.task: s.flag for s in sources}
    # The sources' adapters have been checked.
    ours = checkpoint.load_checkpoint(directory, allow_idle=True)
    inference.prepare_for_inference(ours[0], device, torch.float32)

    def open_source(folder, tasks):
        theirs = combining.open_source(folder, tasks)
        inference.prepare_for_inference(theirs[0], device, torch.float32)
        combining.require_same_backbone(ours[0], theirs[0], flags[tasks[0]])
        return theirs

    def compare(theirs, task):
        part = inputs[task]
        print(f"verifying {task} on {counted(len(part.examples), 'input')} of {shortest_path(part.path)}", flush=True)
        proof, share = verify_task(ours, theirs, part, tokens)
        return dict(data=part.path, **proof), share

    groups = [(folder, [s.task for s in sources if s.directory == folder])
              for folder in dict.fromkeys(s.directory for s in sources)]  # fmt: skip
    return verify_groups(groups, open_source, compare, flags)


def verify_task(ours, theirs, part, tokens):
    """The same for one task: greedy outputs first, then the logits at all positions of the inputs and these outputs.

    Returns:
        (dict(examples, max_abs_difference, outputs_equal), the difference as a share of the largest logit)
    """
    positions = max_length_of(ours[0])
    settings = Decoding(max_length=tokens, batch_size=8).fitted(positions)
    outputs, sequences = [], []
    for model, tokenizer in (ours, theirs):
        prompts, _ = instances.prompts(part.task, model.task_id(part.task.name), tokenizer, part.examples, positions,
                                       settings.max_length)  # fmt: skip
        outputs.append(decode(model, tokenizer, prompts, settings))
        # The base vocabulary's ids are the same in both, the markers' are not.
        sequences.append([(p.ids + out, p.types + p.types[-1:] * len(out), len(p.ids))
                          for p, out in zip(prompts, outputs[-1])])  # fmt: skip
    gap, share = combining.largest_difference(ours, theirs, part.task.name, list(zip(*sequences)))
    equal = sum(a == b for a, b in zip(*outputs))
    return dict(examples=len(part.examples), max_abs_difference=gap, outputs_equal=equal), share
