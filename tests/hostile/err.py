import asyncio, time
from aca_sessions import open_pool


async def main():
    async with open_pool() as pool, pool.session() as s:
        await asyncio.sleep(6)
    async with open_pool() as pool:
        await asyncio.sleep(5)
        async with pool.session() as s:
            await s.run("def f(n): return f(n+1)")
            chain = "def g(n):\n    try:\n        if n: g(n-1)\n        else: 1/0\n    except Exception as e:\n        raise ValueError(n) from e\n"
            await s.run(chain)
            frames = "def deep(n):\n    return 1/0 if n==0 else deep(n-1)\n"
            await s.run(frames)
            await s.run("\n".join(f"def h{i}(n): return 1/0 if {i}==0 else h{max(i - 1, 0)}(n)" for i in range(50)))
            big = "\n".join(f"x{i} = {i}" for i in range(2000)) + "\n1/0"
            for name, code in (
                ("recursion", "f(0)"),
                ("chain 50", "g(50)"),
                ("50 frames", "deep(50)"),
                ("50 distinct", "h49(1)"),
                ("2000 lines", big),
                ("simple", "1/0"),
                ("ok", "1"),
            ):
                ts = []
                for _ in range(5):
                    t = time.perf_counter()
                    r = await s.run(code)
                    ts.append((time.perf_counter() - t) * 1000)
                print(name, [round(t, 1) for t in ts], len(r.error.traceback) if r.error else 0)


asyncio.run(main())
