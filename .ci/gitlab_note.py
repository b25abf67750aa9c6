"""Write review.md as a note of the merge request, or write the note anew: for .gitlab/review.gitlab-ci.yml."""

import json
import os
import urllib.request
from pathlib import Path

MARKER = "<!-- reranker-review -->"


def call(method: str, url: str, **fields: str) -> list[dict]:
    """What GitLab answers."""
    request = urllib.request.Request(  # noqa: S310 - the address is GitLab's own variable
        url,
        data=json.dumps(fields).encode() if fields else None,
        headers={"PRIVATE-TOKEN": os.environ["REVIEW_TOKEN"], "Content-Type": "application/json"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def main() -> None:
    """One note, by its marker."""
    project = f"{os.environ['CI_API_V4_URL']}/projects/{os.environ['CI_PROJECT_ID']}"
    notes = f"{project}/merge_requests/{os.environ['CI_MERGE_REQUEST_IID']}/notes"
    body = Path("review.md").read_text(encoding="utf-8")
    found = [note["id"] for note in call("GET", f"{notes}?per_page=100&sort=asc") if MARKER in note["body"]]
    call(*(("PUT", f"{notes}/{found[0]}") if found else ("POST", notes)), body=body)


if __name__ == "__main__":
    main()
