"""The model card that lies beside the weights."""

from collections.abc import Mapping

TEMPLATE = """---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags:
- sentence-transformers
- cross-encoder
- reranker
---

# Reranker on {base}

A cross-encoder fine-tuned on {queries:,} queries ({pairs:,} pairs) of the data set in `data/prepared`, with
hard negatives from the first-stage retriever. What the data is stands in `params.yaml` and
`metrics/prepare.json`, the metrics on the test queries in `metrics/evaluate.json`, all of the commit that made
this model.

## Use

The cross-encoder alone, with Sentence Transformers:

```python
from sentence_transformers import CrossEncoder

CrossEncoder("models/reranker").rank("your question", ["a passage", "another passage"])
```

As shipped and evaluated, it reads the excerpt of a long passage that suits
the query, and is fused with the bi-encoder in `biencoder/`, the static embedding in `static/` and BM25 by the
weights in `fusion.json`:

```python
from reranker.fused import Reranker

Reranker("models/reranker").rank("your question", ["a passage", "another passage"])
```

In both, compare scores between passages of one query only; those of the cross-encoder alone are logits.

## Training

{figures}

## Parameters

{params}
"""


def model_card(base: str, params: Mapping[str, object], figures: Mapping[str, object]) -> str:
    """A filled-in model card in Markdown.

    Args:
        base: name of the base model.
        params: what training was told.
        figures: what training measured; has `groups` and `pairs`.
    """
    return TEMPLATE.format(
        base=base,
        queries=figures["groups"],
        pairs=figures["pairs"],
        figures=two_columns("measured", figures),
        params=two_columns("parameter", params),
    )


def two_columns(head: str, values: Mapping[str, object]) -> str:
    """Names and values as a table in Markdown, numbers with four digits."""

    def show(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "\n".join(
        [f"| {head} | value |", "|---|---|", *(f"| {key} | {show(value)} |" for key, value in values.items())]
    )
