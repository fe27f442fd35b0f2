"""Run a cell that leaves no trace if it fails.

With `transactional=True`, a cell that fails, runs too long or is killed is undone:
variables and files in /mnt/data are as before it, and its processes end. Use it for
steps that change several things, so that a model can correct its code and run it
again. What the cell sent to tools or to the network is not undone. It needs the
embedded sandbox or `aca-sessions serve`.
"""

from aca_sessions import InteractiveSession

STEP = """
orders.append("table")
open("orders.txt", "w").write("written half")
stock["table"] -= 1
"""

with InteractiveSession() as session:
    session.run("orders, stock = ['lamp'], {'lamp': 4}")
    result = session.run(STEP, transactional=True)
    print(result.error, "|", result.state)
    print(session.run("import os; orders, os.listdir()"))

# prints:
# KeyError: 'table' | rolled_back
# (['lamp'], [])
