"""Give the working directory another name, which is a link to it and which `%pwd`, shells and `ls` show.

Do nothing if the link is missing.
"""

import os


def main(user: dict, name: str) -> None:
    """Change the environment and a magic, but no variable. `os.getcwd()` stays as it is, because the kernel resolves links (getcwd(3))."""
    folder = os.path.realpath(name)
    if folder == name or not os.path.isdir(folder):
        return
    if folder == os.getcwd():
        os.environ["PWD"] = name  # a shell keeps a name that leads to its directory (POSIX, "sh")
    os.environ["BASH_FUNC_ls%%"] = '() { command ls -H "$@"; }'  # noqa: SIM112 - ls -l shows a link and not its files

    def pwd(line: str = "") -> str:
        """Return the working directory."""
        current = os.getcwd()
        return name + current[len(folder) :] if f"{current}/".startswith(f"{folder}/") else current

    user["get_ipython"]().register_magic_function(pwd, "line", "pwd")
