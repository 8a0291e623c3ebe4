"""Rows as Ray tasks: resources, errors, a machine and a process that die; real clusters on this machine, fake dubs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from batch_jobs import fake_work, make_job, manifest, run, scripted_rows, written

from lipdub.batch import RowResult, State, Step, Task, check_manifest, make_plan
from lipdub.batch.loop import Progress
from lipdub.errors import ClusterFailed

pytest.importorskip("ray")
TESTS = str(Path(__file__).parent)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_job(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def cluster():
    """Two machines with one processor each, as processes of this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", TESTS)  # where its workers find the fake work
        import ray
        from ray.cluster_utils import Cluster

        store = 100 * 2**20
        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store, "include_dashboard": False})
        machines.add_node(num_cpus=1, object_store_memory=store)
        ray.init(address=machines.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield machines
        finally:
            ray.shutdown()
            machines.shutdown()


def planned(folder: Path, *scripts: str) -> tuple[State, tuple[Step, ...]]:
    path = manifest(folder, *scripted_rows(folder, *scripts))
    state = State(path)
    return state, make_plan(check_manifest(path, owned=lambda place, now: state.wrote(place, now) is not None), state)


class Noted:
    """A watch that keeps what it is told, and does something at every start."""

    def __init__(self, at_progress=None) -> None:
        self.stages: set[str] = set()
        self.at_progress = at_progress

    def started(self, step: Step) -> None:
        pass

    def progress(self, step: Step, stage: str, done: int, total: int | None) -> None:
        self.stages.add(stage)
        if self.at_progress is not None:
            self.at_progress()

    def finished(self, step: Step, result: RowResult, again: bool) -> None:
        pass


def test_rows_run_on_the_cluster_and_fail_alone(cluster, folder):
    """A row that dies once is started again by Ray; one whose process dies after the output is known to be done."""
    from lipdub.batch.cluster import RayPool

    state, plan = planned(folder, "good", "bad", "die-once", "die-after", "bug", "sleep 0.5")
    watch = Noted()
    results = run(plan, RayPool("auto", work=fake_work), state, watch=watch)
    by_line = {result.row.line: result for result in results}
    assert {line: result.ok for line, result in by_line.items()} == {2: True, 3: False, 4: True, 5: True, 6: False, 7: True}
    assert "ZeroDivisionError" in by_line[6].why
    assert sorted(set(written(folder))) == sorted(written(folder))
    assert "redrawing" in watch.stages
    assert (folder / "o3.mp4").exists()
    assert not list(folder.glob(".*"))
    assert by_line[5].recovered


def test_what_a_task_is_given(cluster, folder, monkeypatch):
    """Paths that hold on every machine, as many threads as processors, and no GPU where there is none."""
    from lipdub.batch.cluster import RayPool

    monkeypatch.chdir(folder)
    path = manifest(folder, *(f"{line},{threads}" for line, threads in zip(scripted_rows(folder, "good", "good"), ("", 64), strict=True)),
                    head="video,speech,output,threads")  # fmt: skip
    state = State(Path(path.name))
    plan = make_plan(check_manifest(Path(path.name)), state)
    assert not plan[0].row.video.is_absolute()
    results = run(plan, RayPool("auto", work=fake_work, devices=["auto"]), state)
    assert {result.row.video.is_absolute() for result in results} == {True}
    assert {result.row.options.threads for result in results} == {1}
    with pytest.raises(ClusterFailed, match="no GPU"):
        RayPool("auto", devices=["cuda"])


def test_progress_that_is_told_late_is_told(cluster, monkeypatch):
    """On a busy machine the answer takes longer than it is waited for."""
    import ray

    from lipdub.batch import cluster as pools

    class Slow(pools._Board):
        def take(self):
            time.sleep(2.5)
            return super().take()

    monkeypatch.setattr(pools, "_Board", Slow)
    pool = pools.RayPool("auto", work=fake_work)
    try:
        ray.get(pool._board.tell.remote(7, ("redrawing", 1, 2)))
        told, until = [], time.monotonic() + 20
        while not told and time.monotonic() < until:
            told += pool.events(0.1)
        assert told == [Progress(7, "redrawing", 1, 2)]
    finally:
        pool.stop()


def test_an_interruption_cancels_the_tasks(cluster, folder):
    from lipdub.batch.cluster import RayPool

    state, plan = planned(folder, "sleep 60", "good")

    def stop() -> None:
        # Progress is told before there is a file, and then no more: not to wait for one is to miss it now and then.
        until = time.monotonic() + 15
        while not list(folder.glob(".o0.*")) and time.monotonic() < until:
            time.sleep(0.02)
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(plan, RayPool("auto", work=fake_work), state, watch=Noted(stop))
    assert time.monotonic() - started < 30
    assert not list(folder.glob(".*"))
    assert {entry.state for entry in State(folder / "manifest.csv").entries.values()} <= {"done", "pending"}


def test_a_machine_that_dies_costs_no_row(cluster, folder):
    from lipdub.batch.cluster import RayPool

    state, plan = planned(folder, *["sleep 0.4"] * 6)
    victims = [node for node in cluster.list_all_nodes() if node is not cluster.head_node][-1:]

    def kill_one() -> None:
        if victims and list(folder.glob("o[0-9].mp4")):
            cluster.remove_node(victims.pop(), allow_graceful=False)

    results = run(plan, RayPool("auto", work=fake_work), state, watch=Noted(kill_one))
    assert not victims
    assert [result.why for result in results] == [""] * 6
    names = written(folder)
    assert sorted(names) == sorted(set(names))
    assert len(list(folder.glob("o[0-9].mp4"))) == 6
    assert {entry.state for entry in State(folder / "manifest.csv").entries.values()} == {"done"}


def test_another_version_on_a_machine_is_said(folder):
    from lipdub.batch.cluster import _do

    plan = planned(folder, "good")[1]
    result = _do(Task(0, plan[0].row), fake_work, None, "0.0.0")
    assert "install the same version everywhere" in result.why
    assert not result.transient


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_a_cluster_that_is_not_there_is_said_at_once(address, monkeypatch):
    """Ray itself would try for minutes."""
    import ray

    from lipdub.batch.cluster import RayPool

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterFailed, match=r"cannot reach a Ray cluster at '.*127.0.0.1:1'") as caught:
        RayPool(address)
    assert "\n" not in str(caught.value)
