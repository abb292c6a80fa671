"""A full disk under the data folder: one clear error, nothing half-written, and everything goes on when there is room."""
import contextlib
import os
import subprocess
import time

import pytest

from harness import QUICK_JOB, Server, write_tiny_model

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={16 * MIB}", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def filled(folder, leave):
    """Takes all of the disk's room but `leave` bytes."""
    ballast = folder / "ballast"
    state = os.statvfs(folder)
    ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - leave)))
    yield
    ballast.unlink()


def test_a_job_on_a_full_disk_fails_promptly_and_resumes(small_disk, tiny_model, tmp_path):
    with Server(small_disk / "data") as server:
        server.submit(tiny_model, *QUICK_JOB, "--validate-only", calibration=None)  # the upload alone
        with filled(small_disk, leave=300_000):
            job = server.submit(tiny_model, *QUICK_JOB, calibration=None)
            began = time.monotonic()
            server.ptq("watch", job, code=1, timeout=30)
            assert time.monotonic() - began < 20
            status = server.status(job)
            assert status["state"] == "FAILED" and status["error"]["code"] == "RESOURCE_EXHAUSTED", status
            assert "space" in status["error"]["message"], status
        server.ptq("resume", job)
        server.ptq("watch", job)
        server.ptq("download", job, tmp_path / "out")
        assert (tmp_path / "out" / "config.json").exists()


def test_a_full_disk_can_be_emptied_by_deleting_jobs(small_disk, tiny_model):
    with Server(small_disk / "data") as server:
        job = server.submit(tiny_model, *QUICK_JOB, calibration=None)
        server.ptq("watch", job)
        with filled(small_disk, leave=0):
            before = os.statvfs(small_disk).f_bavail
            server.ptq("delete", job)
            deadline = time.monotonic() + 20
            while os.statvfs(small_disk).f_bavail * 4096 < before * 4096 + MIB and time.monotonic() < deadline:
                time.sleep(0.2)
            assert os.statvfs(small_disk).f_bavail > before


def test_an_upload_to_a_full_disk_says_so_and_leaves_nothing(small_disk, tmp_path):
    model = write_tiny_model(tmp_path / "model")
    with Server(small_disk / "data") as server:
        with filled(small_disk, leave=200_000):
            result = server.ptq("submit", model, *QUICK_JOB, code=4)
            assert "space" in result.stderr, result.stderr
            assert len(result.stderr.strip().splitlines()) <= 3, result.stderr
        server.submit(model, *QUICK_JOB, calibration=None)
