"""A file of a finished project is damaged at random: nothing wrong comes of it, and no traceback.

Every seed is one case: a file, a mutation, some commands, and the advice that they give. To see
more of them, or one again:

    pytest tests/promises/test_mutations.py -m exhaustive -n 0 -s --mutations 1000:2000
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from crash_server import CrashServer
from mutation_cases import BAD, Project, run_case, table_of


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with CrashServer() as server:
        yield Project(tmp_path_factory.mktemp("mutations"), server)


def _assert_nothing_bad(project: Project, seeds: range, *, show: bool = False) -> None:
    cases = []
    for seed in seeds:
        cases.append(run_case(project, seed))
        if show and cases[-1].verdict in BAD:
            print(cases[-1].told(), flush=True)
    table = table_of(cases)
    if show:
        print(table)
    bad = [case.told() for case in cases if case.verdict in BAD]
    assert not bad, "\n\n".join([*bad, table])


@pytest.mark.full
def test_sixty_mutations(project: Project) -> None:
    _assert_nothing_bad(project, range(60))


@pytest.mark.exhaustive
def test_many_mutations(project: Project, request: pytest.FixtureRequest) -> None:
    first, last = map(int, request.config.getoption("--mutations").split(":"))
    os.nice(10)
    _assert_nothing_bad(project, range(first, last), show=True)
