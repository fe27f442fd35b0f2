"""`aca-sessions serve --metrics`: the numbers of OpenTelemetry's instruments in Prometheus's text format."""

from collections.abc import Callable

from opentelemetry import metrics

from ..errors import ConfigurationError


def prometheus() -> Callable[[], bytes]:
    """Start to collect the numbers. Return a function that returns their current values as text.

    Raise ConfigurationError if packages are missing or OpenTelemetry sends metrics elsewhere already.
    """
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import REGISTRY, generate_latest
    except ImportError:
        raise ConfigurationError("serve --metrics needs more packages: pip install 'aca-sessions[metrics]'") from None
    if isinstance(metrics.get_meter_provider(), MeterProvider):
        raise ConfigurationError("OpenTelemetry is configured to send metrics elsewhere already: leave --metrics out")
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
    return lambda: generate_latest(REGISTRY)
