"""Many dubs from one manifest: checked as a whole, worked on by many processes or a cluster, stopped and taken up again at any moment.

manifest   the table, checked before the first frame is touched
state      the journal beside it: what became of each row
plan       what is left to do, and why
loop       hands rows to a pool, keeps the journal, tries again
local, cluster   the pools: processes of this machine, Ray
row        the unit of work; storage: files at paths and URLs
"""

from lipdub.batch.local import Workers
from lipdub.batch.lock import batch_lock, lock_path
from lipdub.batch.loop import Pool, Watch, run
from lipdub.batch.manifest import Manifest, check_manifest
from lipdub.batch.plan import Step, make_plan
from lipdub.batch.row import Task, dub_row
from lipdub.batch.rows import Row, RowResult
from lipdub.batch.state import Entry, State, state_path

__all__ = [
    "Entry", "Manifest", "Pool", "Row", "RowResult", "State", "Step", "Task", "Watch", "Workers",
    "batch_lock", "check_manifest", "dub_row", "lock_path", "make_plan", "run", "state_path",
]  # fmt: skip
