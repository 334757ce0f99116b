"""Tables are not read before somebody asks for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from qedit.cache.format.tables import write_table

READ = """
import os, sys
from pathlib import Path
from qedit.cache.format.tables import read_table, table_blocks
path = Path(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
rows = len(read_table(path)), sum(map(len, table_blocks(path)))
print(rows, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_is_left_that_could_outlive_the_process(tmp_path: Path) -> None:
    """One of Arrow's own that holds a buffer while Python ends turns any exit code into 134."""
    path = tmp_path / "some.parquet"
    write_table(path, pa.table({"key": ["a", "b"], "many": [[{"n": 1}], [{"n": 2}, {"n": 3}]]}))
    told = subprocess.run(
        [sys.executable, "-c", READ, path], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "(2, 2) 0"
