"""PromQL from metrics of the table: a name that is not there cannot be asked for."""

from tandem.metrics import Metric

INTERVAL = "$__rate_interval"


def selector(metric: Metric, suffix: str = "", **matches: str) -> str:
    """`name{label=~"..."}`; a value that begins with `!` is one to leave out."""
    unknown = set(matches) - set(metric.labels) - {"le"}
    assert not unknown, f"{metric.name} has no label {unknown}"
    parts = [
        f'{label}!~"{value[1:]}"' if value.startswith("!") else f'{label}=~"{value}"'
        for label, value in matches.items()
    ]
    return metric.name + suffix + ("{" + ",".join(parts) + "}" if parts else "")


def rate(metric: Metric, by: str = "", *, window: str = INTERVAL, **matches: str) -> str:
    """Per second, summed by labels."""
    assert metric.kind == "counter", metric.name
    return _sum(f"rate({selector(metric, **matches)}[{window}])", by)


def increase(metric: Metric, by: str = "", *, window: str, **matches: str) -> str:
    """How much it grew over a window, summed by labels."""
    assert metric.kind == "counter", metric.name
    return _sum(f"increase({selector(metric, **matches)}[{window}])", by)


def total(metric: Metric, by: str = "", **matches: str) -> str:
    """A gauge, summed by labels."""
    assert metric.kind == "gauge", metric.name
    return _sum(selector(metric, **matches), by)


def gauge(metric: Metric, **matches: str) -> str:
    """A gauge as it is."""
    assert metric.kind == "gauge", metric.name
    return selector(metric, **matches)


def quantile(share: float, metric: Metric, by: str = "", **matches: str) -> str:
    """A quantile of a histogram over the panel's interval."""
    assert metric.kind == "histogram", metric.name
    labels = ", ".join(("le", *([by] if by else [])))
    buckets = selector(metric, "_bucket", **matches)
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({buckets}[{INTERVAL}])))"


def mean(metric: Metric, **matches: str) -> str:
    """Mean of a histogram over the panel's interval."""
    assert metric.kind == "histogram", metric.name
    parts = [
        f"sum(rate({selector(metric, suffix, **matches)}[{INTERVAL}]))"
        for suffix in ("_sum", "_count")
    ]
    return " / ".join(parts)


def buckets(metric: Metric, **matches: str) -> str:
    """Buckets for a heat map."""
    return f"sum by (le) (rate({selector(metric, '_bucket', **matches)}[{INTERVAL}]))"


def _sum(query: str, by: str) -> str:
    return f"sum by ({by}) ({query})" if by else f"sum({query})"
