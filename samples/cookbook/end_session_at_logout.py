"""End a user's session at logout.

`pool.terminate(name)` ends the session at once, with its variables, files and
processes, even if a cell still runs in it. It does nothing for a name that has no
session. A later cell under the same name starts a new session. Sessions of users
who never log out end after `SessionPool:SessionTimeoutMinutes` (30) without use,
and all end when the pool closes.
"""

import asyncio

from aca_sessions import SessionPool, open_pool, session_name

SECRET = "at least 16 characters, from your secret store"


async def logout(pool: SessionPool, user: str) -> None:
    await pool.terminate(session_name(user, salt=SECRET))


async def main() -> None:
    async with open_pool() as pool:
        async with pool.session(session_name("ann", salt=SECRET)) as session:
            await session.run("secret = 'plum'; open('a.txt', 'w').write(secret)")
        print("sessions:", len(pool.active()))
        await logout(pool, "ann")
        print("sessions:", len(pool.active()))
        async with pool.session(session_name("ann", salt=SECRET)) as session:
            print(await session.run("import os; 'secret' in globals(), os.listdir()"))


asyncio.run(main())

# prints:
# sessions: 1
# sessions: 0
# (False, [])
