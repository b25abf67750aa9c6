"""The schema of `sources` in params.yaml: the keys that each kind of source may have."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

Count = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=8, le=8192)]
"""Length in tokens."""
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A section of params.yaml. A key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SourceSection(Section):
    """The keys that every source may have."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """How much more often its queries are drawn than those of a source of weight 1, where not all are trained on."""


class PackageSource(SourceSection):
    """Docstrings of installed packages."""

    packages: Annotated[list[Name], Field(min_length=1)]


OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Names = Annotated[list[Name], OneOrMore]
Retriever = Annotated[Names, Field(min_length=1)]
"""`bm25` or models. A single one need not be in a list."""
Files = Annotated[Names, Field(min_length=1)]
"""Paths or patterns. A single one need not be in a list."""


class ColumnNames(Section):
    """The names of the columns of a table, by what they contain."""

    def names(self) -> list[str]:
        """The names of the columns that the table must have."""
        values = [[value] if isinstance(value, str) else value or [] for value in self.model_dump().values()]
        return [name for names in values for name in names]


class JudgmentColumns(ColumnNames):
    """Columns of a table of judgments. Without a label, every passage is relevant."""

    query: Name
    passage: Name
    label: Name | None = None


class Columns(JudgmentColumns):
    """Columns of a table of examples. Each of the negatives is a column of passages that are not relevant."""

    negatives: Names = []


class CorpusColumns(ColumnNames):
    """Columns of a table of passages."""

    id: Name
    text: Name
    title: Name | None = None


class QueryColumns(ColumnNames):
    """Columns of a table of queries."""

    id: Name
    text: Name


SplitName = Literal["unsplit", "train", "dev", "test"]
UnsplitByDefault = BeforeValidator(lambda value: value if isinstance(value, dict) else {"unsplit": value})
"""Files without the name of a split are unsplit, which means that prepare splits them."""
SplitFiles = Annotated[dict[SplitName, Files], Field(min_length=1), UnsplitByDefault]
Header = Annotated[list[Name], Field(min_length=1)] | None
"""The names of the columns of CSV and TSV files that do not begin with a line of names."""


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
    """Files that say how relevant a passage is for a query, both named by their ids."""

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
    """A folder in the layout of BEIR."""

    beir: Name


class HubSource(SourceSection):
    """Rows of a data set of the Hugging Face Hub. The values of `split` are the data set's own names of its splits."""

    hub: Name
    config: Name | None = None
    split: Annotated[dict[SplitName, Name], Field(min_length=1), UnsplitByDefault]
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
"""The schema of each kind of source, by the key that tells the kind."""


def kind_of(kinds: Mapping[str, type[Section]]) -> Callable[[object], str | None]:
    """A function that returns the one key of `kinds` that an entry has, or None if it has none or several."""

    def kind(entry: object) -> str | None:
        if isinstance(entry, Section):
            return next(kind for kind, model in kinds.items() if isinstance(entry, model))
        keys = [kind for kind in kinds if isinstance(entry, dict) and kind in entry]
        return keys[0] if len(keys) == 1 else None

    return kind


AnySource = Annotated[
    Annotated[PackageSource, Tag("packages")]
    | Annotated[FileSource, Tag("files")]
    | Annotated[CollectionSource, Tag("corpus")]
    | Annotated[BeirSource, Tag("beir")]
    | Annotated[HubSource, Tag("hub")],
    Discriminator(kind_of(KINDS)),
]
