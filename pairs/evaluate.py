"""evaluate: the fine-tuned cross-encoder against the base model, on the test pairs.

python -m pairs.evaluate
"""

import sys
import time
from collections.abc import Sequence

from reranker.progress import quiet_libraries, run_stage

quiet_libraries()

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sklearn.linear_model import LogisticRegression

from reranker.models import loading, resolve
from reranker.pairs import measures
from reranker.pairs.params import read_params
from reranker.records import PAIR_COLUMNS, PATHS, read_table, record_time, require, write_json, write_table
from reranker.scoring import choose_precision, embed, load_biencoder, score_pairs


def main(arguments: Sequence[str]) -> str:
    started = time.monotonic()
    params = read_params(PATHS.pair_params)
    task = params.task
    pairs = read_table(PATHS.pairs, PAIR_COLUMNS)
    require(PATHS.pair_model)
    with loading(str(PATHS.pair_model)):
        model = CrossEncoder(str(PATHS.pair_model))
    precision = choose_precision(params.precision)
    test = pairs["split"] == "test"
    labels = pairs["label"].to_numpy(float)

    base = load_biencoder(resolve(params.base_model), params.max_length)
    left, right = (_vectors(base, pairs[column].tolist(), precision) for column in ("first", "second"))
    watched = pairs[pairs["split"] != "train"]
    scores = score_pairs(
        model, watched["first"].tolist(), watched["second"].tolist(), label="evaluate: pairs", precision=precision
    )
    ours, theirs = np.zeros(len(pairs)), (left * right).sum(axis=1)
    ours[watched.index] = scores.argmax(axis=1) if task == "class" else scores
    baseline = "zero_shot"
    if task == "class":
        baseline = "linear_probe"
        features = np.hstack([np.abs(left - right), left * right])
        probe = LogisticRegression(max_iter=2_000).fit(
            features[pairs["split"] == "train"], labels[pairs["split"] == "train"]
        )
        theirs = probe.predict(features)

    systems: dict[str, dict[str, float]] = {}
    for name, found in ((baseline, theirs), ("fine_tuned", ours)):
        systems[name] = {measure: of(labels[test], found[test]) for measure, of in measures.MEASURES[task].items()}
        if task == "duplicates":
            dev = pairs["split"] == "dev"
            cut = measures.threshold(labels[dev], found[dev])
            systems[name] |= measures.at_threshold(labels[test], found[test], cut)
    seed = params.statistics_seed
    headline = measures.HEADLINE[task]
    gain = measures.compare(task, labels[test], ours[test], theirs[test], seed=seed)
    ends = {
        name: measures.interval(task, labels[test], found[test], seed=seed)
        for name, found in ((baseline, theirs), ("fine_tuned", ours))
    }
    figures: dict[str, float] = {"pairs": int(test.sum())}
    for name, values in systems.items():
        suffix = "" if name == "fine_tuned" else f"_{name}"
        figures |= {f"{measure}{suffix}": value for measure, value in values.items()}
        figures |= {f"{headline}{suffix}_low": ends[name].low, f"{headline}{suffix}_high": ends[name].high}
    figures |= {f"gain_vs_{baseline}{end}": value for end, value in zip(("", "_low", "_high"), gain[:3], strict=True)}
    figures[f"p_vs_{baseline}"] = gain.p
    write_json({"pairs": figures}, PATHS.pair_metrics / "evaluate.json")
    table = pairs.assign(**{baseline: theirs, "fine_tuned": ours})[test]
    write_table(table[["pair_id", "label", baseline, "fine_tuned"]], PATHS.pairs_scored)
    record_time("pairs_evaluate", time.monotonic() - started)
    lines = [f"{'':<14}{headline} [95%]"]
    lines += [
        f"{name:<14}{values[headline]:.3f} [{ends[name].low:.3f}, {ends[name].high:.3f}]"
        for name, values in systems.items()
    ]
    lines.append(f"{'gain':<14}{gain.gain:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], p = {gain.p:.4f}")
    return "\n".join(lines) + f"\nevaluate: {int(test.sum()):,} pairs -> {PATHS.pair_metrics}"


def _vectors(model: SentenceTransformer, texts: list[str], precision: str) -> NDArray[np.float32]:
    distinct = list(dict.fromkeys(texts))
    place = {text: number for number, text in enumerate(distinct)}
    return embed(model, distinct, label="evaluate: texts", precision=precision)[[place[text] for text in texts]]


if __name__ == "__main__":
    sys.exit(run_stage(main, sys.argv[1:]))
