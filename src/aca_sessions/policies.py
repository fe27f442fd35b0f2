"""The policy of the embedded sandbox, made from the settings."""

from typing import TYPE_CHECKING

from .errors import ConfigurationError
from .settings import LimitsSettings, PackagesSettings, Settings, TogetherSettings

if TYPE_CHECKING:
    from .sandbox.policy import Limits, Network, PackageSource, Policy, Together


def policy_of(settings: Settings) -> "Policy":
    """Return the policy of embedded sessions: limits, network, mounts, packages and isolation."""
    from .sandbox.policy import Mount, Policy

    options = settings.Sandbox
    return Policy(
        limits=_limits(options.Limits),
        together=_together(options.Together),
        network=_network(options.Network),
        mounts=tuple(Mount(mount.Host, mount.Guest, mount.Shared) for mount in options.Mounts),
        packages=packages_of(settings.Packages),
        python=_python(settings),
        preload=options.Preload,
        spares=options.Spares,
        tenant=options.Tenant,
        isolation=options.Isolation,
        image=settings.ContainerImage or None,
    )


def _python(settings: Settings) -> str | None:
    from .sandbox.named_environments import python_of

    python, environment = settings.Sandbox.Python, settings.Sandbox.Environment
    if python is not None and environment is not None:
        raise ConfigurationError("ACASessions:Sandbox:Python and ACASessions:Sandbox:Environment contradict each other: keep one")
    if settings.ContainerImage and environment is not None:
        raise ConfigurationError("ACASessions:ContainerImage and ACASessions:Sandbox:Environment contradict each other: keep one")
    return python if environment is None else python_of(environment)


def packages_of(options: PackagesSettings) -> "PackageSource":
    """Return the source of packages for embedded sessions."""
    from .sandbox.policy import MB, PackageSource

    return PackageSource(
        index_url=options.IndexUrl.get_secret_value() if options.IndexUrl else None,
        wheels=options.WheelFolder,
        cache=options.CacheFolder,
        cache_size=options.CacheMegabytes * MB,
    )


def _together(options: TogetherSettings) -> "Together":
    from .sandbox.policy import Together

    return Together(memory_share=options.MemoryShare, processes=options.Processes, cpu_weight=options.CpuWeight)


def _network(words: tuple[str, ...]) -> "Network":
    from .sandbox.policy import Network

    match words:
        case ("none",):
            return Network.none()
        case ("host",):
            return Network.host()
    return Network.allow(*words)


def _limits(options: LimitsSettings) -> "Limits":
    from .sandbox.policy import KB, MB, Limits

    return Limits(
        memory=options.MemoryMegabytes * MB,
        disk=options.DiskMegabytes * MB,
        temporary=options.TemporaryMegabytes * MB,
        processes=options.Processes,
        open_files=options.OpenFiles,
        cpu=options.Cpu,
        cell_timeout=options.CellTimeoutSeconds,
        output=options.OutputKilobytes * KB,
        history=options.History,
        checkpoints=options.Checkpoints,
        checkpoint_files=options.CheckpointMegabytes * MB,
    )
