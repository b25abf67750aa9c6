"""The model cards of the reranker and of an exported cross-encoder; the latter contains a program that runs it."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

RERANKER_CARD = """---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags:
- sentence-transformers
- cross-encoder
- reranker
---

# Reranker on {base}

A cross-encoder fine-tuned on {queries:,} queries ({pairs:,} pairs) of the data set in `data/prepared`, with
hard negatives from the first-stage retriever. In the commit that made this model, `params.yaml` and
`metrics/prepare.json` describe the data, and `metrics/evaluate.json` has the metrics on the test queries.

{verdict}

## Use

The cross-encoder alone, with Sentence Transformers:

```python
from sentence_transformers import CrossEncoder

CrossEncoder("models/reranker").rank("your question", ["a passage", "another passage"])
```

The reranker that was evaluated: the cross-encoder reads the excerpt of a long passage that suits the query, and its
score is fused with the bi-encoder in `biencoder/`, the static embedding in `static/` and BM25 by the weights in
`fusion.json`:

```python
from reranker import Reranker

Reranker("models/reranker").rank("your question", ["a passage", "another passage"])
```

In both cases, compare scores only between passages of one query; the scores of the cross-encoder alone are logits.

## Training

{figures}

## Parameters

{params}
"""
EXPORT_CARD = """---
library_name: {library}
pipeline_tag: text-ranking
tags:
- cross-encoder
- reranker
---

# Cross-encoder for {backend}

The cross-encoder of `models/reranker`{rounded}. It reads pairs of up to {max_length} tokens. Compare scores only
between passages of one query.

## Use

With only the tokenizer and the runtime:

```python
import numpy as np
{imports}
from tokenizers import Tokenizer

folder = "models/export/{backend}"
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.enable_truncation({max_length})
tokenizer.enable_padding(pad_id={pad_id}, pad_token="{pad_token}")
pairs = tokenizer.encode_batch([("your question", "a passage"), ("your question", "another passage")])
columns = {columns}
inputs = {{name: np.array([getattr(pair, column) for pair in pairs]) for name, column in columns.items()}}
{compute}
print(scores)
```

{exact}From the folder of the project; the model then reads excerpts of long passages:

```bash
python -m stages.rerank --model models/export/{backend} --query "your question" passages.txt
```

With a version of optimum that suits the installed transformers, Sentence Transformers loads the files, too:
`CrossEncoder("models/export/{backend}", backend="{library}", model_kwargs={{"file_name": "{file}"}})`.

## Measured

Measured on excerpts of the candidates of the dev queries; all rows are from the same machine:

{measured}

{figures}
"""
EXACT = """OpenVINO computes {what} in bfloat16 by default where the processor has it. For {scores}, at the speed
in the table below, let it compute in float32:
`Core().compile_model(path, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})`.

"""
RUNTIMES = {
    "openvino": (
        "from openvino import Core",
        'model = Core().compile_model(f"{{folder}}/{file}", "CPU")\nscores = model(inputs)["scores"]',
    ),
    "onnx": (
        "from onnxruntime import InferenceSession",
        'model = InferenceSession(f"{{folder}}/{file}")\n(scores,) = model.run(["scores"], inputs)',
    ),
}
"""The import and the computation of the program in the card, by library."""
COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Names of a model's inputs in the tokenizers library."""


def model_card(base: str, params: Mapping[str, object], figures: Mapping[str, float | str]) -> str:
    """The model card of the reranker in Markdown.

    Args:
        base: name of the base model.
        params: parameters of the training.
        figures: measurements of the training; has `groups`, `pairs`, and NDCG@10 on dev before and after.
    """
    return RERANKER_CARD.format(
        base=base,
        verdict=dev_verdict(figures),
        queries=figures["groups"],
        pairs=figures["pairs"],
        figures=two_columns("measured", figures),
        params=two_columns("parameter", params),
    )


def dev_verdict(figures: Mapping[str, float | str]) -> str:
    """A sentence on what fine-tuning did to the cross-encoder on dev queries.

    Args:
        figures: NDCG@10 of the cross-encoder on the same dev queries as `dev_ndcg@10_before` and `dev_ndcg@10_best`.
    """
    before, after = float(figures["dev_ndcg@10_before"]), float(figures["dev_ndcg@10_best"])
    change = f"from {before:.3f} to {after:.3f}"
    if after > before:
        return f"Fine-tuning raised NDCG@10 of the cross-encoder on the dev queries that chose its checkpoint {change}."
    return (
        f"Fine-tuning made the cross-encoder no better on dev (NDCG@10 {change}): the base model as it is may serve "
        "you better; try a lower learning rate or more training queries."
    )


def two_columns(head: str, values: Mapping[str, object]) -> str:
    """Names and values as a table in Markdown; floats have four significant digits."""

    def show(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "\n".join(
        [f"| {head} | value |", "|---|---|", *(f"| {key} | {show(value)} |" for key, value in values.items())]
    )


class Measurement(NamedTuple):
    """Quality and speed of one way to compute the scores."""

    backend: str
    """The library and the number format."""
    ndcg: float
    """NDCG@10."""
    pairs_per_second: float


def export_card(
    backend: str,
    file: str,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[str],
    max_length: int,
    measurements: Sequence[Measurement],
    figures: Mapping[str, object],
) -> str:
    """The model card of an exported cross-encoder in Markdown.

    Args:
        backend: see `reranker.inference.export.FILES`.
        file: the graph, relative to the folder of the card.
        tokenizer: the model's tokenizer.
        inputs: names of the graph's inputs.
        max_length: tokens of a pair.
        measurements: first torch in float32, then the graph in its library's default precision, then the graph in
            float32 if the default is another.
        figures: further facts about the measurement.
    """
    library, _, rounded = backend.partition("-")
    exact = EXACT.format(
        what="what is not in int8" if rounded else "the model",
        scores="what int8 alone costs" if rounded else "the scores of torch in float32",
    )
    imports, compute = RUNTIMES[library]
    return EXPORT_CARD.format(
        library=library,
        backend=backend,
        rounded=", whose matrix products are in int8" if rounded else "",
        max_length=max_length,
        imports=imports,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        columns={name: COLUMNS[name] for name in inputs},
        compute=compute.format(file=file),
        exact=exact if library == "openvino" else "",
        file=PurePosixPath(file).name,
        measured=_table(measurements),
        figures=two_columns("measurement", figures),
    )


def _table(measurements: Sequence[Measurement]) -> str:
    """A table in Markdown that compares each row with the first."""
    torch, *_ = measurements
    return "\n".join(
        [
            "| computed by | NDCG@10 | difference | pairs a second | times as fast |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {each.backend} | {each.ndcg:.4f} | {each.ndcg - torch.ndcg:+.4f} "
                f"| {each.pairs_per_second:.0f} | {each.pairs_per_second / torch.pairs_per_second:.2f} |"
                for each in measurements
            ),
        ]
    )
