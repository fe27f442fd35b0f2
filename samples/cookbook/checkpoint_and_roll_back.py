"""Take a checkpoint before a risky step, and roll back.

A checkpoint keeps the variables, by a fork of the interpreter, and a copy of the
files in /mnt/data, up to 64 MB of them. `rollback` returns to it and keeps it;
`undo` returns to the latest one and removes it. `checkpoint.left_behind` lists what
is not saved, such as open sockets. A session with running threads refuses with
`SnapshotError`. If the interpreter dies, the session continues from the latest
checkpoint by itself. Azure has no checkpoints
([more](../guides/interactive.md#time-travel)).
"""

from aca_sessions import InteractiveSession

with InteractiveSession() as session:
    session.run("rows = [3, 1, 2]; open('rows.txt', 'w').write('3 1 2')")
    before = session.checkpoint("before cleaning")

    session.run("import os; rows.clear(); os.remove('rows.txt')")
    print(session.run("rows, os.listdir()"))

    session.rollback(before)
    print(session.run("import os; rows, os.listdir()"))

    result = session.run("os._exit(1)")  # the interpreter ends
    print(result.state)
    print(session.run("rows"))

# prints:
# ([], [])
# ([3, 1, 2], ['rows.txt'])
# rolled_back: exit, to the last checkpoint
# [3, 1, 2]
