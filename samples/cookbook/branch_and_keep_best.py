"""Try three variants in branches, and keep the best.

`branch(n)` makes sessions that continue from the current state, each with its own
variables and files. The data is loaded once: branches share its memory until they
change it. Cells of a session and its branches take turns, and together they have
the limits of one session. A branch ends with its `with` block. Continue in the best
one, or run the best variant again in the original.
"""

from contextlib import ExitStack

from aca_sessions import InteractiveSession

VARIANTS = (
    "sum(data) / len(data)",
    "sorted(data)[len(data) // 2]",
    "(min(data) + max(data)) / 2",
)

with InteractiveSession() as session, ExitStack() as stack:
    session.run("data = [10, 11, 12, 13, 90]")  # a slow preparation
    branches = [stack.enter_context(one) for one in session.branch(len(VARIANTS))]
    errors = []
    for branch, variant in zip(branches, VARIANTS, strict=True):
        branch.run(f"guess = {variant}")
        errors.append(branch.run("sum(abs(one - guess) for one in data)").value)
    print(errors)

    best = branches[errors.index(min(errors))]
    print(best.run("guess"))

# prints:
# [125.6, 82, 194.0]
# 12
