"""The schema of `sources` in params.yaml: what may be said of each kind of source."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Keys of params.yaml: a key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SourceSection(Section):
    """What every source may say."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """How much rather its queries are trained on than those of another source, where not all are."""


class PackageSource(SourceSection):
    """Docstrings of installed packages."""

    packages: Annotated[list[Name], Field(min_length=1)]


OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Names = Annotated[list[Name], OneOrMore]
Files = Annotated[Names, Field(min_length=1)]
"""Paths or patterns; one may stand alone."""


class ColumnNames(Section):
    """Which column is what."""

    def names(self) -> list[str]:
        """Those that the table must have."""
        named = [[value] if isinstance(value, str) else value or [] for value in self.model_dump().values()]
        return [name for names in named for name in names]


class JudgmentColumns(ColumnNames):
    """Of a table of judgments; without a label, every passage is right."""

    query: Name
    passage: Name
    label: Name | None = None


class Columns(JudgmentColumns):
    """Of a table of examples; each of the negatives is a column of passages that are wrong."""

    negatives: Names = []


class CorpusColumns(ColumnNames):
    """Of a table of passages."""

    id: Name
    text: Name
    title: Name | None = None


class QueryColumns(ColumnNames):
    """Of a table of queries."""

    id: Name
    text: Name


Given = Literal["unsplit", "train", "dev", "test"]
Alone = BeforeValidator(lambda value: value if isinstance(value, dict) else {"unsplit": value})
"""What stands without a split is split by prepare."""
SplitFiles = Annotated[dict[Given, Files], Field(min_length=1), Alone]
Header = Annotated[list[Name], Field(min_length=1)] | None
"""Names of the columns of CSV and TSV files without a first line of names."""


class FileSource(SourceSection):
    """Files of examples."""

    files: SplitFiles
    columns: Columns
    header: Header = None
    quoted: bool = True


class Corpus(Section):
    """Files of passages."""

    files: Files
    columns: CorpusColumns
    header: Header = None
    quoted: bool = True


class Queries(Section):
    """Files of queries."""

    files: Files
    columns: QueryColumns
    header: Header = None
    quoted: bool = True


class Judgments(Section):
    """Files that name a query and a passage by their ids, and how relevant it is."""

    files: SplitFiles
    columns: JudgmentColumns
    header: Header = None
    quoted: bool = True


class CollectionSource(SourceSection):
    """A corpus, queries and judgments in files of their own."""

    corpus: Corpus
    queries: Queries
    judgments: Judgments


class BeirSource(SourceSection):
    """A folder as BEIR lays them out."""

    beir: Name


class HubSource(SourceSection):
    """Rows of a data set of the Hugging Face Hub; `split` has the data set's own names of the splits."""

    hub: Name
    config: Name | None = None
    split: Annotated[dict[Given, Name], Field(min_length=1), Alone]
    revision: Name | None = None
    limit: Count | None = None
    columns: Columns


Source = PackageSource | FileSource | CollectionSource | BeirSource | HubSource
KINDS: dict[str, type[Section]] = {
    "packages": PackageSource,
    "files": FileSource,
    "corpus": CollectionSource,
    "beir": BeirSource,
    "hub": HubSource,
}
"""The key that tells what a source is."""


def kind_of(kinds: Mapping[str, type[Section]]) -> Callable[[object], str | None]:
    """What tells the kind of an entry: the only one of these keys that it has; None where there is not one."""

    def kind(entry: object) -> str | None:
        if isinstance(entry, Section):
            return next(kind for kind, model in kinds.items() if isinstance(entry, model))
        named = [kind for kind in kinds if isinstance(entry, dict) and kind in entry]
        return named[0] if len(named) == 1 else None

    return kind


AnySource = Annotated[
    Annotated[PackageSource, Tag("packages")]
    | Annotated[FileSource, Tag("files")]
    | Annotated[CollectionSource, Tag("corpus")]
    | Annotated[BeirSource, Tag("beir")]
    | Annotated[HubSource, Tag("hub")],
    Discriminator(kind_of(KINDS)),
]
