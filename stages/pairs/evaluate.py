"""evaluate: compare the fine-tuned cross-encoder with the base model on the test pairs.

python -m stages.pairs.evaluate
"""

import sys
import time
from collections.abc import Sequence

from reranker.common.progress import quiet_libraries, run_stage

quiet_libraries()

import numpy as np
import pandas as pd
from sentence_transformers import CrossEncoder
from sklearn.linear_model import LogisticRegression

from reranker.common.artifacts import PAIR_COLUMNS, PATHS, read_table, record_time, require, write_json, write_table
from reranker.common.model_files import loading, resolve
from reranker.inference.compute import Compute, choose_compute
from reranker.inference.loading import load_biencoder
from reranker.inference.scoring import embed, score_pairs
from reranker.pairs import metrics
from reranker.pairs import model as pair_model
from reranker.pairs.metrics import Values
from reranker.pairs.model import NAME as SHIPPED
from reranker.pairs.params import read_params


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = read_params(PATHS.pair_params)
    task = params.task
    pairs = read_table(PATHS.pairs, PAIR_COLUMNS)
    require(PATHS.pair_model)
    compute = choose_compute(params.precision, backend="torch")
    labels = pairs["label"].to_numpy(float)
    test = (pairs["split"] == "test").to_numpy()
    predictions = (
        _classes(pairs, resolve(params.base_model), params.max_length, compute)
        if task == "class"
        else _scores(pairs, compute)
    )
    baseline = next(iter(predictions))
    systems: dict[str, dict[str, float]] = {}
    for name, values in predictions.items():
        systems[name] = {measure: of(labels[test], values[test]) for measure, of in metrics.MEASURES[task].items()}
        if task == "duplicates":
            dev = (pairs["split"] == "dev").to_numpy()
            cut = metrics.threshold(labels[dev], values[dev])
            systems[name] |= metrics.at_threshold(labels[test], values[test], cut)
    seed = params.statistics_seed
    headline = metrics.HEADLINE[task]
    gain = metrics.compare(task, labels[test], predictions[SHIPPED][test], predictions[baseline][test], seed=seed)
    ends = {name: metrics.interval(task, labels[test], values[test], seed=seed) for name, values in predictions.items()}
    figures: dict[str, float] = {"pairs": int(test.sum())}
    for name, measures in systems.items():
        suffix = "" if name == SHIPPED else f"_{name}"
        figures |= {f"{measure}{suffix}": value for measure, value in measures.items()}
        figures |= {f"{headline}{suffix}_low": ends[name].low, f"{headline}{suffix}_high": ends[name].high}
    figures |= {f"gain_vs_{baseline}{end}": value for end, value in zip(("", "_low", "_high"), gain[:3], strict=True)}
    figures[f"p_vs_{baseline}"] = gain.p
    write_json({"pairs": figures}, PATHS.pair_metrics / "evaluate.json")
    write_table(pairs[["pair_id", "label"]].assign(**predictions)[test], PATHS.pairs_scored)
    record_time("pairs_evaluate", time.monotonic() - started)
    lines = [f"{'':<14}{headline} [95%]"]
    lines += [
        f"{name:<14}{values[headline]:.3f} [{ends[name].low:.3f}, {ends[name].high:.3f}]"
        for name, values in systems.items()
    ]
    lines.append(f"{'gain':<14}{gain.gain:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], p = {gain.p:.4f}")
    return "\n".join(lines) + f"\nevaluate: {int(test.sum()):,} pairs -> {PATHS.pair_metrics}"


def _scores(pairs: pd.DataFrame, compute: Compute) -> dict[str, Values]:
    """The scores of each system for the pairs of dev and test; pairs of train have 0."""
    model = pair_model.PairModel(PATHS.pair_model, compute)
    held_out = (pairs["split"] != "train").to_numpy()
    features = model.features(pairs["first"][held_out].tolist(), pairs["second"][held_out].tolist())
    features[SHIPPED] = pair_model.fuse(features, model.weights)
    scores = {name: np.zeros(len(pairs)) for name in features}
    for name, values in features.items():
        scores[name][held_out] = values
    return scores


def _classes(pairs: pd.DataFrame, base: str, max_length: int, compute: Compute) -> dict[str, Values]:
    """The classes of the test pairs by a linear probe of the base model, and by the cross-encoder; others have 0."""
    with loading(str(PATHS.pair_model)):
        model = CrossEncoder(str(PATHS.pair_model))
    biencoder = load_biencoder(base, max_length)
    left, right = (embed(biencoder, pairs[name].tolist(), label="base model") for name in ("first", "second"))
    vectors = np.hstack([left, right, np.abs(left - right), left * right])
    train, test = ((pairs["split"] == split).to_numpy() for split in ("train", "test"))
    probe = LogisticRegression(max_iter=2_000).fit(vectors[train], pairs["label"][train])
    texts = pairs["first"][test].tolist(), pairs["second"][test].tolist()
    scores = score_pairs(model, *texts, label="cross-encoder", compute=compute)
    classes = {name: np.zeros(len(pairs)) for name in ("linear_probe", SHIPPED)}
    classes["linear_probe"][test] = probe.predict(vectors[test])
    classes[SHIPPED][test] = scores.argmax(axis=1)
    return classes


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
