"""Tests of databases as the docs describe them: `dvc import-db` into data/raw, and `dvc update` for a new snapshot."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from reranker.common.source_schema import FileSource
from reranker.data.cleaning import Example
from reranker.data.sources import readers

PASSWORD = "not-to-be-seen"
QUERY = "select subject, answer from tickets order by id"
SOURCE = FileSource.model_validate(
    {"files": "data/raw/tickets.csv", "columns": {"query": "subject", "passage": "answer"}}
)

pytestmark = pytest.mark.slow


class Repository:
    """A new repository in the current folder."""

    def __init__(self) -> None:
        subprocess.run(["git", "init", "-q"], check=True)
        self.dvc("init", "-q")
        Path("data/raw").mkdir(parents=True)

    def dvc(self, *arguments: str) -> str:
        done = self.start(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dvc", *arguments]
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    def take_in(self, url: str) -> str:
        self.dvc("config", "--local", "db.tickets.url", url)
        return self.dvc("import-db", "--sql", QUERY, "--conn", "tickets", "-o", "data/raw/tickets.csv")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.chdir(tmp_path)
    return Repository()


def change(url: str, *statements: str) -> None:
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()


def fill(url: str) -> str:
    change(
        url,
        "create table tickets (id integer, subject text, answer text)",
        """insert into tickets values (2, 'Why "so"?', 'One line,
            and another'), (1, 'How?', 'Ünïcode 漢'), (3, 'Open?', null)""",
    )
    return url


def examples() -> list[Example]:
    return [example for part in readers.read(SOURCE) for example in part.examples]


def follows_the_database(repository: Repository, url: str) -> None:
    output = repository.take_in(fill(url))
    assert [(query, " ".join(passage.split())) for _, query, passage, *_ in examples()] == [
        ("How?", "Ünïcode 漢"),
        ('Why "so"?', "One line, and another"),
        ("Open?", ""),
    ]
    pointer = Path("data/raw/tickets.csv.dvc")
    before = pointer.read_text()
    output += repository.dvc("update", str(pointer))
    assert pointer.read_text() == before
    change(url, "update tickets set answer = 'So.' where id = 3")
    output += repository.dvc("update", str(pointer))
    assert pointer.read_text() != before
    assert examples()[-1].passage == "So."
    assert PASSWORD not in output + pointer.read_text() + Path("data/raw/tickets.csv").read_text()


def test_snapshot_of_sqlite_follows_the_database(repository: Repository, tmp_path: Path):
    follows_the_database(repository, f"sqlite:///{tmp_path}/tickets.db")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL server on loopback."""
    folders = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]  # Debian's are not on the path
    initdb, control = (shutil.which(name, path=os.pathsep.join(folders)) for name in ("initdb", "pg_ctl"))
    if not initdb or not control:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    user = None
    if os.geteuid() == 0:  # the server does not run as root
        if "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = "postgres"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        password = Path(folder) / "password"
        password.write_text(PASSWORD)
        for path in (Path(folder), password):
            shutil.chown(path, user or os.geteuid())
        data = f"{folder}/data"

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

        run(initdb, "-D", data, "-U", "me", "-A", "scram-sha-256", "--pwfile", str(password), "-E", "UTF8", "--no-sync")
        options = f"-h 127.0.0.1 -p {port} -k {folder}"
        run(control, "-D", data, "-l", f"{folder}/log", "-o", options, "-w", "start")
        try:
            yield f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run(control, "-D", data, "-m", "immediate", "stop")


def test_snapshot_of_postgresql_follows_the_database(repository: Repository, server: str):
    follows_the_database(repository, server)


def test_wrong_password_is_not_shown(repository: Repository, server: str):
    wrong = "also-not-to-be-seen"
    repository.dvc("config", "--local", "db.tickets.url", server.replace(PASSWORD, wrong))
    done = repository.start("import-db", "--sql", "select 1", "--conn", "tickets", "-o", "data/raw/tickets.csv")
    assert done.returncode != 0
    assert "authentication failed" in done.stderr
    assert wrong not in done.stdout + done.stderr
    assert list(Path("data/raw").glob("tickets*")) == []
