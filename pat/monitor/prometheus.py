"""A monitor's findings as gauges in Prometheus' text format, for node_exporter's textfile collector."""

from __future__ import annotations

from pat.monitor.drift import KINDS
from pat.monitor.result import OUTPUTS, Monitored

HOW_TO_GET = "--prometheus needs prometheus-client: pip install 'pat-deepspeed[monitor]'"


def check_installed() -> None:
    """ValueError where prometheus-client is missing."""
    try:
        import prometheus_client as _  # noqa: F401
    except ImportError:
        raise ValueError(HOW_TO_GET) from None


def text(found: Monitored) -> bytes:
    """The file's content, by prometheus-client's own `generate_latest`; labels hold names and few kinds of
    outputs, never prompts."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, said: str, *labels: str) -> Gauge:
        return Gauge(f"pat_monitor_{name}", said, ("model", *labels), registry=registry)

    model = found.against
    gauge("alerts", "Checks that raise an alert").labels(model).set(len(found.alerts))
    gauge("last_run_timestamp_seconds", "When pat monitor ran").labels(model).set(found.time_s)
    gauge("rows", "Requests that were looked at").labels(model).set(found.rows)
    gauge("alpha", "Probability of any alert where nothing has changed").labels(model).set(found.alpha)
    of_check = ("group", "check")
    alert = gauge("alert", "1: the check raises an alert", *of_check)
    p = gauge("p_value", "Of the check, corrected for their number (Holm)", *of_check)
    distance = gauge("distance", "How far apart then and now are: the statistic of the check's test", *of_check)
    value = gauge("value", "What the check compares", *of_check, "figure", "when")
    for check in found.checks:
        labels = (model, check.group, check.name)
        alert.labels(*labels).set(check.alert)
        p.labels(*labels).set(check.p_adjusted)
        distance.labels(*labels).set(check.found.statistic)
        if check.group == OUTPUTS and len(check.figures) > KINDS:
            continue  # what the model put out, without bound
        for name, (then, now) in check.figures.items():
            value.labels(*labels, name, "then").set(then)
            value.labels(*labels, name, "now").set(now)
    if (replayed := found.replayed) is not None:
        gauge("replayed_prompts", "Prompts asked of both models").labels(model).set(replayed.prompts)
        gauge("regressive_prompts", "Right in the dense model, wrong in this").labels(model).set(replayed.regressive)
        if replayed.agreement is not None:
            gauge("agreement", "Share of replayed prompts with the same output").labels(model).set(replayed.agreement)
    return generate_latest(registry)
