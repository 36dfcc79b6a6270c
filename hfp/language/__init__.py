"""Prune language models in folders of transformers, also such that are larger than memory.

`prune` is the entrance. It looks into a `folder`, makes the model without weights (`outline`), finds its tensors in the
forms in which transformers stores them (`stored`), and plans which `widths` and `blocks` go (`planning`). It writes the
new folder shard by shard (`writing`), finds a `configuration` that says its sizes, and checks it with numbers
(`checking`). Weights are in memory only while they are used (`streaming`). `perplexity` and `reading` measure a model
on a text. `record` says how a folder was pruned; `loading` reads it again and puts it back into the full model; `hub`
shares it.
"""

from hfp.lazy import lazily

__all__ = [
    "BlockMap",
    "FolderReport",
    "Perplexity",
    "from_pretrained",
    "perplexity_of_folder",
    "prune_folder",
    "push_to_hub",
    "restore_folder",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.language.blocks": "BlockMap",
        "hfp.language.hub": "push_to_hub",
        "hfp.language.loading": "from_pretrained restore_folder",
        "hfp.language.perplexity": "Perplexity",
        "hfp.language.prune": "prune_folder",
        "hfp.language.reading": "perplexity_of_folder",
        "hfp.language.report": "FolderReport",
    },
)
