"""T5 for several tasks: full fine-tuning, adapters, and adapters that hypernetworks generate.

    model = attach(model, ["cola", "mrpc"], T5Settings(method="hyperformer++", reduction_factor=32))
    model(input_ids=…, attention_mask=…, labels=…, task_ids=torch.tensor([0, 1, 0]))
    model.generate(input_ids=…, attention_mask=…, num_beams=4, task_ids=torch.tensor([0, 1, 0]))

It remains a transformers model (T5, v1.1, Flan, mT5), but its class becomes a subclass whose forward takes `task_ids`,
one integer per row; a batch may mix tasks. In encoder and decoder, hooks insert an adapter after self-attention and
after feed-forward, `h + dropout(A(sublayer(norm(h))))`; cross-attention has none (Karimi Mahabadi et al. 2021,
"Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks").

`save_t5` and `load_t5` write and read checkpoints. State dicts of the published code are loaded with

    load_original(model, state)          # adapters/imports/hyperformer.py

into a model attached with the same tasks and settings (`efficient_unique_hyper_net` is "hyperformer++",
`unique_hyper_net` is "hyperformer", a meta-adapter with neither is "meta"). The T5 is adapted by a method from
adapters/methods/, as any backbone; in files its parameters have the published names (`task_embedding_controller.…`,
`encoder.adapter_layers_hyper_net.…`, `encoder.block.0.layer.1.adapter_controller.…`), given by `original_names`.
"""

from versatile.adapters.imports.hyperformer import load_original, original_names, original_state  # noqa: F401
from versatile.adapters.t5_checkpoint import (  # noqa: F401
    adapter_state,
    load_frozen,
    load_t5,
    load_t5_of_name,
    load_weights,
    read_manifest,
    read_settings,
    save_t5,
)  # fmt: skip
from versatile.adapters.t5_model import (  # noqa: F401
    METHODS,
    MODEL_TYPES,
    PORT_METHODS,
    T5Settings,
    TaskT5,
    attach,
    check_settings,
    count_parameters,
    parameter_summary,
    read_task_embeddings,
    trainable,
)  # fmt: skip
