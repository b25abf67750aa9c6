"""Review a change in Markdown: say whether its NDCG@10 is a gain, a loss or noise, and what else changed.

python -m reranker.review BASE [--head REV] [--output FILE]

The exit status is 0 for `pass`, 3 for `noise`, 4 for `regression`, 5 for `incomparable`, 1 for an error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from reranker.common import revisions
from reranker.common.artifacts import PATHS, write_text
from reranker.common.errors import UserError
from reranker.common.params import Params, load_params
from reranker.review import changes
from reranker.review.freshness import stale_stages_of
from reranker.review.page import Review, review_page
from reranker.review.runs import HEADLINE, STAGE, read_run
from reranker.review.verdicts import EXIT, Rules, compare_paired, decide, most_changed

TRACKED = ("evaluate", "train", "mine", "prepare")
"""Files of metrics/ whose changes are listed; timing.json is left out, because times always change."""
NUMBER = 5
"""The number of queries that are shown with gains, and with losses."""


def main(arguments: Sequence[str]) -> int:
    """Print the review, and return the exit status of its verdict."""
    options = _parser().parse_args(arguments)
    try:
        review = make_review(options.base, options.head, load_params(PATHS.params))
        page = review_page(review)
        if options.output:
            write_text(f"{page}\n", options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page)
    return EXIT[review.finding.word]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reranker.review", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="the commit, branch or experiment to compare with")
    parser.add_argument(
        "--head", metavar="REV", help="what is reviewed: a commit or an experiment (default: workspace)"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the Markdown there, too")
    return parser


def make_review(base_name: str, head_name: str | None, params: Params) -> Review:
    """Read two revisions and compare them.

    Args:
        base_name: the name of the commit or experiment to compare with.
        head_name: the name of the reviewed one; None stands for the workspace.
        params: the parameters with the thresholds and the seed.

    Raises:
        UserError: a revision is unknown or has no figures, or the two have no query in common.
    """
    before, after = revisions.find(base_name), revisions.find(head_name) if head_name else revisions.WORKSPACE
    base, head = read_run(before), read_run(after)
    if base.per_query.index.intersection(head.per_query.index).empty:
        raise UserError(f"{base.name} and {head.name} have no test query in common; compare runs of one test split")
    results = {
        str(system): compare_paired(base.per_query[system], head.per_query[system], seed=params.evaluation.seed)
        for system in base.per_query
        if system in head.per_query
    }
    stale = stale_stages_of(after)
    reasons = changes.reasons_against(base, head, stale)
    looks = changes.count_looks(before, after)
    rules = Rules(params.review.min_gain, params.review.max_loss, params.review.alpha, params.review.test_looks)
    gained, lost = most_changed(base.per_query["reranker"], head.per_query["reranker"], NUMBER)
    figures = [change for name in TRACKED for change in changes.changed_values(base.figures[name], head.figures[name])]
    return Review(
        base=base,
        head=head,
        rules=rules,
        finding=decide(results["reranker"], rules, looks=looks, reasons=reasons),
        results=results,
        looks=looks,
        reasons=reasons,
        doubts=changes.doubts(base, head, base.lock.stale(base.params, STAGE), stale),
        params=changes.changed_values(base.params, head.params),
        data=changes.changed_data(base, head),
        code=changes.changed_code(base, head),
        figures=[change for change in figures if change.name not in HEADLINE],
        gained=gained,
        lost=lost,
        texts=changes.query_texts([*gained, *lost], head),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
