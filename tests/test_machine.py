"""What the machine has, as far as the system tells."""

import os
import platform
from pathlib import Path

import pytest

from medplan.machine import _left_of_shares, free_disk, tune_allocator


def test_free_disk_of_a_folder_to_come_is_that_of_its_parent(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.05)


def test_free_memory_is_no_more_than_what_is_left_of_the_jobs_share(tmp_path: Path) -> None:
    job = tmp_path / "system" / "job_7" / "step_0"
    job.mkdir(parents=True)
    for group, most, used in ((job, "max", 5), (job.parent, "4000", 1000), (job.parents[1], "9000", 8000)):
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text("anon 1\ninactive_file 100\nactive_file 7\n")
    own = tmp_path / "cgroup"
    own.write_text("1:cpu:/\n0::/system/job_7/step_0\n")
    assert _left_of_shares(tmp_path, own) == [3100, 1100]
    assert _left_of_shares(tmp_path, tmp_path / "none") == []


def test_the_allocator_is_left_alone_where_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert tune_allocator() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not tune_allocator()
